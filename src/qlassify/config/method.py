"""One configuration class per fine-tuning method, each with its closed-form parameter count.

The count is a function of the shapes of the layers that the method is attached to and of nothing else, so that it can
be stated before any memory is spent and a test can hold the built model to it.

Which class a section ``method`` is, its ``kind`` says; without one it is LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import pydantic

from qlassify.config.section import Section

ALL_LINEAR: Final = "all-linear"
"""The target that means every linear layer of the backbone."""
AUTO: Final = "auto"
"""Targets that follow from the architecture."""


def require_target(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The targets, if there are any.

    Raises:
        ValueError: there are none.
    """
    if not value:
        raise ValueError("names no module; use all-linear or at least one module name")
    return value


LoraKind = Literal["lora", "qlora", "dora", "qdora"]
LoraStart = Literal["zero", "pissa", "loftq"]


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
    start: LoraStart = "zero"
    """zero: A random and B zero; pissa: the weight's principal components, which are trained in its place (Meng et al.
    2024, arXiv:2404.02948); loftq: what quantising took from the weight (Li et al. 2023, arXiv:2310.08659)."""
    lora_plus_ratio: float = pydantic.Field(default=1.0, gt=0)
    """Learning rate of B over that of A; LoRA+ proposes 16 (Hayou et al. 2024, arXiv:2402.12354)."""

    @pydantic.field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return require_target(value)

    @property
    def scaling(self) -> float:
        """The factor on the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def path_rank(self) -> int:
        """Rank of the low-rank path: twice that of A after PiSSA, which subtracts what A and B began with."""
        return 2 * self.rank if self.start == "pissa" else self.rank

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

    def __str__(self) -> str:
        name = f"{'Q' if self.low_bit else ''}{'DoRA' if self.dora else 'LoRA'}"
        return f"{name}(r={self.rank}, alpha={self.alpha:g})"


class Ia3Config(Section):
    """Learned vectors that rescale keys, values and inner activations (Liu et al. 2022, arXiv:2205.05638)."""

    kind: Literal["ia3"] = "ia3"
    """The method's name."""
    target_modules: Literal["auto"] | tuple[str, ...] = AUTO
    """Layers whose output is rescaled; keys and values when auto."""
    feedforward_modules: Literal["auto"] | tuple[str, ...] = AUTO
    """Layers whose input is rescaled; the second product of each feed-forward network when auto."""

    def parameter_count(self, outputs: Iterable[tuple[int, int]], inputs: Iterable[tuple[int, int]]) -> int:
        """Trainable parameters for layers of ``(out, in)`` whose outputs, and whose inputs, are rescaled."""
        return sum(rows for rows, _ in outputs) + sum(columns for _, columns in inputs)

    def __str__(self) -> str:
        return "IA3"


class BottleneckConfig(Section):
    """Small networks behind the sublayers (Houlsby et al. 2019, arXiv:1902.00751)."""

    kind: Literal["adapter"] = "adapter"
    """The method's name."""
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """houlsby: behind attention and feed-forward network; pfeiffer: only behind the latter."""
    size: int = pydantic.Field(default=64, ge=1)
    """Width of the bottleneck."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """Function between the two products."""
    target_modules: Literal["auto"] | tuple[str, ...] = AUTO
    """Layers that get one behind them; by placement when auto."""

    def parameter_count(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Trainable parameters behind layers of ``(out, in)``: two matrices and two biases each."""
        return sum(2 * self.size * rows + self.size + rows for rows, _ in shapes)

    def __str__(self) -> str:
        return f"adapters({self.placement}, size {self.size})"


class BitfitConfig(Section):
    """Only biases (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    kind: Literal["bitfit"] = "bitfit"
    """The method's name."""

    def parameter_count(self, sizes: Iterable[int]) -> int:
        """Trainable parameters for biases of these sizes."""
        return sum(sizes)

    def __str__(self) -> str:
        return "BitFit"


class ProbeConfig(Section):
    """Only the head, on vectors that are computed once; a convex problem, solved to its end (``training.probe``)."""

    kind: Literal["probe"] = "probe"
    """The method's name."""
    penalties: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = (
        1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5,
    )  # fmt: skip
    """L2 penalties on the weights for standardised vectors, tried in this order; the best one on the held-out rows is
    kept."""

    @pydantic.field_validator("penalties")
    @classmethod
    def _some_penalty(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("holds no penalty")
        return value

    def parameter_count(self) -> int:
        """Trainable parameters beside the head's: none."""
        return 0

    def __str__(self) -> str:
        return "linear probe"


class FullConfig(Section):
    """Every weight of the backbone."""

    kind: Literal["full"] = "full"
    """The method's name."""

    def parameter_count(self, num_parameters: int) -> int:
        """Trainable parameters of a backbone with so many parameters: all of them."""
        return num_parameters

    def __str__(self) -> str:
        return "full fine-tuning"


class PrefixConfig(Section):
    """Trained keys and values before those of every text (Li and Liang 2021, arXiv:2101.00190)."""

    kind: Literal["prefix"] = "prefix"
    """The method's name."""
    num_virtual_tokens: int = pydantic.Field(default=16, ge=1)
    """Keys and values that each attention layer gets."""
    shift_positions: bool = True
    """A text's positions begin behind the prefix, as PEFT counts them; without it they stay, and the file is ours."""
    reparametrize: bool = False
    """While training, all layers' keys and values are the output of one small network."""
    hidden_size: int | None = pydantic.Field(default=None, ge=1)
    """Width of that network's inner layer; that of one layer's keys when null."""

    def parameter_count(self, num_layers: int, width: int) -> int:
        """Trainable parameters while training.

        Args:
            num_layers: layers with attention.
            width: numbers in one key of all key/value heads.
        """
        per_token = 2 * num_layers * width
        if not self.reparametrize:
            return self.num_virtual_tokens * per_token
        hidden = self.hidden_size or width
        return self.num_virtual_tokens * width + (width + 1) * hidden + (hidden + 1) * per_token

    def __str__(self) -> str:
        return f"prefix tuning({self.num_virtual_tokens} tokens{', reparametrised' if self.reparametrize else ''})"


MethodConfig = Annotated[
    LoraConfig | Ia3Config | BottleneckConfig | BitfitConfig | PrefixConfig | ProbeConfig | FullConfig,
    pydantic.Field(discriminator="kind"),
]


def positions_before_text(config: MethodConfig) -> int:
    """How many of the model's positions the method takes from the text."""
    return config.num_virtual_tokens if isinstance(config, PrefixConfig) and config.shift_positions else 0


def with_kind(settings: Any) -> Any:
    """The settings of a method; without a kind they are LoRA's."""
    return {"kind": "lora", **settings} if isinstance(settings, dict) and "kind" not in settings else settings
