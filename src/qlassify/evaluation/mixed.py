"""Micro-batches for texts of several adapters: the texts of one stand together, so that their tokens are one range.

Texts are cut into micro-batches by length, as for a single classifier, and only then put side by side by adapter. The
other way round, cutting each adapter's texts by themselves, makes more batches, and smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qlassify.data.packing import PackedBatch, micro_batches, pack_in_order
from qlassify.data.tokenise import Encoded
from qlassify.methods.several import Segment


def mixed_batches(
    encoded: Encoded,
    names: Sequence[str],
    token_budget: int,
    *,
    mixing: bool,
    rows: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[PackedBatch, str | tuple[Segment, ...]]]:
    """Cut texts into packed batches, each with the adapters of its tokens. Every text that is asked for comes once.

    Args:
        encoded: N tokenised texts.
        names: the adapter of each.
        token_budget: most tokens in one batch; a longer text stands alone.
        mixing: whether a batch may hold several adapters.
        rows: (M,) numbers of the texts to cut, ascending; all when None.

    Yields:
        A batch, and the one adapter of all its texts or the ranges of several. A batch of one adapter is packed as it
        would be for a classifier with that adapter alone.
    """
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    numbers = np.array([order[name] for name in names], dtype=np.int64)
    wanted = np.arange(len(names)) if rows is None else rows
    groups = [wanted] if mixing else [wanted[numbers[wanted] == number] for number in order.values()]
    for group in groups:
        for batch in micro_batches(encoded, group, token_budget):
            found = numbers[batch.rows]
            if (found == found[0]).all():
                yield batch, names[int(batch.rows[0])]
                continue
            mixed = pack_in_order(encoded, batch.rows[np.argsort(found, kind="stable")])
            yield mixed, token_ranges(mixed, [names[row] for row in mixed.rows])


def token_ranges(batch: PackedBatch, names: Sequence[str]) -> tuple[Segment, ...]:
    """The token ranges of a batch's adapters.

    Args:
        batch: texts of which those of one adapter stand together.
        names: the adapter of each, in the batch's order.
    """
    ends = np.cumsum(batch.row_lengths)
    last = [index for index in range(len(names)) if index + 1 == len(names) or names[index + 1] != names[index]]
    starts = [0, *(int(ends[index]) for index in last[:-1])]
    return tuple(Segment(names[index], start, int(ends[index])) for index, start in zip(last, starts, strict=True))
