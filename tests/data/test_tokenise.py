"""Tokenising gives the ids of the Hugging Face tokeniser's own call, and counts every token that it cuts off.

The tokenisers are published ones where they lie beside the repository: WordPiece with truncation baked into its file,
byte-level BPE with and without special tokens, SentencePiece-style BPE. A small word tokeniser, made here, covers what
needs no real vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from qlassify.data import tokenise
from qlassify.data.tokenise import TextEncoder
from qlassify.errors import ModelError
from qlassify.models.source import resolve
from tiny_jobs import save_tokenizer

NAMES = [
    "bert-base-uncased",
    "distilbert-base-uncased",
    "gpt2",
    "roberta-base",
    "tinyllama-1.1b",
    "phi-3-mini",
    "modernbert-base",
    "qwen2-0.5b",
]

TEXTS = [
    "How do I reset my PIN?",
    "  two  spaces, a tab\tand a\nline  ",
    "naïve café ΑΒΓ 東京 العربية",
    "emoji 👩‍👩‍👧 and a 👍🏽, twice 👍🏽",
    "rm -rf / --no-preserve-root; echo $? && ls | wc -l",
    "[CLS] looks special [SEP], and so does </s> or <|endoftext|>",
    "a",
    "antidisestablishmentarianism " * 40,
    "0123456789 3.14159 1e-4 $1,000.00",
    "",
    "\u200b",
    "x" * 300,
]
PAIRS = ["and a second text 👍🏽"] * 3 + ["word " * n for n in (1, 5, 40, 90, 3, 2, 7)] + ["", "é" * 50]


@pytest.fixture(scope="module")
def word_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    save_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return directory


@pytest.mark.parametrize("model_type", ["bert", "qwen2", "llama", "gpt2", "modernbert"])
def test_tokenizer_json_is_taken_as_it_is(model_type: str, word_directory: Path, tmp_path: Path) -> None:
    """transformers builds Qwen2's own tokeniser whatever the file holds, and every text came to nothing."""
    shutil.copytree(word_directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    wanted = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "the very dog under an apple"
    assert TextEncoder.load(tmp_path, 64).encode([text]).row(0).tolist() == wanted.encode(text).ids
    assert len(wanted.encode(text).ids) == 8


@pytest.fixture(scope="module")
def folders(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory with a ``tokenizer.json`` of each name; one was published under another name."""
    found = {}
    for name in NAMES:
        source = shared_folder / "models" / name
        found[name] = source
        if not (source / "tokenizer.json").is_file():
            found[name] = tmp_path_factory.mktemp(name)
            shutil.copytree(source, found[name], dirs_exist_ok=True)
            shutil.copy(source / "tokenizer.generated.json", found[name] / "tokenizer.json")
    return found


_LOADED: dict[tuple[str, int], TextEncoder] = {}


@pytest.fixture(params=NAMES)
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    """A function from a maximal length to the named tokeniser's encoder."""

    def load(max_length: int) -> TextEncoder:
        key = (request.param, max_length)
        if key not in _LOADED:
            first = next((one for (name, _), one in _LOADED.items() if name == request.param), None)
            _LOADED[key] = (
                TextEncoder(first.tokenizer, max_length)
                if first is not None
                else TextEncoder.load(folders[request.param], max_length)
            )
        return _LOADED[key]

    return load


def own_call(encoder: TextEncoder, texts: list[str], pairs: list[str] | None, **options: Any) -> Any:
    """What the Hugging Face tokeniser says; a fresh call each, because truncation settings stick to it."""
    return encoder.tokenizer(texts, pairs, return_token_type_ids=True, **options)


MAX_LENGTH = 24


@pytest.mark.parity
def test_single_texts_equal_the_tokenisers_own_call(encoder: Any) -> None:
    one = encoder(MAX_LENGTH)
    encoded = one.encode(TEXTS)
    wanted = own_call(one, TEXTS, None, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    for index, ids in enumerate(wanted):
        assert encoded.row(index).tolist() == (ids or [one.fallback_token_id]), TEXTS[index]
    assert encoded.token_type_ids is None
    assert encoded.num_empty == sum(not ids for ids in wanted)
    assert encoded.lengths.max() <= MAX_LENGTH


@pytest.mark.parity
def test_pairs_equal_the_tokenisers_own_call(encoder: Any) -> None:
    one = encoder(MAX_LENGTH)
    encoded = one.encode(TEXTS, PAIRS)
    wanted = own_call(one, TEXTS, PAIRS, truncation="longest_first", max_length=MAX_LENGTH)
    for index, ids in enumerate(wanted["input_ids"]):
        assert encoded.row(index).tolist() == (ids or [one.fallback_token_id]), (TEXTS[index], PAIRS[index])
    if one.wants_token_types:
        assert encoded.token_type_ids is not None
        flat = [kind for ids, kinds in zip(*_columns(wanted), strict=True) for kind in (kinds if ids else [0])]
        assert encoded.token_type_ids.tolist() == flat
        assert set(flat) == {0, 1}
    else:
        assert encoded.token_type_ids is None


def _columns(wanted: Any) -> tuple[list[list[int]], list[list[int]]]:
    return wanted["input_ids"], wanted["token_type_ids"]


def test_segments_are_for_those_who_know_them(folders: dict[str, Path]) -> None:
    wanting = {name: TextEncoder.load(folders[name], 16).wants_token_types for name in NAMES}
    assert wanting["bert-base-uncased"]
    assert not any(wanting[name] for name in ("gpt2", "roberta-base", "modernbert-base", "qwen2-0.5b"))


@pytest.mark.parametrize("paired", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("max_length", [8, 24, 100])
def test_every_lost_token_is_counted(encoder: Any, paired: bool, max_length: int) -> None:
    """Full length minus kept length, row by row; nothing else is what was lost."""
    one = encoder(max_length)
    pairs = PAIRS if paired else None
    encoded = one.encode(TEXTS, pairs)
    full = [len(ids) for ids in own_call(one, TEXTS, pairs, truncation=False)["input_ids"]]
    kept = [
        len(ids) for ids in own_call(one, TEXTS, pairs, truncation="longest_first", max_length=max_length)["input_ids"]
    ]
    assert encoded.lost_tokens.tolist() == [a - b for a, b in zip(full, kept, strict=True)]
    assert encoded.num_truncated == sum(a > b for a, b in zip(full, kept, strict=True)) > 0


def test_truncation_in_the_file_does_not_count_as_ours(folders: dict[str, Path]) -> None:
    """bert-base-uncased's file cuts at 512 by itself; a longer maximum must win over it."""
    text = "word " * 700
    encoded = TextEncoder.load(folders["bert-base-uncased"], 1000).encode([text])
    assert encoded.lengths.tolist() == [702]
    assert encoded.num_truncated == 0


@pytest.mark.parametrize("paired", [False, True], ids=["texts", "pairs"])
def test_the_users_tokeniser_is_not_changed(folders: dict[str, Path], paired: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folders["bert-base-uncased"]))
    before = tokenizer.backend_tokenizer.to_str()
    TextEncoder(tokenizer, 6).encode(TEXTS, PAIRS if paired else None)
    assert tokenizer.backend_tokenizer.to_str() == before


# With the small word tokeniser


def test_what_is_kept_and_what_is_lost_by_hand(word_directory: Path) -> None:
    """Six tokens: the two special ones and four words."""
    encoded = TextEncoder.load(word_directory, 6).encode(["dog cat", "dog cat cow goat horse apple", "zebra"])
    assert encoded.lengths.tolist() == [4, 6, 3]
    assert encoded.lost_tokens.tolist() == [0, 2, 0]
    assert encoded.num_truncated == 1
    assert encoded.token_ids.dtype == np.int32
    assert encoded.offsets.tolist() == [0, 4, 10, 13]
    assert encoded.num_tokens == 13


def test_a_pair_is_cut_at_its_longer_side(word_directory: Path) -> None:
    encoder = TextEncoder.load(word_directory, 9)
    encoded = encoder.encode(["dog cat"], ["apple pear plum grape fig saw"])
    words = encoder.tokenizer.convert_ids_to_tokens(encoded.row(0).tolist())
    assert words == ["[CLS]", "dog", "cat", "[SEP]", "apple", "pear", "plum", "grape", "[SEP]"]
    assert encoded.token_type_ids is not None
    assert encoded.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert encoded.lost_tokens.tolist() == [2]


def test_a_pair_in_which_both_sides_are_cut(word_directory: Path) -> None:
    encoded = TextEncoder.load(word_directory, 7).encode(["dog cat cow goat"], ["apple pear plum grape fig"])
    assert encoded.lengths.tolist() == [7]
    assert encoded.lost_tokens.tolist() == [5]


def test_a_text_without_tokens_is_one_unknown_token(shared_folder: Path) -> None:
    """GPT-2 adds no special tokens, so nothing comes of nothing; its fallback is its unknown token."""
    encoder = TextEncoder.load(shared_folder / "models" / "gpt2", 8)
    encoded = encoder.encode(["", "a dog", ""])
    assert encoded.num_empty == 2
    assert encoded.row(0).tolist() == encoded.row(2).tolist() == [encoder.fallback_token_id]
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.fallback_token_id) == "<|endoftext|>"
    pair = encoder.encode(["", "a"], ["", "b"])
    assert pair.num_empty == 1
    assert pair.lengths.min() == 1


def test_special_tokens_alone_are_not_nothing(word_directory: Path) -> None:
    encoded = TextEncoder.load(word_directory, 8).encode([""])
    assert (encoded.num_empty, encoded.lengths.tolist()) == (0, [2])


@pytest.mark.parametrize("paired", [False, True], ids=["texts", "pairs"])
def test_chunks_change_nothing(word_directory: Path, monkeypatch: pytest.MonkeyPatch, paired: bool) -> None:
    encoder = TextEncoder.load(word_directory, 7)
    texts = [" ".join(["dog", "cat", "cow", "saw", "axe", "fig"][: n % 7]) for n in range(23)]
    pairs = list(reversed(texts)) if paired else None
    whole = encoder.encode(texts, pairs)
    done: list[int] = []
    monkeypatch.setattr(tokenise, "CHUNK_ROWS", 5)
    parts = encoder.encode(texts, pairs, progress=done.append)
    assert done == [5, 10, 15, 20, 23]
    for name in ("token_ids", "offsets", "token_type_ids", "lost_tokens"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert whole.num_empty == parts.num_empty


def test_no_texts(word_directory: Path) -> None:
    encoded = TextEncoder.load(word_directory, 7).encode([])
    assert (len(encoded), encoded.num_tokens, encoded.num_truncated) == (0, 0, 0)


def test_saved_and_loaded_it_gives_the_same_ids(word_directory: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(word_directory, 7)
    encoder.save(tmp_path)
    again = TextEncoder.load(tmp_path, 7)
    texts = ["dog cat cow goat horse apple pear", "a saw", ""]
    assert again.encode(texts).token_ids.tolist() == encoder.encode(texts).token_ids.tolist()


def test_a_directory_without_a_tokeniser_is_refused(tmp_path: Path) -> None:
    """An architecture's own tokeniser class makes one without a vocabulary, to which every word is unknown."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError) as caught:
        TextEncoder.load(tmp_path, 8)
    assert caught.value.where == str(tmp_path)


def test_a_tokeniser_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError) as caught:
        TextEncoder.load(tmp_path, 8)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "bert", "gpt2"])
@pytest.mark.parametrize("named", [True, False])
def test_another_algorithm_than_the_model_s_kind_has_is_kept(kind: str, named: bool, tmp_path: Path) -> None:
    """WordPiece beside an architecture whose own tokeniser is not: transformers would build that one from its words."""
    source = resolve("minilm").directory
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    if named:
        shutil.copyfile(source / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    whole = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    encoded = TextEncoder.load(tmp_path, 512).encode(TEXTS[:8])
    for index, text in enumerate(TEXTS[:8]):
        assert encoded.row(index).tolist() == whole.encode(text).ids
