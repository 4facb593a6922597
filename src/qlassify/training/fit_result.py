"""What a training came to, read off the events that it told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlassify.training.events import EvaluationEvent, StepEvent, TrainingEndEvent


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training came to.

    Attributes:
        steps: optimiser steps taken.
        best_step: after which step the weights that were kept stood.
        best_score: their selection score on the validation rows.
        metric: what that score is.
        train_loss: mean loss of the last step.
        evaluations: the scores of each evaluation, in order.
    """

    steps: int
    best_step: int
    best_score: float | None
    metric: str
    train_loss: float
    evaluations: tuple[Mapping[str, float | None], ...]

    @classmethod
    def of(cls, events: Sequence[object], metric: str) -> FitResult:
        """From all events of a training that has ended; ``metric`` is what its scores for selection are."""
        steps = [event for event in events if isinstance(event, StepEvent)]
        end = next(event for event in events if isinstance(event, TrainingEndEvent))
        return cls(
            steps=end.step,
            best_step=end.best_step,
            best_score=end.best_score,
            metric=metric,
            train_loss=steps[-1].loss if steps else float("nan"),
            evaluations=tuple(dict(event.scores) for event in events if isinstance(event, EvaluationEvent)),
        )
