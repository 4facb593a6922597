"""The training loop: a generator that takes steps, scores, checkpoints and tells.

Everything a step needs follows from the step's number: its epoch, its rows (an epoch's order comes from the seed and
the epoch alone, and from the rows' classes where sampling is balanced), its learning rate, and whether to score or
checkpoint after it. So a run's state is one number besides the tensors, a resumed run replays nothing, and it ends
with bitwise the weights of an uninterrupted one.

The last rows of an epoch make a smaller step of their own; nothing is dropped and nothing leaks into the next epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.config.run import TrainingConfig
from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import CheckpointError, ConfigError, DivergenceError, Interrupted, MemoryPlanError
from qlassify.models.soundness import origin, require_finite_weights, require_sound_base
from qlassify.training.checkpoint import Checkpoint, CheckpointStore, Progress, generator_state
from qlassify.training.events import (
    CheckpointEvent,
    EvaluationEvent,
    SkippedStepEvent,
    StepEvent,
    TrainingEndEvent,
    TrainingEvent,
)
from qlassify.training.order import StepOrder
from qlassify.training.rehearsal import Rehearsal, checkpoint_seconds, update_seconds, usual_seconds
from qlassify.training.schedule import rate_factor, warmup_steps
from qlassify.training.step import BatchResult, Stepper, Targets, restore, snapshot

Scorer = Callable[[], Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The rows to train on.

    Attributes:
        encoded: their token ids.
        targets: (N,) classes or (N, C) labels.
        row_numbers: (N,) row of the data file each came from, for messages.
    """

    encoded: Encoded
    targets: Targets
    row_numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.encoded)


class StopRequest:
    """A signal handler: while a loop is running it asks it to stop after the current step.

    Outside a loop, or when the signal comes a second time, the job ends at once: there is no step to wait for.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.armed = False

    def __call__(self, signal_number: int, frame: object = None) -> None:
        """Handle a signal."""
        if not self.armed or self.signal_number is not None:
            raise Interrupted(signal_number, "outside training, nothing more was written")
        self.signal_number = signal_number


class TrainingLoop:
    """One run over one training set.

    Args:
        stepper: takes the steps.
        data: the rows.
        config: epochs, batch size, schedule and so on.
        seed: the run's seed.
        dropout_generator: the stream of dropout masks, part of the state.
        scorer: scores the held-out rows; None to train without selection.
        store: where checkpoints go; None to write none.
        stop: asked after every step whether to stop.
    """

    def __init__(
        self,
        stepper: Stepper,
        data: TrainingSet,
        config: TrainingConfig,
        *,
        seed: int,
        dropout_generator: torch.Generator,
        scorer: Scorer | None = None,
        store: CheckpointStore | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.stepper = stepper
        self.data = data
        self.config = config
        self.seed = seed
        self.scorer = scorer
        self.store = store
        self.stop = stop or StopRequest()
        self.progress = Progress()
        self._dropout_generator = dropout_generator
        self._best: dict[str, Tensor] = {}
        self.order = StepOrder.of(len(data), config, seed, data.targets)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total_steps = self.order.total_steps
        self._warmup = warmup_steps(self.total_steps, config.warmup_fraction)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            CheckpointError: its tensors are not those of this run; nothing has been changed then.
        """
        parameters = self.stepper.optimizer.parameters
        wanted = {name: parameter.shape for name, parameter in parameters.items()}
        for kind, tensors in (("trainable", checkpoint.trainable), ("best", checkpoint.best)):
            found = {name: tensor.shape for name, tensor in tensors.items()}
            if found != wanted and (found or kind == "trainable"):
                differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
                raise CheckpointError(
                    "the checkpoint belongs to another model or method",
                    where=f"{kind} tensors",
                    got=", ".join(differing[:4]),
                    wanted="the names and shapes of this run",
                )
        restore(parameters, checkpoint.trainable)
        self.stepper.optimizer.load_state_tensors(checkpoint.optimizer)
        self._dropout_generator.set_state(checkpoint.dropout_state)
        self._best = dict(checkpoint.best)
        self.progress = checkpoint.progress

    def run(self) -> Iterator[TrainingEvent]:
        """Train until the last step or until patience runs out, then put the best weights in place.

        Raises:
            DivergenceError: ``max_skipped_steps`` steps in a row were not finite.
            Interrupted: a stop was requested; a checkpoint was written if there is a store.
        """
        self.stop.armed = True
        while self.progress.step < self.total_steps and not self.progress.stopped_early:
            yield self._step()
            scored = self._is_scoring_step(self.progress.step)
            if scored and self.scorer is not None:
                yield self._evaluate(self.scorer)
            if self.store is not None and (scored or self.progress.step % self.config.checkpoint_every_steps == 0):
                yield self._checkpoint(self.store)
            self._check_stop()
        self.stop.armed = False
        if self._best:
            restore(self.stepper.optimizer.parameters, self._best)
        progress = self.progress
        yield TrainingEndEvent(
            step=progress.step,
            best_step=progress.best_step or progress.step,
            best_score=progress.best_score,
            stopped_early=progress.stopped_early,
            skipped_steps=progress.skipped_steps,
        )

    def rehearse(self) -> Rehearsal:
        """Compute the heaviest micro-batch of the run and time an ordinary step and a checkpoint; none leaves a trace.

        A run that does not fit into memory ends here and not in its third hour, and what a step takes is known before
        the first one.

        Raises:
            MemoryPlanError: the heaviest step does not fit the device's memory.
            ModelError: the base model's weights are not finite.
        """
        encoded, budget = self.data.encoded, self.config.token_budget
        heaviest = self.order.heaviest_batches(encoded, budget)
        typical = self.order.rows_of_step(self.order.typical_step(encoded.lengths.astype(np.int64)))
        state = self._dropout_generator.get_state()
        try:
            result = self.stepper.rehearse(heaviest, self.data.targets)
            if not math.isfinite(result.avg_loss):
                classifier = self.stepper.classifier
                require_sound_base(classifier, where=classifier.backbone.directory)
            ordinary = tuple(micro_batches(encoded, typical, budget))
            seconds = usual_seconds(lambda: self.stepper.rehearse(ordinary, self.data.targets))
        except torch.OutOfMemoryError as error:
            raise MemoryPlanError(
                "the heaviest step does not fit the device's memory",
                where=f"{max(batch.num_tokens for batch in heaviest)} tokens at once",
                got=next(iter(str(error).splitlines()), ""),
                do="Lower training.token_budget, which changes nothing but memory and time, or choose method=qlora.",
            ) from None
        finally:
            self._dropout_generator.set_state(state)
        trained = list(self.stepper.optimizer.parameters.values())
        count = sum(parameter.numel() for parameter in trained)
        return Rehearsal(
            max(batch.num_tokens for batch in heaviest),
            sum(batch.num_tokens for batch in ordinary),
            seconds,
            update_seconds(count, trained[0].device),
            checkpoint_seconds(count, None if self.store is None else self.store.directory),
        )

    def _step(self) -> StepEvent | SkippedStepEvent:
        started = time.perf_counter()
        step = self.progress.step
        rows = self.order.rows_of_step(step)
        config = self.config
        optimizer = self.stepper.optimizer
        optimizer.set_rate_factor(rate_factor(step, self.total_steps, warmup=self._warmup, schedule=config.schedule))
        self.stepper.accumulate(micro_batches(self.data.encoded, rows, config.token_budget), self.data.targets)
        result = self.stepper.apply()
        if not result.applied:
            return self._skipped(rows, result)
        self.progress = replace(self.progress, step=step + 1, skipped_in_a_row=0)
        return StepEvent(
            step=step + 1,
            total_steps=self.total_steps,
            epoch=(step + 1) / self.steps_per_epoch,
            loss=result.avg_loss,
            accuracy=result.accuracy(),
            learning_rate=optimizer.learning_rate,
            grad_norm=result.grad_norm,
            rows=result.total,
            tokens=result.num_tokens,
            seconds=time.perf_counter() - started,
        )

    def _skipped(self, rows: npt.NDArray[np.int64], result: BatchResult) -> SkippedStepEvent:
        """Count a step that was not taken; give up when there were too many in a row."""
        progress = self.progress
        numbers = tuple(int(self.data.row_numbers[row]) for row in rows)
        in_a_row = progress.skipped_in_a_row + 1
        if in_a_row >= self.config.max_skipped_steps:
            why, do = origin(self.stepper.classifier)
            raise DivergenceError(
                f"{in_a_row} steps in a row had a loss or gradient that is not finite",
                where=f"step {progress.step + 1}, rows {', '.join(map(str, numbers[:32]))}",
                got=f"loss {result.avg_loss}, gradient norm {result.grad_norm}; {why}",
                do=f"{do}; the weights are as before those steps.",
            )
        self.progress = replace(
            progress, step=progress.step + 1, skipped_steps=progress.skipped_steps + 1, skipped_in_a_row=in_a_row
        )
        return SkippedStepEvent(self.progress.step, result.avg_loss, numbers, in_a_row)

    def _is_scoring_step(self, step: int) -> bool:
        """Whether the held-out rows are scored after ``step`` steps: at even parts of each epoch, and at its end."""
        within = (step - 1) % self.steps_per_epoch + 1
        times = min(self.config.evaluations_per_epoch, self.steps_per_epoch)
        return any(within == math.ceil(self.steps_per_epoch * part / times) for part in range(1, times + 1))

    def _evaluate(self, scorer: Scorer) -> EvaluationEvent:
        started = time.perf_counter()
        try:
            scores = scorer()
        except DivergenceError as error:
            where = f"after step {self.progress.step}, {error.where} of validation"
            raise DivergenceError(error.what, where=where, got=error.got, do=error.do) from None
        metric = self.config.selection_metric
        if metric not in scores:
            raise ConfigError(
                "the selection metric is not among the scores",
                where="training.selection_metric",
                got=metric,
                wanted=", ".join(scores),
            )
        progress, score = self.progress, scores[metric]
        improved = is_better(score, progress.best_score, metric)
        if improved:
            self._best = snapshot(self.stepper.optimizer.parameters)
            self.progress = replace(progress, best_step=progress.step, best_score=score, since_best=0)
        else:
            patience = self.config.early_stopping_patience
            since = progress.since_best + 1
            stopped = patience is not None and since >= patience and progress.step < self.total_steps
            self.progress = replace(progress, since_best=since, stopped_early=stopped)
        epoch = self.progress.step / self.steps_per_epoch
        return EvaluationEvent(self.progress.step, epoch, scores, metric, improved, time.perf_counter() - started)

    def _checkpoint(self, store: CheckpointStore) -> CheckpointEvent:
        require_finite_weights(self.stepper.optimizer.parameters, where=f"after step {self.progress.step}")
        path = store.save(
            Checkpoint(
                progress=self.progress,
                trainable={name: p.detach().cpu() for name, p in self.stepper.optimizer.parameters.items()},
                optimizer=self.stepper.optimizer.state_tensors(),
                best=self._best,
                dropout_state=generator_state(self._dropout_generator),
            )
        )
        return CheckpointEvent(self.progress.step, str(path))

    def _check_stop(self) -> None:
        number = self.stop.signal_number
        if number is None:
            return
        if self.store is None:
            raise Interrupted(number, f"after step {self.progress.step}; nothing was written")
        path = self._checkpoint(self.store).path
        raise Interrupted(
            number,
            f"checkpoint written to {path}",
            do=f"Continue with: qlassify train --resume {self.store.directory.parent}",
        )


SMALLER_IS_BETTER = frozenset({"loss", "log_loss", "brier", "ece", "hamming_loss"})
"""Scores that improve by falling."""


def is_better(score: float | None, best: float | None, metric: str) -> bool:
    """Whether a score beats the best one so far; an undefined score never does."""
    if score is None or not math.isfinite(score):
        return False
    if best is None:
        return True
    return score < best if metric in SMALLER_IS_BETTER else score > best
