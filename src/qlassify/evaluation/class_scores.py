"""Precision, recall and F1 of every class, from three counts per class.

How often a class was the truth (support), how often it was predicted, and how often it was both (hits): every score of
a *decision* follows from these, for single-label and multi-label tasks alike, and so do their macro, micro and
weighted averages. Counting once and dividing here is the alternative to one scikit-learn call per average, each of
which counts again and each of which takes a label matrix of one column for something else. scikit-learn remains the
judge: the tests hold every number to it.

Undefined is zero. A class that was never predicted has no precision and one that never occurs has no recall; both
count as 0.0, as scikit-learn's ``zero_division=0``. The macro averages run over **all** K classes of the label map
(``labels=range(K)``), also over those that occur neither in the truth nor in the predictions. scikit-learn's own
default drops the latter, which makes the score of a model depend on which rare class the test set happens to hold;
over the whole label map, macro-F1 has the same denominator on every set and can be compared between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def safe_ratio(numerator: FloatArray | IntArray, denominator: FloatArray | IntArray) -> FloatArray:
    """Element by element ``numerator / denominator``; 0.0 where the denominator is zero. Never warns."""
    result = np.zeros(np.shape(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of K classes as arrays of shape (K,), in the order of the label map."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray
    """Rows whose truth is (or contains) the class."""
    predicted: IntArray
    """Rows for which the class was predicted."""

    @classmethod
    def from_counts(cls, hits: IntArray, support: IntArray, predicted: IntArray) -> ClassScores:
        """Scores from counts, each (K,); ``hits`` are rows where the class is both true and predicted.

        F1 is written as ``2 hits / (support + predicted)``: the harmonic mean without its division of zero by zero.
        """
        return cls(
            precision=safe_ratio(hits, predicted),
            recall=safe_ratio(hits, support),
            f1=safe_ratio(2 * hits, support + predicted),
            support=support,
            predicted=predicted,
        )

    def macro(self, score: FloatArray) -> float:
        """The mean of ``score`` (one of the arrays above) over all K classes, each counting the same."""
        return float(score.mean())

    def weighted(self, score: FloatArray) -> float:
        """The mean of ``score`` over classes, each counting by its support; 0.0 when no class has any."""
        total = self.support.sum()
        return float(score @ self.support / total) if total else 0.0
