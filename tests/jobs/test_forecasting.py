"""What is planned from a sketch against what is built, loaded and held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conformance.worlds import METHODS
from qlassify.config.method import LoraConfig, ProbeConfig
from qlassify.config.run import RunConfig, TrainingConfig
from qlassify.data.labels import LabelMap
from qlassify.data.tokenise import Encoded
from qlassify.forecasting import PREDICTION_SHARE, make_forecast, model_shape, step_seconds, training_seconds
from qlassify.planning.plan import Activations, ModelShape, make_plan
from qlassify.stepwise import StepwisePipeline
from qlassify.training.rehearsal import Rehearsal
from tiny_jobs import save_tokenizer
from tiny_models import FAMILIES, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = LabelMap(("a", "b", "c"), multi_label=False)
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {"model": {"precision": "fp32"}},
    "bf16": {"model": {"precision": "bf16"}},
    "nf4": {"model": {"precision": "fp32"}, "quant": {"kind": "nf4"}},
    "int8": {"model": {"precision": "fp32"}, "quant": {"kind": "int8"}},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder and a decoder of two layers, with a tokeniser."""
    found = {}
    for family, layers in (("bert", {"num_hidden_layers": 2}), ("llama", {"num_hidden_layers": 2})):
        found[family] = tmp_path_factory.mktemp(family)
        save_tiny_model(family, found[family], **layers)
        save_tokenizer(found[family])
    return found


def run_of(base: Path, method: str = "lora", **sections: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "method": METHODS[method].config.model_dump(mode="json"),
        "training": {"epochs": 2, "batch_size": 4},
        **sections,
    }
    settings["model"] = {"base": str(base), "device": "cpu", "precision": "fp32", "max_length": 32} | sections.get(
        "model", {}
    )
    return RunConfig.parse(settings)


@pytest.fixture
def small_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of one text at a time, so that of a dozen tiny texts training is what takes most."""
    monkeypatch.setattr("qlassify.forecasting.default_token_budget", lambda device: 1)


def texts(count: int = 12) -> Encoded:
    lengths = np.random.default_rng(1).integers(3, 30, count)
    return Encoded.from_rows([[4 + number % 20 for number in range(length)] for length in lengths])


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_a_sketch_trains_as_many_parameters(bases: dict[str, Path], family: str, method: str) -> None:
    """By name and shape, for every method; none of them has a value on the sketch."""
    run = run_of(bases[family], method)
    sketch = StepwisePipeline.open(str(bases[family]), run, weights=False)
    built = StepwisePipeline.open(str(bases[family]), run)
    for pipeline in (sketch, built):
        pipeline.prepare(LABELS)
    assert sketch.backbone.is_sketch
    assert all(parameter.is_meta for parameter in sketch.trainable.classifier.parameters())
    assert not any(parameter.is_meta for parameter in built.trainable.classifier.parameters())
    shapes = [
        {name: parameter.shape for name, parameter in pipeline.trainable_parameters().items()}
        for pipeline in (sketch, built)
    ]
    assert shapes[0] == shapes[1]
    plan = make_forecast(sketch, texts(), runtime_bytes=0)
    assert plan.trainable_parameters == built.num_trainable_parameters()
    assert plan.frozen_parameters == built.backbone.num_parameters
    # And from the built pipeline's own sketch, the same plan.
    assert make_forecast(built.sketch(), texts(), runtime_bytes=0) == plan


def held_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the storages in which a backbone's parameters lie, and of those of low-bit codes and scales."""
    parameters = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    codes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for name, tensor in model.named_buffers()
        if ".weight_" in name
    }
    return sum(parameters.values()), sum(codes.values())


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_planned_as_they_are_held(bases: dict[str, Path], family: str, format: str) -> None:
    run = run_of(bases[family], **FORMATS[format])
    sketch = StepwisePipeline.open(str(bases[family]), run, weights=False)
    loaded = StepwisePipeline.open(str(bases[family]), run)
    sketch.prepare(LABELS)
    memory = make_forecast(sketch, texts(), runtime_bytes=0).memory
    assert (memory.dense_bytes, memory.low_bit_bytes) == held_bytes(loaded.backbone.model)
    assert (memory.low_bit_bytes > 0) is ("quant" in FORMATS[format])
    assert model_shape(sketch.backbone) == model_shape(loaded.backbone)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_training_state_is_planned_as_it_is_held(bases: dict[str, Path], method: str) -> None:
    """Values, gradients and moments after a real step; an optimiser's step counters are a number a parameter."""
    pipeline = StepwisePipeline.open(str(bases["bert"]), run_of(bases["bert"], method))
    pipeline.prepare(LABELS)
    memory = make_forecast(pipeline.sketch(), texts(), runtime_bytes=0).memory
    parameters = pipeline.trainable_parameters()
    assert memory.trained_bytes == memory.best_bytes == sum(p.nbytes for p in parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    assert memory.gradient_bytes == sum(p.grad.nbytes for p in parameters.values() if p.grad is not None)
    optimizer = pipeline.trainable.stepper.optimizer
    optimizer.step()
    moments = sum(tensor.nbytes for tensor in optimizer.state_tensors().values() if tensor.dim())
    assert memory.optimizer_bytes == moments


@pytest.mark.usefixtures("small_predictions")
def test_pissa_keeps_what_it_began_with(bases: dict[str, Path]) -> None:
    pipeline = StepwisePipeline.open(str(bases["bert"]), run_of(bases["bert"], "pissa"))
    pipeline.prepare(LABELS)
    starts = [tensor for name, tensor in pipeline.backbone.model.named_buffers() if ".start_" in name]
    assert starts
    plain = make_forecast(_sketched(bases["bert"], "lora"), texts(), runtime_bytes=0).memory
    found = make_forecast(pipeline.sketch(), texts(), runtime_bytes=0).memory
    assert found.dense_bytes - plain.dense_bytes == sum(tensor.nbytes for tensor in starts)
    assert found.activation_bytes > plain.activation_bytes


def _sketched(base: Path, method: str, **sections: Any) -> StepwisePipeline:
    sketch = StepwisePipeline.open(str(base), run_of(base, method, **sections), weights=False)
    sketch.prepare(LABELS)
    return sketch


def test_loftq_is_planned_before_anything_was_quantised(bases: dict[str, Path]) -> None:
    """What it begins with is known only once weights are loaded; its shapes are known now."""
    config = LoraConfig(kind="qlora", rank=4, alpha=8.0, start="loftq")
    run = run_of(bases["bert"]).replace(method=config.model_dump())
    sketch = StepwisePipeline.open(str(bases["bert"]), run, weights=False)
    sketch.prepare(LABELS)
    built = StepwisePipeline.open(str(bases["bert"]), run)
    built.prepare(LABELS)
    assert sketch.num_trainable_parameters() == built.num_trainable_parameters()
    assert make_forecast(sketch, texts(), runtime_bytes=0).memory.low_bit_bytes == held_bytes(built.backbone.model)[1]


@pytest.mark.usefixtures("small_predictions")
def test_fewer_tokens_at_once_take_less(bases: dict[str, Path]) -> None:
    """Down to the longest text, which runs alone."""
    held = []
    for budget in (4096, 60, 30):
        training = {"epochs": 2, "batch_size": 8, "token_budget": budget}
        plan = make_forecast(_sketched(bases["bert"], "lora", training=training), texts(), runtime_bytes=0)
        assert plan.heaviest_tokens <= max(budget, 29)
        held.append(plan.memory.activation_bytes)
    assert held[0] > held[1] > held[2]


def test_the_plan_counts_steps_and_tokens(bases: dict[str, Path]) -> None:
    encoded = texts(13)
    plan = make_forecast(_sketched(bases["bert"], "lora"), encoded, runtime_bytes=99)
    assert plan.rehearsed
    assert (plan.steps, plan.epochs, plan.tokens) == (2 * 4, 2, 2 * encoded.num_tokens)
    assert plan.memory.runtime_bytes == 99


def test_a_probe_is_planned_as_one_pass(bases: dict[str, Path]) -> None:
    sketch = _sketched(bases["bert"], "probe")
    assert isinstance(sketch.run.method, ProbeConfig)
    encoded = texts(13)
    plan = make_forecast(sketch, encoded, runtime_bytes=0)
    assert (plan.epochs, plan.tokens, plan.steps) == (1, encoded.num_tokens, len(sketch.run.method.penalties))
    assert plan.memory.gradient_bytes == 0
    assert plan.memory.optimizer_bytes == 8 * (2 * 13 * 64 + 24 * sketch.num_trainable_parameters())
    assert plan.heaviest_tokens == encoded.num_tokens


@pytest.mark.parametrize(("scored", "evaluations"), [(0, 1), (500, 1), (500, 4)])
def test_seconds_in_closed_form(scored: int, evaluations: int) -> None:
    """A step of 40 tokens took 2 s, so a token takes 50 ms, and one that is only scored its share of that.

    Nine updates, and a checkpoint after each evaluation and after steps 4 and 8.
    """
    shape = ModelShape(num_parameters=10, num_linear_parameters=5, bytes_per_parameter=4, hidden_size=2)
    plan = make_plan(
        shape,
        trainable_parameters=1,
        activations=Activations(1, 4, 1),
        tokens_per_epoch=1000,
        epochs=3,
        steps=9,
        evaluations=3,
        runtime_bytes=0,
    )
    config = TrainingConfig(evaluations_per_epoch=evaluations, checkpoint_every_steps=4)
    rehearsal = Rehearsal(60, 40, 2.0, 0.25, 7.0)
    found = training_seconds(plan, rehearsal, validation_tokens=scored, config=config)
    tokens = 0.05 * (3000 + PREDICTION_SHARE * scored * evaluations * 3)
    assert found == pytest.approx(tokens + 9 * 0.25 + (3 * evaluations + 2) * 7.0, rel=1e-12)
    assert step_seconds(plan, rehearsal) == pytest.approx(0.05 * 3000 / 9 + 0.25, rel=1e-12)


@pytest.mark.parametrize("method", ["lora", "probe"])
def test_what_cannot_be_computed_without_values_is_estimated_and_said(
    bases: dict[str, Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that each token chooses for itself need the token's values: the plan is rough then, and says so."""
    sketch = _sketched(bases["bert"], method)

    def refused(*_: Any, **__: Any) -> int:
        raise NotImplementedError("aten::nonzero: attempted to run this operator with Meta tensors")

    monkeypatch.setattr("qlassify.forecasting.training_bytes", refused)
    monkeypatch.setattr("qlassify.forecasting.prediction_bytes", refused)
    plan = make_forecast(sketch, texts(), runtime_bytes=0)
    assert not plan.rehearsed
    config = sketch.backbone.model.config
    token = 4 * (10 * config.hidden_size + 3 * config.intermediate_size)
    held = plan.memory.activation_bytes
    assert held >= plan.heaviest_tokens * token
    if method == "lora":
        predicted = min(texts().num_tokens, 2048) * token
        assert held == max(plan.heaviest_tokens * config.num_hidden_layers * token, predicted)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_tested_architecture_is_rehearsed(family: str, tmp_path: Path) -> None:
    """The rough estimate is for architectures whose values decide; none of these may slip into it unnoticed."""
    save_tiny_model(family, tmp_path)
    save_tokenizer(tmp_path)
    for method in ("lora", "probe"):
        assert make_forecast(_sketched(tmp_path, method), texts(), runtime_bytes=0).rehearsed
