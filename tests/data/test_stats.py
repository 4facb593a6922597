"""``DataStats`` by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qlassify.data.stats import DataStats
from qlassify.data.tokenise import Encoded


def make(lengths: list[int], lost: list[int] | None = None) -> Encoded:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    cut = np.array(lost or [0] * len(lengths), dtype=np.int32)
    return Encoded(np.zeros(offsets[-1], np.int32), offsets, None, cut, 0)


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("lengths", "p99"),
    [
        ([7], 7),
        (list(range(1, 101)), 99),  # 99 of 100 rows have at most 99 tokens
        (list(range(1, 201)), 198),
        ([5] * 99 + [500], 5),
        ([5] * 98 + [500] * 2, 500),
        ([3, 9], 9),
    ],
)
def test_p99_is_a_length_that_occurs(lengths: list[int], p99: int) -> None:
    """The smallest length within which 99 % of the rows lie, never an interpolation between two."""
    assert DataStats.from_corpus(make(lengths), counts(1, 1)).p99_token_length == p99


def test_what_was_cut_off_counts() -> None:
    """Length before truncation: advice about the maximal length must see what it costs."""
    stats = DataStats.from_corpus(make([10, 10, 4], [90, 0, 0]), counts(2, 1))
    assert stats.p99_token_length == 100


def test_imbalance() -> None:
    assert DataStats.from_corpus(make([1]), counts(90, 9, 30)) == DataStats(1, 10.0, 9)
    assert DataStats.from_corpus(make([1]), counts(5, 5)) == DataStats(1, 1.0, 5)


def test_a_class_without_rows_is_the_minority() -> None:
    stats = DataStats.from_corpus(make([1]), counts(12, 0))
    assert (stats.imbalance_ratio, stats.minority_count) == (12.0, 0)


def test_no_rows() -> None:
    assert DataStats.from_corpus(make([]), counts(0, 0)).p99_token_length == 0
