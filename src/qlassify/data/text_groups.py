"""Which rows have the same text, without keeping the texts: numbers for texts, and the rows of each number.

A text is known by the first 16 bytes of its BLAKE2b hash. Two different ones of two million texts have the same with a
chance of 6e-27. The alternative, a dictionary from text to row numbers, is what one would write first; it keeps every
normalised text a second time and a list for each, some 400 bytes a row where this takes 40 while it sorts and 16
afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096
_BYTES = 16


def text_numbers(keys: Iterable[str], count: int) -> NDArray[np.int64]:
    """(count,) a number for each of ``count`` texts, equal for equal ones: 0, 1, 2 ... in the order of first sight."""
    digests = np.empty((count, 2), np.uint64)
    rest, done = iter(keys), 0
    while chunk := list(islice(rest, _CHUNK)):
        data = b"".join(
            hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest() for key in chunk
        )
        digests[done : done + len(chunk)] = np.frombuffer(data, np.uint64).reshape(-1, 2)
        done += len(chunk)
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_new = np.ones(count, bool)
    for half in (0, 1):
        ordered = digests[order, half]
        same = ordered[1:] == ordered[:-1]
        is_new[1:] = ~same if half == 0 else is_new[1:] | ~same
    # The sort is stable: the first of a run is the one that was seen first.
    first_of_run = order[is_new]
    rank = np.empty(len(first_of_run), np.int64)
    rank[np.argsort(first_of_run)] = np.arange(len(first_of_run))
    numbers = np.empty(count, np.int64)
    numbers[order] = rank[np.cumsum(is_new) - 1]
    return numbers


def value_numbers(values: Iterable[Hashable], count: int) -> NDArray[np.int64]:
    """(count,) a number for each of ``count`` values of which few are different, such as labels."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, count)


@dataclass(frozen=True, slots=True, eq=False)
class RowGroups:
    """The rows of each of G groups.

    Attributes:
        order: (N,) int64 rows, group by group, ascending within each.
        starts: (G + 1,) int64; the rows of group g are ``order[starts[g]:starts[g + 1]]``.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.int64], num_groups: int | None = None) -> RowGroups:
        """From the (N,) group of each row; as many groups as the largest number says when ``num_groups`` is None."""
        sizes = np.bincount(numbers, minlength=num_groups or 0)
        return cls(np.argsort(numbers, kind="stable"), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(G,) rows of each group."""
        return np.diff(self.starts)

    def rows(self, group: int) -> NDArray[np.int64]:
        """The rows of one group, ascending."""
        return self.order[self.starts[group] : self.starts[group + 1]]

    def first(self) -> NDArray[np.int64]:
        """(G,) the first row of each group; no group may be empty."""
        return self.order[self.starts[:-1]]

    def differ(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """(G,) whether the rows of each group have different ones of the (N,) values; no group may be empty."""
        if not len(self):
            return np.zeros(0, bool)
        ordered = values[self.order]
        least = np.minimum.reduceat(ordered, self.starts[:-1])
        return np.asarray(least != np.maximum.reduceat(ordered, self.starts[:-1]))
