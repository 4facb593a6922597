"""C-WARM, C-DECAY, C-CLIP, C-EPOCH: how long, how carefully and how often.

Small data fails by too few optimiser steps and not by too few epochs, so steps are what is counted; and a rare class by
too few steps that hold one of its rows, which is counted by its expectation and not by rows over batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qlassify.config.recommend import EPOCH_BOUNDS
from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rates import LORA_KINDS, STEPPED_KINDS
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation

SUBJECT = "Schedule, decay, clipping and epochs"
WARMUP_BOUNDS, WARMUP = (0.03, 0.10), 0.06
HIGH_RATE = 1e-4
"""From this rate on AdamW's first steps without warm-up are worth a warning."""
HIGHEST_DECAY, USUAL_DECAY = 0.1, 0.01
CLIP_BOUNDS, CLIP = (0.3, 1.0), 1.0
LEAST_STEPS, ENOUGH_STEPS, SMALL_DATA_ROWS = 50, 1000, 5000
LEAST_EXPOSURES, LEAST_BEARING_STEPS, IMBALANCE = 300, 50, 5.0
MOST_EPOCHS = EPOCH_BOUNDS[1]


def _warmup(situation: Situation) -> Finding | None:
    training = situation.run.training
    fraction, rate, (low, high) = training.warmup_fraction, training.learning_rate, WARMUP_BOUNDS
    if low <= fraction <= high:
        return None
    remedy = {"training.warmup_fraction": WARMUP}
    recommendation = f"training.warmup_fraction={WARMUP:g}"
    if fraction == 0 and rate >= HIGH_RATE:
        message = (
            f"the first step is at the full learning rate {rate:g}, against the gradients of a head made at random"
        )
        return Finding(Severity.WARN, message, recommendation, remedy)
    found = "there is no warm-up" if fraction == 0 else f"the warm-up takes {arithmetic.percent(fraction)} of the steps"
    message = f"{found}; published recipes have {arithmetic.percent(low)} to {arithmetic.percent(high)}"
    return Finding(Severity.INFO, message, recommendation, remedy)


def _constant_after_warmup(situation: Situation) -> Finding | None:
    training = situation.run.training
    if training.schedule != "constant" or training.warmup_fraction == 0:
        return None
    message = (
        f"the constant schedule warms up over {arithmetic.percent(training.warmup_fraction)} of the steps here; "
        "Hugging Face's of this name ignores warm-up, so a recipe of theirs, QLoRA's too, runs differently"
    )
    recommendation = "training.schedule=linear; training.warmup_fraction=0 is what theirs does"
    return Finding(Severity.INFO, message, recommendation, {"training.schedule": "linear"})


def _weight_decay(situation: Situation) -> Finding | None:
    value = situation.run.training.weight_decay
    if value <= HIGHEST_DECAY:
        return None
    message = f"weight decay {value:g} pulls the adapters to zero; published LoRA recipes have 0 to {HIGHEST_DECAY:g}"
    return Finding(
        Severity.WARN, message, f"training.weight_decay={USUAL_DECAY:g}", {"training.weight_decay": USUAL_DECAY}
    )


def _clip(situation: Situation) -> Finding | None:
    norm, (low, high) = situation.run.training.gradient_clip_norm, CLIP_BOUNDS
    remedy = {"training.gradient_clip_norm": CLIP}
    recommendation = f"training.gradient_clip_norm={CLIP:g}"
    conflict = "sources conflict: QLoRA's scripts have 0.3, entrenar 1.0, RoBERTa's recipe none"
    if norm is None:
        severity = Severity.INFO if situation.run.wanted_quant is None else Severity.WARN
        beside = "" if severity is Severity.INFO else " beside low-bit weights"
        return Finding(severity, f"gradients are not clipped{beside}; {conflict}", recommendation, remedy)
    if low <= norm <= high:
        return None
    return Finding(Severity.INFO, f"gradients are clipped at {norm:g}; {conflict}", recommendation, remedy)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"


def _steps(situation: Situation) -> Finding | None:
    rows, epochs, steps = situation.data.rows, situation.run.training.epochs, situation.steps
    assert rows is not None
    if rows < 1:
        return None
    small = rows < SMALL_DATA_ROWS and steps < ENOUGH_STEPS
    if epochs >= MOST_EPOCHS or not (small or steps < LEAST_STEPS):
        return None
    wanted = min(MOST_EPOCHS, math.ceil(ENOUGH_STEPS / (steps // epochs)))
    message = f"{rows:,} rows in {_epochs(epochs)} of {situation.rows_per_step} rows a step are {steps} optimiser steps"
    if steps < LEAST_STEPS:
        message += f", fewer than {LEAST_STEPS}"
        severity = Severity.WARN
    else:
        message += "; small data was found to want about 1,000"
        severity = Severity.INFO
    return Finding(severity, message, f"training.epochs={wanted}", {"training.epochs": wanted})


def _rare_class(situation: Situation) -> Finding | None:
    rows, counts, training = situation.data.rows, situation.data.class_counts, situation.run.training
    assert rows is not None
    assert counts is not None
    if rows < 1 or situation.imbalance <= IMBALANCE or training.class_weights != "uniform":
        return None
    if training.sampling == "balanced":
        return None
    rarest = min(counts)
    seen = rarest * training.epochs
    bearing = arithmetic.expected_bearing_steps(rows, rarest, situation.rows_per_step, training.epochs)
    if seen >= LEAST_EXPOSURES and bearing >= LEAST_BEARING_STEPS:
        return None
    name = situation.data.name_of(counts.index(rarest))
    message = (
        f"class {name} has {rarest} of {rows:,} rows, {situation.imbalance:.3g} times fewer than the most frequent: "
        f"in {_epochs(training.epochs)} they are seen {seen} times, in about {bearing:.0f} of {situation.steps} steps"
    )
    recommendation = "training.class_weights=sqrt_inverse"
    if situation.data.multi_label is False:
        recommendation += " or training.sampling=balanced"
    if rarest and (epochs := math.ceil(LEAST_EXPOSURES / rarest)) <= MOST_EPOCHS and epochs > training.epochs:
        recommendation += f", or training.epochs={epochs} for {epochs * rarest} times"
    return Finding(Severity.WARN, message, recommendation, {"training.class_weights": "sqrt_inverse"})


INFO, WARN = Severity.INFO, Severity.WARN
_RARE: Mapping[str, Any] = {"data.rows": 2000, "data.class_counts": (1980, 20)}

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id="C-WARM-001",
        title="Warm-up",
        subject=SUBJECT,
        rule="Warn if training.warmup_fraction is 0 at a learning rate of 1e-4 or more; info outside 3 % to 10 %.",
        severities=(INFO, WARN),
        sources=(
            sources.QLORA.says("3 %"),
            sources.ROBERTA.says("6 %"),
            sources.LORA.says("6 %"),
            sources.AXOLOTL.says("5 to 10 %"),
            sources.ENTRENAR.says("3 to 10 %, by default 6 %"),
        ),
        predicate=_warmup,
        kinds=STEPPED_KINDS,
        changes=("training.warmup_fraction",),
        widens=("C-HP-005",),
        examples=(
            Example({"training.warmup_fraction": 0.06}),
            Example({"training.warmup_fraction": 0.3}, gives=INFO),
            Example({"training.warmup_fraction": 0, "training.learning_rate": 2e-4}, gives=WARN),
        ),
    ),
    Contract(
        id="C-WARM-002",
        title="Constant after a warm-up",
        subject=SUBJECT,
        rule="Info if the schedule is constant with a warm-up, which is honoured here and ignored by Hugging Face.",
        severities=(INFO,),
        sources=(
            sources.HUGGING_FACE.says('returns for "constant" before the warm-up is looked at'),
            sources.QLORA.says("a constant schedule with warmup_ratio 0.03, so without warm-up"),
        ),
        predicate=_constant_after_warmup,
        kinds=STEPPED_KINDS,
        changes=("training.schedule",),
        widens=("C-HP-005",),
        examples=(
            Example({"training.schedule": "constant", "training.warmup_fraction": 0}),
            Example({"training.schedule": "constant", "training.warmup_fraction": 0.06}, gives=INFO),
        ),
    ),
    Contract(
        id="C-DECAY-001",
        title="Weight decay with LoRA",
        subject=SUBJECT,
        rule="Warn if training.weight_decay is above 0.1.",
        severities=(WARN,),
        sources=(
            sources.QLORA.says("0"),
            sources.LORA.says("0.1 for RoBERTa"),
            sources.AXOLOTL.says("0.01 is fine, above 0.1 suppresses LoRA"),
        ),
        predicate=_weight_decay,
        kinds=LORA_KINDS,
        changes=("training.weight_decay",),
        widens=("C-HP-007",),
        examples=(
            Example({"training.weight_decay": 0.0}),
            Example({"training.weight_decay": 0.5}, gives=WARN),
        ),
    ),
    Contract(
        id="C-CLIP-001",
        title="Gradient clipping",
        subject=SUBJECT,
        rule="Warn if gradients are not clipped beside low-bit weights; info if they are not clipped otherwise, or at "
        "a norm outside 0.3 to 1.0.",
        severities=(INFO, WARN),
        sources=(
            sources.QLORA.says("0.3"),
            sources.ROBERTA.says("none (--clip-norm 0.0)"),
            sources.ENTRENAR.says("1.0, after norms up to 115"),
        ),
        predicate=_clip,
        kinds=STEPPED_KINDS,
        changes=("training.gradient_clip_norm",),
        widens=("C-HP-006",),
        examples=(
            Example({"training.gradient_clip_norm": 1.0}),
            Example({"training.gradient_clip_norm": None}, gives=INFO),
            Example({"training.gradient_clip_norm": 50.0}, gives=INFO),
            Example({"method.kind": "qlora", "training.gradient_clip_norm": None}, gives=WARN),
        ),
    ),
    Contract(
        id="C-EPOCH-001",
        title="Optimiser steps",
        subject=SUBJECT,
        rule="Below 20 epochs: warn if the run has fewer than 50 optimiser steps; info if it has fewer than 1,000 on "
        "fewer than 5,000 rows.",
        severities=(INFO, WARN),
        sources=(
            sources.FEW_SAMPLE.says("a predetermined, small number of iterations is one cause of instability"),
            sources.TFEW.says("1000 steps"),
            sources.OURS.says("50 steps as the least, 20 epochs as the most that is recommended"),
        ),
        predicate=_steps,
        kinds=STEPPED_KINDS,
        needs=("data.rows",),
        changes=("training.epochs",),
        widens=("C-HP-008",),
        examples=(
            Example({"training.epochs": 5}, {"data.rows": 10_000}),
            Example({"training.epochs": 20}, {"data.rows": 100}),
            Example({"training.epochs": 3}, {"data.rows": 2000}, INFO),
            Example({"training.epochs": 1}, {"data.rows": 200}, WARN),
        ),
    ),
    Contract(
        id="C-EPOCH-002",
        title="What a rare class is shown",
        subject=SUBJECT,
        rule="Warn if the most frequent class has more than 5 times the rows of the rarest, classes are neither "
        "weighted nor drawn equally often, and the rarest is shown fewer than 300 times or in fewer than 50 steps "
        "(expected).",
        severities=(WARN,),
        sources=(
            sources.ARITHMETIC.says("S (1 - (1 - p)^B) of S steps of B rows hold a row of a class of share p"),
            sources.ENTRENAR.says("a ratio of 5; 100 updates, which it counts as rows over batch"),
            sources.OURS.says("300 times and 50 steps"),
        ),
        predicate=_rare_class,
        kinds=STEPPED_KINDS,
        needs=("data.rows", "data.class_counts"),
        changes=("training.class_weights",),
        widens=("C-HP-008",),
        examples=(
            Example({"training.epochs": 3}, {"data.rows": 2000, "data.class_counts": (1000, 1000)}),
            Example({"training.epochs": 3, "training.class_weights": "inverse"}, _RARE),
            Example({"training.epochs": 3, "training.sampling": "balanced"}, _RARE),
            Example({"training.epochs": 3}, _RARE, WARN),
        ),
    ),
)
