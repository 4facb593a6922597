"""Mixed micro-batches: every text once, its tokens in its adapter's range, and single batches packed as ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.merge import merge_rows
from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.evaluation.mixed import mixed_batches


def texts_of(lengths: list[int]) -> Encoded:
    """Text n is made of the token n."""
    return Encoded.from_rows([[row] * length for row, length in enumerate(lengths)])


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc")), max_size=20),
    budget=st.integers(1, 40),
    mixing=st.booleans(),
)
def test_every_token_is_in_its_adapter_s_range(rows: list[tuple[int, str]], budget: int, mixing: bool) -> None:
    lengths, names = [length for length, _ in rows], [name for _, name in rows]
    seen: list[int] = []
    for batch, segments in mixed_batches(texts_of(lengths), names, budget, mixing=mixing):
        assert batch.num_tokens <= budget or batch.num_rows == 1
        owners = [names[token] for token in batch.token_ids]
        if isinstance(segments, str):
            assert set(owners) == {segments}
        else:
            assert mixing
            assert len({segment.adapter for segment in segments}) == len(segments) > 1
            assert owners == [s.adapter for s in segments for _ in range(s.start, s.stop)]
            assert [s.start for s in segments] == [0, *(s.stop for s in segments[:-1])]
            assert segments[-1].stop == batch.num_tokens
        assert batch.position_ids.tolist() == [place for length in batch.lengths for place in range(length)]
        assert batch.lengths.tolist() == [lengths[row] for row in batch.rows]
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(len(rows)))


@given(lengths=st.lists(st.integers(1, 9), max_size=12), mixing=st.booleans())
@settings(max_examples=20)
def test_one_adapter_is_packed_as_without_any(lengths: list[int], mixing: bool) -> None:
    encoded = texts_of(lengths)
    found = list(mixed_batches(encoded, ["a"] * len(lengths), 16, mixing=mixing))
    wanted = list(micro_batches(encoded, range(len(lengths)), 16))
    assert [segments for _, segments in found] == ["a"] * len(wanted)
    for (batch, _), plain in zip(found, wanted, strict=True):
        assert batch.token_ids.tolist() == plain.token_ids.tolist()
        assert batch.rows.tolist() == plain.rows.tolist()


def test_rows_go_back_to_their_places() -> None:
    """Two groups, one with segments and cuts; the places of the other's tokens are all of segment 0."""
    first = Encoded.from_rows([[1, 2], [3]])
    second = Encoded(
        np.array([4, 5, 6], np.int32), np.array([0, 3]), np.array([0, 1, 1], np.int8), np.array([7], np.int32), 1
    )
    merged = merge_rows([(np.array([2, 0]), first), (np.array([1]), second)], 3)
    assert [merged.row(index).tolist() for index in range(3)] == [[3], [4, 5, 6], [1, 2]]
    assert merged.token_type_ids is not None
    assert merged.token_type_ids.tolist() == [0, 0, 1, 1, 0, 0]
    assert merged.lost_tokens.tolist() == [0, 7, 0]
    assert (merged.num_empty, merged.num_truncated, merged.num_tokens) == (1, 1, 6)
    plain = merge_rows([(np.array([1, 0]), first)], 2)
    assert plain.token_type_ids is None
    assert plain.row(0).tolist() == [3]


@pytest.mark.parametrize("mixing", [True, False])
def test_some_of_the_texts_are_cut_as_if_there_were_no_others(mixing: bool) -> None:
    encoded, names = texts_of([3, 9, 1, 4, 4, 7, 2]), ["a", "b", "a", "c", "b", "a", "b"]
    rows = np.array([1, 4, 5, 6])  # none of c
    batches = [batch for batch, _ in mixed_batches(encoded, names, 10, mixing=mixing, rows=rows)]
    assert sorted(np.concatenate([batch.rows for batch in batches])) == [1, 4, 5, 6]
    assert all(batch.num_tokens <= 10 for batch in batches)
