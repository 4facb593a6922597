"""A job that is tracked: what tools are told is what the run folder says, and nothing of them changes the run.

The tools are stand-ins here; ``tests/tracking`` has the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlassify import job
from qlassify.errors import ConfigError
from qlassify.tracking import trackers as room
from qlassify.tracking.tracker import TrackedRun
from qlassify.training.events import StepEvent
from tiny_jobs import job_settings, make_multi_label_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """Keeps what it is told; fails from one step on if it is to."""

    def __init__(self, run: TrackedRun, fails_at: int | None = None) -> None:
        self.run = run
        self.points: list[tuple[int, dict[str, float]]] = []
        self.scores: dict[str, float] | None = None
        self.finished: bool | None = None
        self.fails_at = fails_at

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self.points.append((step, dict(scalars)))

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        self.scores = dict(scores)

    def close(self, *, finished: bool) -> None:
        self.finished = finished


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Those that were started, in order, in place of wandb (which fails at step 4) and TensorBoard."""
    made: list[Recorder] = []

    def start(fails_at: int | None) -> Any:
        def make(run: TrackedRun) -> Recorder:
            made.append(Recorder(run, fails_at))
            return made[-1]

        return make

    monkeypatch.setattr(room, "TRACKERS", {"tensorboard": start(None), "wandb": start(4)})
    monkeypatch.setattr(room, "_installed", lambda name: True)
    return made


def settings_of(base: Path, data: Path, *tools: str) -> dict[str, Any]:
    settings = job_settings(base, data, epochs=2, batch_size=32, log_interval=2, checkpoint_every_steps=2)
    settings["method"]["dropout"] = 0.2
    settings["training"] |= {"sampling": "balanced", "focal_gamma": 2.0}
    return {**settings, "tracking": tools}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def told_by(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) that the run folder has of losses and scores."""
    found = []
    for line in lines(folder):
        if line["event"] == "step":
            found.append((line["step"], "train/loss", line["loss"]))
        if line["event"] == "evaluation":
            found += [(line["step"], f"evaluation/{k}", v) for k, v in line["scores"].items() if v is not None]
    return found


def heard_by(recorder: Recorder) -> list[tuple[int, str, float]]:
    return [
        (step, name, value)
        for step, scalars in recorder.points
        for name, value in scalars.items()
        if name == "train/loss" or name.startswith("evaluation/")
    ]


def test_tools_hear_what_the_folder_says_and_change_nothing(
    tiny_base: Path, train_csv: Path, tmp_path: Path, recorders: list[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    """One tool fails in the middle; the model is bitwise that of a run without tools."""
    list(job.train(settings_of(tiny_base, train_csv), tmp_path / "plain"))
    assert recorders == []
    list(job.train(settings_of(tiny_base, train_csv, "tensorboard", "wandb"), tmp_path / "run"))
    whole, failing = recorders
    assert heard_by(whole) == told_by(tmp_path / "run")
    assert len(heard_by(whole)) > 10
    assert {step for step, _ in failing.points} == {1, 2}
    assert failing.finished is None, "it was let go of when it failed"
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert whole.scores == {name: value for name, value in metrics["values"].items() if value is not None}
    assert whole.finished is True
    assert whole.run.name == "run"
    assert whole.run.settings["training"]["sampling"] == "balanced"
    told = [line for line in capsys.readouterr().err.splitlines() if "switched off" in line]
    assert told == ["qlassify: wandb is switched off, the run goes on without it: ConnectionError: the server is gone"]
    assert model_bytes(tmp_path / "run" / "model") == model_bytes(tmp_path / "plain" / "model")


def test_a_resumed_run_goes_on_from_its_checkpoint(
    tiny_base: Path, train_csv: Path, tmp_path: Path, recorders: list[Recorder]
) -> None:
    """Died after step 5, whose checkpoint is of step 4: steps from 5 on are told again, under the same settings."""
    settings = settings_of(tiny_base, train_csv, "tensorboard")
    list(job.train(settings, tmp_path / "whole"))
    events = job.train(settings, tmp_path / "run")
    next(event for event in events if isinstance(event, StepEvent) and event.step == 5)
    events.close()  # type: ignore[attr-defined]
    list(job.resume(tmp_path / "run"))
    whole, first, second = recorders
    assert first.finished is False
    assert second.run.after_step == 4
    kept = [one for one in heard_by(first) if one[0] <= 4]
    assert [*kept, *heard_by(second)] == heard_by(whole)
    assert second.scores == whole.scores
    assert model_bytes(tmp_path / "run" / "model") == model_bytes(tmp_path / "whole" / "model")


def test_a_tool_that_is_not_installed_leaves_no_folder(
    tiny_base: Path, train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="packages that are not installed"):
        list(job.train(settings_of(tiny_base, train_csv, "wandb"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rows_with_several_labels_are_not_drawn_by_class(tiny_base: Path, tmp_path: Path) -> None:
    rows = [(text, ";".join(labels) or "none") for text, labels in make_multi_label_rows(40)]
    data = write_table(tmp_path / "data.csv", ("text", "label"), rows)
    settings = settings_of(tiny_base, data)
    settings["data"]["label_separator"] = ";"
    with pytest.raises(ConfigError, match="several labels") as refused:
        list(job.train(settings, tmp_path / "run"))
    assert refused.value.where == "training.sampling"
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_the_tokens_that_balanced_epochs_read(tiny_base: Path, tmp_path: Path) -> None:
    """Rare texts are long: drawn equally often, they make an epoch longer than the file."""
    from qlassify.config.run import RunConfig
    from qlassify.preparation import prepare

    rows = [(f"the dog {number % 7} is {number}", "beast") for number in range(80)]
    rows += [(" ".join(["apple", *["the"] * 30, str(number)]), "fruit") for number in range(8)]
    data = write_table(tmp_path / "data.csv", ("text", "label"), rows)
    settings = settings_of(tiny_base, data)
    dataset = job.read_dataset(RunConfig.parse(settings))
    prepared = prepare(settings, dataset)
    loop = prepared.pipeline.training_loop(dataset, prepared.encoded)
    read = sum(
        int(prepared.encoded["train"].lengths[loop.order.rows_of_step(step)].sum())
        for step in range(loop.order.total_steps)
    )
    assert abs(prepared.plan.tokens - read) <= 2, "an epoch's tokens are rounded to whole ones"
    assert prepared.plan.tokens > 2.5 * prepared.encoded["train"].num_tokens
