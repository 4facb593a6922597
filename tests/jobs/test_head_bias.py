"""``model.head_bias``: who gets a bias, that it is kept, and that older records and runs read as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qlassify import ClassifyPipeline, RunConfig, job
from qlassify.evaluation.predict import predict_logits
from qlassify.models.head import wants_bias
from qlassify.training.events import CheckpointEvent
from tiny_jobs import LABELS, job_settings, make_rows, save_tokenizer, write_table
from tiny_models import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model("llama", tmp_path_factory.mktemp("decoder"), num_hidden_layers=2)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("rows") / "rows.csv", ("text", "label"), make_rows(40, seed=2))


def pipeline_of(base: Path, **model: Any) -> ClassifyPipeline:
    settings = {"model": {"base": str(base), "precision": "fp32", **model}, "method": {"rank": 2, "alpha": 4.0}}
    return ClassifyPipeline.from_pretrained(base, RunConfig.parse(settings), labels=LABELS)


def logits(pipeline: ClassifyPipeline) -> Any:
    return predict_logits(pipeline.trainable.classifier, pipeline.encoder.encode(["the dog", "a pear and a saw"]))


@pytest.mark.parametrize(
    ("setting", "causal", "pooling", "expected"),
    [
        ("auto", True, "last", False),
        ("auto", True, "mean", True),
        ("auto", False, "cls", True),
        ("auto", False, "last", True),
        (True, True, "last", True),
        (False, False, "cls", False),
    ],
)
def test_who_gets_a_bias(setting: bool | str, causal: bool, pooling: Any, expected: bool) -> None:
    assert wants_bias(setting, causal=causal, pooling=pooling) is expected


@pytest.mark.parametrize(("setting", "expected"), [("auto", False), (True, True), (False, False)])
def test_the_setting_is_built_saved_and_loaded(
    setting: bool | str, expected: bool, decoder: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_of(decoder, head_bias=setting)
    assert (pipeline.trainable.classifier.head.bias is not None) is expected
    assert ("head.bias" in pipeline.trainable_parameters()) is expected
    pipeline.save(tmp_path)
    assert json.loads((tmp_path / "classifier.json").read_text())["head_bias"] is expected
    again = ClassifyPipeline.load(tmp_path)
    assert np.array_equal(logits(again), logits(pipeline))
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "head.safetensors").read_bytes() == (tmp_path / "head.safetensors").read_bytes()


def test_a_record_that_does_not_say_so_is_of_a_head_with_a_bias(decoder: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(decoder, head_bias=True)
    head = pipeline.trainable.classifier.head
    assert head.bias is not None
    head.bias.data.copy_(head.bias + 1.5)
    pipeline.save(tmp_path)
    record = json.loads((tmp_path / "classifier.json").read_text())
    del record["head_bias"], record["sha256"]
    (tmp_path / "classifier.json").write_text(json.dumps(record))
    assert np.array_equal(logits(ClassifyPipeline.load(tmp_path)), logits(pipeline))


def test_a_run_of_before_the_setting_resumes_with_its_bias(decoder: Path, rows: Path, tmp_path: Path) -> None:
    settings = job_settings(decoder, rows, epochs=2)
    settings["model"]["head_bias"] = True
    events = job.train(settings, tmp_path / "run")
    while not isinstance(next(events), CheckpointEvent):
        pass
    events.close()
    path = tmp_path / "run" / "run.yaml"
    recorded = yaml.safe_load(path.read_text())
    assert recorded["model"].pop("head_bias") is True
    path.write_text(yaml.safe_dump(recorded))
    list(job.resume(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "model" / "classifier.json").read_text())["head_bias"] is True
    undisturbed = list(job.train(settings, tmp_path / "whole"))
    assert undisturbed
    assert (tmp_path / "run" / "model" / "head.safetensors").read_bytes() == (
        tmp_path / "whole" / "model" / "head.safetensors"
    ).read_bytes()


def test_a_run_records_what_auto_came_to(decoder: Path, rows: Path, tmp_path: Path) -> None:
    list(job.train(job_settings(decoder, rows, epochs=1), tmp_path / "run"))
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["model"]["head_bias"] is False
