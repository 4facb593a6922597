"""``DataStats``: the three numbers about a corpus that hyper-parameter advice is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qlassify.data.tokenise import Encoded


@dataclass(frozen=True, slots=True)
class DataStats:
    """What a corpus is like.

    Attributes:
        p99_token_length: tokens, special ones included and before truncation, within which 99 % of the rows lie.
        imbalance_ratio: rows of the most frequent class over rows of the rarest one.
        minority_count: rows of the rarest class.
    """

    p99_token_length: int
    imbalance_ratio: float
    minority_count: int

    @classmethod
    def from_corpus(cls, encoded: Encoded, counts: npt.NDArray[np.int64]) -> DataStats:
        """Measure it.

        Args:
            encoded: the tokenised rows; what truncation cut off is counted back in.
            counts: (C,) rows of each class, or of each label.
        """
        lengths = encoded.whole_lengths
        p99 = int(np.percentile(lengths, 99, method="inverted_cdf")) if len(lengths) else 0
        minority = int(counts.min())
        return cls(p99, float(counts.max()) / max(1, minority), minority)
