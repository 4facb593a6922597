"""Leaks between parts and groups of look-alikes, against brute force and by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.corpus import Corpus, read_corpus
from qlassify.data.findings import INFO, WARNING
from qlassify.data.leaks import Leak, find_leaks, similar_groups
from qlassify.data.near_duplicates import near_duplicates
from qlassify.data.passages import shared_passages
from qlassify.data.repeats import distinct_texts
from qlassify.data.similar import SimilarPairs

NONE = SimilarPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0, 0, True)
LONG = (
    "The council has decided that the old bridge over the river will be closed for two years, because its pillars can "
    "no longer carry the weight of the lorries that cross it every day."
)
SHORT = (
    "The old bridge over the river will be closed for two years, because its pillars can no longer carry the weight."
)


def corpora(folder: Path, **parts: list[tuple[str, str]]) -> dict[str, Corpus]:
    made = {}
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
        made[name] = read_corpus(path)
    return made


def leaks_of(parts: Mapping[str, Corpus]) -> dict[tuple[str, str], Leak]:
    distinct = distinct_texts(parts)
    near, passages = (near_duplicates(distinct.texts, seed=0), shared_passages(distinct.texts, seed=0).pairs)
    return {(leak.known, leak.scored): leak for leak in find_leaks(parts, distinct, near, passages)}


def numbers(leak: Leak) -> dict[str, tuple[int, int]]:
    return {kind: (count.rows, count.differing) for kind, count in leak.counts.items()}


def test_each_row_counts_once_at_its_strongest(tmp_path: Path) -> None:
    parts = corpora(
        tmp_path,
        train=[("Where is my card?", "a"), (LONG, "b"), ("Something else", "a"), ("", "a"), ("Good morning", "b")],
        test=[
            ("Where is my card?", "a"),
            ("where  is my CARD?", "b"),
            (LONG.replace("two years", "ten years"), "b"),
            (SHORT, "a"),
            ("Never seen", "a"),
            ("good morning", "a"),
        ],
    )
    leak = leaks_of(parts)["train", "test"]
    assert numbers(leak) == {"identical": (1, 0), "same": (2, 2), "near": (1, 0), "passages": (1, 1)}
    # Row numbers are those of the files: row 4 of the training file was rejected, and counts.
    by_row = {example.row: (example.kind, example.known_row) for example in leak.examples}
    assert by_row == {1: ("identical", 1), 2: ("same", 1), 3: ("near", 2), 4: ("passages", 2), 6: ("same", 5)}
    copies, sources = leak.findings()
    assert copies.what.startswith(
        "4 of 6 (66.7 %) test texts also stand in the training rows: 1 character for character, 2 but for letter case "
        "and blanks, 1 nearly; 2 of them with other labels."
    )
    assert "1 of 6 (16.7 %) test texts share passages with training texts, 1 of them only with" in sources.what
    assert "split by source" in sources.do
    assert {copies.severity, sources.severity} == {WARNING}


def test_one_counterpart_with_the_same_label_will_do(tmp_path: Path) -> None:
    parts = corpora(tmp_path, train=[("One", "a"), ("one", "b"), ("ONE", "a")], test=[("oNe", "b"), ("One", "b")])
    # The second row's identical counterpart is row 1 alone, which has the other label.
    assert numbers(leaks_of(parts)["train", "test"]) == {
        "identical": (1, 1), "same": (1, 0), "near": (0, 0), "passages": (0, 0)
    }  # fmt: skip


def test_a_leak_of_a_row_in_a_hundred_is_no_warning(tmp_path: Path) -> None:
    test = [(f"row number {n}, {n * n}", "a") for n in range(100)]
    parts = corpora(tmp_path, train=[test[0], ("another", "b")], test=test)
    [finding] = leaks_of(parts)["train", "test"].findings()
    assert finding.severity == INFO
    parts = corpora(tmp_path, train=[test[0], test[50], ("another", "b")], test=test)
    [finding] = leaks_of(parts)["train", "test"].findings()
    assert finding.severity == WARNING


texts = st.sampled_from(["one", "One", "two", "TWO", "three words here", "three  words here", "four"])
rows = st.lists(st.tuples(texts, st.sampled_from("ab")), min_size=1, max_size=8)


@settings(max_examples=40)
@given(rows, rows, rows)
def test_exact_leaks_are_those_of_sets(
    tmp_path_factory: pytest.TempPathFactory,
    train: list[tuple[str, str]],
    validation: list[tuple[str, str]],
    test: list[tuple[str, str]],
) -> None:
    parts = corpora(tmp_path_factory.mktemp("leaks"), train=train, validation=validation, test=test)
    found = {(leak.known, leak.scored): leak for leak in find_leaks(parts, distinct_texts(parts), NONE, NONE)}
    assert list(found) == [("train", "validation"), ("train", "test"), ("validation", "test")]
    by_name = {"train": train, "validation": validation, "test": test}
    for (known, scored), leak in found.items():
        identical = {text for text, _ in by_name[known]}
        folded = {" ".join(text.lower().split()) for text in identical}
        rows_same = [text for text, _ in by_name[scored] if " ".join(text.lower().split()) in folded]
        rows_identical = [text for text in rows_same if text in identical]
        assert leak.counts["identical"].rows == len(rows_identical)
        assert leak.counts["same"].rows == len(rows_same) - len(rows_identical)
        differing = sum(
            text in identical and (text, label) not in set(by_name[known]) for text, label in by_name[scored]
        )
        assert leak.counts["identical"].differing == differing


def test_near_counterparts_must_be_in_the_known_part(tmp_path: Path) -> None:
    # The test row resembles a validation row and nothing in training.
    parts = corpora(
        tmp_path, train=[("nothing of the kind", "a")], validation=[(LONG, "a")], test=[(LONG + " So it is.", "a")]
    )
    found = leaks_of(parts)
    assert numbers(found["train", "test"])["near"] == (0, 0)
    assert numbers(found["validation", "test"])["near"] == (1, 0)


def test_groups_are_counted_in_rows(tmp_path: Path) -> None:
    parts = corpora(
        tmp_path,
        train=[(LONG, "a"), (LONG.upper(), "a"), ("unlike anything", "b"), ("", "b"), (LONG + " Really.", "a")],
        test=[(LONG + " Indeed.", "b"), ("also unlike anything that was there", "b")],
    )
    distinct = distinct_texts(parts)
    groups = similar_groups("near", parts, distinct, near_duplicates(distinct.texts, seed=0))
    # LONG stands in two rows, so three different texts are four rows; one of them has another label.
    assert (groups.groups, groups.rows, groups.largest) == (1, 4, 4)
    assert (groups.mixed_groups, groups.mixed_rows) == (1, 4)
    assert groups.examples == ((("train", 1), ("train", 2), ("train", 5), ("test", 1)),)
    [finding] = groups.findings()
    assert finding.what.startswith(
        "4 rows in 1 group are near duplicates of one another, at most 4 together; in 1 group (4 rows) labels differ."
    )


def test_exact_duplicates_alone_make_no_group(tmp_path: Path) -> None:
    parts = corpora(tmp_path, train=[("one", "a"), ("ONE", "b"), ("two", "a")])
    distinct = distinct_texts(parts)
    groups = similar_groups("near", parts, distinct, near_duplicates(distinct.texts, seed=0))
    assert (groups.groups, groups.rows, groups.findings()) == (0, 0, ())


def test_a_search_among_some_of_the_runs_says_so(tmp_path: Path) -> None:
    parts = corpora(tmp_path, train=[("one and the same text", "a"), ("one and the same text.", "b"), ("two", "a")])
    distinct = distinct_texts(parts)
    pairs = near_duplicates(distinct.texts, seed=0, threshold=0.8)
    (all_runs,) = similar_groups("passages", parts, distinct, pairs).findings()
    (some,) = similar_groups("passages", parts, distinct, pairs, every=43).findings()
    assert some.what.startswith(all_runs.what)
    assert "one in 43 of the runs" in some.what
