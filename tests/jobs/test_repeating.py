"""Several seeds: each run is the one that its seed alone would give, the record adds up, and a stop loses nothing."""

from __future__ import annotations

import gc
import json
import math
import shutil
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlassify import ClassifyPipeline, job, runs
from qlassify.errors import CheckpointError, ConfigError, ContractError, Interrupted, ModelError
from qlassify.job import ModelEvent, PlanEvent
from qlassify.repeating import (
    RepeatEvent,
    SeedDoneEvent,
    SeedEvent,
    SeedResult,
    SeedsFinishedEvent,
    best_of,
    resume_seeds,
    spreads,
    train_seeds,
)
from qlassify.training.events import StepEvent
from qlassify.training.loop import StopRequest
from tiny_jobs import job_settings, make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(base: Path, data: Path) -> dict[str, Any]:
    """Dropout, so that a seed decides masks, too."""
    settings = job_settings(base, data, epochs=1, batch_size=16, checkpoint_every_steps=3)
    settings["method"]["dropout"] = 0.2
    settings["evaluation"] = {"baselines": False}
    return settings


def finish(events: Iterator[RepeatEvent]) -> SeedsFinishedEvent:
    last = list(events)[-1]
    assert isinstance(last, SeedsFinishedEvent)
    return last


def outcome(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What two runs that went the same way have in common."""
    scores = json.loads((folder / "evaluation" / "metrics.json").read_text())
    scores.pop("rows_per_second")
    return model_bytes(folder / "model"), scores


def same_runs(one: Path, other: Path) -> None:
    for seed in (3, 4):
        assert outcome(one / f"seed-{seed}") == outcome(other / f"seed-{seed}")


def record_of(folder: Path) -> dict[str, Any]:
    """seeds.json without wall time."""
    record: dict[str, Any] = json.loads((folder / "seeds.json").read_text())
    for one in record["runs"]:
        one.pop("training_seconds")
    return record


@pytest.fixture(scope="module")
def reference(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Seeds 3 and 4, undisturbed."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    finish(train_seeds(settings_of(tiny_base, train_csv), folder, count=2))
    return folder


@pytest.mark.parametrize("seed", [3, 4])
def test_each_run_is_the_one_that_its_seed_alone_gives(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path, seed: int
) -> None:
    list(job.train({**settings_of(tiny_base, train_csv), "seed": seed}, tmp_path / "alone"))
    alone, together = tmp_path / "alone", reference / f"seed-{seed}"
    assert outcome(together) == outcome(alone)
    assert (together / "run.yaml").read_text() == (alone / "run.yaml").read_text()
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}


def test_seeds_differ(reference: Path) -> None:
    assert model_bytes(reference / "seed-3" / "model") != model_bytes(reference / "seed-4" / "model")


def test_the_record_adds_up(reference: Path) -> None:
    record = record_of(reference)
    assert (record["seeds"], record["finished"], record["strict"]) == ([3, 4], True, False)
    for one in record["runs"]:
        folder = reference / one["folder"]
        assert one["values"] == json.loads((folder / "evaluation" / "metrics.json").read_text())["values"]
        evaluations = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        scores = [event["scores"]["macro_f1"] for event in evaluations if event["event"] == "evaluation"]
        assert (one["metric"], one["validation_score"]) == ("macro_f1", max(scores))
    values = [one["values"]["accuracy"] for one in record["runs"]]
    spread = record["scores"]["accuracy"]
    assert (spread["runs"], spread["min"], spread["max"]) == (2, min(values), max(values))
    assert spread["mean"] == pytest.approx(sum(values) / 2, rel=1e-12)
    # Of two values the sample's deviation is their distance over the root of two.
    assert spread["standard_deviation"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), rel=1e-9)
    best = max(record["runs"], key=lambda one: one["validation_score"])
    assert record["best"] == {"seed": best["seed"], "folder": best["folder"]}


def test_each_run_is_a_classifier_and_the_outer_folder_does_not_guess(reference: Path) -> None:
    assert ClassifyPipeline.load(reference / "seed-4").predict(["a dog"])
    with pytest.raises(ModelError, match="several seeds") as caught:
        ClassifyPipeline.load(reference)
    assert "seeds.json" in str(caught.value)


def test_the_events_have_a_heading_for_each_seed(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    events = list(train_seeds(settings_of(tiny_base, train_csv), tmp_path / "run", count=2))
    kinds = [event for event in events if isinstance(event, (SeedEvent, SeedDoneEvent, SeedsFinishedEvent))]
    assert [type(event) for event in kinds] == [SeedEvent, SeedDoneEvent, SeedEvent, SeedDoneEvent, SeedsFinishedEvent]
    assert [(one.seed, one.number, one.count) for one in kinds if isinstance(one, SeedEvent)] == [(3, 1, 2), (4, 2, 2)]
    assert not any(isinstance(event, job.FinishedEvent) for event in events)


def test_a_finished_run_leaves_no_model_in_memory(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    before = {id(one) for one in gc.get_objects() if type(one) is ClassifyPipeline}
    automatic = gc.isenabled()
    gc.disable()  # or luck could clean up
    try:
        for event in train_seeds(settings_of(tiny_base, train_csv), tmp_path / "run", count=2):
            if isinstance(event, SeedDoneEvent):
                assert [
                    one for one in gc.get_objects() if type(one) is ClassifyPipeline and id(one) not in before
                ] == []
    finally:
        if automatic:
            gc.enable()


def test_whose_rows_the_spread_is_of_is_said(reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    notes = record_of(reference)["notes"]
    assert "validation rows of its own" in notes[0]
    assert "no test file" in notes[1]
    settings = settings_of(tiny_base, train_csv)
    settings["data"]["eval"] = str(write_table(tmp_path / "dev.csv", ("text", "label"), make_rows(20, seed=70)))
    assert finish(train_seeds(settings, tmp_path / "run", count=2)).notes == ()


# Stopping and going on


@pytest.mark.parametrize(("seed", "step"), [(3, 5), (4, 5), (4, 0)])
def test_runs_that_died_are_resumed_to_the_same_end(
    reference: Path,
    tiny_base: Path,
    train_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    step: int,
) -> None:
    """In the first run, in the second, and between the two; the settings' relative paths hold from another folder."""
    settings = settings_of(tiny_base, train_csv)
    monkeypatch.chdir(train_csv.parent)
    settings["data"]["train"] = train_csv.name
    events = train_seeds(settings, tmp_path / "run", count=2)
    for event in events:
        if isinstance(event, SeedEvent) and event.seed == seed:
            break
    if step:
        next(event for event in events if isinstance(event, StepEvent) and event.step == step)
    events.close()  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    finish(resume_seeds(tmp_path / "run"))
    same_runs(tmp_path / "run", reference)
    assert record_of(tmp_path / "run") == record_of(reference)


def test_a_stop_request_names_the_outer_folder(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "run", StopRequest()
    events = train_seeds(settings_of(tiny_base, train_csv), folder, count=2, stop=stop)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 4)
    stop(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        list(events)
    assert caught.value.exit_code == 130
    assert caught.value.do == f"Continue with: qlassify train --resume {folder}"
    assert str(folder / "seed-3" / "checkpoints" / "step-000004") in caught.value.what
    assert caught.value.what.count("SIGINT") == 1
    assert record_of(folder)["finished"] is False
    finish(resume_seeds(folder))
    same_runs(folder, reference)


def test_two_that_begin_at_once_do_not_share_a_folder(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    """The folder is free when both look; one makes it, and the other is refused before it writes anything."""
    folder, settings = tmp_path / "run", settings_of(tiny_base, train_csv)
    first, second = train_seeds(settings, folder, count=2), train_seeds(settings, folder, count=2)
    for events in (first, second):
        next(event for event in events if isinstance(event, PlanEvent))
    next(event for event in first if isinstance(event, StepEvent))
    with pytest.raises(ConfigError, match="another process is working in this folder") as caught:
        list(second)
    assert caught.value.where == str(folder), "the outer folder is what two may not share, not the run of one seed"
    finish(first)
    same_runs(folder, reference)


def test_one_that_begins_when_another_has_ended_does_not_share_its_folder(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first died between the folder's record and its first run, so that the lock is free and no run in the way."""

    class Crash(BaseException):
        """The process died here."""

    def crash(path: Path) -> None:
        raise Crash

    folder, settings = tmp_path / "run", settings_of(tiny_base, train_csv)
    second = train_seeds(settings, folder, count=2)
    next(event for event in second if isinstance(event, PlanEvent))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "create_run_folder", crash)
        with pytest.raises(Crash):
            list(train_seeds(settings, folder, count=2))
    assert record_of(folder)["runs"] == []
    with pytest.raises(ConfigError, match="not empty"):
        list(second)
    finish(resume_seeds(folder))
    same_runs(folder, reference)


def test_what_is_finished_is_known(reference: Path, tmp_path: Path) -> None:
    assert runs.are_seeds_finished(reference)
    copy = tmp_path / "copy"
    shutil.copytree(reference, copy)
    (copy / "seed-4" / "evaluation" / "metrics.json").unlink()
    assert not runs.are_seeds_finished(copy)
    (copy / "seeds.json").write_text("{}")
    assert not runs.are_seeds_finished(copy)
    (copy / "seeds.json").unlink()
    assert not runs.are_seeds_finished(copy)


def test_what_is_finished_is_not_resumed(reference: Path) -> None:
    with pytest.raises(CheckpointError, match="the runs of all seeds are finished"):
        list(resume_seeds(reference))


def test_later_seeds_see_the_data_of_the_first(tiny_base: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    events = train_seeds(settings_of(tiny_base, data), tmp_path / "run", count=2)
    next(event for event in events if isinstance(event, SeedDoneEvent))
    events.close()  # type: ignore[attr-defined]
    write_table(data, ("text", "label"), make_rows(61))
    with pytest.raises(CheckpointError, match="the data has changed"):
        list(resume_seeds(tmp_path / "run"))
    assert not (tmp_path / "run" / "seed-4").exists()


# Refusals


def test_one_seed_has_no_spread(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a spread needs several runs"):
        list(train_seeds(settings_of(tiny_base, train_csv), tmp_path / "run", count=1))


def test_a_folder_with_something_in_it_is_refused_at_once(reference: Path, tiny_base: Path, train_csv: Path) -> None:
    events = train_seeds(settings_of(tiny_base, train_csv), reference, count=2)
    with pytest.raises(ConfigError, match="not empty"):
        next(events)


def test_a_refused_run_leaves_no_folder(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_base, train_csv)
    settings["training"]["learning_rate"] = 50.0
    with pytest.raises(ContractError, match="C-LR-001"):
        list(train_seeds(settings, tmp_path / "run", count=2, strict=True))
    assert not (tmp_path / "run").exists()


# Arithmetic


def result(seed: int, validation: float | None, *, metric: str = "macro_f1", **values: float | None) -> SeedResult:
    return SeedResult(seed, f"seed-{seed}", "test", values, metric, validation, 1, 1.0)


def test_spreads_are_those_of_the_statistics_module() -> None:
    values = [0.61, 0.64, 0.58, 0.66]
    found = spreads([result(seed, None, accuracy=value, mcc=None) for seed, value in enumerate(values)])
    assert set(found) == {"accuracy"}, "a score without meaning has no spread"
    spread = found["accuracy"]
    assert (spread.runs, spread.min, spread.max) == (4, 0.58, 0.66)
    assert spread.mean == pytest.approx(statistics.mean(values), rel=1e-12)
    squares = sum((value - statistics.mean(values)) ** 2 for value in values)
    assert spread.standard_deviation == pytest.approx(math.sqrt(squares / 3), rel=1e-9)
    assert spreads([result(1, None, accuracy=0.5)])["accuracy"].standard_deviation is None


def test_the_best_is_the_best_by_validation_and_the_first_of_equals() -> None:
    runs = [result(1, 0.5, accuracy=0.9), result(2, 0.7, accuracy=0.1), result(3, 0.7, accuracy=0.8)]
    assert best_of(runs) is runs[1]
    by_loss = [result(1, 0.5, metric="loss"), result(2, 0.2, metric="loss"), result(3, None, metric="loss")]
    assert best_of(by_loss) is by_loss[1]
    assert best_of([result(1, None)]) is None


def test_the_record_is_there_before_the_first_step(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    """A process that dies in its first run can be resumed as a whole."""
    events = train_seeds(settings_of(tiny_base, train_csv), tmp_path / "run", count=2)
    next(event for event in events if isinstance(event, ModelEvent))
    assert record_of(tmp_path / "run")["runs"] == []
    events.close()  # type: ignore[attr-defined]
    assert runs.is_finished(tmp_path / "run" / "seed-3") is False
