"""Jobs on low-bit weights, and with every method: saved, loaded, resumed and planned like any other."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qlassify import ClassifyConfig, ClassifyPipeline, RunConfig, job
from qlassify.config.files import read_settings
from qlassify.config.method import LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.data.packing import micro_batches
from qlassify.errors import ConfigError, ModelError
from qlassify.evaluation.predict import predict_logits
from qlassify.forecasting import model_shape
from qlassify.job import FinishedEvent, NotesEvent
from qlassify.methods.inject import attach
from qlassify.models.backbone import load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.quant.linear import low_bit_layers
from qlassify.quantization import quantize_model
from qlassify.training.events import CheckpointEvent, StepEvent
from qlassify.training.loss import Objective
from qlassify.training.optimizer import Optimizer
from qlassify.training.step import Stepper, head_parameters
from reference.quant import same_bits
from tiny_jobs import LABELS, job_settings, make_rows, model_bytes, save_tokenizer, write_table
from tiny_models import FAMILIES, random_texts, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the dog is near", "a plum and an apple", "some hammer under the saw", "one"]
METHODS = ("qlora", "qdora", "dora", "ia3", "adapter", "bitfit", "prefix", "full")


def settings_of(base: Path, data: Path, method: str, **sections: Any) -> dict[str, Any]:
    settings = job_settings(base, data, epochs=1, batch_size=16, checkpoint_every_steps=3, log_interval=1)
    settings["method"] = {"kind": method}
    if "lora" in method or "dora" in method:
        settings["method"]["dropout"] = 0.2
    if method == "prefix":
        settings["method"] |= {"num_virtual_tokens": 5, "reparametrize": True}
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
    (said,) = [event for event in events if isinstance(event, NotesEvent)]
    assert any("4.127 bits each" in note and "% of their size" in note for note in said.notes)
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
    shape = model_shape(pipeline.backbone)
    assert bool(low_bit) is (method == "qlora")
    assert shape.frozen_bytes == held
    largest = max((layer.in_features * layer.out_features for layer in low_bit.values()), default=0)
    assert shape.buffer_bytes == largest * shape.bytes_per_parameter


def test_dense_copies_follow_the_plan(
    tiny_base: Path, rows_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tiny_base, rows_csv, "qlora")
    settings["model"] = {**settings["model"], "dense_copies": "auto"}
    # 64 MiB is enough for the run and less than twice what the process with everything in it takes.
    for free, words in ((1 << 40, "also kept as numbers"), (1 << 26, "memory is too scarce"), (None, "too scarce")):
        monkeypatch.setattr("qlassify.pipeline.available_memory_bytes", lambda free=free: free)
        events = run(settings, tmp_path / f"run {free}")
        (said,) = [event for event in events if isinstance(event, NotesEvent)]
        assert sum(words in note for note in said.notes) == 1
    assert model_bytes(tmp_path / f"run {1 << 40}" / "model") == model_bytes(tmp_path / f"run {1 << 26}" / "model")


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


# Training on low-bit weights, family by family


@pytest.mark.parametrize("kind", ["qlora", "qdora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_move_everything_that_is_trained_and_no_code(
    name: str, kind: str, tiny_directories: dict[str, Path]
) -> None:
    """Two, because A has no gradient while B is zero. Codes, scales, biases, embeddings and norms stay bit for bit."""
    backbone = load_backbone(tiny_directories[name], quant=QuantConfig(group_size=48))
    frozen = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    layers = len(low_bit_layers(backbone.model))
    attachment = attach(backbone.model, LoraConfig(kind=kind, rank=4), seed=0)  # type: ignore[arg-type]
    assert len(attachment.layers) == layers >= 16
    start = {key: parameter.detach().clone() for key, parameter in attachment.parameters().items()}
    assert len(start) == layers * (3 if kind == "qdora" else 2)
    head = ClassificationHead(backbone.hidden_size, 3, seed=0)
    classifier = Classifier(backbone, head, "mean")
    optimizer = Optimizer(
        attachment.parameters(),
        head_parameters(classifier),
        learning_rate=1e-2,
        head_learning_rate=1e-2,
        weight_decay=0.0,
    )
    stepper = Stepper(classifier, optimizer, Objective(), 1.0)
    texts = random_texts((9, 4, 12, 6, 7, 3), FAMILIES[name], seed=3)
    targets = np.arange(6) % 3
    for step in range(2):
        stepper.accumulate(micro_batches(texts, range(6), 4096), targets)
        assert stepper.apply().applied
        still = [key for key, parameter in attachment.parameters().items() if torch.equal(parameter, start[key])]
        if step == 0:
            assert all(key.endswith("lora_A.weight") for key in still)
    assert still == []
    attachment.detach()
    after = backbone.model.state_dict()
    assert list(after) == list(frozen)
    for key, tensor in frozen.items():
        assert same_bits(after[key], tensor), key
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("kind", ["qlora", "qdora"])
def test_a_decoder_on_low_bit_weights_learns(kind: str, tmp_path: Path) -> None:
    """Qwen2's shape at toy size, thirty steps: the loss of three classes falls from log 3 = 1.1 to next to nothing."""
    base = save_tiny_model("qwen2", tmp_path / "base")
    save_tokenizer(base)
    settings = RunConfig.parse(
        {
            "model": {"precision": "fp32", "device": "cpu"},
            "method": {"kind": kind, "rank": 4},
            "training": {"learning_rate": 5e-3, "head_learning_rate": 1e-2},
        }
    )
    pipeline = ClassifyPipeline.from_pretrained(base, settings, labels=LABELS)
    assert (pipeline.pooling, pipeline.backbone.causal) == ("last", True)
    assert len(low_bit_layers(pipeline.backbone.model)) == 28
    rows = make_rows(24, seed=5)
    encoded = pipeline.encoder.encode([text for text, _ in rows])
    targets = np.array([LABELS.index(label) for _, label in rows])
    stepper = pipeline.trainable.stepper
    losses = []
    for _ in range(30):
        stepper.accumulate(micro_batches(encoded, range(24), 4096), targets)
        losses.append(stepper.apply().avg_loss)
    # A head alone on the random features comes to a sixth of the first loss in as many steps.
    assert max(losses[-5:]) < 0.02 * losses[0], losses


# What a job leaves as it was, and what it says


def test_the_base_models_files_are_not_written_to(tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    quantize_model(str(tiny_base), tmp_path / "low")
    before = [hashes(folder) for folder in (tiny_base, tmp_path / "low")]
    for index, base in enumerate((tiny_base, tmp_path / "low")):
        run(settings_of(base, rows_csv, "qdora"), tmp_path / f"run {index}")
    assert [hashes(folder) for folder in (tiny_base, tmp_path / "low")] == before


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_a_run_on_a_quantised_directory_is_resumed(
    method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    quantize_model(str(tiny_base), tmp_path / "low", QuantConfig(kind="int4", group_size=40))
    settings = settings_of(tmp_path / "low", rows_csv, method)
    run(settings, tmp_path / "whole")
    events = job.train(settings, tmp_path / "cut")
    next(event for event in events if isinstance(event, StepEvent) and event.step == 5)
    events.close()  # type: ignore[attr-defined]
    list(job.resume(tmp_path / "cut"))
    assert model_bytes(tmp_path / "cut" / "model") == model_bytes(tmp_path / "whole" / "model")


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_the_record_repeats_the_run(method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    run(settings_of(tiny_base, rows_csv, method), tmp_path / "first")
    run(read_settings(tmp_path / "first" / "run.yaml"), tmp_path / "again")
    assert model_bytes(tmp_path / "first" / "model") == model_bytes(tmp_path / "again" / "model")


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_saved_and_loaded_in_bf16_it_is_bitwise_the_same(
    method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    """Low-bit weights become bf16 numbers then, and what is trained stays fp32."""
    settings = RunConfig.parse(
        {
            "model": {"precision": "bf16", "device": "cpu"},
            "method": {"kind": method, "rank": 4},
            "training": {"epochs": 1, "batch_size": 16},
        }
    )
    pipeline = ClassifyPipeline.from_pretrained(tiny_base, settings)
    pipeline.fit(rows_csv)
    assert {p.dtype for p in pipeline.trainable_parameters().values()} == {torch.float32}
    assert {p.dtype for p in pipeline.backbone.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    pipeline.save(tmp_path / "saved")
    again = ClassifyPipeline.load(tmp_path / "saved", precision="bf16", device="cpu")
    assert again.predict_proba(TEXTS).tobytes() == pipeline.predict_proba(TEXTS).tobytes()


def test_the_flat_settings_and_the_sections_are_one_run(tiny_base: Path, rows_csv: Path) -> None:
    """``quantize_nf4`` is the method qlora, and nothing more or less."""
    flat = ClassifyConfig(num_classes=3, quantize_nf4=True, precision="fp32", device="cpu", epochs=1, batch_size=16)
    sections = flat.to_run_config().replace(quant=None)
    assert sections.method.kind == "qlora"
    found = []
    for config in (flat, sections):
        pipeline = ClassifyPipeline.from_pretrained(tiny_base, config)
        pipeline.fit(rows_csv)
        assert pipeline.backbone.quant == QuantConfig()
        found.append(predict_logits(pipeline.trainable.classifier, pipeline.encoder.encode(TEXTS)).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_merged_it_predicts_the_same_without_low_bit_weights(
    method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    run(settings_of(tiny_base, rows_csv, method), tmp_path / "run")
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    encoded = pipeline.encoder.encode(TEXTS)
    before = predict_logits(pipeline.trainable.classifier, encoded)
    pipeline.merge_adapters()
    assert not low_bit_layers(pipeline.backbone.model)
    # The house tolerance for a small model's logits in fp32: the same sums, added in another order.
    np.testing.assert_allclose(predict_logits(pipeline.trainable.classifier, encoded), before, rtol=1e-5, atol=1e-4)
    with pytest.raises(ConfigError, match="merged"):
        pipeline.save(tmp_path / "saved")


@pytest.mark.parametrize("method", ["lora", "qlora", "qdora"])
def test_the_plan_on_record_counts_what_is_held_while_training(
    method: str, tiny_base: Path, rows_csv: Path, tmp_path: Path
) -> None:
    """Dense and low-bit bytes are the summed bytes of the backbone's tensors, whatever wraps them."""
    run(settings_of(tiny_base, rows_csv, method), tmp_path / "run")
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())["planned"]
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    model, low_bit = pipeline.backbone.model, low_bit_layers(pipeline.backbone.model)
    held = sum(p.untyped_storage().nbytes() for p in model.parameters() if not p.requires_grad)
    held += sum(t.untyped_storage().nbytes() for layer in low_bit.values() for t in layer.weight.tensors().values())
    buffer = max((4 * layer.in_features * layer.out_features for layer in low_bit.values()), default=0)
    memory = planned["memory"]
    assert memory["dense_bytes"] + memory["low_bit_bytes"] == held
    assert memory["buffer_bytes"] == buffer
    assert planned["dense_copy_bytes"] == sum(4 * one.in_features * one.out_features for one in low_bit.values())
    trained = sum(p.numel() for p in pipeline.trainable_parameters().values())
    state = [memory[f"{part}_bytes"] for part in ("trained", "gradient", "optimizer", "best")]
    # One epoch: its evaluation comes behind the last step, and so does the copy of the best values.
    assert planned["epochs"] == 1
    assert state == [4 * trained, 4 * trained, 8 * trained, 0]
    assert planned["frozen_parameters"] == pipeline.backbone.num_parameters
    assert memory.pop("total_bytes") == sum(memory.values())


def test_a_run_without_few_bits_says_nothing_of_them(tiny_base: Path, rows_csv: Path, tmp_path: Path) -> None:
    events = run(settings_of(tiny_base, rows_csv, "lora"), tmp_path / "run")
    (said,) = [event for event in events if isinstance(event, NotesEvent)]
    assert not any("bits" in note or "low-bit" in note for note in said.notes)
    assert json.loads((tmp_path / "run" / "model" / "classifier.json").read_text())["quantization"] is None
