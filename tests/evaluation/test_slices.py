"""Groups of rows and their scores: every row in one group, scores by scikit-learn on the rows of each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.evaluation.intervals import share_interval
from qlassify.evaluation.slices import FEW_ROWS, MISSING, OTHER, Group, column_groups, row_groups, slice_scores


def rows_by_value(groups: tuple[Group, ...]) -> dict[str, list[int]]:
    return {group.value: group.rows.tolist() for group in groups}


@settings(max_examples=60)
@given(
    values=st.lists(
        st.one_of(st.none(), st.integers(-50, 50).map(str), st.floats(-5, 5).map(str), st.sampled_from(["a", "b"])),
        min_size=1,
        max_size=80,
    )
)
def test_every_row_is_in_exactly_one_group_and_equal_values_in_the_same(values: list[str | None]) -> None:
    groups = column_groups("column", values)
    assert sorted(row for group in groups for row in group.rows.tolist()) == list(range(len(values)))
    assert all(len(group.rows) and group.column == "column" for group in groups)
    assert len({group.value for group in groups}) <= 22
    group_of = {row: index for index, group in enumerate(groups) for row in group.rows.tolist()}
    for value in set(values):
        assert len({group_of[row] for row, other in enumerate(values) if other == value}) == 1


def test_few_values_are_groups_in_their_order_and_missing_ones_come_last() -> None:
    groups = rows_by_value(column_groups("stars", ["10", "2", None, "10", "1.5"]))
    assert list(groups.items()) == [("1.5", [4]), ("2", [1]), ("10", [0, 3]), (MISSING, [2])]
    assert list(rows_by_value(column_groups("who", ["b", "a", "b"]))) == ["a", "b"]


def test_many_numbers_are_cut_at_quartiles_that_are_values_of_the_column() -> None:
    groups = rows_by_value(column_groups("length", [str(number) for number in range(1, 41)]))
    assert list(groups) == ["1 to 10", "11 to 20", "21 to 30", "31 to 40"]
    assert [len(rows) for rows in groups.values()] == [10, 10, 10, 10]


def test_equal_numbers_stay_together_though_quartiles_fall_among_them() -> None:
    values = ["7"] * 60 + [str(number) for number in range(100, 140)]
    groups = rows_by_value(column_groups("length", values))
    assert groups["7"] == list(range(60))
    assert list(groups) == ["7", "100 to 114", "115 to 139"]


def test_many_words_are_the_most_frequent_and_other_values() -> None:
    values = [f"word {n:02d}" for n in range(30) for _ in range(n + 1)]
    groups = rows_by_value(column_groups("word", values))
    wanted = [word for word, _ in Counter(values).most_common(20)]
    assert list(groups) == [*sorted(wanted), OTHER]
    assert len(groups[OTHER]) == sum(range(1, 11))


def test_a_column_of_infinities_is_one_of_words() -> None:
    values = [*(str(number) for number in range(30)), "inf"]
    assert OTHER in rows_by_value(column_groups("odd", values))


def test_lengths_are_whole_texts_and_truncated_rows_are_a_slice_where_there_are_any() -> None:
    lengths, lost = np.array([3, 8, 8, 5]), np.array([0, 4, 0, 0])
    groups = rows_by_value(row_groups(lengths + lost, lost, {}))
    assert groups == {"3": [0], "5": [3], "8": [2], "12": [1], "truncated": [1]}
    assert "truncated" not in rows_by_value(row_groups(lengths, np.zeros(4, int), {}))


def test_columns_follow_the_lengths() -> None:
    groups = row_groups(np.array([4, 4]), np.array([0, 0]), {"channel": ["mail", None]})
    assert [(group.column, group.value) for group in groups] == [
        ("tokens", "4"),
        ("channel", "mail"),
        ("channel", MISSING),
    ]


def by_parity(rows: int) -> tuple[Group, ...]:
    return (Group("parity", "even", np.arange(0, rows, 2)), Group("parity", "odd", np.arange(1, rows, 2)))


@pytest.mark.parametrize("seed", range(4))
def test_single_label_scores_equal_scikit_learn_on_the_rows_of_the_slice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 4, 50), rng.integers(0, 6, 50)
    found = slice_scores(truth, predicted, by_parity(50), multi_label=False, num_classes=6)
    for one, group in zip(found, by_parity(50), strict=True):
        t, p = truth[group.rows], predicted[group.rows]
        assert (one.column, one.value, one.num_rows) == ("parity", group.value, 25)
        assert one.accuracy == judge.accuracy_score(t, p)
        wanted = judge.f1_score(t, p, labels=np.unique(t), average="macro", zero_division=0)
        assert one.macro_f1 == pytest.approx(wanted)
        assert one.gap == pytest.approx((t == p).mean() - (truth == predicted).mean())
        assert one.interval == share_interval(int((t == p).sum()), 25)


def test_multi_label_scores_leave_unknown_cells_and_rows_out() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((40, 3)) < 0.4, rng.random((40, 3)) < 0.4
    known = rng.random((40, 3)) < 0.7
    known[4:8] = False
    found = slice_scores(np.where(known, truth, -1), predicted, by_parity(40), multi_label=True, num_classes=3)
    counted = known.any(axis=1)
    exact = ((truth == predicted) | ~known).all(axis=1)
    for one, group in zip(found, by_parity(40), strict=True):
        rows = group.rows[counted[group.rows]]
        assert one.num_rows == len(rows) < 20
        assert one.accuracy == exact[rows].mean()
        assert one.gap == pytest.approx(exact[rows].mean() - exact[counted].mean())
        f1 = [
            judge.f1_score(truth[rows, k][known[rows, k]], predicted[rows, k][known[rows, k]], zero_division=0)
            for k in range(3)
            if truth[rows, k][known[rows, k]].any()
        ]
        assert one.macro_f1 == pytest.approx(np.mean(f1))


def test_few_rows_are_marked_and_rows_without_labels_have_no_macro_f1() -> None:
    truth = np.zeros((FEW_ROWS + FEW_ROWS - 1, 2))
    groups = (Group("c", "enough", np.arange(FEW_ROWS)), Group("c", "few", np.arange(FEW_ROWS, len(truth))))
    enough, few = slice_scores(truth, truth > 0, groups, multi_label=True, num_classes=2)
    assert (enough.few_rows, few.few_rows) == (False, True)
    assert few.macro_f1 is None
    assert few.as_dict()["interval"] == [few.interval.low, few.interval.high]


def test_a_group_without_a_row_that_counts_is_left_out() -> None:
    targets: Any = np.array([[1.0, 0.0], [np.nan, np.nan]])
    groups = (Group("c", "a", np.array([0])), Group("c", "b", np.array([1])))
    found = slice_scores(targets, np.ones((2, 2), bool), groups, multi_label=True, num_classes=2)
    assert [one.value for one in found] == ["a"]
