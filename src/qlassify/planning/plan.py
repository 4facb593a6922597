"""The plan of a run: parameters, bytes, steps and arithmetic, from shapes and token counts alone.

    frozen bytes      parameters of the backbone x bytes of their type; of low-bit weights their codes and scales, and
                      one buffer for the largest of them as numbers
    trainable bytes   16 x trainable parameters: fp32 value, gradient and two AdamW moments
    activation bytes  tokens of the largest micro-batch x what one token keeps for backward
    training FLOP     4 x parameters in matrix products x tokens: forward, and backward to the layer's input; the
                      gradient of a frozen weight is never formed

What one token keeps is counted for a transformer layer of width H and feed-forward width I: the inputs of its
attention and feed-forward products, queries, keys, values and their product, and what norms and the activation
function keep, about 10 H + 3 I values a layer. It is the one figure here that is an estimate; the others are exact
and the built model is held to them.

A linear probe passes over the rows once and keeps one vector of each; its plan counts that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.config.quant import QuantConfig

BYTES_PER_TRAINABLE = 16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the plan needs to know of a backbone.

    Attributes:
        num_parameters: all parameters of the pretrained model.
        num_linear_parameters: those in linear layers, which every token is multiplied with.
        bytes_per_parameter: 2 for bf16, 4 for fp32.
        num_layers: transformer layers.
        hidden_size: H.
        feed_forward_size: I.
        low_bit: numbers in each low-bit weight.
        quant: their format.
    """

    num_parameters: int
    num_linear_parameters: int
    bytes_per_parameter: int
    num_layers: int
    hidden_size: int
    feed_forward_size: int
    low_bit: tuple[int, ...] = ()
    quant: QuantConfig | None = None

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen weights."""
        plain = (self.num_parameters - sum(self.low_bit)) * self.bytes_per_parameter
        return plain + sum(self.quant.storage_bytes(count) for count in self.low_bit if self.quant)

    @property
    def values_per_token(self) -> int:
        """Values that one layer forms, and keeps for backward, of each token."""
        return 10 * self.hidden_size + 3 * self.feed_forward_size

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer in which low-bit weights become numbers, one at a time."""
        return max(self.low_bit, default=0) * self.bytes_per_parameter


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need.

    Attributes:
        trainable_parameters: of the method and the head.
        frozen_parameters: of the backbone.
        frozen_bytes: memory of the frozen weights, and of the buffer in which low-bit ones become numbers.
        trainable_bytes: memory of trainable values, gradients and moments.
        activation_bytes: memory of the largest micro-batch's activations, estimated.
        total_bytes: their sum; the interpreter and its libraries come on top.
        dense_copy_bytes: what low-bit weights would take as numbers beside their codes; not in the sum.
        steps: optimiser steps if training does not stop early.
        tokens: training tokens of all epochs.
        train_flop: floating-point operations of training.
    """

    trainable_parameters: int
    frozen_parameters: int
    frozen_bytes: int
    trainable_bytes: int
    activation_bytes: int
    total_bytes: int
    dense_copy_bytes: int
    steps: int
    tokens: int
    train_flop: int

    def allows_dense_copies(self, available_bytes: int) -> bool:
        """Whether everything, with low-bit weights as numbers, fits half of the memory that is free."""
        return 2 * (self.total_bytes + self.dense_copy_bytes) <= available_bytes

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, for ``plan.json``."""
        return asdict(self)


def make_plan(
    shape: ModelShape,
    *,
    trainable_parameters: int,
    lengths: npt.NDArray[np.int64],
    epochs: int,
    rows_per_step: int,
    token_budget: int,
) -> Plan:
    """Plan a run.

    Args:
        shape: the backbone.
        trainable_parameters: of the method and the head together.
        lengths: (N,) tokens of each training row.
        epochs: passes over them.
        rows_per_step: rows of an optimiser step.
        token_budget: most tokens computed at once.
    """
    tokens = int(lengths.sum()) * epochs
    largest = largest_micro_batch(lengths, rows_per_step=rows_per_step, token_budget=token_budget)
    return _plan(
        shape,
        trainable_parameters=trainable_parameters,
        trainable_bytes=trainable_parameters * BYTES_PER_TRAINABLE,
        activations=largest * shape.num_layers * shape.values_per_token,
        steps=-(-len(lengths) // rows_per_step) * epochs,
        tokens=tokens,
        train_flop=4 * (shape.num_linear_parameters + trainable_parameters) * tokens,
    )


def make_probe_plan(
    shape: ModelShape, *, head_parameters: int, lengths: npt.NDArray[np.int64], penalties: int, token_budget: int
) -> Plan:
    """Plan a linear probe: one pass without gradients, then a convex problem on one vector per row.

    Args:
        shape: the backbone.
        head_parameters: of the head, which is all that is trained.
        lengths: (N,) tokens of each training row.
        penalties: how often the problem is solved at most.
        token_budget: most tokens computed at once.
    """
    tokens = int(lengths.sum())
    largest = largest_micro_batch(lengths, rows_per_step=len(lengths), token_budget=token_budget)
    return _plan(
        shape,
        trainable_parameters=head_parameters,
        # Float64: vectors, standardised vectors; and of the head what L-BFGS keeps of its last ten steps.
        trainable_bytes=8 * (2 * len(lengths) * shape.hidden_size + 24 * head_parameters),
        activations=largest * shape.values_per_token,  # of one layer: nothing is kept for backward
        steps=penalties,
        tokens=tokens,
        train_flop=2 * shape.num_linear_parameters * tokens,
    )


def _plan(
    shape: ModelShape,
    *,
    trainable_parameters: int,
    trainable_bytes: int,
    activations: int,
    steps: int,
    tokens: int,
    train_flop: int,
) -> Plan:
    """What the two kinds of plan have in common: the backbone's part, and the sum."""
    frozen_bytes = shape.frozen_bytes + shape.buffer_bytes
    activation_bytes = activations * shape.bytes_per_parameter
    return Plan(
        trainable_parameters=trainable_parameters,
        frozen_parameters=shape.num_parameters,
        frozen_bytes=frozen_bytes,
        trainable_bytes=trainable_bytes,
        activation_bytes=activation_bytes,
        total_bytes=frozen_bytes + trainable_bytes + activation_bytes,
        dense_copy_bytes=sum(shape.low_bit) * shape.bytes_per_parameter,
        steps=steps,
        tokens=tokens,
        train_flop=train_flop,
    )


def largest_micro_batch(lengths: npt.NDArray[np.int64], *, rows_per_step: int, token_budget: int) -> int:
    """Tokens of the largest micro-batch that can occur: the longest rows of one step, within the budget."""
    if not len(lengths):
        return 0
    longest = np.sort(lengths)[::-1][:rows_per_step]
    return max(int(longest[0]), min(int(longest.sum()), token_budget))


def human_bytes(count: float) -> str:
    """``1234567`` as ``1.2 MB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_count(count: float) -> str:
    """``22713216`` as ``22.7 M``, so that a model of 0.5 B parameters is not printed as 0 B."""
    for unit in ("", " k", " M", " B"):
        if abs(count) < 1000:
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f} T"


def summarise(values: Iterable[int]) -> dict[str, float]:
    """Mean, percentiles and maximum of token lengths, for ``data.json``."""
    array = np.asarray(list(values), dtype=np.int64)
    if not len(array):
        return {}
    p50, p90, p99 = (int(value) for value in np.percentile(array, [50, 90, 99], method="inverted_cdf"))
    return {"mean": round(float(array.mean()), 2), "p50": p50, "p90": p90, "p99": p99, "max": int(array.max())}
