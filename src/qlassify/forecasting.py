"""What a run will need, from a sketch of it: shapes, settings and token counts, no weights.

A sketch is a pipeline whose model is on the meta device, with the method attached and the head built. Its parameters
are counted, and the heaviest micro-batch of the run is computed on it without values; what is alive at the worst moment
is what the real step will hold. ``planning.plan`` adds the terms up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.config.method import LoraConfig, ProbeConfig
from qlassify.config.run import TrainingConfig
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.evaluation.predict import default_token_budget
from qlassify.methods.base_layer import linear_shape
from qlassify.methods.inject import linear_layers
from qlassify.models.backbone import Backbone
from qlassify.planning.memory import resident_memory_bytes
from qlassify.planning.plan import Activations, ModelShape, Plan, make_plan, make_probe_plan
from qlassify.stepwise import StepwisePipeline
from qlassify.training.footprint import prediction_bytes, training_bytes
from qlassify.training.order import StepOrder
from qlassify.training.rehearsal import Rehearsal


def make_forecast(
    sketch: StepwisePipeline, encoded: Encoded, *, runtime_bytes: int, targets: npt.NDArray[Any] | None = None
) -> Plan:
    """Plan the training of a sketched classifier.

    Args:
        sketch: from ``StepwisePipeline.open(weights=False)`` and ``prepare``, or ``sketch()``.
        encoded: the training rows.
        runtime_bytes: what the process holds beside the model.
        targets: their (N,) classes or (N, C) labels; needed where sampling is balanced.
    """
    run, lengths = sketch.run, encoded.lengths.astype(np.int64)
    shape = model_shape(sketch.backbone)
    predicted = _full_batch(encoded, default_token_budget(sketch.placement.device))
    order = StepOrder.of(len(encoded), run.training, run.seed, targets)
    is_probe = isinstance(run.method, ProbeConfig)
    heaviest = () if is_probe else order.heaviest_batches(encoded, run.training.token_budget)
    tokens = order.tokens_of_steps(lengths)
    several = int(tokens.max()) > run.training.token_budget
    try:
        activations = _rehearsed(sketch, heaviest, predicted, passes=2 if several else 1)
    except (RuntimeError, ValueError, TypeError):
        activations = _estimated(sketch, heaviest, predicted)
    if isinstance(run.method, ProbeConfig):
        return make_probe_plan(
            shape,
            head_parameters=sketch.num_trainable_parameters(),
            activations=activations,
            rows=len(encoded),
            tokens=encoded.num_tokens,
            penalties=len(run.method.penalties),
            runtime_bytes=runtime_bytes,
        )
    return make_plan(
        shape,
        trainable_parameters=sketch.num_trainable_parameters(),
        activations=activations,
        tokens_per_epoch=round(int(tokens.sum()) / order.epochs),
        epochs=order.epochs,
        steps=order.total_steps,
        evaluations=order.epochs * run.training.evaluations_per_epoch,
        runtime_bytes=runtime_bytes,
        fixed_bytes=_fixed_bytes(sketch),
    )


def _rehearsed(
    sketch: StepwisePipeline, heaviest: Sequence[PackedBatch], predicted: PackedBatch, *, passes: int
) -> Activations:
    """What the heaviest micro-batches and a full batch of predictions hold, found by computing them without values.

    Raises:
        RuntimeError: the architecture does what values decide, such as sending each token to experts of its own.
    """
    trainable = sketch.trainable
    classifier, objective = trainable.classifier, trainable.stepper.objective
    peaks = [training_bytes(classifier, objective, batch, passes=passes) for batch in heaviest]
    return Activations(
        _most_tokens(heaviest or (predicted,)), max(peaks, default=0), prediction_bytes(classifier, predicted)
    )


def _estimated(sketch: StepwisePipeline, heaviest: Sequence[PackedBatch], predicted: PackedBatch) -> Activations:
    """The same for an architecture that cannot be computed without values: about 10 H + 3 I values of each token.

    These are a layer's inputs of products, queries, keys, values, and what norms and the activation function keep.
    """
    backbone = sketch.backbone
    config: Any = backbone.model.config
    sizes = [getattr(config, name, None) for name in ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")]
    wide = next((int(size) for size in sizes if size), 4 * backbone.hidden_size)
    layer_bytes = (10 * backbone.hidden_size + 3 * wide) * backbone.dtype.itemsize
    kept = _most_tokens(heaviest) * int(getattr(config, "num_hidden_layers", 0)) * layer_bytes
    gradients = 4 * sketch.num_trainable_parameters() if heaviest else 0
    return Activations(
        _most_tokens(heaviest or (predicted,)),
        kept + gradients,
        predicted.num_tokens * layer_bytes,
        rehearsed=False,
    )


def _most_tokens(batches: Sequence[PackedBatch]) -> int:
    return max((batch.num_tokens for batch in batches), default=0)


def model_shape(backbone: Backbone) -> ModelShape:
    """What a plan needs to know of a backbone, built or sketched; adapters on it do not count."""
    linear = [math.prod(linear_shape(layer)) for layer in linear_layers(backbone.model).values()]
    return ModelShape(
        num_parameters=backbone.num_parameters,
        num_linear_parameters=sum(linear),
        bytes_per_parameter=backbone.dtype.itemsize,
        hidden_size=backbone.hidden_size,
        low_bit=tuple(linear) if backbone.quant is not None else (),
        quant=backbone.quant,
    )


def runtime_bytes(device: str) -> int:
    """What the process holds beside the model: all of it so far on the CPU, a context on CUDA."""
    if device == "cuda":
        from qlassify.planning.devices import CUDA_CONTEXT_BYTES

        return CUDA_CONTEXT_BYTES
    return resident_memory_bytes() or 0


def _full_batch(encoded: Encoded, token_budget: int) -> PackedBatch:
    """The first batch of predictions over these rows: the longest texts."""
    return next(micro_batches(encoded, np.arange(len(encoded)), token_budget))


def _fixed_bytes(sketch: StepwisePipeline) -> int:
    """PiSSA keeps what A and B began with."""
    method = sketch.run.method
    if not isinstance(method, LoraConfig) or method.start != "pissa":
        return 0
    return sum(4 * p.numel() for name, p in sketch.trainable.attachment.parameters().items() if ".lora_" in name)


PREDICTION_SHARE = 0.4
"""Time of a forward pass without gradients over that of a step, per token. Measured with all-MiniLM-L6-v2 on TREC in
fp32 on one thread: 0.32 beside LoRA, 0.34 beside full fine-tuning, 0.42 beside IA3, 0.44 beside adapters."""


def step_seconds(plan: Plan, rehearsal: Rehearsal) -> float:
    """Wall time of the mean step: forward and backward of its tokens, and moving the trained values."""
    return rehearsal.seconds / max(1, rehearsal.tokens) * plan.tokens / max(1, plan.steps) + rehearsal.update_seconds


def training_seconds(plan: Plan, rehearsal: Rehearsal, *, validation_tokens: int, config: TrainingConfig) -> float:
    """Wall time of training, from what was rehearsed: tokens, updates, the evaluations between, and checkpoints.

    Args:
        plan: of the run.
        rehearsal: of its steps, on this machine.
        validation_tokens: tokens of the rows that are scored.
        config: how often they are, and how often a checkpoint is written beside that.
    """
    per_token = rehearsal.seconds / max(1, rehearsal.tokens)
    evaluations = config.evaluations_per_epoch * plan.epochs
    checkpoints = evaluations + plan.steps // config.checkpoint_every_steps
    return (
        step_seconds(plan, rehearsal) * plan.steps
        + per_token * PREDICTION_SHARE * validation_tokens * evaluations
        + rehearsal.checkpoint_seconds * checkpoints
    )
