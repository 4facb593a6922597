"""The tokeniser of a GGUF file: beside it, named, or built from its metadata; the ids are those of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import transformers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from qlassify.data.tokenise import TextEncoder
from qlassify.errors import ModelError
from qlassify.models.gguf_tokenizer import find_gguf_tokenizer
from qlassify.models.source import resolve
from tiny_gguf import write_gguf
from tiny_jobs import save_tokenizer
from tiny_models import save_tiny_model
from tiny_tokenizers import SPECIAL, TEXTS, byte_level, merges_of, tokens_of

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_scaling": None, "dtype": "float32"}


def said_of(tokenizer: tokenizers.Tokenizer, rule: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of a tokeniser of bytes."""
    vocabulary, tokens = tokenizer.get_vocab(), tokens_of(tokenizer)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": merges_of(tokenizer),
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": vocabulary["<|endoftext|>"],
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Qwen2 for 330 tokens."""
    root = tmp_path_factory.mktemp("tokens")
    return save_tiny_model("qwen2", root / "qwen2", vocab_size=330, use_sliding_window=False, **ROPE)


def test_a_tokeniser_of_bytes_is_built(base: Path, tmp_path: Path) -> None:
    original = byte_level(320, PRETOKENIZE_REGEX, composing=True)
    path = write_gguf(base, tmp_path / "m.gguf", more=said_of(original, "qwen2"))
    encoder = TextEncoder.load(resolve(str(path)).tokenizer_files(), 512)
    encoded = encoder.encode(TEXTS)
    for number, text in enumerate(TEXTS):
        assert encoded.row(number).tolist() == original.encode(text).ids
    assert encoder.tokenizer.pad_token == "<|endoftext|>"
    assert encoder.tokenizer.eos_token == "<|im_end|>"
    whole = "<|im_start|>dog<|im_end|>"
    assert encoder.encode([whole]).row(0).tolist() == original.encode(whole).ids
    encoder.save(tmp_path / "saved")
    again = TextEncoder.load(tmp_path / "saved", 512).encode(TEXTS)
    assert again.token_ids.tolist() == encoded.token_ids.tolist()


@pytest.mark.parametrize(("said", "begins"), [({}, True), ({"tokenizer.ggml.add_bos_token": False}, False)])
def test_texts_of_llama_3_begin_with_a_token(said: dict[str, Any], begins: bool, tmp_path: Path) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    save_tiny_model("llama", tmp_path / "llama", vocab_size=330, **ROPE)
    original = byte_level(320, GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"])
    original.model.ignore_merges = True
    first = original.get_vocab()["<|endoftext|>"]
    more = said_of(original, "llama-bpe") | {"tokenizer.ggml.bos_token_id": first} | said
    files = find_gguf_tokenizer(write_gguf(tmp_path / "llama", tmp_path / "m.gguf", more=more))
    encoded = TextEncoder.load(files, 512).encode(TEXTS)
    for number, text in enumerate(TEXTS):
        assert encoded.row(number).tolist() == [first] * begins + original.encode(text).ids


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghilmnoprstuw"]
MERGED = ["▁d", "og", "▁a", "▁dog", "pp", "le", "apple", "▁t", "he", "▁the", "▁an"]


def sentencepiece() -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece vocabulary: earlier pieces have higher scores."""
    tokens = PIECES + MERGED
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parity
def test_sentencepiece_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """But for texts that begin with a space, to which its tokeniser adds none, and the model's own does."""
    save_tiny_model("llama", tmp_path / "llama", vocab_size=len(PIECES + MERGED), **ROPE)
    path = write_gguf(tmp_path / "llama", tmp_path / "m.gguf", more=sentencepiece() | {"general.name": "m"})
    encoder = TextEncoder.load(find_gguf_tokenizer(path), 512)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="m.gguf")
    for text in ("the dog and an apple", "the  dog", "größer", ""):
        assert encoder.encode([text]).row(0).tolist() == theirs(text)["input_ids"], text
    names = PIECES + MERGED
    for text, wanted in (("the dog", ["▁the", "▁dog"]), (" the  dog", ["▁", "▁the", "▁", "▁dog"])):
        assert [names[one] for one in encoder.encode([text]).row(0)] == ["<s>", *wanted]


@pytest.mark.parametrize(("folder", "architecture"), [("tinyllama-1.1b", "llama"), ("phi-3-mini", "phi3")])
def test_published_sentencepiece_is_the_models_own(
    folder: str, architecture: str, shared_folder: Path, tmp_path: Path
) -> None:
    """As llama.cpp's converter writes it: scores are ranks, but those of pieces that are all spaces."""
    published = shared_folder / "models" / folder / "tokenizer.json"
    if not published.is_file():
        pytest.skip(f"needs {published.name} of {folder}")
    said = json.loads(published.read_text(encoding="utf-8"))
    added = {one["content"]: one for one in said["added_tokens"]}
    vocabulary = said["model"]["vocab"] | {token: one["id"] for token, one in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), architecture)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1e9 if set(token) == {"▁"} else -max(n - 259.0, 0.0) for n, token in enumerate(tokens)])
    kinds = {token: 3 if one["special"] else 4 for token, one in added.items()}
    writer.add_token_types([6 if token.startswith("<0x") else kinds.get(token, 1) for token in tokens])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_unk_token_id(vocabulary["<unk>"])
    writer.add_add_bos_token(architecture == "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    original = tokenizers.Tokenizer.from_file(str(published))
    encoder = TextEncoder.load(find_gguf_tokenizer(tmp_path / "m.gguf"), 512)
    more = ("  two  spaces\n\n\nand\ttabs", "def f(x):\n    return x**2  # it's", " leading", "trailing  ", "½ ² ﬁ 😀")
    for text in (*TEXTS, *more):
        assert encoder.encode([text]).row(0).tolist() == original.encode(text).ids, text


def test_what_lies_beside_goes_first_and_what_is_named_before_it(base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, tmp_path / "m.gguf", more=said_of(byte_level(320, PRETOKENIZE_REGEX), "qwen2"))
    save_tokenizer(tmp_path / "words")
    words = TextEncoder.load(tmp_path / "words", 512).encode(TEXTS).token_ids.tolist()
    for given in (tmp_path / "words", tmp_path / "words" / "tokenizer.json"):
        found = TextEncoder.load(find_gguf_tokenizer(path, given), 512)
        assert found.encode(TEXTS).token_ids.tolist() == words
    (tmp_path / "m.tokenizer.json").write_bytes((tmp_path / "words" / "tokenizer.json").read_bytes())
    found = TextEncoder.load(find_gguf_tokenizer(path), 512)
    assert found.encode(TEXTS).token_ids.tolist() == words
    assert found.tokenizer.pad_token == "<|endoftext|>"  # the file's metadata says so, beside a tokenizer.json without


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
        ({"tokenizer.ggml.model": "rwkv"}, "kind 'rwkv'"),
        ({"tokenizer.ggml.pre": "of tomorrow"}, "rule for splitting text that is not known, 'of tomorrow'"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}, "no space before a text"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, "a vocabulary that is not built"),
        ({"tokenizer.ggml.tokens": ["a", "a", "b"]}, "vocabulary"),
        ({"tokenizer.ggml.merges": ["x y", "no", "a b c"]}, "no tokeniser can be built"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said_with_every_place(
    said: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    more = said_of(byte_level(320, PRETOKENIZE_REGEX), "qwen2") | said
    path = write_gguf(base, tmp_path / "m.q4.gguf", more=more)
    with pytest.raises(ModelError, match=words) as caught:
        find_gguf_tokenizer(path)
    for name in ("m.q4.tokenizer.json", "m.tokenizer.json", "tokenizer.json"):
        assert str(tmp_path / name) in str(caught.value)


def test_a_file_without_a_vocabulary(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokeniser for the model"):
        find_gguf_tokenizer(write_gguf(base, tmp_path / "m.gguf"))
