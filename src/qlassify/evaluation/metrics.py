"""What a set of predictions is worth: targets and probabilities in, one frozen ``Metrics`` out.

The function knows nothing of models: it sees two arrays and the names of the label map, so a fine-tuned transformer
and a baseline are judged by the same code, and a report, a comparison or a checkpoint rule reads the same names.
Scores come as a flat mapping (``metrics.values["macro_f1"]``) and not as attributes, because the two tasks have
different ones and because "select the best checkpoint by NAME" is then a look-up.

Two conventions run through it. A score that is a ratio with nothing below the line is 0.0 (scikit-learn's
``zero_division=0``); a number that would have no meaning at all is None, never NaN, so that JSON can hold it. And every
class of the label map is reported, with or without rows: a class that vanished from the test set should be seen.

Inputs are checked here, once, and refused with the number of the first bad row (counted from 0). Logits passed for
probabilities are the classic silent mistake; they fail the check that rows sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qlassify.errors import DataError
from qlassify.evaluation.calibration_error import ReliabilityBin, reliability_bins
from qlassify.evaluation.class_scores import ClassScores, FloatArray
from qlassify.evaluation.multi_label import multi_label_values, rank_labels, scores_of_decisions
from qlassify.evaluation.ranking import BoolMatrix, ColumnRanking
from qlassify.evaluation.single_label import (
    count_confusions,
    largest_confusions,
    rank_classes,
    scores_of_confusion,
    single_label_values,
)

__all__ = ["ClassMetrics", "Metrics", "ReliabilityBin", "evaluate_predictions"]

SINGLE_LABEL = "single_label"
MULTI_LABEL = "multi_label"

# A softmax rounded to bfloat16 has a relative error of 2^-9 per entry, so its rows sum to one within 0.002. Logits and
# forgotten normalisations miss by far more than this.
_ROW_SUM_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The scores of one class (single-label) or one label (multi-label)."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """Rows whose truth is (or contains) this class."""
    predicted: int
    """Rows for which this class was predicted."""
    average_precision: float | None = None
    """Area under the precision-recall steps; None where no row has the class."""
    roc_auc: float | None = None
    """Area under the ROC curve, this class against the others; None where no row has it, or every row."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything that targets and probabilities say about a classifier."""

    task: str
    """``single_label`` or ``multi_label``."""
    num_rows: int
    values: Mapping[str, float | None]
    """Named scalars in a stable order; None where a score has no meaning."""
    classes: tuple[ClassMetrics, ...]
    """One entry per name of the label map, in its order."""
    confusion: tuple[tuple[int, ...], ...] | None
    """Counts, rows = true, columns = predicted; None for multi-label."""
    top_confusions: tuple[tuple[str, str, int], ...]
    """The five largest cells off the diagonal as (true, predicted, count); empty for multi-label."""
    reliability: tuple[ReliabilityBin, ...]
    """Ten bins: of the largest probability of each row (single-label), of every label's probability (multi-label)."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain lists, mappings and numbers, ready for JSON; undefined is null, never NaN."""
        return {
            "task": self.task,
            "num_rows": self.num_rows,
            "values": dict(self.values),
            "classes": [asdict(one) for one in self.classes],
            "confusion": None if self.confusion is None else [list(row) for row in self.confusion],
            "top_confusions": [list(cell) for cell in self.top_confusions],
            "reliability": [asdict(one) for one in self.reliability],
        }


def evaluate_predictions(
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    names: Sequence[str],
    *,
    multi_label: bool,
    threshold: float | NDArray[Any] = 0.5,
    predicted: NDArray[np.int64] | None = None,
) -> Metrics:
    """Score ``probabilities`` against ``targets``.

    Args:
        targets: single-label: true classes, integers (N,) in [0, K). Multi-label: 0 or 1, (N, K); -1 or NaN where it
            is not known whether the row has the label. Such a cell counts in no score, and a row of nothing else
            is not counted at all.
        probabilities: (N, K); single-label rows sum to one, multi-label entries are independent.
        names: the K names of the label map, in the order of the columns.
        multi_label: which of the two tasks it is.
        threshold: multi-label only: a label is predicted where its probability is at least this; one number, or one
            per label (K,).
        predicted: single-label only: the decided classes (N,); the most probable ones when None.

    Raises:
        DataError: no rows, shapes that do not fit together, a probability that is none, a target outside the map, no
            known target.
    """
    probabilities = _checked_probabilities(np.asarray(probabilities), names, rows_sum_to_one=not multi_label)
    if multi_label:
        return _evaluate_multi_label(np.asarray(targets), probabilities, names, np.asarray(threshold, np.float64))
    return _evaluate_single_label(np.asarray(targets), probabilities, names, predicted)


def _evaluate_single_label(
    targets: NDArray[Any], probabilities: FloatArray, names: Sequence[str], predicted: NDArray[np.int64] | None
) -> Metrics:
    truth = _checked_classes(targets, probabilities.shape)
    predicted = probabilities.argmax(axis=1) if predicted is None else _checked_classes(predicted, probabilities.shape)
    confusion = count_confusions(truth, predicted, len(names))
    scores = scores_of_confusion(confusion)
    rankings = rank_classes(truth, probabilities)
    bins = reliability_bins(probabilities.max(axis=1), predicted == truth)
    return Metrics(
        task=SINGLE_LABEL,
        num_rows=len(truth),
        values=single_label_values(truth, probabilities, predicted, confusion, scores, rankings, bins),
        classes=_class_metrics(names, scores, rankings),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        top_confusions=largest_confusions(confusion, names),
        reliability=bins,
    )


def _evaluate_multi_label(
    targets: NDArray[Any], probabilities: FloatArray, names: Sequence[str], threshold: FloatArray
) -> Metrics:
    if threshold.shape not in ((), (len(names),)):
        _refuse("one threshold, or one per label", "threshold", got=threshold.shape, wanted=(len(names),))
    truth, known = known_labels(targets, probabilities.shape)
    if not known.all():
        counted = known.any(axis=1)
        truth, known, probabilities = truth[counted], known[counted], probabilities[counted]
    predicted = (probabilities >= threshold) & known
    scores = scores_of_decisions(truth, predicted)
    rankings = rank_labels(truth, probabilities, known)
    bins = reliability_bins(probabilities[known], truth[known])
    return Metrics(
        task=MULTI_LABEL,
        num_rows=len(truth),
        values=multi_label_values(truth, probabilities, predicted, known, scores, rankings, bins),
        classes=_class_metrics(names, scores, rankings),
        confusion=None,
        top_confusions=(),
        reliability=bins,
    )


def _class_metrics(
    names: Sequence[str], scores: ClassScores, rankings: Sequence[ColumnRanking]
) -> tuple[ClassMetrics, ...]:
    return tuple(
        ClassMetrics(
            name=name,
            precision=float(scores.precision[k]),
            recall=float(scores.recall[k]),
            f1=float(scores.f1[k]),
            support=int(scores.support[k]),
            predicted=int(scores.predicted[k]),
            average_precision=rankings[k].average_precision,
            roc_auc=rankings[k].roc_auc,
        )
        for k, name in enumerate(names)
    )


def _checked_probabilities(probabilities: NDArray[Any], names: Sequence[str], *, rows_sum_to_one: bool) -> FloatArray:
    """``probabilities`` as float64 (N, K), or a DataError that names the first bad row."""
    if not names:
        _refuse("there are no classes to evaluate", "names", got=0, wanted="at least one name")
    if probabilities.ndim != 2 or probabilities.shape[1] != len(names):
        wanted = f"(rows, {len(names)}), one column per name"
        _refuse("shape does not fit the label map", "probabilities", got=probabilities.shape, wanted=wanted)
    if len(probabilities) == 0:
        _refuse("there are no rows to evaluate", "probabilities", got=0, wanted="at least one row")
    checked: FloatArray = probabilities.astype(np.float64)
    if not np.isfinite(checked).all():
        row = _first(~np.isfinite(checked).all(axis=1))
        _refuse("probabilities are not finite", f"row {row}", got=checked[row], do="The model diverged on this row.")
    if checked.min() < 0.0 or checked.max() > 1.0:
        # Rounding may leave a hair outside; a softmax or sigmoid never leaves more than that.
        outside = ((checked < -1e-6) | (checked > 1.0 + 1e-6)).any(axis=1)
        if outside.any():
            row = _first(outside)
            _refuse_logits("values outside [0, 1] are not probabilities", row, checked[row])
        checked = checked.clip(0.0, 1.0)
    if rows_sum_to_one:
        sums = checked.sum(axis=1)
        off = np.abs(sums - 1.0) > _ROW_SUM_TOLERANCE
        if off.any():
            row = _first(off)
            _refuse_logits("the probabilities of a row must sum to one", row, f"a sum of {sums[row]:.6g}")
    return checked


def _checked_classes(targets: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Single-label ``targets`` as int64 (N,), or a DataError that names the first bad row."""
    num_rows, num_classes = shape
    if targets.shape != (num_rows,):
        _refuse("one class per row of probabilities", "targets", got=targets.shape, wanted=(num_rows,))
    if not np.issubdtype(targets.dtype, np.integer):
        _refuse("classes are integers", "targets", got=targets.dtype, wanted="an integer array")
    outside = (targets < 0) | (targets >= num_classes)
    if outside.any():
        row = _first(outside)
        _refuse("the class is not in the label map", f"row {row}", got=targets[row], wanted=f"0 to {num_classes - 1}")
    return targets.astype(np.int64)


def known_labels(targets: NDArray[Any], shape: tuple[int, ...]) -> tuple[BoolMatrix, BoolMatrix]:
    """Multi-label ``targets`` as two boolean matrices (N, K): the label is true; it is known whether it is.

    Raises:
        DataError: another shape, another value than 0, 1, -1 and NaN, no known label, or -1 in the place of every 0.
    """
    if targets.shape != shape:
        _refuse("one 0 or 1 per row and label", "targets", got=targets.shape, wanted=shape)
    true, minus = targets == 1, targets == -1
    known = true | (targets == 0)
    not_a_number = targets != targets  # NaN alone differs from itself, and only a float can be one
    neither = ~(known | minus | not_a_number).all(axis=1)
    if neither.any():
        row = _first(neither)
        wanted = "0 or 1 per label, -1 or NaN where it is unknown"
        _refuse("multi-label targets are 0 or 1", f"row {row}", got=targets[row], wanted=wanted)
    if not known.any():
        _refuse("no label is known", "targets", got="-1 or NaN throughout", wanted="at least one 0 or 1")
    if minus.any() and not (targets == 0).any():
        do = "If -1 means that a row does not have the label, pass 0; if it means that nobody knows, pass NaN."
        _refuse("a target of -1 is an unknown one, and no label is known to be false", "targets", got="1 and -1", do=do)
    return true, known


def _first(mask: ArrayLike) -> int:
    return int(np.flatnonzero(mask)[0])


def _refuse(what: str, where: str, *, got: object, wanted: object | None = None, do: str | None = None) -> NoReturn:
    raise DataError(what, where=where, got=got, wanted=wanted, do=do)


def _refuse_logits(what: str, row: int, got: object) -> NoReturn:
    _refuse(what, f"row {row}", got=got, do="If these are logits, apply a softmax (or sigmoid) first.")
