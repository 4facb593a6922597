"""From corpora to labelled parts: nothing is lost without a number, and leaks are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset, label_rows
from qlassify.data.labels import LabelMap
from qlassify.data.split import normalised_text
from qlassify.errors import DataError

Write = Callable[[str, str | bytes], Path]

TRAIN = [(f"text number {number}", "abc"[number % 3]) for number in range(30)]


def corpus(write: Write, name: str, rows: list[tuple[str, ...]], header: str = "text,label") -> Corpus:
    return read_corpus(write(name, "\n".join([header, *(",".join(row) for row in rows)]) + "\n"))


def build(train: Corpus, validation: Corpus | None = None, test: Corpus | None = None) -> Dataset:
    return build_dataset(train, validation, test, fraction=0.2, seed=5)


def test_a_share_is_held_out_of_the_training_file(write: Write) -> None:
    dataset = build(corpus(write, "train.csv", TRAIN))
    assert dataset.labels == LabelMap(("a", "b", "c"), multi_label=False)
    assert list(dataset.parts()) == ["train", "validation"]
    assert (len(dataset.train), len(dataset.validation)) == (24, 6)
    both = [*dataset.train.corpus.texts, *dataset.validation.corpus.texts]
    assert sorted(both) == sorted(text for text, _ in TRAIN)
    assert np.bincount(dataset.validation.targets).tolist() == [2, 2, 2], "stratified"
    assert dataset.test is None


def test_targets_stand_beside_their_texts(write: Write) -> None:
    dataset = build(corpus(write, "train.csv", TRAIN))
    wanted = dict(TRAIN)
    for part in dataset.parts().values():
        names = [dataset.labels.names[target] for target in part.targets]
        assert names == [wanted[text] for text in part.corpus.texts] == [one[0] for one in part.corpus.labels]
        assert [TRAIN[row - 1][0] for row in part.corpus.rows] == list(part.corpus.texts), "row numbers go along"


def test_the_split_is_the_seeds(write: Write) -> None:
    train = corpus(write, "train.csv", TRAIN)
    rows = [build_dataset(train, None, None, fraction=0.2, seed=seed).validation.corpus.rows for seed in (5, 5, 6)]
    assert rows[0] == rows[1] != rows[2]


def test_repeated_texts_never_straddle_the_split(write: Write) -> None:
    rows = [*TRAIN, *[(text.upper(), label) for text, label in TRAIN[:15]]]
    dataset = build(corpus(write, "train.csv", rows))
    parts = [{normalised_text(text) for text in part.corpus.texts} for part in dataset.parts().values()]
    assert parts[0] & parts[1] == set()
    assert any("30 rows share their text" in note for note in dataset.notes)


def test_leaks_are_counted_and_kept(write: Write) -> None:
    train = corpus(write, "train.csv", TRAIN)
    validation = corpus(write, "dev.csv", [("TEXT  number 0", "a"), ("new", "b"), ("text number 4", "c")])
    test = corpus(write, "test.csv", [("text number 1", "b"), ("newer", "c")])
    dataset = build(train, validation, test)
    assert (len(dataset.train), len(dataset.validation)) == (30, 3)
    assert dataset.test is not None
    assert len(dataset.test) == 2
    assert [note for note in dataset.notes if "also stand" in note] == [
        "2 of 3 validation texts also stand in the training rows; they are kept and scored.",
        "1 of 2 test texts also stand in the training rows; they are kept and scored.",
    ]


def test_test_texts_that_chose_the_weights_are_counted_too(write: Write) -> None:
    """Rows that are held out of the training file select the weights: a test text among them is a leak as well."""
    train = corpus(write, "train.csv", TRAIN)
    dataset = build(train, None, corpus(write, "test.csv", [*TRAIN, ("new", "a")]))
    leaks = [note for note in dataset.notes if "test texts also stand" in note]
    known = {*dataset.train.corpus.texts, *dataset.validation.corpus.texts}
    assert len(known) == 30
    assert any(note.startswith("30 of 31") for note in leaks) or len(leaks) == 2


def test_labels_that_were_not_trained_are_rejected_and_counted(write: Write) -> None:
    train = corpus(write, "train.csv", TRAIN)
    dataset = build(train, corpus(write, "dev.csv", [("one", "a"), ("two", "z"), ("three", "z"), ("four", "y")]))
    assert len(dataset.validation) == 1
    assert [(one.row, one.reason) for one in dataset.validation.rejections] == [
        (2, "label not seen in training: 'z'"),
        (3, "label not seen in training: 'z'"),
        (4, "label not seen in training: 'y'"),
    ]
    file = dataset.facts()["files"][1]
    assert (file["part"], file["rows"], file["kept"]) == ("validation", 4, 1)
    assert file["rejected"] == {"label not seen in training: 'z'": 2, "label not seen in training: 'y'": 1}
    assert file["first_rejected_rows"][0] == {"row": 2, "reason": "label not seen in training: 'z'"}
    assert dataset.labels.names == ("a", "b", "c"), "labels come from the training file alone"


def test_a_reader_is_told_of_labels_that_were_not_trained(write: Write) -> None:
    """A score on a third of a file must say so where scores are read."""
    dataset = build(
        corpus(write, "train.csv", TRAIN), corpus(write, "dev.csv", [("one", "a"), ("two", "z"), ("three", "z")])
    )
    assert any("2" in note and "validation" in note for note in dataset.notes)


def test_no_known_label_at_all_is_an_error(write: Write) -> None:
    train = corpus(write, "train.csv", TRAIN)
    with pytest.raises(DataError, match="no row has labels that the classifier knows"):
        build(train, corpus(write, "dev.csv", [("one", "z"), ("two", "y")]))


@pytest.mark.parametrize("paired_first", [True, False])
def test_pairs_in_one_file_only_are_an_error(write: Write, paired_first: bool) -> None:
    single = corpus(write, "single.csv", TRAIN)
    paired = corpus(write, "pairs.csv", [(text, "second", label) for text, label in TRAIN], "sentence1,sentence2,label")
    train, other = (paired, single) if paired_first else (single, paired)
    with pytest.raises(DataError, match="one file has text pairs and the other has not") as caught:
        build(train, None, other)
    assert "pairs.csv" in (caught.value.where or "")
    assert "single.csv" in (caught.value.where or "")


def test_pairs_leak_as_pairs(write: Write) -> None:
    header = "sentence1,sentence2,label"
    train = corpus(
        write, "train.csv", [(text, f"b{index % 2}", label) for index, (text, label) in enumerate(TRAIN)], header
    )
    other = corpus(write, "dev.csv", [("text number 0", "b0", "a"), ("text number 0", "b1", "a")], header)
    dataset = build(train, other)
    assert [note for note in dataset.notes if "also stand" in note] == [
        "1 of 2 validation texts also stand in the training rows; they are kept and scored."
    ]


def test_several_labels(write: Write) -> None:
    several: list[list[str]] = [[], ["c"], ["a", "c"]]
    lines = [json.dumps({"text": f"text {number}", "labels": several[number % 3]}) for number in range(30)]
    path = write("m.jsonl", "\n".join(lines))
    dataset = build(read_corpus(path))
    assert dataset.labels == LabelMap(("a", "c"), multi_label=True)
    assert dataset.train.targets.dtype == np.float32
    facts = dataset.facts()
    assert facts["task"] == "multi_label"
    total = {name: sum(facts["label_counts"][part][name] for part in ("train", "validation")) for name in ("a", "c")}
    assert total == {"a": 10, "c": 20}


def test_the_account_balances(write: Write) -> None:
    content = "text,label\nfine,a\n,b\nfine too,b\nmore,\nagain,a\nand again,b\n"
    path = write("train.csv", content)
    dataset = build_dataset(read_corpus(path), None, None, fraction=0.5, seed=1)
    facts = dataset.facts()
    (file,) = facts["files"]
    assert (file["rows"], file["kept"]) == (6, 4)
    assert sum(file["rejected"].values()) == 2
    assert [one["row"] for one in file["first_rejected_rows"]] == [2, 4]
    assert sum(facts["rows"].values()) == 4
    assert sum(sum(counts.values()) for counts in facts["label_counts"].values()) == 4
    assert file["columns"] == {"text": "text", "text_pair": None, "label": "label"}
    assert any("2 of 6 train rows were rejected" in note for note in dataset.notes)


def test_label_rows_keeps_what_it_can(write: Write) -> None:
    labels = LabelMap(("a", "b"), multi_label=False)
    rows = label_rows(corpus(write, "x.csv", [("one", "b"), ("two", "c"), ("three", "a")]), labels)
    assert rows.corpus.texts == ("one", "three")
    assert rows.targets.tolist() == [1, 0]
    assert [one.row for one in rows.rejections] == [2]
    assert len(rows) == 2


def test_reading_options_reach_the_rows(write: Write) -> None:
    path = write("x.csv", "".join(f"text {n}|{'ab'[n % 2]}\n" for n in range(10)).replace("|", ","))
    found = read_corpus(path, ReadOptions(header=False, text="1", label="2"))
    assert len(build(found).train) == 8
