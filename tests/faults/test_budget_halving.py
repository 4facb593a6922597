"""Memory that runs out in the middle of a step: the budget is halved, and what follows is bitwise a run's that had it.

The allocator's failure is injected into the classifier: above a number of tokens it raises what torch raises on the CPU
or on CUDA, in the forward or in the backward pass, after it has drawn dropout's keys. What is compared with is a run
without any failure whose settings (or whose checkpoint) have the smaller budget from that step on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_tally import Tally
from torch import Tensor

from qlassify.config.run import TrainingConfig
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import MemoryPlanError, QlassifyWarning
from qlassify.evaluation.predict import predict_logits
from qlassify.planning.out_of_memory import Shortage, halved, is_out_of_memory
from qlassify.training.checkpoint import Checkpoint, CheckpointStore
from qlassify.training.events import CheckpointEvent, TokenBudgetEvent, TrainingEvent, as_record
from qlassify.training.loop import TrainingLoop, TrainingSet
from qlassify.training.step import snapshot
from tiny_jobs import TinyTraining, make_rows, save_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = 96
CONFIG = TrainingConfig(
    epochs=3,
    batch_size=8,
    token_budget=BUDGET,
    evaluations_per_epoch=2,
    early_stopping_patience=None,
    checkpoint_every_steps=1,
    selection_metric="loss",
)
CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    "cpu": lambda: RuntimeError(CPU_SAYS),
    "python": MemoryError,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


class KeepAll(CheckpointStore):
    """Keeps what is read back of every checkpoint, in the order of writing."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.written: list[Checkpoint] = []

    def save(self, checkpoint: Checkpoint) -> Path:
        path = super().save(checkpoint)
        latest, problems = self.latest()
        assert latest is not None
        assert problems == ()
        self.written.append(latest)
        return path


class _FailingBackward(torch.autograd.Function):
    """Hands its input on, and has no memory for the way back."""

    error: Callable[[], Exception] = MemoryError

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        raise _FailingBackward.error()


class World:
    """What one process would build anew: model, optimiser, loop, with dropout that every draw of a key shows in."""

    def __init__(
        self, base: Path, store: CheckpointStore | None, *, config: TrainingConfig = CONFIG, rows: int = 40
    ) -> None:
        self.training = TinyTraining(base, dropout=0.3, learning_rate=2e-2)
        encoded, targets = self.training.encode(make_rows(rows, seed=1, longest=20))
        self.encoded, wanted = encoded, torch.from_numpy(targets)
        self.failures = 0

        def score() -> Mapping[str, float | None]:
            logits = torch.from_numpy(predict_logits(self.training.classifier, encoded))
            return {"loss": float(torch.nn.functional.cross_entropy(logits, wanted))}

        self.loop = TrainingLoop(
            self.training.stepper,
            TrainingSet(encoded, targets, range(1, rows + 1)),
            config,
            seed=9,
            dropout_generator=self.training.attachment.dropout_generator,
            scorer=score,
            store=store,
        )

    def fail_above(
        self,
        tokens: int,
        error: Callable[[], Exception],
        monkeypatch: pytest.MonkeyPatch,
        *,
        from_step: int = 0,
        backward: bool = False,
    ) -> None:
        """Let memory run out while training on more than ``tokens`` tokens at once, from a step on."""
        classifier = self.training.classifier
        original = classifier.forward

        def forward(batch: PackedBatch) -> Tensor:
            logits = original(batch)  # the keys are drawn, as when memory runs out in a late layer
            if classifier.training and batch.num_tokens > tokens and self.loop.progress.step >= from_step:
                self.failures += 1
                if not backward:
                    raise error()
                _FailingBackward.error = staticmethod(error)  # type: ignore[assignment]
                logits = _FailingBackward.apply(logits)  # type: ignore[no-untyped-call]
            return logits

        monkeypatch.setattr(classifier, "forward", forward)

    def values(self) -> dict[str, bytes]:
        """The bytes of everything trained and of what dropout goes on from."""
        found = {name: v.numpy().tobytes() for name, v in snapshot(self.training.optimizer.parameters).items()}
        state = self.training.optimizer.state_tensors()
        found |= {name: value.numpy().tobytes() for name, value in state.items()}
        return {**found, "dropout": self.training.attachment.dropout_generator.get_state().numpy().tobytes()}


def told(events: list[TrainingEvent]) -> list[dict[str, object]]:
    """Events without wall time and paths, and without those that only the failing run has."""
    kept = [event for event in events if not isinstance(event, (TokenBudgetEvent, CheckpointEvent))]
    return [{key: v for key, v in asdict(event).items() if key != "seconds"} for event in kept]


def smaller(config: TrainingConfig = CONFIG, budget: int = BUDGET // 2) -> TrainingConfig:
    return config.replace(token_budget=budget)


def test_the_worlds_that_are_compared_differ(base: Path) -> None:
    """Without this the tests below could not fail: with another cut, dropout drops other elements."""
    large, small = World(base, None), World(base, None, config=smaller())
    steps = [large.loop.order.rows_of_step(step) for step in range(large.loop.total_steps)]
    cuts = [[len(list(micro_batches(large.encoded, rows, budget))) for rows in steps] for budget in (BUDGET, 48)]
    assert max(cuts[0]) > 1, "gradients of an earlier micro-batch are there to be dropped"
    assert all(few < many for few, many in zip(*cuts, strict=True))
    list(large.loop.run()), list(small.loop.run())
    assert large.values() != small.values()


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_from_the_first_step_it_is_the_run_with_the_smaller_budget(
    base: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, kind: str, backward: bool
) -> None:
    wanted = World(base, None, config=smaller())
    expected = told(list(wanted.loop.run()))
    world = World(base, None)
    world.fail_above(BUDGET // 2, ERRORS[kind], monkeypatch, backward=backward)
    events = list(world.loop.run())
    assert world.failures == 1
    assert [e.former for e in events if isinstance(e, TokenBudgetEvent)] == [BUDGET]
    assert told(events) == expected
    assert world.values() == wanted.values()
    tally("faults injected", 1)


def test_in_the_middle_it_is_the_run_that_has_the_smaller_budget_from_there_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, full_faults: bool
) -> None:
    """The reference never fails: it is resumed at that step from an undisturbed run, with the budget put into it."""
    store = KeepAll(tmp_path / "undisturbed")
    list(World(base, store).loop.run())
    for step in (1, 7, 12) if full_faults else (7,):
        at_step = next(one for one in store.written if one.progress.step == step)
        reference = World(base, None)
        reference.loop.resume(replace(at_step, progress=replace(at_step.progress, token_budget=BUDGET // 2)))
        list(reference.loop.run())
        world = World(base, None)
        world.fail_above(BUDGET // 2, ERRORS["cpu"], monkeypatch, from_step=step)
        events = list(world.loop.run())
        assert world.failures == 1
        (event,) = (e for e in events if isinstance(e, TokenBudgetEvent))
        assert (event.step, event.token_budget, event.former) == (step, BUDGET // 2, BUDGET)
        assert BUDGET // 2 < event.tokens <= BUDGET
        assert world.values() == reference.values()
        tally("faults injected", 1)


def test_a_resumed_run_is_the_uninterrupted_one_wherever_it_stopped(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, full_faults: bool
) -> None:
    """The machine that it is resumed on has more memory; from the shortage on the smaller budget holds all the same."""
    store = KeepAll(tmp_path / "failing")
    world = World(base, store)
    world.fail_above(BUDGET // 2, ERRORS["cpu"], monkeypatch, from_step=4)
    list(world.loop.run())
    later = [one for one in store.written if one.progress.token_budget is not None]
    assert later[0].progress.step == 4, "the shortage itself is worth a checkpoint"
    assert [one.progress.step for one in store.written].count(4) == 2
    for checkpoint in later if full_faults else later[:: max(1, len(later) // 2)]:
        resumed = World(base, None)
        resumed.loop.resume(checkpoint)
        list(resumed.loop.run())
        assert resumed.values() == world.values(), f"resumed after step {checkpoint.progress.step}"
        assert resumed.loop.progress == world.loop.progress
        tally("faults injected", 1)


def test_the_checkpoint_of_a_step_is_replaced_when_the_budget_is_lowered_after_it(base: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    loop = World(base, store).loop
    next(loop.run())
    first = loop._checkpoint(store)
    loop._lower(Shortage(tokens=BUDGET, rows=4, said="full"))
    assert loop._checkpoint(store).path == first.path
    found, _ = store.latest()
    assert found is not None
    assert found.progress.token_budget == BUDGET // 2


def test_memory_that_goes_on_shrinking_halves_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = World(base, None, config=smaller(budget=24))
    list(wanted.loop.run())
    world = World(base, None)
    world.fail_above(24, ERRORS["cuda"], monkeypatch)
    events = list(world.loop.run())
    budgets = [event.token_budget for event in events if isinstance(event, TokenBudgetEvent)]
    assert budgets == [48, 24]
    assert world.values() == wanted.values()


@pytest.mark.parametrize("when", ["rehearsing", "training"])
def test_a_single_text_that_does_not_fit_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, when: str, tally: Tally
) -> None:
    world = World(base, None)
    before = world.values()
    world.fail_above(3, ERRORS["cpu"], monkeypatch)
    with pytest.raises(MemoryPlanError, match="one text alone") as caught:
        world.loop.rehearse() if when == "rehearsing" else list(world.loop.run())
    assert caught.value.exit_code == 4
    assert caught.value.got == CPU_SAYS
    assert "max_length" in (caught.value.do or "")
    assert world.values() == before, "nothing has moved, and dropout stands where it stood"
    tally("faults injected", 1)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_rehearsal_halves_too_and_leaves_nothing_but_the_budget(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    wanted = World(base, None, config=smaller())
    expected = told(list(wanted.loop.run()))
    store = KeepAll(tmp_path)
    world = World(base, store)
    before = world.values()
    world.fail_above(BUDGET // 2, ERRORS[kind], monkeypatch)
    assert world.loop.rehearse().heaviest_tokens <= BUDGET // 2
    assert world.values() == before
    events = list(world.loop.run())
    assert isinstance(events[0], TokenBudgetEvent)
    assert told(events) == expected
    assert world.values() == wanted.values()
    assert (store.written[0].progress.step, store.written[0].progress.token_budget) == (0, BUDGET // 2)


def test_other_errors_are_not_taken_for_a_shortage(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(base, None)
    world.fail_above(BUDGET // 2, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes"):
        list(world.loop.run())


@pytest.mark.parametrize("cut", [0, 1], ids=["the first", "a later one"])
def test_memory_that_runs_out_while_a_micro_batch_is_cut_halves_too(
    base: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, cut: int
) -> None:
    """No micro-batch is to blame then, neither the one before nor a text that is alone in none."""
    wanted = World(base, None, config=smaller())
    expected = told(list(wanted.loop.run()))
    world, failures = World(base, None), [0]

    def cut_until(encoded: Encoded, rows: Sequence[int], budget: int) -> Iterator[PackedBatch]:
        for number, batch in enumerate(micro_batches(encoded, rows, budget)):
            if budget == BUDGET and number == cut:
                failures[0] += 1
                raise MemoryError
            yield batch

    monkeypatch.setattr("qlassify.training.loop.micro_batches", cut_until)
    events = list(world.loop.run())
    (event,) = (event for event in events if isinstance(event, TokenBudgetEvent))
    assert failures == [1]
    assert (event.token_budget, event.tokens) == (BUDGET // 2, 0)
    assert "in step 1 before anything was computed" in event.sentence
    assert told(events) == expected
    assert world.values() == wanted.values()
    tally("faults injected", 1)


def test_cutting_that_never_fits_ends_in_an_error() -> None:
    budget, steps = 1000, 0
    while budget > 1:
        budget, steps = halved(budget, Shortage(0, 0, "full")), steps + 1
    assert steps == 9, "1000 is halved nine times"
    with pytest.raises(MemoryPlanError, match="before anything was computed") as caught:
        halved(budget, Shortage(0, 0, "full"))
    assert caught.value.got == "full"


def test_moving_the_weights_out_of_memory_is_refused_and_not_repeated(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(base, None)

    def full() -> None:
        raise RuntimeError(CPU_SAYS)

    monkeypatch.setattr(world.training.optimizer._adamw, "step", full)
    with pytest.raises(MemoryPlanError, match="moving the weights") as caught:
        list(world.loop.run())
    assert caught.value.where == "step 1"


def test_the_allocators_of_this_installation_are_recognised() -> None:
    """The words in the list are held against what torch and NumPy really raise."""
    for allocate in (
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, dtype=np.uint8),
        lambda: bytearray(2**60),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value), caught.value
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    for other in (OSError(28, "No space left on device"), RuntimeError("shape mismatch"), ValueError("out of memory")):
        assert not is_out_of_memory(other)


@pytest.mark.parametrize(
    ("budget", "tokens", "wanted"), [(100, 90, 50), (100, 51, 50), (100, 50, 25), (4096, 7, 4), (2, 2, 1)]
)
def test_a_halved_budget_cuts_what_failed(budget: int, tokens: int, wanted: int) -> None:
    assert halved(budget, Shortage(tokens, 2, "full")) == wanted < tokens


def test_a_lowered_budget_becomes_a_line_of_the_log() -> None:
    record = as_record(TokenBudgetEvent(4, 512, 1024, 900, "full"))
    assert json.loads(json.dumps(record)) == {
        "event": "token_budget",
        "step": 4,
        "token_budget": 512,
        "former": 1024,
        "tokens": 900,
        "reason": "full",
    }


@pytest.mark.parametrize("kind", ERRORS)
def test_predicting_goes_on_in_smaller_pieces_with_a_warning(
    base: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tally: Tally
) -> None:
    """Every row gets its own logits, the rows that were done before memory ran out included."""
    world = World(base, None)
    classifier, encoded = world.training.classifier, world.encoded
    wanted = predict_logits(classifier, encoded, token_budget=64)
    original, calls, done = classifier.forward, [0], list[int]()

    def forward(batch: PackedBatch) -> Tensor:
        calls[0] += 1
        if calls[0] > 2 and batch.num_tokens > 32:
            raise ERRORS[kind]()
        return original(batch)

    monkeypatch.setattr(classifier, "forward", forward)
    with pytest.warns(QlassifyWarning, match="goes on with 32"):
        found = predict_logits(classifier, encoded, token_budget=64, progress=done.append)
    # fp32, and matrix products of other shapes: a few units in the last place of logits of order one.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert done == sorted(done)
    assert done[-1] == len(encoded)
    calls[0] = 2
    # Again without a warning, which would be an error here: what the first call found out holds for the next.
    np.testing.assert_array_equal(
        predict_logits(classifier, encoded, token_budget=64), predict_logits(classifier, encoded, token_budget=32)
    )
    classifier.backbone.fitting_tokens = None  # as in a new process
    monkeypatch.setattr(classifier, "forward", lambda batch: (_ for _ in ()).throw(ERRORS[kind]()))
    with pytest.warns(QlassifyWarning), pytest.raises(MemoryPlanError, match="one text alone"):
        predict_logits(classifier, encoded, token_budget=64)
    tally("faults injected", 2)
