"""How far stated probabilities are from what happens: reliability bins and the expected calibration error.

A model that says 0.8 a hundred times should be right about eighty times. Predictions are sorted by their stated
confidence into ten bins of equal width; in each the mean confidence is compared with the share that came true. The
expected calibration error (ECE) of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2, is
the mean gap, each bin counting by its rows:

    ECE = sum_b (n_b / N) * |accuracy_b - confidence_b|

Bins are half open, (lower, upper], as in the paper; a confidence of exactly 0 belongs to the first. Bins of equal
*mass* would be less noisy for a confident model, but their edges move with the model, and a diagram whose axis moves
cannot be laid beside another. An ECE of zero does not make a model useful (always answering with the class
frequencies has it); read it beside the Brier score and the log-loss, which also reward telling rows apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions whose confidence lies in (lower, upper], and how they fared."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    """Mean stated probability; None in an empty bin."""
    accuracy: float | None
    """Share that came true; None in an empty bin."""


def reliability_bins(
    confidence: NDArray[np.float64], came_true: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Sort predictions into ``num_bins`` bins of equal width.

    Args:
        confidence: stated probabilities in [0, 1], any shape.
        came_true: whether each came true, the same shape.
        num_bins: how many bins share the interval [0, 1].
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    # Comparing with the edges themselves, not multiplying by num_bins: 0.3 * 10 is 3.0000000000000004.
    bin_of = np.clip(np.searchsorted(edges, confidence.ravel(), side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bin_of, minlength=num_bins)
    confidence_sums = np.bincount(bin_of, weights=confidence.ravel(), minlength=num_bins)
    true_counts = np.bincount(bin_of, weights=came_true.ravel(), minlength=num_bins)
    return tuple(
        ReliabilityBin(
            lower=float(edges[b]),
            upper=float(edges[b + 1]),
            count=int(counts[b]),
            confidence=float(confidence_sums[b] / counts[b]) if counts[b] else None,
            accuracy=float(true_counts[b] / counts[b]) if counts[b] else None,
        )
        for b in range(num_bins)
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """The gap between confidence and accuracy, averaged over predictions (Guo et al. 2017, equation 3)."""
    total = sum(bin_.count for bin_ in bins)
    gaps = (
        bin_.count * abs(bin_.accuracy - bin_.confidence)
        for bin_ in bins
        if bin_.accuracy is not None and bin_.confidence is not None
    )
    return sum(gaps) / total if total else 0.0
