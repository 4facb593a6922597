"""Where the texts of a packed batch and their attention probabilities lie, and how to share them among threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

LANES = 16
"""Numbers of a vector. A row of scores is as long as its text, rounded up to it."""
PARTS_OF_A_THREAD = 4
"""More than one, because a text is not cut and threads take parts as they finish."""
WORK_OF_A_PART = 1 << 17
"""Scores times head dimension that repay handing a part to another thread."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Where the texts of a packed batch lie.

    Attributes:
        starts: (B + 1,) int64 first token of each text, and the number of tokens.
        places: (B + 1,) int64 where each text's probabilities begin, in numbers per head, and their sum.
    """

    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> Texts:
        """Texts of (B,) tokens one after another."""
        zero = np.zeros(1, np.int64)
        sizes = lengths * (-(-lengths // LANES) * LANES)
        return cls(np.concatenate([zero, np.cumsum(lengths)]), np.concatenate([zero, np.cumsum(sizes)]))

    def edges(self, heads: int, dim: int) -> list[int]:
        """The texts in parts of about equal work, a few for each of torch's threads; one part where there is little."""
        work = int(self.places[-1]) * heads * dim
        threads = torch.get_num_threads()
        parts = min(PARTS_OF_A_THREAD * threads, work // WORK_OF_A_PART, len(self.starts) - 1) if threads > 1 else 1
        if parts < 2:
            return [0, len(self.starts) - 1]
        wanted = self.places[-1] * np.arange(1, parts) // parts
        return sorted({0, *np.searchsorted(self.places, wanted).tolist(), len(self.starts) - 1})
