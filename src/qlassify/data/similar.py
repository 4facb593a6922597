"""``SimilarPairs``: which texts are alike, and the groups that such pairs make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class SimilarPairs:
    """Pairs of texts that are alike, and how thoroughly they were looked for.

    Attributes:
        first: (P,) int64 index of the one text, the smaller of the two.
        second: (P,) int64 index of the other.
        similarity: (P,) float64, above 0 and at most 1.
        num_compared: pairs that were decided by their shingles.
        capped_buckets: how often more texts had something in common than are compared with one another.
        complete: False if the search stopped at its limit of pairs.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]
    num_compared: int
    capped_buckets: int
    complete: bool

    def __len__(self) -> int:
        return len(self.first)


def components(num_texts: int, pairs: SimilarPairs) -> NDArray[np.int64]:
    """The group of each text, (num_texts,) int64: the least index that steps from pair to pair lead to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if num_texts == 0:
        return np.zeros(0, np.int64)
    steps = np.ones(len(pairs), np.int8)
    graph = coo_array((steps, (pairs.first, pairs.second)), shape=(num_texts, num_texts))
    number, member_of = connected_components(graph, directed=False)
    least = np.full(number, num_texts, np.int64)
    np.minimum.at(least, member_of, np.arange(num_texts))
    return np.asarray(least[member_of], dtype=np.int64)
