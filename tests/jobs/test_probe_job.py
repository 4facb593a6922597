"""A linear probe through the job and the pipeline: one pass over the texts, then a solved head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlassify import ClassifyPipeline, job
from qlassify.config.files import read_settings
from qlassify.job import FinishedEvent, ModelEvent, NotesEvent
from qlassify.models.backbone import Backbone
from qlassify.runs import read_events
from qlassify.training.events import StepEvent
from tiny_jobs import job_settings, make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the red apple", "a hammer", "dog and cat near the house", "very"]


@pytest.fixture
def settings(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    rows = write_table(tmp_path / "rows.csv", ["text", "label"], make_rows(60, seed=3))
    test = write_table(tmp_path / "test.csv", ["text", "label"], make_rows(30, seed=4))
    settings = job_settings(tiny_base, rows)
    settings["data"]["test"] = str(test)
    settings["method"] = {"kind": "probe"}
    return settings


def test_a_probe_is_saved_loaded_and_repeated_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    events = list(job.train(settings, tmp_path / "run"))
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    assert pipeline.run.method.kind == "probe"
    assert not pipeline.trainable.attachment.layers
    again = ClassifyPipeline.load(tmp_path / "run")
    assert pipeline.predict_proba(TEXTS).tobytes() == again.predict_proba(TEXTS).tobytes()
    list(job.train(read_settings(tmp_path / "run" / "run.yaml"), tmp_path / "repeated"))
    assert model_bytes(tmp_path / "run" / "model") == model_bytes(tmp_path / "repeated" / "model")


def test_each_text_runs_through_the_backbone_once_while_training(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = 0
    forward = Backbone.forward

    def counting(self: Backbone, *arguments: Any) -> torch.Tensor:
        nonlocal texts
        # A sketch, of which the plan is made, computes nothing.
        texts += 0 if self.is_sketch else len(arguments[3].lengths)
        return forward(self, *arguments)

    pipeline = ClassifyPipeline.from_pretrained(settings["model"]["base"])
    pipeline.run = pipeline.run.replace(method={"kind": "probe"}, evaluation={"calibrate": False})
    monkeypatch.setattr(Backbone, "forward", counting)
    result = pipeline.fit(settings["data"]["train"])
    assert texts == 60
    assert result.steps >= 3
    assert result.best_score is not None


def test_settings_without_an_effect_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["training"] = {"epochs": 17, "learning_rate": 0.5, "label_smoothing": 0.1}
    events = list(job.train(settings, tmp_path / "run"))
    (said,) = [event for event in events if isinstance(event, NotesEvent)]
    (note,) = [note for note in said.notes if "Probe" in note or "probe" in note]
    assert "training.epochs, training.learning_rate had no effect" in note


def test_each_fit_is_on_record(settings: dict[str, Any], tmp_path: Path) -> None:
    """The report draws them; with the interval for steps, only the first would be there."""
    events = list(job.train(settings, tmp_path / "run"))
    fits = [event for event in events if isinstance(event, StepEvent)]
    logged = [record for record in read_events(tmp_path / "run" / "metrics.jsonl") if record["event"] == "step"]
    assert len(logged) == len(fits) >= 3
    (model,) = [event for event in events if isinstance(event, ModelEvent)]
    assert "linear probe + " in model.summary


def test_an_interrupted_probe_starts_again(settings: dict[str, Any], tmp_path: Path) -> None:
    list(job.train(settings, tmp_path / "whole"))
    events = job.train(settings, tmp_path / "cut")
    next(event for event in events if isinstance(event, NotesEvent))
    events.close()  # type: ignore[attr-defined]
    list(job.resume(tmp_path / "cut"))
    assert model_bytes(tmp_path / "cut" / "model") == model_bytes(tmp_path / "whole" / "model")
