"""``QLoraLayer``: how many bytes a QLoRA layer takes, from its dimensions alone.

The names and the idea are brainwires': a layer's dimensions in, its bytes and the saving over 16-bit weights out. Its
formula counts one 2-byte scale per full group of 64 and knows of double quantisation only by name. Here the bytes are
those of the format that the layer is really stored in (``QuantConfig.storage_bytes``), so they agree with a built
layer to the byte; brainwires' own numbers are beside them for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError


@dataclass(frozen=True, slots=True)
class QLoraLayer:
    """The dimensions of a QLoRA layer.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        rank: rows of A and columns of B.
        alpha: numerator of the scaling.
        bits: 4 or 8.
        group_size: consecutive weights that share a scale.
        double_quant: whether scales are stored in 8 bits.

    Raises:
        ConfigError: a dimension, rank, alpha, group size or number of bits that cannot be.
    """

    in_features: int
    out_features: int
    rank: int
    alpha: float
    bits: int = 4
    group_size: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "rank", "group_size"):
            if getattr(self, name) < 1:
                raise ConfigError("a size must be at least 1", where=name, got=getattr(self, name))
        if not self.alpha > 0:
            raise ConfigError("alpha must be positive", where="alpha", got=self.alpha)
        if self.rank > min(self.in_features, self.out_features):
            raise ConfigError(
                "the rank exceeds the smaller side of the layer",
                where="rank",
                got=self.rank,
                wanted=f"at most {min(self.in_features, self.out_features)}",
            )
        if self.bits not in (4, 8):
            raise ConfigError("weights are stored in 4 or 8 bits", where="bits", got=self.bits, wanted="4 or 8")

    @classmethod
    def int4(cls, in_features: int, out_features: int, rank: int, alpha: float) -> Self:
        """A layer in 4 bits, groups of 64, doubly quantised."""
        return cls(in_features, out_features, rank, alpha, bits=4)

    @classmethod
    def int8(cls, in_features: int, out_features: int, rank: int, alpha: float) -> Self:
        """A layer in 8 bits, groups of 64, doubly quantised."""
        return cls(in_features, out_features, rank, alpha, bits=8)

    @property
    def format(self) -> QuantConfig:
        """The format whose bytes are counted; all formats of the same bits, groups and scales take the same."""
        kind = "int4" if self.bits == 4 else "int8"
        return QuantConfig(kind=kind, group_size=self.group_size, double=self.double_quant)

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def trainable_params(self) -> int:
        """Numbers in A and B."""
        return self.rank * (self.in_features + self.out_features)

    def quantized_base_bytes(self) -> int:
        """Bytes of codes and scales, as they are stored."""
        return self.format.storage_bytes(self.in_features * self.out_features)

    def adapter_bytes(self) -> int:
        """Bytes of A and B in 16 bits, as adapters are shipped; training keeps them in fp32."""
        return 2 * self.trainable_params()

    def vram_savings_ratio(self) -> float:
        """Share of the bytes of 16-bit weights that is saved, adapter included."""
        return self._saved(self.quantized_base_bytes())

    def brainwires_base_bytes(self) -> int:
        """brainwires' count: n * bits / 8, and 2 bytes for each full group of 64."""
        count = self.in_features * self.out_features
        return count * self.bits // 8 + count // 64 * 2

    def brainwires_savings_ratio(self) -> float:
        """The saving by brainwires' count."""
        return self._saved(self.brainwires_base_bytes())

    def _saved(self, base_bytes: int) -> float:
        return 1 - (base_bytes + self.adapter_bytes()) / (2 * self.in_features * self.out_features)
