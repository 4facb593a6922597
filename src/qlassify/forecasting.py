"""What a run will need, from a sketch of it: shapes, settings and token counts, no weights.

A sketch is a pipeline whose model is on the meta device, with the method attached and the head built. Its parameters
are counted, and the heaviest micro-batch of the run is computed on it without values; what is alive at the worst moment
is what the real step will hold. ``planning.plan`` adds the terms up.
"""

from __future__ import annotations

import math

import numpy as np

from qlassify.config.method import LoraConfig, ProbeConfig
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
from qlassify.training.loop import Rehearsal
from qlassify.training.order import StepOrder


def make_forecast(sketch: StepwisePipeline, encoded: Encoded, *, runtime_bytes: int) -> Plan:
    """Plan the training of a sketched classifier.

    Args:
        sketch: from ``StepwisePipeline.open(weights=False)`` and ``prepare``, or ``sketch()``.
        encoded: the training rows.
        runtime_bytes: what the process holds beside the model.
    """
    run, lengths = sketch.run, encoded.lengths.astype(np.int64)
    shape = model_shape(sketch.backbone)
    classifier = sketch.trainable.classifier
    predicted = _full_batch(encoded, default_token_budget(sketch.placement.device))
    prediction = prediction_bytes(classifier, predicted)
    if isinstance(run.method, ProbeConfig):
        return make_probe_plan(
            shape,
            head_parameters=sketch.num_trainable_parameters(),
            activations=Activations(predicted.num_tokens, 0, prediction),
            rows=len(encoded),
            tokens=encoded.num_tokens,
            penalties=len(run.method.penalties),
            runtime_bytes=runtime_bytes,
        )
    order = StepOrder.of(len(encoded), run.training, run.seed)
    heaviest = order.heaviest_batches(encoded, run.training.token_budget)
    several = int(order.tokens_of_steps(lengths).max()) > run.training.token_budget
    objective = sketch.trainable.stepper.objective
    peak = max(training_bytes(classifier, objective, batch, passes=2 if several else 1) for batch in heaviest)
    return make_plan(
        shape,
        trainable_parameters=sketch.num_trainable_parameters(),
        activations=Activations(max(batch.num_tokens for batch in heaviest), peak, prediction),
        tokens_per_epoch=encoded.num_tokens,
        epochs=order.epochs,
        steps=order.total_steps,
        runtime_bytes=runtime_bytes,
        fixed_bytes=_fixed_bytes(sketch),
    )


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


PREDICTION_SHARE = 0.45
"""Time of a forward pass without gradients over that of a step, per token: two products of the four, and less besides
(all-MiniLM-L6-v2 on the CPU: 0.40 to 0.47)."""


def training_seconds(plan: Plan, rehearsal: Rehearsal, *, validation_tokens: int, evaluations_per_epoch: int) -> float:
    """Wall time of training, from a rehearsed step: its time per token over all tokens, and the evaluations between.

    Args:
        plan: of the run.
        rehearsal: of its steps, on this machine.
        validation_tokens: tokens of the rows that are scored.
        evaluations_per_epoch: how often they are.
    """
    per_token = rehearsal.seconds / max(1, rehearsal.tokens)
    scored = validation_tokens * evaluations_per_epoch * plan.epochs
    return per_token * (plan.tokens + PREDICTION_SHARE * scored)
