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


LoraKind = Literal["lora", "qlora", "dora", "qdora"]


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685, section 4.1): y = W x + scaling * B (A x).

    DoRA (Liu et al. 2024, arXiv:2402.09353) also trains the length of each row of W + scaling * B A. The names with a
    q say that the frozen weights are kept in few bits (``RunConfig.quant``) and change nothing else.
    """

    kind: LoraKind = "lora"
    """lora, or dora with trained row lengths; qlora and qdora are the same on low-bit frozen weights."""
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

    @property
    def dora(self) -> bool:
        """Whether row lengths are trained."""
        return self.kind in ("dora", "qdora")

    @property
    def low_bit(self) -> bool:
        """Whether the method's name asks for low-bit frozen weights."""
        return self.kind in ("qlora", "qdora")

    def parameter_count(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Trainable parameters for layers of ``(out, in)``: rank * (in + out) each, and with DoRA out lengths."""
        return sum(self.rank * (rows + columns) + (rows if self.dora else 0) for rows, columns in shapes)
