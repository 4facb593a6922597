"""Numbers for texts and groups of rows, against dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data import text_groups
from qlassify.data.text_groups import RowGroups, text_numbers, value_numbers


def numbers_of(keys: list[str]) -> list[int]:
    """The reference."""
    seen: dict[str, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


@settings(max_examples=50)
@given(st.lists(st.one_of(st.sampled_from(["", "a", "b", "ab", "é", "\ud800"]), st.text(max_size=3))))
def test_numbers_are_those_of_a_dictionary(keys: list[str]) -> None:
    assert text_numbers(iter(keys), len(keys)).tolist() == numbers_of(keys)
    assert value_numbers(iter(keys), len(keys)).tolist() == numbers_of(keys)


def test_numbers_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"text {n * n % 11}" for n in range(50)]
    monkeypatch.setattr(text_groups, "_CHUNK", 7)
    assert text_numbers(iter(keys), 50).tolist() == numbers_of(keys)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2))))
def test_groups_are_those_of_a_dictionary(rows: list[tuple[int, int]]) -> None:
    numbers = numbers_of([str(group) for group, _ in rows])
    members: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        members.setdefault(number, []).append(row)
    values = np.array([value for _, value in rows], np.int64)
    groups = RowGroups.of(np.array(numbers, np.int64))
    assert len(groups) == len(members)
    assert [groups.rows(group).tolist() for group in range(len(groups))] == list(members.values())
    assert groups.sizes.tolist() == [len(rows) for rows in members.values()]
    assert groups.first().tolist() == [rows[0] for rows in members.values()]
    assert groups.differ(values).tolist() == [len(set(values[rows].tolist())) > 1 for rows in members.values()]


def test_groups_without_rows_have_none() -> None:
    groups = RowGroups.of(np.array([3, 1, 3]), 6)
    assert [groups.rows(group).tolist() for group in range(6)] == [[], [1], [], [0, 2], [], []]
