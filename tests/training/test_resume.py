"""A resumed run equals the uninterrupted one, bitwise, from wherever it is resumed.

Everything that a run's future depends on is on: dropout in the adapters, a schedule, several evaluations an epoch,
patience, a skipped step, and checkpoints in the middle of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from qlassify.config.run import TrainingConfig
from qlassify.errors import CheckpointError, Interrupted
from qlassify.training.checkpoint import Checkpoint, CheckpointStore
from qlassify.training.events import EvaluationEvent, StepEvent, TrainingEndEvent, TrainingEvent
from qlassify.training.loop import StopRequest, TrainingLoop, TrainingSet
from qlassify.training.loss import Objective
from qlassify.training.step import BatchResult, snapshot
from tiny_jobs import TinyTraining

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainingConfig(
    epochs=4,
    batch_size=4,
    accumulation_steps=2,
    token_budget=60,
    schedule="cosine",
    warmup_fraction=0.2,
    evaluations_per_epoch=2,
    early_stopping_patience=3,
    checkpoint_every_steps=1,
    selection_metric="loss",
)


class KeepAll(CheckpointStore):
    """A store that keeps every checkpoint in memory too, in the order of writing."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.written: list[Checkpoint] = []

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write it and read it back, so that what is kept is what a later process would see."""
        path = super().save(checkpoint)
        latest, _ = self.latest()
        assert latest is not None
        self.written.append(latest)
        return path


class World:
    """Everything one process would build anew: model, optimiser, loop."""

    def __init__(
        self,
        base: Path,
        rows: list[tuple[str, str]],
        store: CheckpointStore | None,
        *,
        config: TrainingConfig = CONFIG,
        skip_step: int | None = None,
    ) -> None:
        self.training = TinyTraining(base, dropout=0.3, learning_rate=2e-2)
        encoded, targets = self.training.encode(rows)
        held_out, wanted = encoded, torch.from_numpy(targets)

        def score() -> Mapping[str, float | None]:
            from qlassify.evaluation.predict import predict_logits

            logits = torch.from_numpy(predict_logits(self.training.classifier, held_out))
            # A high rate makes this loss rise at times, so that patience has something to count.
            return {"loss": float(torch.nn.functional.cross_entropy(logits, wanted))}

        self.loop = TrainingLoop(
            self.training.stepper,
            TrainingSet(encoded, targets, range(1, len(rows) + 1)),
            config,
            seed=9,
            dropout_generator=self.training.attachment.dropout_generator,
            scorer=score,
            store=store,
            stop=StopRequest(),
        )
        if skip_step is not None:
            self._poison(skip_step)

    def _poison(self, step: int) -> None:
        original = self.training.stepper.apply

        def apply() -> BatchResult:
            if self.loop.progress.step == step:
                self.training.stepper._loss = math.nan
            return original()

        self.training.stepper.apply = apply  # type: ignore[method-assign]

    def values(self) -> dict[str, bytes]:
        """The bytes of everything trained."""
        return {name: v.numpy().tobytes() for name, v in snapshot(self.training.optimizer.parameters).items()}


def timeless(events: list[TrainingEvent]) -> list[dict[str, object]]:
    """Events without wall time and paths."""
    dropped = ("seconds", "path")
    return [{key: value for key, value in asdict(event).items() if key not in dropped} for event in events]


@pytest.fixture(scope="module")
def whole(
    tiny_base: Path, rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, KeepAll, list[TrainingEvent]]:
    """The uninterrupted run, with a checkpoint after every step; its third step is skipped."""
    store = KeepAll(tmp_path_factory.mktemp("checkpoints"))
    world = World(tiny_base, rows[:44], store, skip_step=2)
    return world, store, list(world.loop.run())


def test_the_run_exercises_what_resuming_must_carry(whole: tuple[World, KeepAll, list[TrainingEvent]]) -> None:
    """Without mid-epoch checkpoints, a best that is not the last, and a skipped step, the next test shows little."""
    world, store, events = whole
    assert world.loop.steps_per_epoch == 6
    assert len({checkpoint.progress.step for checkpoint in store.written}) >= 12
    assert any(checkpoint.progress.step % 6 for checkpoint in store.written)
    assert any(checkpoint.progress.since_best > 0 for checkpoint in store.written)
    assert store.written[-1].progress.skipped_steps == 1
    assert len([event for event in events if isinstance(event, EvaluationEvent)]) >= 4
    states = {checkpoint.dropout_state.numpy().tobytes() for checkpoint in store.written}
    assert len(states) >= 12, "every step draws masks"


def test_resuming_from_every_checkpoint_ends_bitwise_the_same(
    whole: tuple[World, KeepAll, list[TrainingEvent]], tiny_base: Path, rows: list[tuple[str, str]]
) -> None:
    uninterrupted, store, events = whole
    wanted = uninterrupted.values()
    for checkpoint in store.written:
        world = World(tiny_base, rows[:44], None, skip_step=2)
        world.loop.resume(checkpoint)
        rest = timeless(list(world.loop.run()))
        step = checkpoint.progress.step
        assert world.values() == wanted, f"resumed after step {step}"
        assert world.loop.progress == uninterrupted.loop.progress
        later = [event for event in timeless(events) if "total_steps" in event and event["step"] > step]  # type: ignore[operator]
        assert [event for event in rest if "total_steps" in event] == later, "and every step on the way is the same"


def test_a_run_stopped_by_a_signal_goes_on_where_it_stopped(
    tiny_base: Path, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Here checkpoints are rare, so the one that counts is the one that the signal made."""
    config = CONFIG.replace(checkpoint_every_steps=1000, evaluations_per_epoch=1, early_stopping_patience=None)
    reference = World(tiny_base, rows[:44], None, config=config)
    list(reference.loop.run())
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    first = World(tiny_base, rows[:44], store, config=config)
    events = first.loop.run()
    next(event for event in events if isinstance(event, StepEvent) and event.step == 8)
    first.loop.stop(2)
    with pytest.raises(Interrupted) as caught:
        next(events)
    assert caught.value.exit_code == 130
    assert "step-000008" in caught.value.what
    assert caught.value.do == f"Continue with: qlassify train --resume {tmp_path / 'run'}"
    checkpoint, problems = store.latest()
    assert checkpoint is not None
    assert (checkpoint.progress.step, problems) == (8, ())
    second = World(tiny_base, rows[:44], store, config=config)
    second.loop.resume(checkpoint)
    list(second.loop.run())
    assert second.values() == reference.values()


def test_a_finished_run_resumes_to_its_best_weights(
    whole: tuple[World, KeepAll, list[TrainingEvent]], tiny_base: Path, rows: list[tuple[str, str]]
) -> None:
    uninterrupted, store, _ = whole
    world = World(tiny_base, rows[:44], None)
    world.loop.resume(store.written[-1])
    events = list(world.loop.run())
    assert [type(event) for event in events] == [TrainingEndEvent]
    assert world.values() == uninterrupted.values()


def test_balanced_draws_and_focal_loss_resume_bitwise(
    tiny_base: Path, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Two classes are rare; from every checkpoint, in the middle of epochs too, the rest of the run is the same."""
    uneven = [row for index, row in enumerate(rows) if row[1] == "beast" or index < 9]
    config = CONFIG.replace(epochs=3, early_stopping_patience=None, sampling="balanced", focal_gamma=2.0)

    def world(store: CheckpointStore | None) -> World:
        made = World(tiny_base, uneven, store, config=config)
        made.training.stepper.objective = Objective(focal_gamma=config.focal_gamma)
        return made

    store = KeepAll(tmp_path)
    reference = world(store)
    events = [event for event in timeless(list(reference.loop.run())) if "total_steps" in event]
    assert len(store.written) >= reference.loop.total_steps == 12
    shuffled = World(tiny_base, uneven, None, config=config.replace(sampling="shuffled"))
    list(shuffled.loop.run())
    assert shuffled.values() != reference.values(), "or the setting did nothing"
    for checkpoint in store.written[::2]:
        again = world(None)
        again.loop.resume(checkpoint)
        rest = [event for event in timeless(list(again.loop.run())) if "total_steps" in event]
        assert rest == [event for event in events if event["step"] > checkpoint.progress.step]  # type: ignore[operator]
        assert again.values() == reference.values()


def test_patience_survives_the_interruption(tiny_base: Path, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    """Stopped early before, resumed after: the evaluations counted before the checkpoint still count."""
    config = CONFIG.replace(evaluations_per_epoch=1, early_stopping_patience=2, epochs=6)

    def scripted(world: World, values: list[float]) -> None:
        world.loop.scorer = lambda: {"loss": values.pop(0)}

    store = KeepAll(tmp_path)
    first = World(tiny_base, rows[:44], store, config=config)
    scripted(first, [1.0, 2.0, 2.0])
    end = list(first.loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.step, end.best_step, end.stopped_early) == (18, 6, True)
    after_second = next(c for c in store.written if c.progress.step == 12 and c.progress.since_best == 1)
    second = World(tiny_base, rows[:44], None, config=config)
    scripted(second, [2.0])
    second.loop.resume(after_second)
    end = list(second.loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.step, end.best_step, end.best_score, end.stopped_early) == (18, 6, 1.0, True)
    assert second.values() == first.values()


def test_two_runs_with_one_seed_are_bitwise_equal(
    whole: tuple[World, KeepAll, list[TrainingEvent]], tiny_base: Path, rows: list[tuple[str, str]]
) -> None:
    uninterrupted, _, events = whole
    again = World(tiny_base, rows[:44], None, skip_step=2)
    repeated = [event for event in again.loop.run() if isinstance(event, StepEvent)]
    assert timeless(repeated) == timeless([event for event in events if isinstance(event, StepEvent)])
    assert again.values() == uninterrupted.values()


def test_a_checkpoint_of_another_model_is_refused(
    whole: tuple[World, KeepAll, list[TrainingEvent]], tiny_base: Path, rows: list[tuple[str, str]]
) -> None:
    """Its tensors do not fit; nothing is copied in part and nobody sees a bare KeyError."""
    _, store, _ = whole
    checkpoint = store.written[-1]
    name = next(iter(checkpoint.trainable))
    lacking = Checkpoint(
        checkpoint.progress,
        {key: value for key, value in checkpoint.trainable.items() if key != name},
        checkpoint.optimizer,
        checkpoint.best,
        checkpoint.dropout_state,
    )
    world = World(tiny_base, rows[:44], None)
    before = world.values()
    with pytest.raises(CheckpointError, match="lora_A"):
        world.loop.resume(lacking)
    assert world.values() == before
