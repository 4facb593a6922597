"""``QLoraLinear``: LoRA on a frozen low-bit weight, the layer that QLoRA trains.

    y = dequantise(codes) x + b + scaling * B (A x)

(Dettmers et al. 2023, arXiv:2305.14314, section 3). Everything is in its two parts: ``LowBitLinear`` keeps the weight
and forms its numbers, ``LoraLinear`` adds the trained path; the gradient reaches x, A and B and nothing else. This
class is their sum under the names that kizzasi's layer made familiar, usable by itself:

    layer = QLoraLinear.from_weight(weight, rank=16, alpha=32, group_size=64)
    y = layer(x)

Where that layer and this one differ: its forward takes one vector and has no gradient; ours takes any leading shape.
It holds a zero point per group that is always zero; ours has one only with an integer format that uses it. Its
``memory_saved_bytes`` counts 8 bytes per group, for a scale and that zero point; the number is kept under the name, and
``stored_bytes`` is what is really held.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qlassify.config.method import LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError, DataError
from qlassify.methods.lora import LoraLinear
from qlassify.quant.linear import LowBitLinear
from qlassify.seeding import torch_generator


class QLoraLinear(LoraLinear):
    """A low-bit frozen linear layer with a LoRA path."""

    base: LowBitLinear

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        rank: int = 16,
        alpha: float = 32.0,
        group_size: int = 64,
        *,
        bias: Tensor | None = None,
        quant: QuantConfig | None = None,
        seed: int = 0,
    ) -> Self:
        """Quantise a weight and put a LoRA path beside it; the new layer computes what the quantised weight does.

        Args:
            weight: (out, in), any floating-point type.
            rank: rows of A and columns of B.
            alpha: numerator of the scaling alpha / rank.
            group_size: consecutive weights that share a scale.
            bias: (out,), frozen.
            quant: the format; NF4 with fp32 scales when None. Its group size gives way to ``group_size``.
            seed: of A.

        Raises:
            ConfigError: a rank, alpha or group size that cannot be, or a weight that is not a matrix.
            ModelError: the weight holds NaN or infinity.
        """
        if weight.dim() != 2 or 0 in weight.shape:
            raise ConfigError("the weight of a linear layer is a matrix", got=tuple(weight.shape), wanted="(out, in)")
        config = LoraConfig(kind="qlora", rank=rank, alpha=alpha)
        quant = QuantConfig(group_size=group_size, double=False) if quant is None else quant
        require_rank(config, (weight.shape[0], weight.shape[1]), where="rank")
        base = LowBitLinear.from_weight(weight, bias, quant.replace(group_size=group_size))
        generator = torch_generator(seed, "dropout")
        return cls(base, config, init=torch_generator(seed, "init/weight"), dropout=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(in,) or (..., in) -> (out,) or (..., out).

        Raises:
            DataError: x has another width.
        """
        if x.shape[-1:] != (self.in_features,):
            raise DataError("the input does not fit the layer", got=tuple(x.shape), wanted=f"(..., {self.in_features})")
        return super().forward(x)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    @property
    def rank(self) -> int:
        """Rows of A and columns of B."""
        return len(self.lora_A)

    @property
    def group_size(self) -> int:
        """Consecutive weights that share a scale."""
        return self.base.config.group_size

    @property
    def zero_point(self) -> Tensor:
        """(G,) offset of each group: zeros for a symmetric format."""
        weight = self.base.weight
        if weight.offsets is not None:
            return weight.offsets
        return torch.zeros(-(-self.out_features * self.in_features // self.group_size))

    def dequantize_weight(self) -> Tensor:
        """The frozen weight as numbers (out, in), fp32, in memory of their own."""
        return self.base.weight.dequantize()

    def trainable_params(self) -> int:
        """Numbers in A and B: rank * (in + out)."""
        return self.lora_A.numel() + self.lora_B.numel()

    def stored_bytes(self) -> int:
        """Bytes that the frozen weight takes."""
        return self.base.weight.nbytes

    def memory_saved_bytes(self) -> int:
        """Bytes below fp32 by kizzasi's count, in which a group has a scale and a zero point of 4 bytes each."""
        count = self.out_features * self.in_features
        groups = -(-count // self.group_size)
        return max(0, 4 * count - (-(-count * self.base.config.bits // 8) + 8 * groups))


def require_rank(config: LoraConfig, shape: tuple[int, int], *, where: str) -> None:
    """Refuse a rank above a layer's smaller side.

    Raises:
        ConfigError: it is.
    """
    if config.path_rank > min(shape):
        doubled = f", which PiSSA's path has twice: {config.path_rank}," if config.path_rank != config.rank else ""
        raise ConfigError(
            "the rank exceeds the smaller side of a target",
            where=where,
            got=f"{config.rank}{doubled} for a weight of {shape[0]} x {shape[1]}",
            wanted=f"at most {min(shape) * config.rank // config.path_rank}",
        )
