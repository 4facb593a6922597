"""The loop: which rows a step has, when it scores, what it keeps, and when it gives up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qlassify.config.run import TrainingConfig
from qlassify.errors import ConfigError, DivergenceError, Interrupted, MemoryPlanError
from qlassify.evaluation.metrics import evaluate_predictions
from qlassify.training import loop as loop_module
from qlassify.training.events import EvaluationEvent, SkippedStepEvent, StepEvent, TrainingEndEvent, as_record
from qlassify.training.loop import SMALLER_IS_BETTER, StopRequest, TrainingLoop, TrainingSet
from qlassify.training.schedule import rate_factor, warmup_steps
from qlassify.training.step import BatchResult, snapshot
from tiny_jobs import LABELS, TinyTraining

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = list[tuple[str, str]]


class Scores:
    """A scorer that says what it was told to, one entry per evaluation."""

    def __init__(self, *values: Any, name: str = "macro_f1") -> None:
        self.waiting = list(values)
        self.name = name
        self.calls = 0

    def __call__(self) -> Mapping[str, float | None]:
        self.calls += 1
        return {self.name: self.waiting.pop(0)}


def make_loop(training: TinyTraining, rows: Rows, scorer: Any = None, *, seed: int = 7, **config: Any) -> TrainingLoop:
    encoded, targets = training.encode(rows)
    settings = {"epochs": 2, "batch_size": 8, "selection_metric": "macro_f1", **config}
    return TrainingLoop(
        training.stepper,
        TrainingSet(encoded, targets, [100 + index for index in range(len(rows))]),
        TrainingConfig(**settings),
        seed=seed,
        dropout_generator=training.attachment.dropout_generator,
        scorer=scorer,
    )


def test_every_row_comes_exactly_once_an_epoch(tiny_base: Path, rows: Rows) -> None:
    loop = make_loop(TinyTraining(tiny_base), rows[:45], epochs=3, batch_size=4, accumulation_steps=2)
    assert (loop.steps_per_epoch, loop.total_steps) == (6, 18)
    orders = []
    for epoch in range(3):
        steps = [loop.order.rows_of_step(epoch * 6 + step) for step in range(6)]
        assert [len(step) for step in steps] == [8, 8, 8, 8, 8, 5], "the last step holds what is left, no more"
        order = np.concatenate(steps)
        assert sorted(order.tolist()) == list(range(45))
        orders.append(order.tolist())
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    assert orders[0] != sorted(orders[0]), "the rows are shuffled"


def test_the_order_depends_on_seed_and_epoch_alone(tiny_base: Path, rows: Rows) -> None:
    training = TinyTraining(tiny_base)
    first, again = make_loop(training, rows), make_loop(training, rows)
    other = make_loop(training, rows, seed=8)
    last_first = [first.order.rows_of_step(step).tolist() for step in reversed(range(first.total_steps))]
    in_order = [again.order.rows_of_step(step).tolist() for step in range(again.total_steps)]
    assert last_first == in_order[::-1]
    assert in_order != [other.order.rows_of_step(step).tolist() for step in range(other.total_steps)]


def test_the_steps_taken_are_those_rows_at_those_rates(
    tiny_base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TinyTraining(tiny_base, learning_rate=1e-2)
    seen: list[list[int]] = []
    original = loop_module.micro_batches

    def spy(encoded: Any, chosen: Any, budget: int) -> Any:
        seen.append(sorted(np.asarray(chosen).tolist()))
        return original(encoded, chosen, budget)

    monkeypatch.setattr(loop_module, "micro_batches", spy)
    loop = make_loop(training, rows[:20], schedule="cosine", warmup_fraction=0.4, log_interval=1)
    events = [event for event in loop.run() if isinstance(event, StepEvent)]
    assert seen == [sorted(loop.order.rows_of_step(step).tolist()) for step in range(6)]
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.rows for event in events] == [8, 8, 4, 8, 8, 4]
    warmup = warmup_steps(6, 0.4)
    assert warmup == 2
    wanted = [1e-2 * rate_factor(step, 6, warmup=warmup, schedule="cosine") for step in range(6)]
    assert [event.learning_rate for event in events] == wanted
    assert events[2].epoch == 1.0
    assert sum(event.tokens for event in events) == 2 * loop.data.encoded.num_tokens


@pytest.mark.parametrize(
    ("per_epoch", "steps"),
    [(1, [5, 10]), (2, [3, 5, 8, 10]), (5, list(range(1, 11))), (50, list(range(1, 11)))],
)
def test_evaluation_points(tiny_base: Path, rows: Rows, per_epoch: int, steps: list[int]) -> None:
    """Even parts of each epoch and always its end; never more often than there are steps."""
    scores = Scores(*[0.5] * len(steps))
    loop = make_loop(
        TinyTraining(tiny_base), rows[:40], scores, evaluations_per_epoch=per_epoch, early_stopping_patience=None
    )
    assert [event.step for event in loop.run() if isinstance(event, EvaluationEvent)] == steps


def test_the_best_weights_are_restored(tiny_base: Path, rows: Rows) -> None:
    """The middle evaluation is the best; at the end the parameters are bitwise those of that moment."""
    training = TinyTraining(tiny_base)
    at_evaluation: list[dict[str, torch.Tensor]] = []

    def scorer() -> Mapping[str, float | None]:
        at_evaluation.append(snapshot(training.optimizer.parameters))
        return {"macro_f1": (0.3, 0.8, 0.8)[len(at_evaluation) - 1]}

    loop = make_loop(training, rows[:24], scorer, epochs=3)
    events = list(loop.run())
    end = events[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.step, end.best_step, end.best_score, end.stopped_early) == (9, 6, 0.8, False)
    assert [event.improved for event in events if isinstance(event, EvaluationEvent)] == [True, True, False]
    final = snapshot(training.optimizer.parameters)
    assert all(torch.equal(final[name], at_evaluation[1][name]) for name in final)
    assert not all(torch.equal(final[name], at_evaluation[2][name]) for name in final), "training went on after it"


@pytest.mark.parametrize(
    ("scores", "patience", "evaluations", "best_step"),
    [
        ([0.5, 0.4, 0.4, 0.9, 0.9, 0.9], 2, 3, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 5, 9),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], None, 6, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6, 18),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 1, 2, 3),
    ],
)
def test_early_stopping(
    tiny_base: Path, rows: Rows, scores: list[float], patience: int | None, evaluations: int, best_step: int
) -> None:
    """Patience counts evaluations since the best; an equal score is no improvement."""
    scorer = Scores(*scores)
    loop = make_loop(TinyTraining(tiny_base), rows[:24], scorer, epochs=6, early_stopping_patience=patience)
    end = list(loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert scorer.calls == evaluations
    assert (end.best_step, end.step, end.stopped_early) == (best_step, 3 * evaluations, evaluations < 6)


def test_patience_that_ends_with_the_last_step_is_no_early_stop(tiny_base: Path, rows: Rows) -> None:
    loop = make_loop(TinyTraining(tiny_base), rows[:16], Scores(0.5, 0.4), early_stopping_patience=1)
    end = list(loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert not end.stopped_early


@pytest.mark.parametrize("metric", sorted(SMALLER_IS_BETTER))
def test_losses_improve_by_falling(tiny_base: Path, rows: Rows, metric: str) -> None:
    scorer = Scores(0.9, 0.2, 0.5, name=metric)
    loop = make_loop(TinyTraining(tiny_base), rows[:8], scorer, epochs=3, selection_metric=metric)
    end = list(loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.best_step, end.best_score) == (2, 0.2)


@pytest.mark.parametrize("multi_label", [False, True])
def test_every_score_that_can_select_has_a_known_direction(multi_label: bool) -> None:
    """A perfect prediction against a poor one: whatever falls must be listed as falling, whatever rises must not."""
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 3, size=60)
    flags = np.eye(3, dtype=np.float32)[classes]
    noise = generator.dirichlet(np.ones(3), size=60)
    targets = flags if multi_label else classes
    good = evaluate_predictions(targets, 0.96 * flags + 0.02 * (1 - flags), LABELS, multi_label=multi_label).values
    poor = evaluate_predictions(targets, noise, LABELS, multi_label=multi_label).values
    wrong = {
        name: (good[name], poor[name])
        for name in good
        if good[name] is not None
        and poor[name] is not None
        and good[name] != poor[name]
        and (good[name] < poor[name]) != (name in SMALLER_IS_BETTER)  # type: ignore[operator]
    }
    assert wrong == {}


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_undefined_score_never_improves(tiny_base: Path, rows: Rows, value: float | None) -> None:
    loop = make_loop(TinyTraining(tiny_base), rows[:8], Scores(value, 0.1))
    end = list(loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.best_step, end.best_score) == (2, 0.1)


def test_without_any_defined_score_the_last_weights_stay(tiny_base: Path, rows: Rows) -> None:
    training = TinyTraining(tiny_base)
    loop = make_loop(training, rows[:8], Scores(None, None))
    end = list(loop.run())[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.best_step, end.best_score) == (2, None)


def test_an_unknown_metric_is_named_with_those_there_are(tiny_base: Path, rows: Rows) -> None:
    def scorer() -> Mapping[str, float | None]:
        return {"loss": 1.0, "macro_f1": 0.5}

    loop = make_loop(TinyTraining(tiny_base), rows[:8], scorer, selection_metric="macro_f2")
    with pytest.raises(ConfigError) as caught:
        list(loop.run())
    assert (caught.value.where, caught.value.got) == ("training.selection_metric", "macro_f2")
    assert caught.value.wanted == "loss, macro_f1"


def fail_steps(training: TinyTraining, monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
    """Make the loss of the given steps (1 is the first) infinite."""
    calls = iter(range(1, 10_000))
    original = training.stepper.apply

    def apply() -> BatchResult:
        if next(calls) in failing:
            training.stepper._loss = math.inf
        return original()

    monkeypatch.setattr(training.stepper, "apply", apply)


def test_a_skipped_step_names_the_rows_of_the_file(
    tiny_base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TinyTraining(tiny_base)
    fail_steps(training, monkeypatch, {2, 4, 5})
    loop = make_loop(training, rows[:24], max_skipped_steps=3)
    events = list(loop.run())
    skipped = [event for event in events if isinstance(event, SkippedStepEvent)]
    assert [(event.step, event.in_a_row) for event in skipped] == [(2, 1), (4, 1), (5, 2)]
    assert skipped[0].row_numbers == tuple(100 + row for row in loop.order.rows_of_step(1).tolist())
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 3, 6]
    end = events[-1]
    assert isinstance(end, TrainingEndEvent)
    assert (end.step, end.skipped_steps) == (6, 3)


def test_too_many_in_a_row_end_the_run_with_the_weights_before(
    tiny_base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TinyTraining(tiny_base)
    fail_steps(training, monkeypatch, {2, 3})
    loop = make_loop(training, rows[:24], max_skipped_steps=2)
    events = loop.run()
    next(events)
    kept = snapshot(training.optimizer.parameters)
    assert isinstance(next(events), SkippedStepEvent)
    with pytest.raises(DivergenceError) as caught:
        next(events)
    numbers = ", ".join(str(100 + row) for row in loop.order.rows_of_step(2).tolist())
    assert caught.value.where == f"step 3, rows {numbers}"
    assert "2 steps in a row" in caught.value.what
    after = snapshot(training.optimizer.parameters)
    assert all(torch.equal(after[name], kept[name]) for name in kept)


def test_learning_happens(tiny_base: Path, rows: Rows) -> None:
    """Twelve passes over sixty texts: the loss of the last pass is less than half of the first's."""
    training = TinyTraining(tiny_base, learning_rate=1e-2)
    steps = [e for e in make_loop(training, rows, epochs=12).run() if isinstance(e, StepEvent)]
    first, last = (sum(event.loss for event in part) for part in (steps[:8], steps[-8:]))
    assert last < 0.5 * first


def test_a_stop_request_is_heard_after_the_step(tiny_base: Path, rows: Rows) -> None:
    stop = StopRequest()
    training = TinyTraining(tiny_base)
    loop = make_loop(training, rows[:24])
    loop.stop = stop
    events = loop.run()
    assert isinstance(next(events), StepEvent)
    stop(15)
    with pytest.raises(Interrupted, match="SIGTERM: after step 1; nothing was written") as caught:
        next(events)
    assert caught.value.exit_code == 143


def test_a_signal_outside_a_loop_or_for_the_second_time_ends_at_once() -> None:
    idle = StopRequest()
    with pytest.raises(Interrupted) as caught:
        idle(2)
    assert caught.value.exit_code == 130
    busy = StopRequest()
    busy.armed = True
    busy(2)
    assert busy.signal_number == 2
    with pytest.raises(Interrupted):
        busy(2)


def test_events_become_lines() -> None:
    event = EvaluationEvent(4, 1.0, {"loss": 0.5, "mcc": None}, "loss", True, 0.1)
    assert as_record(event) == {
        "event": "evaluation",
        "step": 4,
        "epoch": 1.0,
        "scores": {"loss": 0.5, "mcc": None},
        "metric": "loss",
        "improved": True,
        "seconds": 0.1,
    }


def test_a_rehearsal_leaves_no_trace(tiny_base: Path, rows: Rows) -> None:
    """Weights, gradients, the dropout stream and so the whole run are bitwise what they are without it."""
    finals = []
    for rehearsed in (False, True):
        training = TinyTraining(tiny_base, learning_rate=1e-2, dropout=0.2)
        loop = make_loop(training, rows[:20])
        if rehearsed:
            rehearsal = loop.rehearse()
            assert all(p.grad is None for p in loop.stepper.optimizer.parameters.values())
            lengths = loop.data.encoded.lengths
            steps = [loop.order.rows_of_step(step) for step in range(loop.total_steps)]
            assert rehearsal.heaviest_tokens == max(int(lengths[one].sum()) for one in steps)
            assert rehearsal.tokens in {int(lengths[one].sum()) for one in steps}
        list(loop.run())
        finals.append({name: p.detach().clone() for name, p in loop.stepper.optimizer.parameters.items()})
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_rehearsal_that_does_not_fit_says_what_to_do(
    tiny_base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(TinyTraining(tiny_base, learning_rate=1e-2), rows[:20])

    def full(*_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(loop.stepper, "rehearse", full)
    with pytest.raises(MemoryPlanError, match="token_budget") as caught:
        loop.rehearse()
    assert caught.value.got == "CUDA out of memory. Tried to allocate 2 GiB"
