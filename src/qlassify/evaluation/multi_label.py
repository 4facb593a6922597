"""The scores of a task where a row has any number of true labels, none included.

A decision per label: predicted where the probability reaches the threshold. Ranking scores (``ranking``) need no
threshold and say what a better one could still win.

**Unknown labels.** An annotator may not have judged every label of every text. Such a cell of the targets is unknown
and is left out of every score: of a label's counts, of pooled counts, of the labels that a row is compared on, of
log-loss, Brier score and reliability. A row of which no label is known is left out whole (by ``metrics``, before this
module sees it). Taking unknown for false, the alternative, would punish a model for finding what nobody looked for.
scikit-learn has no such thing; the tests hold each score to its calls on the known cells.

The scores of decisions follow from counts and not from scikit-learn, which takes a label matrix of one column for a
plain binary vector; the tests hold all of them to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qlassify.evaluation.calibration_error import ReliabilityBin, expected_calibration_error
from qlassify.evaluation.class_scores import ClassScores, FloatArray, safe_ratio
from qlassify.evaluation.ranking import (
    BoolMatrix,
    ColumnRanking,
    label_ranking_average_precision,
    macro_average_precision,
    macro_roc_auc,
    rank_column,
)


def scores_of_decisions(truth: BoolMatrix, predicted: BoolMatrix) -> ClassScores:
    """Per-label scores of true and predicted label matrices, both (N, K) and false where the truth is unknown."""
    return ClassScores.from_counts((truth & predicted).sum(axis=0), truth.sum(axis=0), predicted.sum(axis=0))


def rank_labels(truth: BoolMatrix, probabilities: FloatArray, known: BoolMatrix) -> tuple[ColumnRanking, ...]:
    """The ranking scores of each label over the rows where it is known; all arrays are (N, K)."""
    if known.all():
        return tuple(rank_column(truth[:, k], probabilities[:, k]) for k in range(truth.shape[1]))
    columns = ((known[:, k], k) for k in range(truth.shape[1]))
    return tuple(rank_column(truth[rows, k], probabilities[rows, k]) for rows, k in columns)


def multi_label_values(
    truth: BoolMatrix,
    probabilities: FloatArray,
    predicted: BoolMatrix,
    known: BoolMatrix,
    scores: ClassScores,
    rankings: Sequence[ColumnRanking],
    bins: Sequence[ReliabilityBin],
) -> dict[str, float | None]:
    """All named scalars of a multi-label evaluation.

    Args:
        truth: true labels (N, K), false where unknown.
        probabilities: (N, K), each in [0, 1].
        predicted: predicted labels (N, K), false where the truth is unknown.
        known: which cells of the truth are known (N, K); every row has one.
        scores: per-label scores of truth and predictions.
        rankings: per-label ranking scores.
        bins: reliability bins over all known label decisions.
    """
    hits = (truth & predicted).sum()
    per_row_hits = (truth & predicted).sum(axis=1)
    per_row_sizes = truth.sum(axis=1) + predicted.sum(axis=1)
    return {
        "subset_accuracy": float((truth == predicted).all(axis=1).mean()),
        "hamming_loss": float((truth != predicted).sum() / known.sum()),
        "macro_precision": scores.macro(scores.precision),
        "macro_recall": scores.macro(scores.recall),
        "macro_f1": scores.macro(scores.f1),
        "micro_precision": float(safe_ratio(hits, predicted.sum())),
        "micro_recall": float(safe_ratio(hits, truth.sum())),
        "micro_f1": float(safe_ratio(2 * hits, truth.sum() + predicted.sum())),
        "weighted_f1": scores.weighted(scores.f1),
        "samples_f1": float(safe_ratio(2 * per_row_hits, per_row_sizes).mean()),
        "lrap": label_ranking_average_precision(truth, probabilities, known),
        "roc_auc": macro_roc_auc(rankings),
        "macro_average_precision": macro_average_precision(rankings),
        "log_loss": _binary_log_loss(truth[known], probabilities[known]),
        "brier": float(np.square(probabilities - truth)[known].mean()),
        "ece": expected_calibration_error(bins),
        "label_cardinality_true": float(truth.sum(axis=1).mean()),
        "label_cardinality_predicted": float(predicted.sum(axis=1).mean()),
    }


def _binary_log_loss(truth: BoolMatrix, probabilities: FloatArray) -> float:
    """Mean binary cross-entropy in nats over decisions, clipped at the float64 epsilon."""
    eps = np.finfo(np.float64).eps
    of_truth = np.where(truth, probabilities, 1.0 - probabilities)
    return float(-np.log(np.clip(of_truth, eps, 1.0 - eps)).mean())
