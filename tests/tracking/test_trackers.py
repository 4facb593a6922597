"""What trackers are told, and that none of them can end a run; no tool is needed for this."""

from __future__ import annotations

import importlib.machinery
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlassify.config.run import RunConfig
from qlassify.errors import ConfigError
from qlassify.tracking import trackers as room
from qlassify.tracking.tracker import IDENTITIES, TrackedRun, scalars_of
from qlassify.tracking.trackers import Trackers, require_trackers
from qlassify.training.events import (
    CheckpointEvent,
    EvaluationEvent,
    SkippedStepEvent,
    StepEvent,
    TrainingEndEvent,
)

STEP = StepEvent(3, 9, 1.5, 0.25, 0.75, 1e-3, math.inf, 8, 90, 0.5)
EVALUATION = EvaluationEvent(3, 1.5, {"loss": 0.5, "mcc": None, "f1": math.nan}, "loss", True, 0.1)


class Fake:
    """Writes down what it is told, and fails when it is told to."""

    def __init__(self, run: TrackedRun, fails: str = "") -> None:
        self.said: list[Any] = []
        self.fails = fails
        if fails == "start":
            raise OSError("no disk")

    def _note(self, what: str, *rest: Any) -> None:
        if self.fails == what:
            raise RuntimeError("gone: https://name:password@host/path\nmore")
        self.said.append((what, *rest))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._note("log", step, dict(scalars))

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        self._note("end", step, dict(scores))

    def close(self, *, finished: bool) -> None:
        self._note("close", finished)


def use(monkeypatch: pytest.MonkeyPatch, **fails: str) -> dict[str, Fake]:
    """Put fakes in the tools' places; gives those that were made."""
    made: dict[str, Fake] = {}

    def maker(tool: str, when: str) -> Any:
        def make(run: TrackedRun) -> Fake:
            made[tool] = Fake(run, when)
            return made[tool]

        return make

    monkeypatch.setattr(room, "TRACKERS", {tool: maker(tool, when) for tool, when in fails.items()})
    return made


def test_curves_are_of_steps_and_evaluations() -> None:
    """A norm that is not finite and scores without a value are left out."""
    assert scalars_of(STEP) == {
        "train/epoch": 1.5,
        "train/loss": 0.25,
        "train/accuracy": 0.75,
        "train/learning_rate": 1e-3,
        "train/tokens": 90.0,
        "train/seconds": 0.5,
    }
    assert scalars_of(EVALUATION) == {"evaluation/loss": 0.5}
    assert scalars_of(SkippedStepEvent(4, math.nan, (1, 2), 2)) == {"train/skipped_in_a_row": 2.0}
    assert scalars_of(CheckpointEvent(3, "somewhere")) == scalars_of(TrainingEndEvent(9, 3, 0.5, False, 0)) == {}


def test_settings_are_flat_and_complete(tmp_path: Path) -> None:
    run = RunConfig.parse({"training": {"class_weights": (1.0, 2.0)}, "tracking": ("wandb",)})
    flat = TrackedRun(tmp_path, run.model_dump(mode="json")).flat_settings()
    assert flat["training.class_weights"] == "[1.0, 2.0]"
    assert flat["tracking"] == '["wandb"]'
    assert flat["quant"] == "null"
    assert flat["method.kind"] == "lora"
    assert {name.split(".")[0] for name in flat} == set(RunConfig.model_fields)


def test_a_run_is_named_by_its_folder_and_remembers_its_names(tmp_path: Path) -> None:
    new = TrackedRun(tmp_path / "trec", {})
    new.folder.mkdir()
    assert new.name == "trec"
    new.remember("wandb", "abc")
    new.remember("mlflow", "def")
    assert new.identity("wandb") is None, "a new run does not continue another"
    resumed = TrackedRun(tmp_path / "trec", {}, after_step=0)
    assert (resumed.identity("wandb"), resumed.identity("mlflow"), resumed.identity("other")) == ("abc", "def", None)
    (new.folder / IDENTITIES).write_text("{damaged")
    assert resumed.identity("wandb") is None


def test_every_tool_is_told_everything_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, told = use(monkeypatch, tensorboard="", wandb=""), []
    with Trackers(("wandb", "tensorboard", "wandb"), TrackedRun(tmp_path, {}), told.append) as trackers:
        for event in (STEP, EVALUATION, CheckpointEvent(3, "x")):
            trackers.event(event)
        trackers.end(9, {"accuracy": 0.5, "mcc": None})
    wanted = [
        ("log", 3, scalars_of(STEP)),
        ("log", 3, {"evaluation/loss": 0.5}),
        ("end", 9, {"accuracy": 0.5}),
        ("close", True),
    ]
    assert made["wandb"].said == made["tensorboard"].said == wanted
    assert told == []


@pytest.mark.parametrize("when", ["start", "log", "end", "close"])
def test_a_tool_that_fails_is_told_once_and_switched_off(
    when: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, told = use(monkeypatch, mlflow=when, wandb=""), []
    with Trackers(("mlflow", "wandb"), TrackedRun(tmp_path, {}), told.append) as trackers:
        trackers.event(STEP)
        trackers.event(STEP)
        trackers.end(3, {})
    (sentence,) = told
    assert sentence.startswith("mlflow is switched off, the run goes on without it: ")
    if when != "start":
        assert sentence.endswith("RuntimeError: gone: https://***@host/path"), "one line, no password"
    assert [one[0] for one in made["wandb"].said] == ["log", "log", "end", "close"], "the other one goes on"


def test_what_ends_the_run_closes_the_tools_and_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = use(monkeypatch, wandb="")
    with pytest.raises(KeyboardInterrupt), Trackers(("wandb",), TrackedRun(tmp_path, {}), pytest.fail):
        raise KeyboardInterrupt
    assert made["wandb"].said == [("close", False)]


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_a_mistake_with_a_remedy(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name, as wandb itself leaves behind, is no package."""
    folder = importlib.machinery.ModuleSpec(tool, None, is_package=True)
    for found in (None, folder):
        monkeypatch.setattr(room, "find_spec", lambda name, found=found: found)
        with pytest.raises(ConfigError, match=f"tracking with {tool} needs packages") as refused:
            require_trackers([tool])
        assert refused.value.do == f"Install them: pip install 'qlassify[{tool}]'"
        assert refused.value.exit_code == 2
    require_trackers([])


def test_mlflow_needs_a_database_only_where_nothing_else_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("mlflow", None, origin="here")
    monkeypatch.setattr(room, "find_spec", lambda name: spec if name == "mlflow" else None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://server")
    require_trackers(["mlflow"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError) as refused:
        require_trackers(["mlflow"])
    assert refused.value.got == "no sqlalchemy, alembic"


def test_an_unknown_tool_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="tracking"):
        RunConfig.parse({"tracking": ("comet",)})
