"""A token budget that was lowered holds over a resumption: for the plan, the rehearsal, the report, the log's gaps."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from fault_tally import Tally
from limited_command import World, make_world
from torch import Tensor

from qlassify import job
from qlassify.data.packing import PackedBatch
from qlassify.errors import CheckpointError
from qlassify.job import FinishedEvent, JobEvent, PlanEvent
from qlassify.models.classifier import Classifier
from qlassify.training.checkpoint import Checkpoint, CheckpointStore
from qlassify.training.events import CheckpointEvent, CheckpointFailedEvent, StepEvent, TokenBudgetEvent

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = 96


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model and rows."""
    return make_world(tmp_path_factory.mktemp("world"))


def settings_of(world: World) -> dict[str, object]:
    """Small micro-batches, and a checkpoint after each step."""
    training: dict[str, object] = world.settings["training"]  # type: ignore[assignment]
    return {**world.settings, "training": {**training, "token_budget": BUDGET, "checkpoint_every_steps": 1}}


class Shortage:
    """Lets memory run out while training on more than ``tokens`` tokens at once; records what was computed."""

    def __init__(self, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, self.failures, self.most = tokens, 0, 0
        original = Classifier.forward

        def forward(classifier: Classifier, batch: PackedBatch) -> Tensor:
            if classifier.training:
                self.most = max(self.most, batch.num_tokens)
                if batch.num_tokens > self.tokens:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return original(classifier, batch)

        monkeypatch.setattr(Classifier, "forward", forward)


def stopped_after(events: Iterator[JobEvent], step: int) -> None:
    """Drop a job, as a kill would, when the checkpoint of a step is written."""
    for event in events:
        if isinstance(event, CheckpointEvent) and event.step == step:
            assert isinstance(events, Generator)
            events.close()
            return
    raise AssertionError("the run ended before")


def lowered_run(world: World, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lowered its budget in the rehearsal and was stopped after its sixth step."""
    Shortage(BUDGET // 2, monkeypatch)
    stopped_after(job.train(settings_of(world), run), 6)
    monkeypatch.undo()


def resumed(run: Path) -> tuple[list[JobEvent], FinishedEvent]:
    """The rest of a run."""
    events = list(job.resume(run))
    (finished,) = (event for event in events if isinstance(event, FinishedEvent))
    return events, finished


def test_the_report_of_a_resumed_run_says_that_memory_ran_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    run = tmp_path / "run"
    lowered_run(world, run, monkeypatch)
    _, finished = resumed(run)
    told = [note for note in finished.assessment.notes if "ran out" in note]
    assert len(told) == 1
    assert f"training.token_budget {BUDGET // 2} in place of {BUDGET}" in told[0]
    tally("faults injected", 1)


def test_so_it_does_when_the_line_of_the_log_is_lost(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint knows the budget, too."""
    run = tmp_path / "run"
    lowered_run(world, run, monkeypatch)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "token_budget" not in line))
    _, finished = resumed(run)
    told = [note for note in finished.assessment.notes if "ran out" in note]
    assert len(told) == 1
    assert f"training.token_budget {BUDGET // 2} in place of {BUDGET}" in told[0]


def test_a_budget_that_no_checkpoint_knows_is_not_reported(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says that it was lowered, and then no checkpoint could be written: the former one is taken."""
    run = tmp_path / "run"
    stopped_after(job.train(settings_of(world), run), 6)
    with (run / "metrics.jsonl").open("a") as log:
        record = {"event": "token_budget", "step": 6, "token_budget": 48, "former": 96, "tokens": 90, "reason": "full"}
        log.write(json.dumps(record) + "\n")
    _, finished = resumed(run)
    assert not [note for note in finished.assessment.notes if "ran out" in note]


def test_a_resumed_run_is_planned_and_rehearsed_with_the_budget_it_has(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """Memory that is as short as before: nothing fails, since nothing larger than before is tried."""
    run = tmp_path / "run"
    lowered_run(world, run, monkeypatch)
    shortage = Shortage(BUDGET // 2, monkeypatch)
    events, _ = resumed(run)
    assert shortage.failures == 0
    assert shortage.most > BUDGET // 4, "it is not lowered once more either"
    assert not [event for event in events if isinstance(event, TokenBudgetEvent)]
    (plan,) = (event.preparation.plan for event in events if isinstance(event, PlanEvent))
    assert plan.heaviest_tokens <= BUDGET // 2
    assert f"token_budget: {BUDGET}" in (run / "run.yaml").read_text(), "what was asked for stays on record"
    tally("faults injected", 1)


def test_memory_that_has_become_shorter_lowers_the_budget_of_the_rest(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    run = tmp_path / "run"
    lowered_run(world, run, monkeypatch)
    Shortage(BUDGET // 4, monkeypatch)
    events, finished = resumed(run)
    (event,) = (event for event in events if isinstance(event, TokenBudgetEvent))
    assert (event.step, event.former, event.token_budget) == (6, BUDGET // 2, BUDGET // 4)
    told = [note for note in finished.assessment.notes if "ran out" in note]
    assert [f"token_budget {budget} in" in note for budget, note in zip((48, 24), told, strict=True)] == [True, True]
    tally("faults injected", 1)


def test_a_checkpoint_that_failed_before_the_resumption_is_reported(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    run = tmp_path / "run"
    events = job.train(settings_of(world), run)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 3)
    save = CheckpointStore.save

    def full(store: CheckpointStore, checkpoint: Checkpoint) -> Path:
        if checkpoint.progress.step == 3:
            raise CheckpointError("cannot write a checkpoint", got="[Errno 28] No space left on device")
        return save(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", full)
    failed = [event.step for event in _until_step(events, 5) if isinstance(event, CheckpointFailedEvent)]
    assert failed == [3]
    stopped_after(events, 6)
    _, finished = resumed(run)
    told = [note for note in finished.assessment.notes if "could not be written" in note]
    assert len(told) == 1
    assert "checkpoint after step 3" in told[0]
    tally("faults injected", 1)


def _until_step(events: Iterator[JobEvent], step: int) -> Iterator[JobEvent]:
    for event in events:
        yield event
        if isinstance(event, StepEvent) and event.step == step:
            return


def test_lines_that_a_killed_process_could_not_write_are_counted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    """Two steps and an evaluation are gone: they are not taken again, so nothing can bring them back."""
    run = tmp_path / "run"
    stopped_after(job.train(settings_of(world), run), 12)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = next(record["step"] for record in records if record["event"] == "evaluation")
    lost = {("step", 2), ("step", 3), ("evaluation", scored)}
    kept = [record for record in records if (record["event"], record["step"]) not in lost]
    assert len(records) - len(kept) == 3
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    capsys.readouterr()
    _, finished = resumed(run)
    sentence = "3 events up to step 12 are missing in metrics.jsonl"
    assert [note for note in finished.assessment.notes if sentence in note]
    assert capsys.readouterr().err.count(sentence) == 1
    tally("faults injected", 1)


def test_of_a_whole_log_nothing_is_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the interval of the lines is."""
    run = tmp_path / "run"
    settings = settings_of(world)
    training: dict[str, object] = settings["training"]  # type: ignore[assignment]
    stopped_after(job.train({**settings, "training": {**training, "log_interval": 4}}, run), 12)
    resumed(run)
    assert "missing" not in capsys.readouterr().err
