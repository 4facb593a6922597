"""Repeated texts against counts of a dictionary."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.findings import INFO, WARNING
from qlassify.data.repeats import RepeatCounts, distinct_texts, find_duplicates

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def corpus(write: Write) -> Callable[..., Corpus]:
    """A corpus of (text, label) rows."""

    def make(rows: list[tuple[str, str]], name: str = "rows.jsonl", **options: str) -> Corpus:
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        return read_corpus(write(name, "\n".join(lines)), ReadOptions(**options))

    return make


def counts_of(keys: list[str], labels: list[str]) -> RepeatCounts:
    """The reference."""
    rows = Counter(keys)
    seen = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        seen[key].add(label)
    repeated = [key for key in rows if rows[key] > 1]
    conflicting = [key for key in repeated if len(seen[key]) > 1]
    number = sum(rows[key] for key in repeated)
    return RepeatCounts(
        len(repeated), number, len(keys) - len(rows), len(conflicting), sum(rows[key] for key in conflicting)
    )


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["a b", "A b", "a  B", "c", "C", "d"]), st.sampled_from("xyz")), min_size=1))
def test_counts_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("repeats") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    found = find_duplicates("train", read_corpus(path))
    texts, labels = zip(*rows, strict=True)
    assert found.identical == counts_of(list(texts), list(labels))
    assert found.same == counts_of([" ".join(text.lower().split()) for text in texts], list(labels))
    assert [len(text.rows) for text in found.repeated] == sorted(map(len, (text.rows for text in found.repeated)))[::-1]


def test_rows_and_labels_are_those_of_the_file(corpus: Callable[..., Corpus]) -> None:
    found = find_duplicates("train", corpus([("One", "x"), ("two", "y"), ("", "x"), ("one", "y"), ("ONE", "x")]))
    [text] = found.conflicting
    # Row 3 is blank and was rejected; the numbers are still the file's.
    assert text.rows == (1, 4, 5)
    assert text.labels == (("x",), ("y",), ("x",))
    assert found.repeated == found.conflicting
    duplicates, conflicts = found.findings()
    assert (duplicates.severity, conflicts.severity) == (INFO, WARNING)
    assert (
        "1 training text stands in more than one row, 3 rows in all (2 repeat an earlier one, 0 of" in duplicates.what
    )
    assert "'One' in rows 1, 4, 5: x, y, x" in conflicts.what


def test_equal_sets_of_labels_in_another_order_are_no_conflict(corpus: Callable[..., Corpus]) -> None:
    found = find_duplicates("train", corpus([("one", "a,b"), ("one", "b,a"), ("two", "a")], label_separator=","))
    assert found.same == RepeatCounts(1, 2, 1, 0, 0)
    assert [finding.check for finding in found.findings()] == ["duplicates"]


def test_pairs_are_the_same_if_both_texts_are(write: Write) -> None:
    rows = [("a", "b"), ("a", "c"), ("A", "B"), ("a b", "c"), ("a", "b c")]
    lines = [json.dumps({"sentence1": one, "sentence2": two, "label": "x"}) for one, two in rows]
    corpus = read_corpus(write("pairs.jsonl", "\n".join(lines)))
    assert find_duplicates("train", corpus).same == RepeatCounts(1, 2, 1, 0, 0)
    assert distinct_texts({"train": corpus}).ids["train"].tolist() == [0, 1, 0, 2, 3]


def test_one_number_for_one_text_in_all_parts(corpus: Callable[..., Corpus]) -> None:
    train = corpus([("One", "x"), ("two", "y")])
    test = corpus([("TWO", "x"), ("three", "y"), ("one", "x")], "test.jsonl")
    distinct = distinct_texts({"train": train, "test": test})
    assert list(distinct.texts) == ["one", "two", "three"]
    assert distinct.texts[1:] == ["two", "three"]
    assert distinct.texts[-1] == "three"
    assert {part: ids.tolist() for part, ids in distinct.ids.items()} == {"train": [0, 1], "test": [1, 2, 0]}


def test_nothing_repeated_is_nothing_to_say(corpus: Callable[..., Corpus]) -> None:
    found = find_duplicates("train", corpus([("one", "x"), ("two", "y")]))
    assert found.findings() == ()
    assert found.same == found.identical == RepeatCounts(0, 0, 0, 0, 0)
