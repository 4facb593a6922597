"""C-SEQ, C-LABEL, C-IMB: what is cut off the texts, rows that stand twice, labels, imbalance.

A limit that is larger than the texts costs nothing here, because no batch is padded to it; the dangerous side is the
other one. Shares are those that tokenising counted, and hold for the limit at which they were counted: with a larger
limit, another policy for long texts or more windows the contracts wait for another count.

What is advised is a larger limit as long as the model has positions, because attention then sees the whole text; behind
that, windows, which read all of it in parts.
"""

from __future__ import annotations

import math
from typing import Any

from qlassify.config.method import positions_before_text
from qlassify.config.run import ModelConfig
from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rates import STEPPED_KINDS
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation, TokenLengths, Truncation

SUBJECT = "Texts, labels and classes"
TRUNCATED_INFO, TRUNCATED_WARN, TRUNCATED_ERROR = 0.01, 0.05, 0.20
CLASS_OVER_ALL = 2.0
"""A class is cut more than others if its share is this many times that of all rows; our choice."""
USUAL_LIMIT: int = ModelConfig.model_fields["max_length"].default
TELLING_SHARE = 0.01
MANY_DUPLICATES = 0.05
STRONG_IMBALANCE = 10.0


def _positions(situation: Situation) -> int | None:
    """The longest text that the model has positions for beside what the method takes; None if not known."""
    most = situation.model.max_positions
    return None if most is None else max(1, most - positions_before_text(situation.run.method))


def _larger_limit(situation: Situation, wanted: int) -> int | None:
    """The limit that takes texts of ``wanted`` tokens, as far as the model has positions; None if it is no larger."""
    most = _positions(situation)
    limit = wanted if most is None else min(wanted, most)
    return limit if limit > situation.run.model.max_length else None


def _limit_advice(situation: Situation, cut: Truncation, wanted: int) -> tuple[str, dict[str, int | str]]:
    """What to do about cut texts, and the settings that do it, if any can."""
    if cut.long == "windows":
        number = max(cut.max_windows + 1, math.ceil(wanted / max(1, cut.window_step)))
        return f"model.max_windows={number}", {"model.max_windows": number}
    limit = _larger_limit(situation, wanted)
    if limit is not None:
        rest = ", then model.long=windows for what is longer" if limit < wanted and not situation.data.pairs else ""
        return f"model.max_length={limit}{rest}", {"model.max_length": limit}
    if not situation.data.pairs:
        return "model.long=windows, which reads texts in parts: the model has no more positions", {
            "model.long": "windows"
        }
    return "a model with more positions: this one can read no more of a pair", {}


def _counted(situation: Situation) -> Truncation | None:
    """The count of cut texts, if it was made at the run's limit or a larger one, and under its policy."""
    cut, model, most = situation.data.truncation, situation.run.model, _positions(situation)
    limit = model.max_length if most is None else min(model.max_length, most)
    if cut is None or limit > cut.max_length or model.long != cut.long:
        return None
    return None if cut.long == "windows" and model.max_windows > cut.max_windows else cut


_LOST = {"tail": "end", "head": "beginning", "middle": "middle"}


def _limit(cut: Truncation) -> str:
    """Where texts were cut, in words."""
    windows = f" in {cut.max_windows} windows" if cut.long == "windows" else ""
    return f"{cut.max_length} tokens{windows}"


def _truncation(situation: Situation) -> Finding | None:
    cut, lengths = _counted(situation), situation.data.token_lengths
    assert lengths is not None
    if cut is None or cut.share <= TRUNCATED_INFO:
        return None
    message = (
        f"{arithmetic.percent(cut.share)} of the texts lose their {_LOST[cut.end]} at "
        f"{_limit(cut)} (half have up to {lengths.p50}, 95 % up to {lengths.p95}, 99 % up to {lengths.p99}, "
        f"the longest {lengths.longest})"
    )
    recommendation, remedy = _limit_advice(situation, cut, lengths.p99)
    if cut.share > TRUNCATED_ERROR and "model.max_length" in remedy and situation.run.model.max_length < USUAL_LIMIT:
        message += f", although the limit is below both the model's positions and the usual {USUAL_LIMIT}"
        return Finding(Severity.ERROR, message, recommendation, remedy)
    severity = Severity.WARN if cut.share > TRUNCATED_WARN else Severity.INFO
    return Finding(severity, message, recommendation, remedy)


def _truncated_class(situation: Situation) -> Finding | None:
    cut, lengths = _counted(situation), situation.data.token_lengths
    assert lengths is not None
    if cut is None or not cut.share_by_class:
        return None
    worst = max(cut.share_by_class)
    if worst <= TRUNCATED_WARN or worst < CLASS_OVER_ALL * cut.share:
        return None
    name = situation.data.name_of(cut.share_by_class.index(worst))
    message = (
        f"{arithmetic.percent(worst)} of the texts of class {name} lose their "
        f"{_LOST[cut.end]}, {arithmetic.percent(cut.share)} of all: what tells the class "
        "may stand there, and length itself tells it"
    )
    recommendation, remedy = _limit_advice(situation, cut, lengths.longest)
    return Finding(Severity.WARN, message, recommendation, remedy)


def _classes_without_validation(situation: Situation) -> Finding | None:
    counts = situation.data.validation_counts
    assert counts is not None
    empty = [situation.data.name_of(index) for index, count in enumerate(counts) if count == 0]
    if not empty:
        return None
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    message = (
        f"{len(empty)} of {len(counts)} classes have no validation row ({shown}): the choice of weights cannot see them"
    )
    return Finding(Severity.WARN, message, "more rows of these classes, or data.eval with some of each")


def _leaks(situation: Situation) -> Finding | None:
    leaks, counts = situation.data.leaks, situation.data.validation_counts
    assert leaks is not None
    assert counts is not None
    if leaks == 0:
        return None
    share = leaks / max(1, sum(counts))
    severity = Severity.WARN if share > TELLING_SHARE else Severity.INFO
    message = (
        f"{leaks} validation texts ({arithmetic.percent(share)}) also stand in the training rows: scores are too good"
    )
    return Finding(severity, message, "leave them out of data.eval, or let a share of data.train be held out instead")


def _conflicts(situation: Situation) -> Finding | None:
    conflicts, rows = situation.data.conflicts, situation.data.rows
    assert conflicts is not None
    assert rows is not None
    if conflicts == 0:
        return None
    share = conflicts / max(1, rows)
    severity = Severity.WARN if share > TELLING_SHARE else Severity.INFO
    message = f"{conflicts} training rows ({arithmetic.percent(share)}) have the text of another row and another label"
    return Finding(severity, message, "settle their labels, or make the task one of several labels per text")


def _duplicates(situation: Situation) -> Finding | None:
    duplicates, rows = situation.data.duplicates, situation.data.rows
    assert duplicates is not None
    assert rows is not None
    share = duplicates / max(1, rows)
    if share <= MANY_DUPLICATES:
        return None
    message = (
        f"{duplicates} training rows ({arithmetic.percent(share)}) have the text of another row, and count as often"
    )
    return Finding(
        Severity.INFO, message, "keep one of each, unless texts are as frequent where the classifier is used"
    )


def _smoothing(situation: Situation) -> Finding | None:
    value = situation.run.training.label_smoothing
    if value == 0 or not situation.data.multi_label:
        return None
    message = f"label smoothing {value:g} has no effect with several labels per text"
    return Finding(Severity.WARN, message, "training.label_smoothing=0", {"training.label_smoothing": 0.0})


def _metric(situation: Situation) -> Finding | None:
    if situation.imbalance <= STRONG_IMBALANCE or situation.run.training.selection_metric != "accuracy":
        return None
    counts = situation.data.class_counts
    assert counts is not None
    share = max(counts) / max(1, sum(counts))
    message = f"weights are chosen by accuracy; always naming the most frequent class has {arithmetic.percent(share)}"
    return Finding(
        Severity.WARN, message, "training.selection_metric=macro_f1", {"training.selection_metric": "macro_f1"}
    )


def _weighted_probabilities(situation: Situation) -> Finding | None:
    weights = situation.run.training.class_weights
    if weights == "uniform" or (isinstance(weights, tuple) and len(set(weights)) == 1):
        return None
    message = (
        "class weights shift the probabilities: the loss is least where the odds of two classes are the true ones "
        "times the ratio of their weights"
    )
    recommendation = "calibrate before probabilities are read as such, or training.class_weights=uniform"
    return Finding(Severity.INFO, message, recommendation, {"training.class_weights": "uniform"})


def _balanced_twice(situation: Situation) -> Finding | None:
    training = situation.run.training
    weights = training.class_weights
    if training.sampling != "balanced" or weights == "uniform" or isinstance(weights, tuple):
        return None
    message = (
        f"classes are drawn equally often and weighted ({weights}) for being rare: imbalance is corrected twice, and "
        "rare classes outweigh frequent ones"
    )
    return Finding(Severity.WARN, message, "training.class_weights=uniform", {"training.class_weights": "uniform"})


def _shifted_probabilities(situation: Situation) -> Finding | None:
    training = situation.run.training
    said: list[str] = []
    remedy: dict[str, Any] = {}
    if training.sampling == "balanced":
        said.append("balanced sampling shifts them as if all classes were equally frequent")
        remedy["training.sampling"] = "shuffled"
    if training.focal_gamma:
        said.append(f"focal loss (gamma {training.focal_gamma:g}) is least at other ones, mostly less sure")
        remedy["training.focal_gamma"] = 0.0
    if not said:
        return None
    settings = ", ".join(f"{name}={value}" for name, value in remedy.items())
    return Finding(
        Severity.INFO,
        f"probabilities are not those of the data: {'; '.join(said)}",
        f"calibrate before probabilities are read as such, or {settings}",
        remedy,
    )


INFO, WARN, ERROR = Severity.INFO, Severity.WARN, Severity.ERROR
_LENGTHS = TokenLengths(p50=40, p90=120, p95=180, p99=253, longest=700)
_ROOM = {"data.token_lengths": _LENGTHS, "model.max_positions": 512}
_LONG = {"data.token_lengths": TokenLengths(400, 2000, 4000, 9000, 30000), "model.max_positions": 512}
_WINDOWED = Truncation(512, 0.02, long="windows", window_step=382)

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id="C-SEQ-001",
        title="Texts that are cut",
        subject=SUBJECT,
        rule="Info if more than 1 % of the training texts are cut, warn above 5 %; error above 20 % if "
        "model.max_length is below both 512 and what the model has positions for and texts are not read in windows. "
        "The remedy is a larger limit, model.long=windows where the model has no more positions, or more windows.",
        severities=(INFO, WARN, ERROR),
        sources=(
            sources.ENTRENAR.says("at most 1 % cut"),
            sources.OURS.says("5 % and 20 %; only a limit that was set lower than usual is refused"),
        ),
        predicate=_truncation,
        needs=("data.truncation", "data.token_lengths"),
        changes=("model.max_length", "model.long", "model.max_windows"),
        widens=("C-HP-004",),
        examples=(
            Example({"model.max_length": 256}, {**_ROOM, "data.truncation": Truncation(256, 0.009)}),
            Example({"model.max_length": 200}, {**_ROOM, "data.truncation": Truncation(200, 0.04)}, INFO),
            Example({"model.max_length": 128}, {**_ROOM, "data.truncation": Truncation(128, 0.09)}, WARN),
            Example({"model.max_length": 64}, {**_ROOM, "data.truncation": Truncation(64, 0.35)}, ERROR),
            Example({"model.max_length": 512}, {**_LONG, "data.truncation": Truncation(512, 0.35)}, WARN),
            Example({"model.long": "windows"}, {**_LONG, "data.truncation": _WINDOWED}, INFO),
        ),
    ),
    Contract(
        id="C-SEQ-002",
        title="A class that is cut more than others",
        subject=SUBJECT,
        rule="Warn if more than 5 % of a class's texts are cut, and twice as many as of all texts.",
        severities=(WARN,),
        sources=(sources.OURS.says("5 % and twice"),),
        predicate=_truncated_class,
        needs=("data.truncation", "data.token_lengths"),
        changes=("model.max_length", "model.long", "model.max_windows"),
        widens=("C-HP-004",),
        examples=(
            Example({"model.max_length": 256}, {**_ROOM, "data.truncation": Truncation(256, 0.03, (0.03, 0.03))}),
            Example({"model.max_length": 256}, {**_ROOM, "data.truncation": Truncation(256, 0.03, (0.001, 0.3))}, WARN),
        ),
    ),
    Contract(
        id="C-LABEL-001",
        title="Every class in the validation rows",
        subject=SUBJECT,
        rule="Warn if a class has no validation row.",
        severities=(WARN,),
        sources=(sources.ARITHMETIC.says("a class without rows adds nothing to any score"),),
        predicate=_classes_without_validation,
        needs=("data.validation_counts",),
        examples=(
            Example({}, {"data.validation_counts": (10, 12)}),
            Example({}, {"data.validation_counts": (10, 0)}, WARN),
        ),
    ),
    Contract(
        id="C-LABEL-002",
        title="Validation texts that were trained on",
        subject=SUBJECT,
        rule="Info if any validation text also stands in the training rows, warn if more than 1 % do. Rows that are "
        "held out of the training file never do.",
        severities=(INFO, WARN),
        sources=(sources.OURS.says("1 %"),),
        predicate=_leaks,
        needs=("data.leaks", "data.validation_counts"),
        examples=(
            Example({}, {"data.leaks": 0, "data.validation_counts": (500, 500)}),
            Example({}, {"data.leaks": 3, "data.validation_counts": (500, 500)}, INFO),
            Example({}, {"data.leaks": 50, "data.validation_counts": (500, 500)}, WARN),
        ),
    ),
    Contract(
        id="C-LABEL-003",
        title="One text, two labels",
        subject=SUBJECT,
        rule="Info if any training text has different labels in different rows, warn if more than 1 % of the rows do.",
        severities=(INFO, WARN),
        sources=(sources.OURS.says("1 %"),),
        predicate=_conflicts,
        needs=("data.conflicts", "data.rows"),
        examples=(
            Example({}, {"data.conflicts": 0, "data.rows": 1000}),
            Example({}, {"data.conflicts": 4, "data.rows": 1000}, INFO),
            Example({}, {"data.conflicts": 40, "data.rows": 1000}, WARN),
        ),
    ),
    Contract(
        id="C-LABEL-004",
        title="Texts that stand in several rows",
        subject=SUBJECT,
        rule="Info if more than 5 % of the training rows have the text of another one.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("a text in n rows has n times the weight of a text in one"),
            sources.OURS.says("5 %"),
        ),
        predicate=_duplicates,
        needs=("data.duplicates", "data.rows"),
        examples=(
            Example({}, {"data.duplicates": 40, "data.rows": 1000}),
            Example({}, {"data.duplicates": 200, "data.rows": 1000}, INFO),
        ),
    ),
    Contract(
        id="C-LABEL-005",
        title="Label smoothing with several labels",
        subject=SUBJECT,
        rule="Warn if training.label_smoothing is set and rows may have several labels: it applies to one label only.",
        severities=(WARN,),
        sources=(sources.Source("training/loss.py", "file", "smoothing is part of the single-label loss only"),),
        predicate=_smoothing,
        needs=("data.multi_label",),
        changes=("training.label_smoothing",),
        examples=(
            Example({"training.label_smoothing": 0.1}, {"data.multi_label": False}),
            Example({"training.label_smoothing": 0.1}, {"data.multi_label": True}, WARN),
        ),
    ),
    Contract(
        id="C-IMB-001",
        title="Choosing weights by accuracy on imbalanced classes",
        subject=SUBJECT,
        rule="Warn if the most frequent class has more than 10 times the rows of the rarest and weights are chosen by "
        "accuracy.",
        severities=(WARN,),
        sources=(
            sources.ARITHMETIC.says("the majority class alone has the accuracy of its share"),
            sources.OURS.says("a ratio of 10"),
        ),
        predicate=_metric,
        needs=("data.class_counts",),
        changes=("training.selection_metric",),
        examples=(
            Example({"training.selection_metric": "macro_f1"}, {"data.class_counts": (950, 50)}),
            Example({"training.selection_metric": "accuracy"}, {"data.class_counts": (950, 50)}, WARN),
        ),
    ),
    Contract(
        id="C-IMB-002",
        title="Probabilities under class weights",
        subject=SUBJECT,
        rule="Info if classes are weighted differently.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("the weighted loss is least at p(c) proportional to w(c) times the true p(c)"),
        ),
        predicate=_weighted_probabilities,
        changes=("training.class_weights",),
        examples=(
            Example({"training.class_weights": "uniform"}),
            Example({"training.class_weights": "inverse"}, gives=INFO),
            Example({"training.class_weights": (1.0, 3.0)}, gives=INFO),
        ),
    ),
    Contract(
        id="C-IMB-003",
        title="Imbalance corrected twice",
        subject=SUBJECT,
        rule="Warn if training.sampling is balanced and classes are weighted by a strategy; weights that were given as "
        "numbers may stand for what mistakes cost.",
        severities=(WARN,),
        sources=(
            sources.ARITHMETIC.says("with equal draws and weights w(c), class c's share of the loss is w(c) / sum w"),
        ),
        predicate=_balanced_twice,
        kinds=STEPPED_KINDS,
        changes=("training.class_weights",),
        examples=(
            Example({"training.sampling": "balanced"}),
            Example({"training.class_weights": "inverse"}),
            Example({"training.sampling": "balanced", "training.class_weights": (1.0, 3.0)}),
            Example({"training.sampling": "balanced", "training.class_weights": "inverse"}, gives=WARN),
        ),
    ),
    Contract(
        id="C-IMB-004",
        title="Probabilities under balanced sampling or focal loss",
        subject=SUBJECT,
        rule="Info if training.sampling is balanced or training.focal_gamma is above 0.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("drawing classes equally often is weighting class c by N / (K n(c))"),
            sources.FOCAL_POSTERIOR.says("focal loss is classification-calibrated and not strictly proper"),
        ),
        predicate=_shifted_probabilities,
        kinds=STEPPED_KINDS,
        changes=("training.sampling", "training.focal_gamma"),
        examples=(
            Example({"training.focal_gamma": 0.0}),
            Example({"training.focal_gamma": 2.0}, gives=INFO),
            Example({"training.sampling": "balanced"}, gives=INFO),
        ),
    ),
)
