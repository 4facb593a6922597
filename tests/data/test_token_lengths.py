"""Token lengths and truncation, against the tokeniser's own untruncated output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from qlassify.data.corpus import ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.findings import INFO, WARNING
from qlassify.data.token_lengths import TokenLengths, token_lengths
from qlassify.data.tokenise import TextEncoder


def word_tokenizer(*, special: bool) -> PreTrainedTokenizerFast:
    """One token a word; with two special tokens around every text, or none."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **{f"w{n}": n + 3 for n in range(50)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[\x00-\x1f]"), " ")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if special:
        ends = [("[CLS]", 1), ("[SEP]", 2)]
        backend.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def dataset_of(folder: Path, rows: list[tuple[str, object]], **options: bool) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    corpus = read_corpus(path, ReadOptions(**options))
    return build_dataset(corpus, corpus, None, fraction=0.1, seed=0)


def measured(dataset: Dataset, *, max_length: int, special: bool = True) -> TokenLengths:
    tokenizer = word_tokenizer(special=special)
    encoded = TextEncoder(tokenizer, max_length).encode(dataset.train.corpus.texts)
    special_tokens = tokenizer.num_special_tokens_to_add()
    return token_lengths("train", dataset.train, encoded, dataset.labels, special_tokens=special_tokens)


def text(num_words: int) -> str:
    return " ".join(f"w{n % 50}" for n in range(num_words))


@pytest.mark.parametrize("special", [True, False])
def test_percentiles_are_of_whole_texts(tmp_path: Path, special: bool) -> None:
    generator = np.random.default_rng(1)
    sizes = generator.integers(2, 40, 200)
    dataset = dataset_of(tmp_path, [(text(size), "ab"[size % 2]) for size in sizes])
    found = measured(dataset, max_length=16, special=special)
    lengths = np.sort(sizes + (2 if special else 0))
    # The least length within which that share of the rows lies.
    wanted = {rank: int(lengths[int(np.ceil(rank / 100 * len(lengths))) - 1]) for rank in (50, 90, 95, 99)}
    assert found.percentiles == wanted
    assert found.longest == lengths[-1]
    cut = lengths[lengths > 16]
    truncation = found.truncation
    assert (truncation.max_length, truncation.rows) == (16, len(cut))
    assert truncation.lost_tokens == int((cut - 16).sum())
    for name, parity in (("a", 0), ("b", 1)):
        of_label = sizes[sizes % 2 == parity] + (2 if special else 0)
        assert truncation.by_label[name] == (int((of_label > 16).sum()), len(of_label))


def test_truncation_is_told_by_label(tmp_path: Path) -> None:
    rows = [(text(30), "long")] * 5 + [(text(3), "short")] * 15
    found = measured(dataset_of(tmp_path, rows), max_length=20)
    assert found.truncation.side == "end"
    assert found.truncation.by_label == {"long": (5, 5)}
    [finding] = found.findings()
    assert finding.severity == WARNING
    assert finding.what == (
        "5 of 20 (25.0 %) training texts are cut at 20 tokens and lose their end, 60 tokens in all; "
        "by label: 'long' 100 %."
    )
    assert "32 tokens" in finding.do
    json.dumps(found.as_dict())


def test_a_single_cut_text_is_no_warning(tmp_path: Path) -> None:
    rows = [(text(30), "a")] + [(text(3), "b")] * 150
    [finding] = measured(dataset_of(tmp_path, rows), max_length=20).findings()
    assert finding.severity == INFO


@pytest.mark.parametrize("special", [True, False])
def test_texts_of_one_token_and_of_none(tmp_path: Path, special: bool) -> None:
    rows = [("w1", "a"), ("", "a"), ("w1 w2", "b"), ("\x01\x02", "a"), ("w3", "b"), ("w1 w2 w3", "a")]
    found = measured(dataset_of(tmp_path, rows), max_length=8, special=special)
    # Row 2 is blank and rejected; of row 4 the tokeniser makes nothing.
    assert (found.no_token_rows, found.num_no_token) == ((4,), 1)
    assert (found.one_token_rows, found.num_one_token) == ((1, 5), 2)
    assert found.one_token_texts == ("w1", "w3")
    nothing, single = found.findings()
    assert nothing.what == "1 training text comes to no token: row 4."
    assert single.what == "2 training texts are single tokens: 'w1', 'w3'."


def test_labels_of_rows_that_have_several(tmp_path: Path) -> None:
    rows = [(text(30), ["a", "b"]), (text(3), ["b"]), (text(2), [])]
    found = measured(dataset_of(tmp_path, rows), max_length=20)
    assert found.truncation.by_label == {"a": (1, 1), "b": (1, 2)}
