"""Rows that were tokenised in groups, by different tokenisers or with different limits, as one set of rows again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qlassify.data.tokenise import Encoded, Windows


def merge_rows(parts: Sequence[tuple[npt.NDArray[np.int64], Encoded]], count: int) -> Encoded:
    """Put groups of rows back into one order.

    Args:
        parts: (n,) places of a group's rows, and the rows; every place from 0 to ``count`` - 1 comes once.
        count: rows of all groups together.

    Returns:
        All rows. With pairs in some group, the single texts of the others are all of segment 0.
    """
    ids: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)] * count
    types: list[npt.NDArray[np.int8]] = [np.empty(0, np.int8)] * count
    lost, repeated = np.zeros(count, np.int32), np.zeros(count, np.int32)
    lengths: list[list[int]] = [[]] * count
    for rows, encoded in parts:
        for index, row in enumerate(rows):
            part = slice(encoded.offsets[index], encoded.offsets[index + 1])
            ids[row] = encoded.token_ids[part]
            given = encoded.token_type_ids
            lengths[row] = _window_lengths(encoded, index)
            types[row] = np.zeros(len(ids[row]), np.int8) if given is None else given[part]
        lost[rows] = encoded.lost_tokens
        repeated[rows] = 0 if encoded.windows is None else encoded.windows.repeated_tokens
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(row) for row in ids], dtype=np.int64)])
    any_types = any(encoded.token_type_ids is not None for _, encoded in parts)
    return Encoded(
        np.concatenate(ids),
        offsets,
        np.concatenate(types) if any_types else None,
        lost,
        sum(encoded.num_empty for _, encoded in parts),
        Windows.of(lengths, repeated),
    )


def _window_lengths(encoded: Encoded, index: int) -> list[int]:
    """Tokens of each window of a row."""
    if encoded.windows is None:
        return [int(encoded.offsets[index + 1] - encoded.offsets[index])]
    windows = encoded.windows
    return [int(length) for length in windows.lengths[windows.offsets[index] : windows.offsets[index + 1]]]
