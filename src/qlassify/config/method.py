"""One configuration class per fine-tuning method, each with its closed-form parameter count.

The count is a function of the shapes of the layers the method is attached to and of nothing else, so that a plan can
state it before any memory is spent and a test can hold the built model to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal

import pydantic

from qlassify.config.section import Section

ALL_LINEAR: Final = "all-linear"
"""The target that means every linear layer of the backbone."""


def require_target(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The targets, if there are any.

    Raises:
        ValueError: there are none.
    """
    if not value:
        raise ValueError("names no module; use all-linear or at least one module name")
    return value


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685, section 4.1): y = W x + scaling * B (A x)."""

    kind: Literal["lora"] = "lora"
    """The method's name."""
    rank: int = pydantic.Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = pydantic.Field(default=32.0, gt=0)
    """Numerator of the scaling."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Probability with which an element of the adapter's input is dropped while training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    """``all-linear``, or module names or name endings such as ``query`` or ``layer.0.attention.self.query``."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023, arXiv:2312.03732)."""

    @pydantic.field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return require_target(value)

    @property
    def scaling(self) -> float:
        """The factor on the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def parameter_count(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Trainable parameters for layers of ``(out_features, in_features)``: rank * (in + out) each."""
        return sum(self.rank * (rows + columns) for rows, columns in shapes)
