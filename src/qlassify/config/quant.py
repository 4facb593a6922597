"""``QuantConfig``: in which low-bit format the frozen weights are stored, with its size counted in closed form.

A format is a kind, a group size and two switches. Groups run over the flattened weight (row by row) and each has one
scale; the last group may be short. What a weight of n numbers then takes is

    ceil(n * bits / 8)             codes
    + 4 ceil(n / group_size)       scales in fp32; or, doubly quantised,
    + s + 4 ceil(s / 256) + 4      s = ceil(n / group_size) scales of 8 bits, an fp32 maximum for 256 of them, the mean
    + 4 ceil(n / group_size)       zero points, where there are any

so NF4 with groups of 64 and double quantisation takes 4 + 8/64 + 32/(64 x 256) = 4.127 bits per weight (Dettmers et al.
2023, arXiv:2305.14314, section 3).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import pydantic

from qlassify.config.section import Section

QuantKind = Literal["nf4", "fp4", "int4", "int8"]

BITS: Final[dict[str, int]] = {"nf4": 4, "fp4": 4, "int4": 4, "int8": 8}
"""Bits of a code of each kind."""
SCALES_PER_SUPER_GROUP: Final = 256
"""Scales that share one maximum when they are quantised themselves."""


class QuantConfig(Section):
    """The format of low-bit frozen weights."""

    kind: QuantKind = "nf4"
    """nf4 (levels at quantiles of a normal distribution), fp4 (a 4-bit float), int4 or int8 (evenly spaced)."""
    bits: Literal[4, 8] = 4
    """Bits of a code. Follows from the kind; given without one, 8 means int8."""
    group_size: int = pydantic.Field(default=64, ge=1)
    """Consecutive weights that share a scale."""
    double: bool = True
    """Store the scales in 8 bits, too. Off for int8 and with zero points unless asked for."""
    zero_point: bool = False
    """Give each group an offset, so that its levels span minimum to maximum (int4 and int8)."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in(cls, settings: Any) -> Any:
        """What follows from what was given."""
        if not isinstance(settings, dict):
            return settings
        filled = dict(settings)
        if "kind" not in filled and filled.get("bits") == 8:
            filled["kind"] = "int8"
        kind = filled.get("kind", "nf4")
        filled.setdefault("bits", BITS.get(kind, 4) if isinstance(kind, str) else 4)
        filled.setdefault("double", kind != "int8" and not filled.get("zero_point", False))
        return filled

    @pydantic.model_validator(mode="after")
    def _possible(self) -> QuantConfig:
        if self.bits != BITS[self.kind]:
            raise ValueError(f"quant.bits is {self.bits}, but {self.kind} has {BITS[self.kind]}")
        if self.zero_point and self.kind in ("nf4", "fp4"):
            raise ValueError(f"quant.zero_point goes with int4 and int8; {self.kind} is symmetric by its levels")
        if self.zero_point and self.double:
            raise ValueError("quant.double goes with symmetric groups; zero points are kept in fp32 with their scales")
        return self

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight in bits, for a weight whose groups are full."""
        scale_bits = 8 + 32 / SCALES_PER_SUPER_GROUP if self.double else 32.0
        return self.bits + (scale_bits + (32 if self.zero_point else 0)) / self.group_size

    def storage_bytes(self, count: int) -> int:
        """Bytes of a weight of ``count`` numbers."""
        groups = -(-count // self.group_size)
        scales = groups + 4 * -(-groups // SCALES_PER_SUPER_GROUP) + 4 if self.double else 4 * groups
        return -(-count * self.bits // 8) + scales + (4 * groups if self.zero_point else 0)

    def __str__(self) -> str:
        extras = [f"groups of {self.group_size}"]
        extras += ["double"] if self.double else []
        extras += ["zero points"] if self.zero_point else []
        return f"{self.kind.upper()} ({', '.join(extras)}: {self.bits_per_weight:.3f} bits per weight)"
