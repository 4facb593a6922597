"""What a classifier's decisions are worth, in plain words: calibration before and after, thresholds, sets, silence.

The numbers are those of ``decision_scores``; here they become sentences and the rows of tables. What is said depends on
the numbers: a promise that is not kept is said not to be, and a calibration error that grew is said to have grown.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.decision_scores import DecisionScores
from qlassify.evaluation.metrics import MULTI_LABEL, Metrics
from qlassify.evaluation.report_input import ReportInput
from qlassify.evaluation.wording import number, percent

VALIDATION = "validation"
"""What the rows are called on which a run chooses its decisions."""


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """What its own threshold does to one label."""

    name: str
    threshold: float
    """The probability from which the label is given."""
    f1_at_half: float
    """F1 with 0.5 in its place."""
    f1: float
    gain: float
    """``f1`` minus ``f1_at_half``."""


def was_fitted(rule: DecisionRule | None) -> bool:
    """Whether anything was chosen on rows, so that there is a before and an after."""
    return rule is not None and rule.fitted_rows > 0


def calibration_change(report: ReportInput) -> str | None:
    """What the temperature did to the probabilities of the scored rows; None where nobody says how they came about."""
    rule, decisions = report.rule, report.decisions
    if rule is None or decisions is None:
        return None
    if not was_fitted(rule):
        return "No temperature was fitted: these are the probabilities as they came out of training."
    before, after = decisions.plain.values, report.metrics.values
    kind = "" if report.evaluated_on != VALIDATION else " These are the rows that it was fitted on."
    return (
        f"A temperature of {rule.temperature:.3f}, fitted on {rule.fitted_rows:,} rows, changed the calibration error "
        f"(ECE) from {percent(before['ece'])} to {percent(after['ece'])} and the log-loss from "
        f"{_score(before['log_loss'])} to {_score(after['log_loss'])}.{kind}"
    )


def decision_lines(rule: DecisionRule, decisions: DecisionScores, metrics: Metrics) -> list[tuple[str, str]]:
    """A line for a terminal on each decision that was made: (what it is about, what it came to)."""
    lines = []
    before, after = decisions.plain.values, metrics.values
    if was_fitted(rule):
        change = f"ECE {percent(before['ece'])} -> {percent(after['ece'])}"
        lines.append(("calibrated", f"temperature {rule.temperature:.3g}: {change}"))
    if rule.thresholds is not None:
        change = f"macro-F1 {percent(before['macro_f1'])} -> {percent(after['macro_f1'])}"
        bounds = f"{min(rule.thresholds):.2f} to {max(rule.thresholds):.2f}"
        lines.append(("thresholds", f"{bounds}, one per label: {change}"))
    if decisions.sets is not None:
        sets = decisions.sets
        kept = "" if sets.kept else "; the promise is not kept"
        lines.append(
            (
                "label sets",
                f"{percent(sets.coverage)} hold the true class ({percent(sets.promised)} promised), "
                f"{sets.mean_size:.2f} labels each{kept}",
            )
        )
    if rule.abstain_below is not None:
        lines.append(("abstained", f"{percent(decisions.abstained)} of the rows, below {rule.abstain_below:g}"))
    if decisions.cost is not None:
        cost = decisions.cost
        words = f"{number(cost.cost)} a decision; {number(cost.cost_at_half)} with the more probable class"
        lines.append(("cost", words))
    return lines


def sets_words(report: ReportInput) -> str | None:
    """Whether the label sets keep their promise; None without sets."""
    sets = None if report.decisions is None else report.decisions.sets
    if sets is None:
        return None
    found = f"{percent(sets.coverage)} of the sets hold the true class where {percent(sets.promised)} were promised"
    if not sets.kept:
        return (
            f"The promise is not kept: {found}, and chance explains no less than {percent(sets.expected_low)}. The "
            "scored rows differ from those that the sets were made on."
        )
    own = report.evaluated_on == VALIDATION
    kept = f"{found}{'; these are the rows that the sets were made on' if own else ', which chance explains'}."
    if sets.single == 1.0 and sets.coverage >= sets.promised:
        return f"{kept} All sets hold one label: the model is right more often than promised."
    if sets.single == 1.0:
        return f"{kept} All sets hold one label, so that the coverage is the accuracy."
    return kept


def threshold_rows(report: ReportInput) -> tuple[ThresholdRow, ...]:
    """Each label's threshold and what it gains, the largest gain first; none where every threshold is 0.5."""
    rule, decisions, metrics = report.rule, report.decisions, report.metrics
    if rule is None or decisions is None or metrics.task != MULTI_LABEL:
        return ()
    thresholds = rule.label_thresholds(len(metrics.classes)).tolist()
    if all(threshold == 0.5 for threshold in thresholds):
        return ()
    rows = (
        ThresholdRow(one.name, threshold, plain.f1, one.f1, one.f1 - plain.f1)
        for one, plain, threshold in zip(metrics.classes, decisions.plain.classes, thresholds, strict=True)
    )
    return tuple(sorted(rows, key=lambda row: -row.gain))


def thresholds_words(report: ReportInput) -> str | None:
    """What the thresholds gain in all; None for one label per text."""
    rule, decisions, metrics = report.rule, report.decisions, report.metrics
    if rule is None or decisions is None or metrics.task != MULTI_LABEL:
        return None
    if not threshold_rows(report):
        return "A label is given from a probability of 0.5."
    before, after = decisions.plain.values, metrics.values
    whose = "Each label has a threshold of its own" if rule.thresholds else f"A label is given from {rule.threshold:g}"
    return (
        f"{whose}. With 0.5 for every label macro-F1 would be {percent(before['macro_f1'])} and micro-F1 "
        f"{percent(before['micro_f1'])}; it is {percent(after['macro_f1'])} and {percent(after['micro_f1'])}."
    )


def abstained_words(report: ReportInput) -> str | None:
    """How often the classifier says nothing; None where it always answers."""
    if report.rule is None or report.decisions is None or report.rule.abstain_below is None:
        return None
    return (
        f"No answer is given below a probability of {number(report.rule.abstain_below)}: that is "
        f"{percent(report.decisions.abstained)} of these rows. In every score above they count with the answer that "
        "was withheld."
    )


def cost_words(report: ReportInput) -> str | None:
    """What a decision about the positive class costs; None without one."""
    cost = None if report.decisions is None else report.decisions.cost
    positive = None if report.rule is None else report.rule.positive
    if cost is None or positive is None:
        return None
    return (
        f"The answer is {cost.positive} from a probability of {number(cost.threshold)}, since to answer with it where "
        f"it is wrong costs {number(positive.false_positive_cost)} and to miss it costs "
        f"{number(positive.false_negative_cost)}. A decision costs {number(cost.cost)} on average; with the more "
        f"probable class as the answer it would be {number(cost.cost_at_half)}."
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
