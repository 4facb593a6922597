"""From numbers to plain words: what the report and the model card say, each sentence written once.

Both documents are rendered from templates, and a template is a poor place for arithmetic: whatever needs a decision
(is the gap real? is the model too sure of itself?) is decided here, where it can be tested, and the templates print
sentences and tables.

The interval on accuracy is the one of ``intervals``. It describes the draw of the evaluation rows and nothing else;
another seed or another annotator moves the score as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlassify.evaluation.baselines import Baseline
from qlassify.evaluation.intervals import Interval, share_interval
from qlassify.evaluation.metrics import MULTI_LABEL, ClassMetrics, Metrics

# Below this F1 a class is named among the limitations.
WEAK_F1 = 0.5

MEANINGS: Mapping[str, str] = {
    "accuracy": "rows whose predicted class is the true one",
    "balanced_accuracy": "recall, averaged over the classes that occur",
    "top2_accuracy": "rows whose true class is among the two most probable",
    "subset_accuracy": "rows whose labels are all right",
    "hamming_loss": "label decisions that are wrong",
    "macro_precision": "precision, averaged over all classes",
    "macro_recall": "recall, averaged over all classes",
    "macro_f1": "F1, averaged over all classes, each counting the same",
    "micro_precision": "predicted labels that are true, all labels pooled",
    "micro_recall": "true labels that were predicted, all labels pooled",
    "micro_f1": "F1 of all decisions pooled",
    "weighted_f1": "F1, averaged over classes by their rows",
    "samples_f1": "F1 of each row's labels, averaged over rows",
    "lrap": "precision at each true label when a row's labels are ranked",
    "roc_auc": "chance that a row of a class is ranked above one of another, averaged over classes",
    "macro_average_precision": "area under the precision-recall curve, averaged over classes that occur",
    "cohens_kappa": "agreement with the truth beyond chance (Cohen 1960)",
    "mcc": "correlation with the truth, -1 to 1 (Gorodkin 2004)",
    "log_loss": "mean negative log-probability of the truth, in nats; lower is better",
    "brier": "mean squared error of the probabilities (Brier 1950); lower is better",
    "ece": "expected calibration error, ten bins (Guo et al. 2017); lower is better",
    "mean_confidence": "largest probability, averaged over rows",
    "confidence_correct": "the same over the rows that are right",
    "confidence_wrong": "the same over the rows that are wrong",
    "random_accuracy": "accuracy of guessing among the classes at random",
    "majority_share": "rows of the most frequent class",
    "label_cardinality_true": "true labels per row",
    "label_cardinality_predicted": "predicted labels per row",
}
"""One line for every name in ``Metrics.values``."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the table that lays the model beside its baselines."""

    name: str
    values: tuple[float | None, ...]
    gap: float | None
    """The model's main score minus this one's; None for the model itself."""
    seconds: float | None
    is_model: bool


@dataclass(frozen=True, slots=True)
class ConfusedClass:
    """A class that was often taken for another."""

    name: str
    wrong: int
    support: int
    mostly: str
    """The class that it was most often taken for."""


def percent(share: float | None, digits: int = 1) -> str:
    """``0.9642`` as ``96.4 %``; a dash for None. Never rounds a share short of one up to ``100.0 %``."""
    if share is None:
        return "-"
    shown = round(100.0 * share, digits)
    if shown == 100.0 and share < 1.0:
        shown = 100.0 - 10.0**-digits
    return f"{shown:.{digits}f} %"


def score_name(key: str) -> str:
    """A name out of ``Metrics.values`` as it is spelled in prose: ``macro_f1`` is ``macro F1``."""
    return " ".join(_SPELLINGS.get(word, word) for word in key.split("_"))


_SPELLINGS = {
    "roc": "ROC",
    "auc": "AUC",
    "f1": "F1",
    "mcc": "MCC",
    "ece": "ECE",
    "lrap": "LRAP",
    "cohens": "Cohen's",
    "brier": "Brier",
}


def number(value: object, digits: int = 4) -> str:
    """Any value of a configuration or a table as a person would write it, floats to ``digits`` significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {number(one, digits)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(number(one, digits) for one in value)
    return str(value)


def shorten(text: str, limit: int) -> str:
    """``text``, or its first ``limit`` characters and an ellipsis, cut at a word where one ends in the last fifth.

    Characters are code points; combining marks and joined emoji stay with the character before them.
    """
    if len(text) <= limit:
        return text
    end = limit
    while end > 0 and _continues(text, end):
        end -= 1
    space = text.rfind(" ", 0, end)
    if space > 0.8 * end:
        end = space
    return text[:end].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _continues(text: str, position: int) -> bool:
    """Whether cutting before ``position`` would tear a visible character apart."""
    import unicodedata

    joiner = "\N{ZERO WIDTH JOINER}"
    here, before = text[position], text[position - 1]
    is_skin_tone = "\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}" <= here <= "\N{EMOJI MODIFIER FITZPATRICK TYPE-6}"
    return unicodedata.category(here).startswith("M") or joiner in (here, before) or is_skin_tone


def kappa_words(kappa: float | None) -> str | None:
    """Cohen's kappa in the words of Landis and Koch (1977, Biometrics 33, p. 165); None where it is undefined.

    The words are a convention of medicine, and kind: they know nothing of the number of classes or of what a mistake
    costs.
    """
    if kappa is None:
        return None
    words = ((0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"))
    return "poor" if kappa < 0.0 else next((word for limit, word in words if kappa <= limit), "almost perfect")


def main_score(metrics: Metrics) -> tuple[str, str]:
    """The name of the score that heads the report, as a key of ``values`` and in words."""
    return ("micro_f1", "micro-F1") if metrics.task == MULTI_LABEL else ("accuracy", "accuracy")


def best_first(baselines: Sequence[Baseline]) -> list[Baseline]:
    """The baselines by their main score, the best one first."""

    def badness(baseline: Baseline) -> float:
        key, _ = main_score(baseline.metrics)
        return -(baseline.metrics.values[key] or 0.0)

    return sorted(baselines, key=badness)


def rows_right(metrics: Metrics) -> int:
    """How many rows are right: the class, or all labels at once."""
    share = metrics.values["subset_accuracy" if metrics.task == MULTI_LABEL else "accuracy"]
    assert share is not None
    return round(share * metrics.num_rows)


def accuracy_interval(metrics: Metrics) -> Interval:
    """The 95 % Wilson interval of the share of rows that are right."""
    return share_interval(rows_right(metrics), metrics.num_rows)


def interval_words(metrics: Metrics) -> str:
    """``94.4 to 97.7 %``."""
    interval = accuracy_interval(metrics)
    return f"{percent(interval.low).removesuffix(' %')} to {percent(interval.high)}"


def headline(metrics: Metrics, evaluated_on: str, baselines: Sequence[Baseline]) -> str:
    """The result in one sentence: the main score, the rows, the interval, and what the baselines reach."""
    key, _ = main_score(metrics)
    rows = f"{metrics.num_rows:,} {evaluated_on} row{'' if metrics.num_rows == 1 else 's'}".replace("  ", " ")
    interval = f"95 % Wilson interval {interval_words(metrics)}"
    if metrics.task == MULTI_LABEL:
        share = percent(metrics.values["subset_accuracy"])
        first = f"Micro-F1 {percent(metrics.values[key])} on {rows}; {share} with every label right ({interval})"
    else:
        first = f"{percent(metrics.values[key])} of {rows} right ({interval})"
    ranked = (f"{one.name}: {percent(one.metrics.values[key])}" for one in best_first(baselines))
    return "; ".join([first, *ranked]) + "."


def verdict(metrics: Metrics, baselines: Sequence[Baseline]) -> str | None:
    """Whether the model was worth training, judged against the best baseline; None without one."""
    if not baselines:
        return None
    key, words = main_score(metrics)
    best = best_first(baselines)[0]
    ours, theirs = metrics.values[key] or 0.0, best.metrics.values[key] or 0.0
    gap = f"{abs(ours - theirs) * 100:.1f} points of {words}"
    if ours < theirs:
        return f"The model loses to {best.name} by {gap}. Use the baseline, or find out why."
    if ours == theirs:
        return f"The model only equals {best.name}."
    low = accuracy_interval(metrics).low
    if metrics.task != MULTI_LABEL and theirs >= low:
        return (
            f"The model is {gap} above {best.name}, but its interval reaches down to {percent(low)}: "
            f"{metrics.num_rows:,} rows cannot tell the two apart."
        )
    return f"The model is {gap} above the best baseline, {best.name}."


def score_columns(metrics: Metrics) -> tuple[str, ...]:
    """The scores worth laying side by side, as keys of ``values``."""
    if metrics.task == MULTI_LABEL:
        return ("micro_f1", "macro_f1", "subset_accuracy", "lrap", "log_loss")
    return ("accuracy", "macro_f1", "mcc", "log_loss", "ece")


def score_table(metrics: Metrics, baselines: Sequence[Baseline], model_name: str) -> tuple[ScoreRow, ...]:
    """The model, then its baselines, best first, each with the gap that the model opens."""
    key, _ = main_score(metrics)
    columns = score_columns(metrics)

    def row(name: str, scored: Metrics, seconds: float | None, is_model: bool) -> ScoreRow:
        ours, theirs = metrics.values[key], scored.values[key]
        gap = None if is_model or ours is None or theirs is None else ours - theirs
        return ScoreRow(name, tuple(scored.values[column] for column in columns), gap, seconds, is_model)

    return (
        row(model_name, metrics, None, True),
        *(row(one.name, one.metrics, one.seconds, False) for one in best_first(baselines)),
    )


def calibration_words(metrics: Metrics) -> str:
    """Whether the stated probabilities can be taken at their word."""
    ece = percent(metrics.values["ece"])
    if metrics.task == MULTI_LABEL:
        stated, happened = metrics.values["label_cardinality_predicted"], metrics.values["label_cardinality_true"]
        return (
            f"Over all label decisions the stated probabilities miss what happened by {ece} on average (ECE). "
            f"The threshold predicts {number(stated)} labels per row where {number(happened)} are true."
        )
    confidence, accuracy = metrics.values["mean_confidence"], metrics.values["accuracy"]
    assert confidence is not None
    assert accuracy is not None
    gap = confidence - accuracy
    manner = "says what it can hold" if abs(gap) < 0.01 else "is too sure of itself" if gap > 0 else "is too modest"
    return (
        f"The model {manner}: it states {percent(confidence)} on average and is right {percent(accuracy)} of the time. "
        f"Bin by bin the two differ by {ece} (ECE)."
    )


def weak_classes(metrics: Metrics) -> tuple[ClassMetrics, ...]:
    """Classes that occur and whose F1 is below ``WEAK_F1``, weakest first."""
    weak = (one for one in metrics.classes if one.support > 0 and one.f1 < WEAK_F1)
    return tuple(sorted(weak, key=lambda one: one.f1))


def absent_classes(metrics: Metrics) -> tuple[ClassMetrics, ...]:
    """Classes of the label map without a single evaluated row: nothing is known about them."""
    return tuple(one for one in metrics.classes if one.support == 0)


def most_confused(metrics: Metrics, limit: int = 10) -> tuple[ConfusedClass, ...]:
    """The classes with the most rows taken for another class, and for which one."""
    if metrics.confusion is None:
        return ()
    found = []
    for k, row in enumerate(metrics.confusion):
        wrong = sum(row) - row[k]
        if wrong:
            mostly = max((j for j in range(len(row)) if j != k), key=lambda j: row[j])
            found.append(ConfusedClass(metrics.classes[k].name, wrong, sum(row), metrics.classes[mostly].name))
    return tuple(sorted(found, key=lambda one: -one.wrong)[:limit])
