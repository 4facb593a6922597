"""The training loop: a generator that takes steps, scores, checkpoints and tells.

Everything a step needs follows from the step's number: its epoch, its rows (an epoch's order comes from the seed and
the epoch alone, and from the rows' classes where sampling is balanced), its learning rate, and whether to score or
checkpoint after it. So a run's state is one number besides the tensors (and the token budget, once memory ran out at
the one that was asked for), a resumed run replays nothing, and it ends with bitwise the weights of one that was never
interrupted.

Memory that runs out in a step ends no run: the step leaves no trace, the token budget is halved, and the step is taken
with it (``shortage``). What follows is bitwise the run that has the smaller budget from that step on. It is not bitwise
the run that had enough memory: sums are added in another order, and dropout, which looks at an element's place in its
micro-batch, drops other elements. Places that do not depend on the cut would need a row's number and a token's position
in every layer's dropout; the order of sums would still differ.

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
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import CheckpointError, ConfigError, DivergenceError, Interrupted, MemoryPlanError
from qlassify.models.soundness import origin, require_finite_weights
from qlassify.planning.out_of_memory import Shortage, halved
from qlassify.training.checkpoint import Checkpoint, CheckpointStore, Progress, generator_state
from qlassify.training.events import (
    CheckpointEvent,
    CheckpointFailedEvent,
    EvaluationEvent,
    SkippedStepEvent,
    StepEvent,
    TokenBudgetEvent,
    TrainingEndEvent,
    TrainingEvent,
)
from qlassify.training.order import StepOrder
from qlassify.training.rehearsal import Rehearsal, checkpoint_seconds, update_seconds, usual_seconds
from qlassify.training.schedule import rate_factor, warmup_steps
from qlassify.training.shortage import attempt
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

    Attributes:
        progress: where the run stands.
        began: where it stood when this loop took it up, before any rehearsal.
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
        self.progress = self.began = Progress()
        self._dropout_generator = dropout_generator
        self._best: dict[str, Tensor] = {}
        self._untold: list[TokenBudgetEvent] = []
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
        self.progress = self.began = checkpoint.progress
        self._untold.clear()  # what a rehearsal came to holds for a beginning

    @property
    def token_budget(self) -> int:
        """Tokens computed at once: what the settings say, until memory ran out at that."""
        return self.progress.token_budget or self.config.token_budget

    def run(self) -> Iterator[TrainingEvent]:
        """Train until the last step or until patience runs out, then put the best weights in place.

        Raises:
            DivergenceError: ``max_skipped_steps`` steps in a row were not finite.
            Interrupted: a stop was requested; a checkpoint was written if there is a store, and room for one.
            MemoryPlanError: a single text does not fit into memory, or what moves the weights does not.
        """
        self.stop.armed = True
        if self._untold:
            yield from self._told_budget(*self._untold)
        while self.progress.step < self.total_steps and not self.progress.stopped_early:
            event = self._step()
            if isinstance(event, TokenBudgetEvent):
                yield from self._told_budget(event)
                self._check_stop()
                continue
            yield event
            scored = self.is_scoring_step(self.progress.step)
            if scored and self.scorer is not None:
                yield self._evaluate(self.scorer)
            if self.store is not None and (scored or self.progress.step % self.config.checkpoint_every_steps == 0):
                yield self._checkpoint_if_possible(self.store)
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
        the first one. Where only the token budget was too large, it is halved as in a step; ``run`` tells so first.

        Raises:
            MemoryPlanError: a single text does not fit into memory.
        """
        encoded = self.data.encoded
        rows = self.order.rows_of_step(self.order.typical_step(encoded.lengths.astype(np.int64)))
        while True:
            heaviest = self.order.heaviest_batches(encoded, self.token_budget)
            ordinary = tuple(micro_batches(encoded, rows, self.token_budget))
            seconds = self._rehearsed(heaviest, ordinary)
            if not isinstance(seconds, Shortage):
                break
            self._untold.append(self._lower(seconds))
        trained = list(self.stepper.optimizer.parameters.values())
        count = sum(parameter.numel() for parameter in trained)
        return Rehearsal(
            max(batch.num_tokens for batch in heaviest),
            sum(batch.num_tokens for batch in ordinary),
            seconds,
            update_seconds(count, trained[0].device),
            checkpoint_seconds(count, None if self.store is None else self.store.directory),
        )

    def _rehearsed(self, heaviest: Sequence[PackedBatch], ordinary: Sequence[PackedBatch]) -> float | Shortage:
        """Seconds of an ordinary step, tried after the heaviest micro-batches; no trace is left."""
        stepper, generator, targets = self.stepper, self._dropout_generator, self.data.targets

        def act() -> float:
            stepper.rehearse(heaviest, targets)
            return usual_seconds(lambda: stepper.rehearse(ordinary, targets))

        state = generator.get_state()
        tried = attempt(act, stepper, generator)
        generator.set_state(state)
        return tried

    def _lower(self, shortage: Shortage) -> TokenBudgetEvent:
        """Go on with a smaller token budget, which is part of the run's state."""
        former, step = self.token_budget, self.progress.step
        self.progress = replace(self.progress, token_budget=halved(former, shortage))
        return TokenBudgetEvent(step, self.token_budget, former, shortage.tokens, shortage.said)

    def _told_budget(self, *events: TokenBudgetEvent) -> Iterator[TrainingEvent]:
        """Tell of lowered budgets, and write the state that the next step will begin in.

        Without a checkpoint here, a run that is resumed would take the steps since the last one with the former budget
        wherever there is more memory by then, and end with other weights.
        """
        yield from events
        self._untold.clear()
        if self.store is not None:
            yield self._checkpoint_if_possible(self.store)

    def _step(self) -> StepEvent | SkippedStepEvent | TokenBudgetEvent:
        """Take the next step; if memory runs out, lower the budget instead, with everything else as it was."""
        started = time.perf_counter()
        step = self.progress.step
        rows = self.order.rows_of_step(step)
        config = self.config
        optimizer = self.stepper.optimizer
        optimizer.set_rate_factor(rate_factor(step, self.total_steps, warmup=self._warmup, schedule=config.schedule))
        batches = micro_batches(self.data.encoded, rows, self.token_budget)
        tried = attempt(
            lambda: self.stepper.accumulate(batches, self.data.targets), self.stepper, self._dropout_generator
        )
        if isinstance(tried, Shortage):
            return self._lower(tried)
        result = self._apply()
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

    def _apply(self) -> BatchResult:
        """Move the weights.

        What this takes does not depend on the micro-batches, and parameters may have moved before memory ran out: there
        is nothing to repeat.
        """
        result = attempt(self.stepper.apply, self.stepper, self._dropout_generator)
        if isinstance(result, Shortage):
            raise MemoryPlanError(
                "moving the weights does not fit into memory",
                where=f"step {self.progress.step + 1}",
                got=result.said,
                do="Choose a method that trains fewer weights, such as method=lora, or free memory.",
            )
        return result

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

    def is_scoring_step(self, step: int) -> bool:
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

    def _checkpoint_if_possible(self, store: CheckpointStore) -> CheckpointEvent | CheckpointFailedEvent:
        """A checkpoint, or why there is none: that is no reason to stop.

        A checkpoint is only needed if the run dies. A run that ended because none can be written would lose for certain
        what the checkpoint was to save from a risk: its owner comes back to a part of the training in either case, and
        here to a finished one wherever the classifier, which is a quarter of a checkpoint or less, still finds its
        place. Earlier checkpoints are untouched, and the next one is tried as if nothing had been.
        """
        try:
            return self._checkpoint(store)
        except CheckpointError as error:
            return CheckpointFailedEvent(self.progress.step, error.got or error.what)

    def _check_stop(self) -> None:
        number = self.stop.signal_number
        if number is None:
            return
        if self.store is None:
            raise Interrupted(number, f"after step {self.progress.step}; nothing was written")
        event = self._checkpoint_if_possible(self.store)
        what = f"checkpoint written to {event.path}" if isinstance(event, CheckpointEvent) else self._lost(event)
        raise Interrupted(number, what, do=f"Continue with: qlassify train --resume {self.store.directory.parent}")

    def _lost(self, event: CheckpointFailedEvent) -> str:
        """What a signal costs where no checkpoint could be written."""
        known = [] if self.store is None else self.store.paths()
        begin = f"step {int(known[-1].name.rpartition('-')[2])}" if known else "the beginning"
        return f"no checkpoint could be written ({event.reason}); what was done since {begin} will be done again"


SMALLER_IS_BETTER = frozenset({"loss", "log_loss", "brier", "ece", "hamming_loss"})
"""Scores that improve by falling."""


def is_better(score: float | None, best: float | None, metric: str) -> bool:
    """Whether a score beats the best one so far; an undefined score never does."""
    if score is None or not math.isfinite(score):
        return False
    if best is None:
        return True
    return score < best if metric in SMALLER_IS_BETTER else score > best
