"""The scores of a task where every row has exactly one true class.

Scores of the decision (accuracy, F1, kappa ...) follow from the confusion matrix, scores of the probabilities
(log-loss, Brier, ECE ...) from the probability that each row gave to its true class. The decision is the class of
the largest probability, the first one of equals.

Where scikit-learn has the score it is called, except where its call costs a copy of the N x K matrix (log-loss, Brier)
or where its answer to a tie contradicts ours (top-2 accuracy, which here is never below accuracy).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qlassify.evaluation.calibration_error import ReliabilityBin, expected_calibration_error
from qlassify.evaluation.class_scores import ClassScores, FloatArray, IntArray
from qlassify.evaluation.ranking import ColumnRanking, macro_average_precision, macro_roc_auc, rank_column

NUM_TOP_CONFUSIONS = 5


def count_confusions(targets: IntArray, predicted: IntArray, num_classes: int) -> IntArray:
    """The confusion matrix (K, K): rows are true classes, columns predicted ones."""
    flat = np.bincount(targets * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes)


def scores_of_confusion(confusion: IntArray) -> ClassScores:
    """Per-class scores of a confusion matrix (K, K)."""
    return ClassScores.from_counts(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def largest_confusions(
    confusion: IntArray, names: Sequence[str], limit: int = NUM_TOP_CONFUSIONS
) -> tuple[tuple[str, str, int], ...]:
    """The largest cells off the diagonal as (true, predicted, count), largest first; equals in reading order."""
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    cells = ((int(cell // len(names)), int(cell % len(names))) for cell in order)
    return tuple((names[t], names[p], int(mistakes[t, p])) for t, p in cells if mistakes[t, p] > 0)


def rank_classes(targets: IntArray, probabilities: FloatArray) -> tuple[ColumnRanking, ...]:
    """The ranking scores of each class against all others; targets (N,), probabilities (N, K)."""
    return tuple(rank_column(targets == k, probabilities[:, k]) for k in range(probabilities.shape[1]))


def single_label_values(
    targets: IntArray,
    probabilities: FloatArray,
    predicted: IntArray,
    confusion: IntArray,
    scores: ClassScores,
    rankings: Sequence[ColumnRanking],
    bins: Sequence[ReliabilityBin],
) -> dict[str, float | None]:
    """All named scalars of a single-label evaluation.

    Args:
        targets: true classes (N,).
        probabilities: (N, K), rows sum to one.
        predicted: predicted classes (N,).
        confusion: (K, K) as from ``count_confusions``.
        scores: per-class scores of ``confusion``.
        rankings: per-class ranking scores.
        bins: reliability bins of the largest probability.
    """
    num_rows, num_classes = probabilities.shape
    correct = predicted == targets
    accuracy = float(correct.mean())
    present = scores.support > 0
    return {
        "accuracy": accuracy,
        "balanced_accuracy": float(scores.recall[present].mean()),
        "top2_accuracy": _top2_accuracy(targets, probabilities),
        "macro_precision": scores.macro(scores.precision),
        "macro_recall": scores.macro(scores.recall),
        "macro_f1": scores.macro(scores.f1),
        # Every row has one truth and one prediction, so micro precision, recall and F1 are all the accuracy.
        "micro_f1": accuracy,
        "weighted_f1": scores.weighted(scores.f1),
        "cohens_kappa": _cohens_kappa(targets, predicted, confusion),
        "mcc": _matthews(targets, predicted, scores),
        "roc_auc": _roc_auc(rankings),
        "macro_average_precision": macro_average_precision(rankings),
        "log_loss": _log_loss(targets, probabilities),
        "brier": _brier(targets, probabilities),
        "ece": expected_calibration_error(bins),
        **_confidences(probabilities.max(axis=1), correct),
        "random_accuracy": 1.0 / num_classes,
        "majority_share": float(scores.support.max() / num_rows),
    }


def _top2_accuracy(targets: IntArray, probabilities: FloatArray) -> float:
    """Share of rows whose true class is among the two most probable, equals ranked in the order of the classes."""
    of_truth = np.take_along_axis(probabilities, targets[:, None], axis=1)
    ahead = (probabilities > of_truth).sum(axis=1)
    equal_and_earlier = (probabilities == of_truth) & (np.arange(probabilities.shape[1]) < targets[:, None])
    return float((ahead + equal_and_earlier.sum(axis=1) < 2).mean())


def _roc_auc(rankings: Sequence[ColumnRanking]) -> float | None:
    """One class against the others, averaged over the classes that have rows and leave rows to others.

    With two classes this is one number, the area of the second class's probability: the first class's is the same, but
    for ties that rounding makes or breaks.
    """
    return rankings[1].roc_auc if len(rankings) == 2 else macro_roc_auc(rankings)


def _cohens_kappa(targets: IntArray, predicted: IntArray, confusion: IntArray) -> float | None:
    """Agreement beyond chance (Cohen 1960).

    None when truth and prediction are one and the same class throughout: chance alone then agrees perfectly, and
    (1 - 1) / (1 - 1) is no number.
    """
    if np.count_nonzero(confusion) == 1 and np.trace(confusion) > 0:
        return None
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(targets, predicted))


def _matthews(targets: IntArray, predicted: IntArray, scores: ClassScores) -> float:
    """The multi-class Matthews correlation R_K (Gorodkin 2004); 0.0 when truth or prediction never varies."""
    if np.count_nonzero(scores.support) < 2 or np.count_nonzero(scores.predicted) < 2:
        return 0.0  # scikit-learn's answer as well, where it does not warn first
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(targets, predicted))


def _log_loss(targets: IntArray, probabilities: FloatArray) -> float:
    """Mean negative natural logarithm of the true class's probability.

    Clipped at the float64 epsilon, as scikit-learn does, so that one impossible row costs 36 nats and not infinity.
    """
    eps = np.finfo(np.float64).eps
    of_truth = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.clip(of_truth, eps, 1.0 - eps)).mean())


def _brier(targets: IntArray, probabilities: FloatArray) -> float:
    """Mean over rows of sum_k (p_k - y_k)^2, from 0 to 2 (Brier 1950, equation 2).

    Expanded to sum p^2 - 2 p_true + 1, which needs no N x K matrix of ones and zeros.
    """
    of_truth = probabilities[np.arange(len(targets)), targets]
    squares = np.einsum("nk,nk->n", probabilities, probabilities)
    return float((squares - 2.0 * of_truth + 1.0).mean())


def _confidences(top: FloatArray, correct: NDArray[np.bool_]) -> dict[str, float | None]:
    """Mean largest probability: over all rows, over the right ones, over the wrong ones (None where there are none)."""
    return {
        "mean_confidence": float(top.mean()),
        "confidence_correct": float(top[correct].mean()) if correct.any() else None,
        "confidence_wrong": float(top[~correct].mean()) if not correct.all() else None,
    }
