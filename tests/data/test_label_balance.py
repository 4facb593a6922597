"""Counts of labels, and two spellings of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.findings import INFO, WARNING
from qlassify.data.label_balance import LabelBalance, label_balance


@pytest.fixture
def balance(tmp_path: Path) -> Callable[..., LabelBalance]:
    """The balance of parts that are given by their labels, row by row."""

    def corpus(name: str, labels: list[object], options: ReadOptions) -> Corpus:
        key = "labels" if any(isinstance(label, list) for label in labels) else "label"
        rows = [json.dumps({"text": f"{name} text number {n}", key: label}) for n, label in enumerate(labels)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(rows))
        return read_corpus(path, options)

    def make(
        train: list[object], validation: list[object], test: list[object] | None = None, **options: bool
    ) -> LabelBalance:
        read = ReadOptions(**options)
        dataset: Dataset = build_dataset(
            corpus("train", train, read),
            corpus("validation", validation, read),
            None if test is None else corpus("test", test, read),
            fraction=0.1,
            seed=0,
        )
        return label_balance(dataset)

    return make


def test_counts_and_what_is_rare(balance: Callable[..., LabelBalance]) -> None:
    found = balance(["a"] * 40 + ["b"] * 4 + ["c"] + ["d"] * 5, ["a", "b"], ["a", "c", "d"])
    assert found.counts == {
        "train": {"a": 40, "b": 4, "c": 1, "d": 5},
        "validation": {"a": 1, "b": 1, "c": 0, "d": 0},
        "test": {"a": 1, "b": 0, "c": 1, "d": 1},
    }
    assert found.imbalance_ratio == 40
    assert (found.alone, found.few) == (("c",), ("b",))
    assert found.missing == {"validation": ("c", "d"), "test": ("b",)}
    said = [finding.what for finding in found.findings()]
    assert said == [
        "The most frequent label, 'a', has 40 training rows; the rarest, 'c', has 1 (40 to 1).",
        "1 label with fewer than 2 training rows: 'c'.",
        "1 label with 2 to 4 training rows: 'b' (4).",
        "2 labels of 4 have no validation row: 'c', 'd'.",
        "1 label of 4 has no test row: 'b'.",
    ]
    assert {finding.severity for finding in found.findings()} == {WARNING}
    json.dumps(found.as_dict())


def test_balance_is_nothing_to_speak_of(balance: Callable[..., LabelBalance]) -> None:
    found = balance(["a"] * 20 + ["b"] * 19, ["a", "b"])
    assert found.findings() == ()


@pytest.mark.parametrize("other", ["Card arrival", "card-arrival", "CARD_ARRIVAL", "card  arrival"])
def test_two_spellings_of_one_label(balance: Callable[..., LabelBalance], other: str) -> None:
    found = balance(["card_arrival"] * 6 + [other] * 5 + ["lost"] * 6, ["lost"])
    assert [set(names) for names in found.spelled_alike] == [{"card_arrival", other}]
    [spelling, *_] = found.findings()
    assert "'card_arrival' (6 rows)" in spelling.what
    assert f"{other!r} (5 rows)" in spelling.what


def test_labels_that_training_spells_otherwise(balance: Callable[..., LabelBalance]) -> None:
    found = balance(["Yes", "no"] * 5, ["yes", "yes", "no", "maybe", "Yes"])
    assert found.unknown_alike == {"validation": (("yes", "Yes", 2),)}
    [finding] = found.findings()
    assert finding.what.startswith("2 validation rows with the label 'yes' were left out; training has 'Yes'")


def test_line_ends_never_make_two_labels(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"text\tlabel\r\n" + b"".join(b"text %d\t%d\r\n" % (n, n % 2) for n in range(20)))
    found = label_balance(build_dataset(read_corpus(path), None, None, fraction=0.1, seed=0))
    assert set(found.counts["train"]) == {"0", "1"}
    assert found.spelled_alike == ()


def test_rows_without_any_label(balance: Callable[..., LabelBalance]) -> None:
    found = balance([["a"], ["b"], ["a", "b"], []] * 5, [["a", "b"], []])
    assert found.counts["train"] == {"a": 10, "b": 10}
    assert found.without_labels == {"train": 5, "validation": 1}
    said = [(finding.severity, finding.what) for finding in found.findings()]
    assert said == [(INFO, "5 training rows have no label at all."), (INFO, "1 validation row has no label at all.")]
