"""The scores of a task where a row has any number of true labels, none included.

A decision per label: predicted where the probability reaches the threshold. Ranking scores (average precision, LRAP)
need no threshold and say what a better one could still win.

Both ranking scores are the same idea, once down the columns and once along the rows: at each true entry, which share of
the entries ranked at or above it is true; averaged. They are written out here because scikit-learn's LRAP walks the
rows in Python and its average precision sorts with indices it does not need; and its scores of decisions take a label
matrix of one column for a plain binary vector. The tests hold all of them to scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qlassify.evaluation.calibration_error import ReliabilityBin, expected_calibration_error
from qlassify.evaluation.class_scores import ClassScores, FloatArray, safe_ratio

BoolMatrix = NDArray[np.bool_]

# LRAP compares each true label with all K labels of its row; so many (label, row) pairs at a time bound its memory.
_LRAP_CHUNK = 65_536


def scores_of_decisions(truth: BoolMatrix, predicted: BoolMatrix) -> ClassScores:
    """Per-label scores of true and predicted label matrices, both (N, K)."""
    return ClassScores.from_counts((truth & predicted).sum(axis=0), truth.sum(axis=0), predicted.sum(axis=0))


def average_precisions(truth: BoolMatrix, probabilities: FloatArray) -> list[float | None]:
    """The area under each label's precision-recall steps, (K,); None for a label without a true row.

    The precision at each true row's own probability, averaged over the true rows: rows of equal probability share one
    threshold. scikit-learn answers 0.0 for a label without true rows. That would be a verdict on the model; there was
    nothing to rank.
    """
    return [_average_precision(truth[:, k], probabilities[:, k]) for k in range(truth.shape[1])]


def _average_precision(truth: NDArray[np.bool_], probabilities: FloatArray) -> float | None:
    if not truth.any():
        return None
    of_true = np.sort(probabilities[truth])
    true_at_or_above = len(of_true) - np.searchsorted(of_true, of_true, side="left")
    all_at_or_above = len(truth) - np.searchsorted(np.sort(probabilities), of_true, side="left")
    return float((true_at_or_above / all_at_or_above).mean())


def multi_label_values(
    truth: BoolMatrix,
    probabilities: FloatArray,
    predicted: BoolMatrix,
    scores: ClassScores,
    average_precision: Sequence[float | None],
    bins: Sequence[ReliabilityBin],
) -> dict[str, float | None]:
    """All named scalars of a multi-label evaluation.

    Args:
        truth: true labels (N, K).
        probabilities: (N, K), each in [0, 1].
        predicted: predicted labels (N, K).
        scores: per-label scores of the two.
        average_precision: per label, None where it is undefined.
        bins: reliability bins over all N * K label decisions.
    """
    defined = [value for value in average_precision if value is not None]
    hits = (truth & predicted).sum()
    per_row_hits = (truth & predicted).sum(axis=1)
    per_row_sizes = truth.sum(axis=1) + predicted.sum(axis=1)
    return {
        "subset_accuracy": float((truth == predicted).all(axis=1).mean()),
        "hamming_loss": float((truth != predicted).mean()),
        "macro_precision": scores.macro(scores.precision),
        "macro_recall": scores.macro(scores.recall),
        "macro_f1": scores.macro(scores.f1),
        "micro_precision": float(safe_ratio(hits, predicted.sum())),
        "micro_recall": float(safe_ratio(hits, truth.sum())),
        "micro_f1": float(safe_ratio(2 * hits, truth.sum() + predicted.sum())),
        "weighted_f1": scores.weighted(scores.f1),
        "samples_f1": float(safe_ratio(2 * per_row_hits, per_row_sizes).mean()),
        "lrap": label_ranking_average_precision(truth, probabilities),
        "macro_average_precision": float(np.mean(defined)) if defined else None,
        "log_loss": _binary_log_loss(truth, probabilities),
        "brier": float(np.square(probabilities - truth).mean()),
        "ece": expected_calibration_error(bins),
        "label_cardinality_true": float(truth.sum(axis=1).mean()),
        "label_cardinality_predicted": float(predicted.sum(axis=1).mean()),
    }


def label_ranking_average_precision(truth: BoolMatrix, probabilities: FloatArray) -> float:
    """Of the labels ranked at or above each true label, the share that is true; averaged by label, then by row.

    A row with no true label, or with all of them, cannot be ranked wrongly and scores 1.0, as in scikit-learn
    (Tsoumakas et al. 2010, section 34.7.2).
    """
    rows, labels = np.nonzero(truth)
    precision = np.empty(len(rows))
    for start in range(0, len(rows), _LRAP_CHUNK):
        chunk = slice(start, start + _LRAP_CHUNK)
        row = rows[chunk]
        at_or_above = probabilities[row] >= probabilities[row, labels[chunk]][:, None]
        precision[chunk] = (at_or_above & truth[row]).sum(axis=1) / at_or_above.sum(axis=1)
    num_rows, num_labels = truth.shape
    per_row_count = truth.sum(axis=1)
    per_row = safe_ratio(np.bincount(rows, weights=precision, minlength=num_rows), per_row_count)
    per_row[(per_row_count == 0) | (per_row_count == num_labels)] = 1.0
    return float(per_row.mean())


def _binary_log_loss(truth: BoolMatrix, probabilities: FloatArray) -> float:
    """Mean binary cross-entropy in nats over all N * K decisions, clipped at the float64 epsilon."""
    eps = np.finfo(np.float64).eps
    of_truth = np.where(truth, probabilities, 1.0 - probabilities)
    return float(-np.log(np.clip(of_truth, eps, 1.0 - eps)).mean())
