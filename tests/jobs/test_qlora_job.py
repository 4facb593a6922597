"""Jobs on low-bit weights, and with every method: saved, loaded, resumed and planned like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlassify import ClassifyConfig, ClassifyPipeline, job
from qlassify.config.files import read_settings
from qlassify.errors import ConfigError, ModelError
from qlassify.job import FinishedEvent, PlanEvent
from qlassify.quant.linear import low_bit_layers
from qlassify.quantization import quantize_model
from qlassify.training.events import CheckpointEvent
from tiny_jobs import job_settings, make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the dog is near", "a plum and an apple", "some hammer under the saw", "one"]
METHODS = ("qlora", "qdora", "dora", "ia3", "adapter", "bitfit", "full")


def settings_of(base: Path, data: Path, method: str, **sections: Any) -> dict[str, Any]:
    settings = job_settings(base, data, epochs=1, batch_size=16, checkpoint_every_steps=3, log_interval=1)
    settings["method"] = {"kind": method}
    if "lora" in method or "dora" in method:
        settings["method"]["dropout"] = 0.2
    return settings | sections


def run(settings: dict[str, Any], folder: Path) -> list[Any]:
    return list(job.train(settings, folder))


@pytest.fixture(scope="module")
def rows_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("rows") / "rows.csv", ("text", "label"), make_rows(120, seed=4))


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_in_a_fresh_process_it_is_bitwise_the_same(
    method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    run(settings_of(tiny_base, rows_csv, method), tmp_path / "run")
    here = ClassifyPipeline.load(tmp_path / "run").predict_proba(TEXTS)
    script = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from qlassify import ClassifyPipeline\n"
        "print(json.dumps(ClassifyPipeline.load(sys.argv[1]).predict_proba(json.loads(sys.argv[2])).tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), json.dumps(TEXTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == here.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_base, rows_csv, method)
    run(settings, tmp_path / "whole")
    events = job.train(settings, tmp_path / "cut")
    for event in events:
        if isinstance(event, CheckpointEvent):
            break
    events.close()
    list(job.resume(tmp_path / "cut"))
    assert model_bytes(tmp_path / "cut" / "model") == model_bytes(tmp_path / "whole" / "model")


@pytest.mark.parametrize("quant", [{}, {"kind": "int8"}, {"kind": "int4", "zero_point": True}, {"group_size": 24}])
def test_quantised_directory_original_and_kept_numbers_give_the_same_classifier(
    quant: dict[str, Any], tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    from qlassify.config.quant import QuantConfig

    config = QuantConfig.parse(quant)
    quantize_model(str(tiny_base), tmp_path / "low", config)
    plain = settings_of(tiny_base, rows_csv, "qlora", quant=config.model_dump())
    kept = settings_of(tiny_base, rows_csv, "qlora", quant=config.model_dump())
    kept["model"] = {**kept["model"], "dense_copies": "always"}
    directory = settings_of(tmp_path / "low", rows_csv, "qlora")
    for name, settings in (("plain", plain), ("kept", kept), ("directory", directory)):
        run(settings, tmp_path / name)
    weights = {name: model_bytes(tmp_path / name / "model") for name in ("plain", "kept", "directory")}
    same = ("adapter_model.safetensors", "head.safetensors")
    for file in same:
        assert weights["plain"][file] == weights["kept"][file] == weights["directory"][file], file
    # Each loads on the other's base.
    wanted = ClassifyPipeline.load(tmp_path / "plain").predict_proba(TEXTS)
    assert np.array_equal(
        ClassifyPipeline.load(tmp_path / "plain", base=str(tmp_path / "low")).predict_proba(TEXTS), wanted
    )
    assert np.array_equal(
        ClassifyPipeline.load(tmp_path / "directory", base=str(tiny_base)).predict_proba(TEXTS), wanted
    )


def test_another_format_than_the_directorys_is_refused(tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    from qlassify.config.quant import QuantConfig

    quantize_model(str(tiny_base), tmp_path / "int8", QuantConfig(kind="int8"))
    quantize_model(str(tiny_base), tmp_path / "nf4")
    with pytest.raises(ConfigError, match="quantised in another format"):
        run(settings_of(tmp_path / "int8", rows_csv, "qlora", quant={"kind": "nf4"}), tmp_path / "run")
    run(settings_of(tiny_base, rows_csv, "qlora"), tmp_path / "run")
    with pytest.raises(ModelError, match="another format than the classifier"):
        ClassifyPipeline.load(tmp_path / "run", base=str(tmp_path / "int8"))
    run(settings_of(tiny_base, rows_csv, "lora"), tmp_path / "plain")
    with pytest.raises(ModelError, match="unquantised weights"):
        ClassifyPipeline.load(tmp_path / "plain", base=str(tmp_path / "nf4"))


def test_what_was_settled_and_lost_is_recorded(tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    events = run(settings_of(tiny_base, rows_csv, "qlora"), tmp_path / "run")
    settled = read_settings(tmp_path / "run" / "run.yaml")
    assert settled["quant"] == {"kind": "nf4", "bits": 4, "group_size": 64, "double": True, "zero_point": False}
    (plan,) = [event for event in events if isinstance(event, PlanEvent)]
    assert any("4.127 bits each" in note and "% of their size" in note for note in plan.notes)
    record = json.loads((tmp_path / "run" / "model" / "classifier.json").read_text())
    assert record["quantization"] == settled["quant"]
    assert isinstance(events[-1], FinishedEvent)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_planned_bytes_are_what_the_model_holds(method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    run(settings_of(tiny_base, rows_csv, method), tmp_path / "run")
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    pipeline.trainable.attachment.detach()
    model = pipeline.backbone.model
    low_bit = low_bit_layers(model)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    held += sum(layer.weight.nbytes for layer in low_bit.values())
    shape = pipeline.model_shape()
    assert bool(low_bit) is (method == "qlora")
    assert shape.frozen_bytes == held
    largest = max((layer.in_features * layer.out_features for layer in low_bit.values()), default=0)
    assert shape.buffer_bytes == largest * shape.bytes_per_parameter


def test_dense_copies_follow_the_plan(
    tiny_base: Path, rows_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tiny_base, rows_csv, "qlora")
    settings["model"] = {**settings["model"], "dense_copies": "auto"}
    for free, words in ((1 << 40, "also kept as numbers"), (1 << 20, "memory is too scarce"), (None, "too scarce")):
        monkeypatch.setattr("qlassify.pipeline.available_memory_bytes", lambda free=free: free)
        events = run(settings, tmp_path / f"run {free}")
        (plan,) = [event for event in events if isinstance(event, PlanEvent)]
        assert sum(words in note for note in plan.notes) == 1
    assert model_bytes(tmp_path / f"run {1 << 40}" / "model") == model_bytes(tmp_path / f"run {1 << 20}" / "model")


def test_the_librarys_flat_settings_quantise(tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    config = ClassifyConfig.qlora_default(22_000_000).replace(num_classes=3, epochs=1, max_seq_len=32)
    pipeline = ClassifyPipeline.from_pretrained(tiny_base, config)
    before = {path: layer.weight.codes.clone() for path, layer in low_bit_layers(pipeline.backbone.model).items()}
    assert before
    pipeline.fit(rows_csv)
    after = low_bit_layers(pipeline.backbone.model)
    assert len(after) == len(before)
    for codes, layer in zip(before.values(), after.values(), strict=True):
        assert codes.equal(layer.weight.codes)
    assert "NF4" in pipeline.summary()
    assert "QLoRA" in pipeline.summary()
    pipeline.save(tmp_path / "model")
    assert np.array_equal(ClassifyPipeline.load(tmp_path / "model").predict_proba(TEXTS), pipeline.predict_proba(TEXTS))


@pytest.mark.parametrize("method", ["ia3", "bitfit"])
def test_other_methods_go_with_low_bit_weights(method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    run(settings_of(tiny_base, rows_csv, method, quant={"kind": "nf4"}), tmp_path / "run")
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    assert low_bit_layers(pipeline.backbone.model)
    assert pipeline.run.method.kind == method


def test_full_fine_tuning_of_low_bit_weights_is_refused_before_anything_is_written(
    tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="low-bit weights cannot be trained"):
        run(settings_of(tiny_base, rows_csv, "full", quant={"kind": "nf4"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
