"""``FineTuneMethod``: the names and rules of thumb under which entrenar plans a fine-tuning, and the road to ours.

Six kinds of method, what each is told, and six figures that the original states for each of them. The figures are
rules of thumb: none of them knows the model, its targets, the length of its texts or the batch, and some contradict
what is measured (a step on low-bit weights is slower than one on plain ones, not faster). They are kept under their
names because programs ask for them. What a method costs on a given model is counted by ``methods.cost``.

One class with a kind, and not a class per kind: the original is a tagged union that is compared, printed and written
to files, and whoever holds one asks the same questions of every kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import pydantic

from qlassify.config.method import MethodConfig
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError

FineTuneKind = Literal["lora", "qlora", "adapter", "prefix", "ia3", "full"]

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "lora": ("rank", "alpha"),
    "qlora": ("rank", "alpha", "bits"),
    "adapter": ("size",),
    "prefix": ("num_virtual_tokens",),
    "ia3": (),
    "full": (),
}
"""What each kind is told, all of it needed."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """The original's figures for a kind that has no rank."""

    memory_reduction: float
    trainable_percent: float
    memory_multiplier: float
    speedup: float
    quality: float
    batch_multiplier: float
    display: str


_RULES: Final[Mapping[str, _Rules]] = {
    "adapter": _Rules(10, 5, 1.5, 4, 0.92, 1.5, "Adapter"),
    "prefix": _Rules(20, 1, 1.3, 5, 0.88, 1.8, "Prefix"),
    "ia3": _Rules(50, 0.01, 1.1, 8, 0.90, 3, "IA³"),
    "full": _Rules(1, 100, 4.0, 2, 1.0, 1, "Full"),
}


@dataclass(frozen=True, slots=True)
class FineTuneMethod:
    """A fine-tuning method as entrenar names it. Make one with ``lora``, ``qlora``, ``adapter`` and so on.

    Attributes:
        kind: which method.
        rank: of LoRA and QLoRA.
        alpha: of LoRA and QLoRA; the original has it for LoRA alone.
        bits: of QLoRA's frozen weights, 4 (NF4) or 8 (INT8).
        size: width of the bottleneck adapters.
        num_virtual_tokens: length of the prefix.

    Raises:
        ConfigError: a value that is out of range, missing, or not this kind's.
    """

    kind: FineTuneKind
    rank: int | None = None
    alpha: float | None = None
    bits: int | None = None
    size: int | None = None
    num_virtual_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise ConfigError("unknown fine-tuning method", where="kind", got=self.kind, wanted=", ".join(_FIELDS))
        for name in ("rank", "alpha", "bits", "size", "num_virtual_tokens"):
            value, wanted = getattr(self, name), name in _FIELDS[self.kind]
            if (value is not None) != wanted:
                problem = "is needed" if wanted else "is nothing that this method is told"
                raise ConfigError(f"{name} {problem}", where=self.kind, got=value)
            number = (int, float) if name == "alpha" else int
            if value is not None and (not isinstance(value, number) or isinstance(value, bool) or not value > 0):
                raise ConfigError("not a positive number", where=f"{self.kind}.{name}", got=repr(value))
        if self.bits not in (None, 4, 8):
            raise ConfigError("weights are stored in 4 or 8 bits", where="qlora.bits", got=self.bits, wanted="4 or 8")

    @classmethod
    def lora(cls, rank: int, alpha: float | None = None) -> Self:
        """LoRA; alpha is the rank when None, as the original sets it."""
        return cls("lora", rank=rank, alpha=float(rank if alpha is None else alpha))

    @classmethod
    def qlora(cls, rank: int, bits: int = 4, alpha: float | None = None) -> Self:
        """LoRA on low-bit weights; alpha is the rank when None."""
        return cls("qlora", rank=rank, alpha=float(rank if alpha is None else alpha), bits=bits)

    @classmethod
    def adapter(cls, size: int = 64) -> Self:
        """Bottleneck adapters of this width."""
        return cls("adapter", size=size)

    @classmethod
    def prefix(cls, num_virtual_tokens: int = 16) -> Self:
        """A trained prefix of this many positions in front of every attention layer."""
        return cls("prefix", num_virtual_tokens=num_virtual_tokens)

    @classmethod
    def ia3(cls) -> Self:
        """Learned factors of keys, values and inner activations."""
        return cls("ia3")

    @classmethod
    def full(cls) -> Self:
        """Every weight."""
        return cls("full")

    def __str__(self) -> str:
        if self.kind == "lora":
            assert self.alpha is not None
            alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
            return f"LoRA(r={self.rank}, \N{GREEK SMALL LETTER ALPHA}={alpha})"
        if self.kind == "qlora":
            return f"QLoRA(r={self.rank}, {self.bits}-bit)"
        return _RULES[self.kind].display

    # Rules of thumb

    def memory_reduction_factor(self) -> float:
        """Rule of thumb: how many times less memory than full fine-tuning."""
        return self._rule(
            lambda rank: 100 / rank,
            lambda rank, bits: 32 / bits / (1 + 0.01 * rank),
            lambda rules: rules.memory_reduction,
        )

    def trainable_params_percent(self) -> float:
        """Rule of thumb: trainable parameters in per cent of the model's."""
        return self._rule(
            lambda rank: 0.1 * min(rank / 8, 2.0),
            lambda rank, bits: 0.1 * min(rank / 8, 2.0),
            lambda rules: rules.trainable_percent,
        )

    def memory_multiplier(self) -> float:
        """Rule of thumb: memory of training over that of inference."""
        return self._rule(lambda rank: 1.2, lambda rank, bits: 1.1, lambda rules: rules.memory_multiplier)

    def training_speedup(self) -> float:
        """Rule of thumb: speed over that of training anew. QLoRA's 6 is above LoRA's; measured, it is slower."""
        return self._rule(lambda rank: 5 / (1 + rank / 64), lambda rank, bits: 6.0, lambda rules: rules.speedup)

    def quality_retention(self) -> float:
        """Rule of thumb: share of full fine-tuning's quality."""
        return self._rule(
            lambda rank: 0.95 + min(rank / 256, 0.05), lambda rank, bits: 0.93, lambda rules: rules.quality
        )

    def batch_size_multiplier(self) -> float:
        """Rule of thumb: how much larger a batch fits than with full fine-tuning."""
        return self._rule(lambda rank: 2.0, lambda rank, bits: 4.0, lambda rules: rules.batch_multiplier)

    def _rule(
        self,
        lora: Callable[[int], float],
        qlora: Callable[[int, int], float],
        other: Callable[[_Rules], float],
    ) -> float:
        """The figure of this method, by kind."""
        if self.kind in _RULES:
            return other(_RULES[self.kind])
        assert self.rank is not None
        if self.kind == "lora":
            return lora(self.rank)
        assert self.bits is not None
        return qlora(self.rank, self.bits)

    # To and from configurations

    def to_config(self) -> MethodConfig:
        """The method's configuration, with its own defaults for everything that is not said here.

        Raises:
            ConfigError: the configuration does not know this method or one of its values.
        """
        settings = {name: getattr(self, name) for name in _FIELDS[self.kind] if name != "bits"}
        try:
            config: MethodConfig = _METHOD.validate_python({"kind": self.kind, **settings})
        except pydantic.ValidationError as error:
            raise ConfigError("this method cannot be trained", got=str(self), wanted=error.errors()[0]["msg"]) from None
        return config

    def to_quant(self) -> QuantConfig | None:
        """The format of the frozen weights that goes with it; None for unquantised ones."""
        return None if self.bits is None else QuantConfig(kind="nf4" if self.bits == 4 else "int8")

    @classmethod
    def from_config(cls, config: MethodConfig, quant: QuantConfig | None = None) -> Self:
        """The name for a configuration; targets, dropout, placement and the like have no place in it.

        Args:
            config: the method.
            quant: the format of the frozen weights; with one, LoRA is QLoRA.

        Raises:
            ConfigError: a method that the six kinds do not have: DoRA, BitFit, another scaling or start of LoRA.
        """
        settings: dict[str, Any] = config.model_dump()
        kind = settings["kind"]
        # Options that make another method of it; a configuration without one of them is as good as with its default.
        plain = {"rslora": False, "start": "zero", "reparametrize": False}
        if kind not in _FIELDS or any(settings.get(name, usual) != usual for name, usual in plain.items()):
            raise ConfigError("FineTuneMethod has no name for this method", got=str(config), wanted=", ".join(_FIELDS))
        if kind == "qlora" or (kind == "lora" and quant is not None):
            bits = 4 if quant is None else quant.bits
            return cls("qlora", rank=settings["rank"], alpha=settings["alpha"], bits=bits)
        return cls(kind, **{name: settings[name] for name in _FIELDS[kind]})

    # As data

    def as_dict(self) -> dict[str, Any]:
        """Kind and values, for a file; ``parse`` reads it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Self:
        """The method that ``as_dict`` wrote.

        Raises:
            ConfigError: a name or a value that cannot be.
        """
        unknown = set(settings) - {name for names in _FIELDS.values() for name in names} - {"kind"}
        if unknown or "kind" not in settings:
            raise ConfigError("not a fine-tuning method", got=sorted(map(str, settings)), wanted="kind and its values")
        return cls(**settings)


_METHOD: Final[pydantic.TypeAdapter[Any]] = pydantic.TypeAdapter(MethodConfig)
