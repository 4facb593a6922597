"""``TokenChunk``: the tokens of some consecutive rows, as the tokeniser hands them on.

Flat arrays with a length for each row, so that chunks are joined, in memory or in a file, by putting the same arrays
one after another. Offsets would have to be moved by what came before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class TokenChunk:
    """n rows of t tokens in w windows; w is n where every row is one sequence.

    Attributes:
        token_ids: (t,) int32 ids of all rows, one after another.
        token_type_ids: (t,) int8 segment ids for pairs, or None.
        lengths: (n,) int32 tokens of each row, those of all its windows together.
        windows_of_row: (n,) int32 windows of each row, at least one.
        window_lengths: (w,) int32 tokens of each window.
        repeated_tokens: (n,) int32 tokens of each row that stand in it a second time.
        lost_tokens: (n,) int32 tokens cut off each row.
        num_empty: rows that came to no token and got the fallback token.
    """

    token_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8] | None
    lengths: npt.NDArray[np.int32]
    windows_of_row: npt.NDArray[np.int32]
    window_lengths: npt.NDArray[np.int32]
    repeated_tokens: npt.NDArray[np.int32]
    lost_tokens: npt.NDArray[np.int32]
    num_empty: int
