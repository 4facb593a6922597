"""Packing loses nothing, adds nothing, and keeps texts apart; micro-batches are a partition within the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.packing import micro_batches, pack
from qlassify.data.tokenise import Encoded
from qlassify.errors import DataError

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def make(lengths: list[int], *, types: bool = False) -> Encoded:
    """Texts whose every token id is unlike any other, so that a misplaced one shows."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1000, 1000 + offsets[-1], dtype=np.int32)
    segments = (ids % 3 == 0).astype(np.int8) if types else None
    return Encoded(ids, offsets, segments, np.zeros(len(lengths), np.int32), 0)


@settings(deadline=None)
@given(LENGTHS, st.randoms(use_true_random=False), st.booleans())
def test_every_token_of_the_chosen_rows_comes_once_at_its_place(
    lengths: list[int], random: object, types: bool
) -> None:
    encoded = make(lengths, types=types)
    rows = [row for row in range(len(lengths)) if random.random() < 0.7] or [0]  # type: ignore[attr-defined]
    random.shuffle(rows)  # type: ignore[attr-defined]
    batch = pack(encoded, rows)
    assert sorted(batch.rows.tolist()) == sorted(rows)
    assert batch.lengths.tolist() == [lengths[row] for row in batch.rows]
    assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True), "longest first"
    assert batch.num_tokens == int(batch.lengths.sum()) == len(batch.token_ids)
    assert batch.num_rows == len(rows)
    start = 0
    for row, length in zip(batch.rows, batch.lengths, strict=True):
        here = slice(start, start + length)
        assert batch.token_ids[here].tolist() == encoded.row(row).tolist()
        assert batch.position_ids[here].tolist() == list(range(length)), "positions restart with each text"
        if types:
            assert encoded.token_type_ids is not None
            assert batch.token_type_ids is not None
            own = encoded.token_type_ids[encoded.offsets[row] : encoded.offsets[row + 1]]
            assert batch.token_type_ids[here].tolist() == own.tolist()
        start += int(length)
    assert start == batch.num_tokens
    assert types == (batch.token_type_ids is not None)


def test_rows_of_equal_length_keep_their_order() -> None:
    assert pack(make([3, 5, 3, 5, 3]), [4, 3, 2, 1, 0]).rows.tolist() == [3, 1, 4, 2, 0]


def test_the_arrays_are_what_torch_wants() -> None:
    batch = pack(make([2, 3], types=True), [0, 1])
    for array in (batch.rows, batch.token_ids, batch.position_ids, batch.token_type_ids, batch.lengths):
        assert array is not None
        assert array.dtype == np.int64


def test_packing_nothing_is_an_empty_batch() -> None:
    batch = pack(make([3]), [])
    assert (batch.num_tokens, batch.num_rows) == (0, 0)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 80), st.none() | st.integers(1, 6))
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int, max_rows: int | None) -> None:
    encoded = make(lengths)
    batches = list(micro_batches(encoded, range(len(lengths)), budget, max_rows=max_rows))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(len(lengths))), "every row once"
    assert sum(batch.num_tokens for batch in batches) == sum(lengths)
    for batch in batches:
        assert batch.num_rows > 0
        assert batch.num_tokens <= budget or batch.num_rows == 1, "a longer text stands alone"
        assert max_rows is None or batch.num_rows <= max_rows
    ordered = [length for batch in batches for length in batch.lengths.tolist()]
    assert ordered == sorted(lengths, reverse=True), "texts of similar length share a batch"


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 80))
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    """Greedy: a cut is made only where the next text would not have fitted."""
    batches = list(micro_batches(make(lengths), range(len(lengths)), budget))
    for batch, following in itertools.pairwise(batches):
        assert batch.num_tokens + int(following.lengths[0]) > budget


def test_a_subset_of_rows_and_an_empty_one() -> None:
    encoded = make([4, 9, 2, 7])
    assert [batch.rows.tolist() for batch in micro_batches(encoded, [3, 0], 8)] == [[3], [0]]
    assert list(micro_batches(encoded, [], 8)) == []


def test_a_row_that_is_asked_for_twice_comes_twice() -> None:
    assert pack(make([2, 3]), [1, 1]).token_ids.tolist() == [1002, 1003, 1004, 1002, 1003, 1004]


def test_rows_from_elsewhere() -> None:
    encoded = Encoded.from_rows([[5, 6], [7], [8, 9, 10]])
    assert (len(encoded), encoded.num_tokens, encoded.num_truncated) == (3, 6, 0)
    assert [encoded.row(index).tolist() for index in range(3)] == [[5, 6], [7], [8, 9, 10]]
    assert encoded.lengths.tolist() == [2, 1, 3]
    with pytest.raises(DataError, match="row 1"):
        Encoded.from_rows([[5], []])
    assert len(Encoded.from_rows([])) == 0


def test_a_batch_costs_nothing_for_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = make([3, 9, 1, 4, 4])
    wanted = [batch.token_ids.tolist() for batch in micro_batches(encoded, [4, 1, 0], 10)]

    def all_rows(_: Encoded) -> None:
        raise AssertionError("lengths of all rows are computed for a few of them")

    monkeypatch.setattr(Encoded, "lengths", property(all_rows))
    assert [batch.token_ids.tolist() for batch in micro_batches(encoded, [4, 1, 0], 10)] == wanted
