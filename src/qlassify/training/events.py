"""What the training loop tells: frozen records, yielded in order.

The loop yields and whoever iterates decides what to show or write. A callback that may steer the loop would put the
control flow where nobody can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlassify.planning.out_of_memory import shortage_words


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimiser step was taken.

    Attributes:
        step: optimiser steps taken so far, this one included.
        total_steps: steps of the whole run.
        epoch: passes over the data so far, as a fraction.
        loss: mean loss of the step's rows.
        accuracy: share of the step's rows predicted right before the step.
        learning_rate: rate of the method's parameters in this step.
        grad_norm: global norm of the averaged gradient before clipping.
        rows: rows of the step.
        tokens: tokens of the step.
        seconds: wall time of the step.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SkippedStepEvent:
    """A step was not taken because its loss or gradient was not finite.

    Attributes:
        step: number of the step, counted like those that were taken.
        loss: the loss, not finite or with a gradient that is not.
        row_numbers: rows of the data file that the step consisted of.
        in_a_row: skipped steps in a row, this one included.
    """

    step: int
    loss: float
    row_numbers: tuple[int, ...]
    in_a_row: int


@dataclass(frozen=True, slots=True)
class EvaluationEvent:
    """The held-out rows were scored.

    Attributes:
        step: after which step.
        epoch: passes over the data so far, as a fraction.
        scores: named scores, ``loss`` among them.
        metric: the score by which weights are selected.
        improved: whether it is the best so far.
        seconds: wall time of the evaluation.
    """

    step: int
    epoch: float
    scores: Mapping[str, float | None]
    metric: str
    improved: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointEvent:
    """A checkpoint was written to ``path`` after ``step``."""

    step: int
    path: str


@dataclass(frozen=True, slots=True)
class CheckpointFailedEvent:
    """A checkpoint could not be written after ``step``; earlier ones are untouched and training goes on.

    Attributes:
        step: after which step.
        reason: what the system said.
    """

    step: int
    reason: str

    @property
    def sentence(self) -> str:
        """For a person."""
        return (
            f"the checkpoint after step {self.step} could not be written ({self.reason}); training goes on, and would "
            "be resumed from an earlier one"
        )


@dataclass(frozen=True, slots=True)
class TokenBudgetEvent:
    """Memory ran out in the step after ``step``; the step is computed again in smaller micro-batches.

    Attributes:
        step: optimiser steps taken so far.
        token_budget: tokens computed at once from now on.
        former: and until now.
        tokens: of the micro-batch that did not fit; 0 if memory ran out while one was being cut.
        reason: what the allocator said.
    """

    step: int
    token_budget: int
    former: int
    tokens: int
    reason: str

    @property
    def sentence(self) -> str:
        """For a person."""
        return (
            f"memory ran out in step {self.step + 1} {shortage_words(self.tokens)}; the step is repeated, and "
            f"training goes on, with training.token_budget {self.token_budget} in place of {self.former} "
            f"({self.reason})"
        )


@dataclass(frozen=True, slots=True)
class TrainingEndEvent:
    """Training is over and the best weights are in place.

    Attributes:
        step: steps taken or skipped.
        best_step: after which step the restored weights were.
        best_score: their selection score, or None when nothing was scored.
        stopped_early: whether patience ran out before the last step.
        skipped_steps: steps that were not taken.
    """

    step: int
    best_step: int
    best_score: float | None
    stopped_early: bool
    skipped_steps: int


TrainingEvent = (
    StepEvent
    | SkippedStepEvent
    | EvaluationEvent
    | CheckpointEvent
    | CheckpointFailedEvent
    | TokenBudgetEvent
    | TrainingEndEvent
)


def as_record(event: TrainingEvent) -> dict[str, Any]:
    """An event as one JSON-ready line of ``metrics.jsonl``; its ``event`` key names the kind."""
    kinds: dict[type, str] = {
        StepEvent: "step",
        SkippedStepEvent: "skipped_step",
        EvaluationEvent: "evaluation",
        CheckpointEvent: "checkpoint",
        CheckpointFailedEvent: "checkpoint_failed",
        TokenBudgetEvent: "token_budget",
        TrainingEndEvent: "end",
    }
    record: dict[str, Any] = {"event": kinds[type(event)]}
    for name in type(event).__slots__:
        value = getattr(event, name)
        record[name] = dict(value) if isinstance(value, Mapping) else value
    return record
