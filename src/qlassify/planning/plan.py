"""The plan of a run: bytes by what they are for, steps and arithmetic, before a single weight is loaded.

    frozen weights    parameters x bytes of their type; of low-bit ones their codes and scales, and one buffer for the
                      largest of them as numbers
    trained           4 bytes each for the value and its gradient, 8 for AdamW's two moments, 4 for the best copy so far
    activations       the most that forward and backward hold at once: found by rehearsing the heaviest micro-batch
                      without values (``training.footprint``), for the method as it will be attached
    runtime           the interpreter and its libraries: what the process holds when it plans
    training FLOP     4 x parameters in matrix products x tokens: forward, and backward to the layer's input; the
                      gradient of a frozen weight is never formed

Everything is counted but one: what the allocator keeps beyond the tensors that are alive was measured
(``ALLOCATOR_SHARE``). A linear probe passes over the rows once and keeps one vector of each; its plan counts that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError

ALLOCATOR_SHARE, ALLOCATOR_BYTES = 0.2, 400_000_000
"""What the allocator keeps beside activations that are alive: pieces between tensors whose sizes change from step to
step. As much again where there is little, and from half a gigabyte on this much and this share: a decoder of
Qwen2-0.5B's shape kept 0.6 GB beside 0.65 and beside 1.6 GB of activations, and 0.9 to 1.4 GB beside 4.6 (fp32, CPU,
glibc)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the plan needs to know of a backbone.

    Attributes:
        num_parameters: all parameters of the pretrained model.
        num_linear_parameters: those in linear layers, which every token is multiplied with.
        bytes_per_parameter: 2 for bf16, 4 for fp32.
        hidden_size: H.
        low_bit: numbers in each low-bit weight.
        quant: their format.
    """

    num_parameters: int
    num_linear_parameters: int
    bytes_per_parameter: int
    hidden_size: int
    low_bit: tuple[int, ...] = ()
    quant: QuantConfig | None = None

    @property
    def dense_bytes(self) -> int:
        """Bytes of the frozen weights that are kept as numbers."""
        return (self.num_parameters - sum(self.low_bit)) * self.bytes_per_parameter

    @property
    def low_bit_bytes(self) -> int:
        """Bytes of the codes and scales of low-bit weights."""
        return sum(self.quant.storage_bytes(count) for count in self.low_bit if self.quant)

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen weights."""
        return self.dense_bytes + self.low_bit_bytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer in which low-bit weights become numbers, one at a time."""
        return max(self.low_bit, default=0) * self.bytes_per_parameter


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the run's peak, by what they are for.

    Attributes:
        runtime_bytes: interpreter and libraries, or a CUDA context.
        dense_bytes: frozen weights that are kept as numbers: all of them, or what is not quantised.
        low_bit_bytes: codes and scales of quantised weights.
        buffer_bytes: the buffer in which they become numbers.
        trained_bytes: values of method and head.
        gradient_bytes: their gradients.
        optimizer_bytes: AdamW's two moments; of a probe what its solver keeps.
        best_bytes: the copy of the best values so far.
        activation_bytes: the most that forward and backward hold at once beside the gradients.
        allocator_bytes: what the allocator keeps beyond that.
    """

    runtime_bytes: int
    dense_bytes: int
    low_bit_bytes: int
    buffer_bytes: int
    trained_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    best_bytes: int
    activation_bytes: int
    allocator_bytes: int

    @property
    def total_bytes(self) -> int:
        """Their sum."""
        return sum(getattr(self, field.name) for field in fields(self))

    def as_dict(self) -> dict[str, int]:
        """Name -> bytes, the sum last."""
        return {**asdict(self), "total_bytes": self.total_bytes}


MEMORY_TERMS = {
    "runtime_bytes": "interpreter and libraries, measured",
    "dense_bytes": "frozen weights as numbers",
    "low_bit_bytes": "codes and scales of quantised weights",
    "buffer_bytes": "buffer in which they become numbers",
    "trained_bytes": "trained values",
    "gradient_bytes": "their gradients",
    "optimizer_bytes": "optimiser's moments",
    "best_bytes": "copy of the best values",
    "activation_bytes": "activations of the heaviest micro-batch",
    "allocator_bytes": "kept by the allocator beside them",
}
"""What each term of a plan's memory is, in words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need.

    Attributes:
        trainable_parameters: of the method and the head.
        frozen_parameters: of the backbone.
        memory: bytes at the peak.
        dense_copy_bytes: what low-bit weights would take as numbers beside their codes; not in the sum.
        steps: optimiser steps if training does not stop early; of a probe the fits.
        epochs: passes over the rows.
        tokens: training tokens of all epochs.
        heaviest_tokens: tokens of the micro-batch that takes most memory.
        train_flop: floating-point operations of training.
        rehearsed: whether the activations were found by rehearsing, and not estimated.
    """

    trainable_parameters: int
    frozen_parameters: int
    memory: MemoryPlan
    dense_copy_bytes: int
    steps: int
    epochs: int
    tokens: int
    heaviest_tokens: int
    train_flop: int
    rehearsed: bool

    @property
    def total_bytes(self) -> int:
        """Bytes at the peak."""
        return self.memory.total_bytes

    def allows_dense_copies(self, available_bytes: int) -> bool:
        """Whether everything, with low-bit weights as numbers, fits half of the memory that is free."""
        return 2 * (self.total_bytes + self.dense_copy_bytes) <= available_bytes

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, for ``plan.json``."""
        return {**asdict(self), "memory": self.memory.as_dict()}


@dataclass(frozen=True, slots=True)
class Activations:
    """What rehearsing without values found.

    Attributes:
        heaviest_tokens: tokens of the micro-batch that takes most memory.
        training_bytes: the most that forward and backward hold at once, gradients included; 0 for a probe.
        prediction_bytes: the most that a forward pass over a full batch of predictions holds.
        rehearsed: whether they were found so; False where they had to be estimated.
    """

    heaviest_tokens: int
    training_bytes: int
    prediction_bytes: int
    rehearsed: bool = True


def make_plan(
    shape: ModelShape,
    *,
    trainable_parameters: int,
    activations: Activations,
    tokens_per_epoch: int,
    epochs: int,
    steps: int,
    evaluations: int,
    runtime_bytes: int,
    fixed_bytes: int = 0,
) -> Plan:
    """Plan a run.

    Args:
        shape: the backbone.
        trainable_parameters: of the method and the head together.
        activations: of the heaviest micro-batch.
        tokens_per_epoch: of the training rows.
        epochs: passes over them.
        steps: optimiser steps.
        evaluations: how often held-out rows are scored. With a single one, behind the last step, there is no copy of
            the best values while gradients are there.
        runtime_bytes: what the process holds beside the model.
        fixed_bytes: of what a method keeps besides what it trains.
    """
    values = 4 * trainable_parameters
    held = max(activations.training_bytes - values, activations.prediction_bytes)
    return Plan(
        trainable_parameters=trainable_parameters,
        frozen_parameters=shape.num_parameters,
        memory=_memory(
            shape,
            runtime_bytes=runtime_bytes,
            dense_bytes=shape.dense_bytes + fixed_bytes,
            trained_bytes=values,
            gradient_bytes=values,
            optimizer_bytes=2 * values,
            best_bytes=values if evaluations > 1 else 0,
            activation_bytes=held,
        ),
        dense_copy_bytes=sum(shape.low_bit) * shape.bytes_per_parameter,
        steps=steps,
        epochs=epochs,
        tokens=tokens_per_epoch * epochs,
        heaviest_tokens=activations.heaviest_tokens,
        train_flop=4 * (shape.num_linear_parameters + trainable_parameters) * tokens_per_epoch * epochs,
        rehearsed=activations.rehearsed,
    )


def make_probe_plan(
    shape: ModelShape,
    *,
    head_parameters: int,
    activations: Activations,
    rows: int,
    tokens: int,
    penalties: int,
    runtime_bytes: int,
) -> Plan:
    """Plan a linear probe: one pass without gradients, then a convex problem on one vector per row.

    Args:
        shape: the backbone.
        head_parameters: of the head, which is all that is trained.
        activations: of a full batch of predictions.
        rows: training rows.
        tokens: of them.
        penalties: how often the problem is solved at most.
        runtime_bytes: what the process holds beside the model.
    """
    # Float64: vectors, standardised vectors; and of the head what L-BFGS keeps of its last ten steps.
    solver = 8 * (2 * rows * shape.hidden_size + 24 * head_parameters)
    return Plan(
        trainable_parameters=head_parameters,
        frozen_parameters=shape.num_parameters,
        memory=_memory(
            shape,
            runtime_bytes=runtime_bytes,
            dense_bytes=shape.dense_bytes,
            trained_bytes=4 * head_parameters,
            gradient_bytes=0,
            optimizer_bytes=solver,
            best_bytes=4 * head_parameters,
            activation_bytes=activations.prediction_bytes,
        ),
        dense_copy_bytes=sum(shape.low_bit) * shape.bytes_per_parameter,
        steps=penalties,
        epochs=1,
        tokens=tokens,
        heaviest_tokens=activations.heaviest_tokens,
        train_flop=2 * shape.num_linear_parameters * tokens,
        rehearsed=activations.rehearsed,
    )


def _memory(shape: ModelShape, *, activation_bytes: int, **others: int) -> MemoryPlan:
    """The terms that both kinds of plan have in common beside their own."""
    return MemoryPlan(
        low_bit_bytes=shape.low_bit_bytes,
        buffer_bytes=shape.buffer_bytes,
        activation_bytes=activation_bytes,
        allocator_bytes=min(activation_bytes, ALLOCATOR_BYTES + round(ALLOCATOR_SHARE * activation_bytes)),
        **others,
    )


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


def human_seconds(seconds: float) -> str:
    """``134`` as ``2 min 14 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def summarise(values: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, float]:
    """Mean, percentiles and maximum of token lengths, for ``data.json``."""
    array = np.asarray(values, dtype=np.int64)
    if not len(array):
        return {}
    p50, p90, p99 = (int(value) for value in np.percentile(array, [50, 90, 99], method="inverted_cdf"))
    return {"mean": round(float(array.mean()), 2), "p50": p50, "p90": p90, "p99": p99, "max": int(array.max())}


_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """``8GiB``, ``500 MB`` or ``2e9`` as bytes; units with an i are powers of 1024, others of 1000.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    unit = None if match is None else _UNITS.get(match[2].upper())
    try:
        count = None if match is None or unit is None else round(float(match[1]) * unit)
    except (ValueError, OverflowError):
        count = None
    if not count:
        wanted = "a number and a unit, such as 8GiB or 500MB"
        raise ConfigError("not a size in bytes", where="--memory", got=text, wanted=wanted)
    return count
