"""Where the main score hides classes: sentences, with their numbers, for whoever would stop reading at the score.

Accuracy and micro-F1 count rows and decisions, so classes with few rows hardly move them. Three signs that this has
happened are looked for: accuracy is about what always answering with the largest class would have; macro-F1, to which
all classes count the same, is far below; a class that has rows is never found. Each is a comparison of numbers that the
report shows anyway, and that a reader in a hurry does not make.
"""

from __future__ import annotations

from qlassify.evaluation.metrics import MULTI_LABEL, Metrics
from qlassify.evaluation.wording import main_score, percent

MAJORITY_MARGIN = 0.02
"""Accuracy at most this far above the majority class's share says little."""
MACRO_GAP = 0.15
"""Macro-F1 further than this below the main score is told."""
MIN_ROWS = 10
"""Rows from which a class with recall 0 is named."""
MAX_NAMED = 5
# A difference of scores such as 0.52 - 0.50 comes out as 0.020000000000000018.
_ROUNDING = 1e-9


def minority_notes(metrics: Metrics) -> tuple[str, ...]:
    """A sentence for each sign that the main score hides classes; empty where there is none."""
    key, words = main_score(metrics)
    score, macro = metrics.values[key] or 0.0, metrics.values["macro_f1"] or 0.0
    notes = []
    if metrics.task != MULTI_LABEL:
        notes += _about_the_majority(metrics, score)
    if score - macro > MACRO_GAP + _ROUNDING:
        kind = "label" if metrics.task == MULTI_LABEL else "class"
        absent = sum(one.support == 0 for one in metrics.classes)
        without = f" ({absent} of {len(metrics.classes)} have no row here and count as 0)" if absent else ""
        notes.append(
            f"Macro-F1 is {percent(macro)} where {words} is {percent(score)}: counting every {kind} the same{without} "
            f"costs {100 * (score - macro):.1f} points. Look at the classes one by one."
        )
    return (*notes, *_about_classes_never_found(metrics))


def _about_the_majority(metrics: Metrics, accuracy: float) -> list[str]:
    share = metrics.values["majority_share"] or 0.0
    gap = accuracy - share
    if gap > MAJORITY_MARGIN + _ROUNDING:
        return []
    largest = max(metrics.classes, key=lambda one: one.support)
    if abs(gap) < _ROUNDING:
        where = "exactly"
    else:
        where = f"only {100 * gap:.1f} points above" if gap > 0 else f"{-100 * gap:.1f} points below"
    return [
        f"Accuracy is {percent(accuracy)}, {where} the {percent(share)} that always answering {largest.name!r} would "
        "have: it says nothing about the other classes. Look at macro-F1 and at the recall of each class."
    ]


def _about_classes_never_found(metrics: Metrics) -> list[str]:
    lost = sorted(
        (one for one in metrics.classes if one.support >= MIN_ROWS and one.recall == 0.0), key=lambda one: -one.support
    )
    if not lost:
        return []
    named = ", ".join(f"{one.name!r} ({one.support:,} rows)" for one in lost[:MAX_NAMED])
    more = f", and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
    kind = "labels are" if metrics.task == MULTI_LABEL else "classes are"
    kind = kind if len(lost) > 1 else kind.replace("labels are", "label is").replace("classes are", "class is")
    return [f"{len(lost)} {kind} never found, with a recall of 0: {named}{more}."]
