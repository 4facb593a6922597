"""``ClassifyConfig``: the library's flat face, with the twelve fields that entrenar's pipeline made familiar.

Names, defaults and ``qlora_default`` are that pipeline's; the further fields are ours and leave the twelve alone.
Internally a run is described by the sections of ``RunConfig``; ``ClassifyConfig.to_run_config`` is the only
translation between the two, so no default lives twice.

The twelve defaults are kept for those who know them although they are not what one would choose today (alpha equal
to the rank, 1e-4 for every model); ``ClassifyConfig.recommended`` is.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import pydantic

from qlassify.config import recommend
from qlassify.config.method import ALL_LINEAR, LoraConfig, require_target
from qlassify.config.quant import QuantConfig
from qlassify.config.run import (
    DEFAULT_BASE_MODEL,
    LongPolicy,
    ModelConfig,
    Pooling,
    Precision,
    RunConfig,
    Schedule,
    TrainingConfig,
)
from qlassify.config.section import Section
from qlassify.contracts import entrenar
from qlassify.contracts.rule import Contract, HyperparamDiagnostics


class ClassifyConfig(Section):
    """Settings of a classification fine-tuning pipeline, flat."""

    num_classes: int = pydantic.Field(default=5, ge=2)
    """Number of labels."""
    lora_rank: int = pydantic.Field(default=16, ge=1)
    """Rank of the LoRA adapters."""
    lora_alpha: float = pydantic.Field(default=16.0, gt=0)
    """Numerator of the LoRA scaling."""
    learning_rate: float = pydantic.Field(default=1e-4, gt=0)
    """Peak learning rate of the adapters."""
    epochs: int = pydantic.Field(default=3, ge=1)
    """Passes over the training rows."""
    max_seq_len: int = pydantic.Field(default=512, ge=4)
    """Longest text in tokens, special tokens included."""
    log_interval: int = pydantic.Field(default=100, ge=1)
    """Optimiser steps between log lines."""
    batch_size: int = pydantic.Field(default=32, ge=1)
    """Rows per batch."""
    accumulation_steps: int = pydantic.Field(default=1, ge=1)
    """Batches per optimiser step."""
    gradient_clip_norm: float | None = pydantic.Field(default=1.0, gt=0)
    """Largest global L2 norm of the averaged gradient; none when None."""
    class_weights: tuple[float, ...] | None = None
    """One positive weight per class, or None for equal weights."""
    quantize_nf4: bool = False
    """Store the frozen weights in 4-bit NF4, in groups of 64 with double quantisation (QLoRA)."""

    multi_label: bool = False
    """Whether a row may have several labels."""
    head_learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Peak learning rate of the head; the adapters' when None."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices."""
    warmup_fraction: float = pydantic.Field(default=0.06, ge=0, lt=1)
    """Share of all optimiser steps spent warming up."""
    schedule: Schedule = "linear"
    """What follows the warm-up."""
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of the target's mass spread evenly over all classes."""
    lora_dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    """Modules that get an adapter."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    pooling: Pooling = "auto"
    """Which hidden states make the text's vector."""
    long: LongPolicy = "truncate"
    """What is read of a longer text: its first tokens, both ends (head_tail), or all of it in windows."""
    window_overlap: int | None = pydantic.Field(default=None, ge=0)
    """Tokens that a window shares with the one before it; a quarter of max_seq_len when None."""
    max_windows: int = pydantic.Field(default=16, ge=1)
    """Windows of one text at most."""
    head_bias: Literal["auto"] | bool = "auto"
    """Whether the head adds a bias; by architecture and pooling when auto."""
    precision: Precision = "auto"
    """Arithmetic of the frozen backbone."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    seed: int = pydantic.Field(default=42, ge=0)
    """The one seed."""

    @pydantic.field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return require_target(value)

    @pydantic.model_validator(mode="after")
    def _weights_match_classes(self) -> Self:
        weights = self.class_weights
        if weights is not None and (len(weights) != self.num_classes or min(weights) <= 0):
            raise ValueError(
                f"class_weights needs {self.num_classes} positive numbers, one per class; got {list(weights)}"
            )
        return self

    @classmethod
    def qlora_default(cls, model_params: int) -> Self:
        """entrenar's QLoRA settings for a model of ``model_params`` parameters: two classes, alpha = 2 rank, NF4."""
        rate = 2e-4 if model_params <= recommend.LARGE_DECODER_PARAMETERS else 1e-4
        return cls(
            num_classes=2,
            lora_alpha=32.0,
            learning_rate=rate,
            max_seq_len=256,
            batch_size=16,
            accumulation_steps=1,
            quantize_nf4=True,
        )

    @classmethod
    def recommended(
        cls,
        num_classes: int,
        *,
        num_rows: int,
        model_params: int = 22_565_376,
        decoder: bool = False,
        multi_label: bool = False,
    ) -> Self:
        """What the command would choose for this data and model (see ``config.recommend``).

        Args:
            num_classes: labels in the data.
            num_rows: training rows.
            model_params: parameters of the base model; the default is all-MiniLM-L6-v2's.
            decoder: whether the base model attends causally.
            multi_label: whether a row may have several labels.
        """
        facts = recommend.Facts(model_params, decoder, num_classes, num_rows, multi_label)
        settings = recommend.recommended_settings(facts)
        method, training = settings["method"], settings["training"]
        return cls(
            num_classes=num_classes,
            multi_label=multi_label,
            lora_rank=method["rank"],
            lora_alpha=method["alpha"],
            lora_dropout=method["dropout"],
            target_modules=method["target_modules"],
            **training,
        )

    def to_run_config(self, base: str = DEFAULT_BASE_MODEL) -> RunConfig:
        """The same settings as sections, for the base model ``base``."""
        return RunConfig(
            model=ModelConfig(
                base=base,
                pooling=self.pooling,
                max_length=self.max_seq_len,
                long=self.long,
                window_overlap=self.window_overlap,
                max_windows=self.max_windows,
                head_bias=self.head_bias,
                precision=self.precision,
                device=self.device,
            ),
            quant=QuantConfig() if self.quantize_nf4 else None,
            method=LoraConfig(
                kind="qlora" if self.quantize_nf4 else "lora",
                rank=self.lora_rank,
                alpha=self.lora_alpha,
                dropout=self.lora_dropout,
                target_modules=self.target_modules,
                rslora=self.use_rslora,
            ),
            training=TrainingConfig(
                epochs=self.epochs,
                batch_size=self.batch_size,
                accumulation_steps=self.accumulation_steps,
                learning_rate=self.learning_rate,
                head_learning_rate=self.head_learning_rate or self.learning_rate,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                warmup_fraction=self.warmup_fraction,
                gradient_clip_norm=self.gradient_clip_norm,
                class_weights=self.class_weights or "uniform",
                label_smoothing=self.label_smoothing,
                log_interval=self.log_interval,
            ),
            seed=self.seed,
        )

    def validate_hyperparameters(self, model_params: int) -> HyperparamDiagnostics:
        """What entrenar's contracts say of these settings (C-HP-001, 002, 003, 005, 006 and 007).

        They are rules for QLoRA on decoders; ``contracts.registry.check`` on ``to_run_config()`` judges by method and
        size. Nothing is raised: see ``contracts.rule.require_no_errors``.

        Args:
            model_params: parameters of the base model.
        """
        return self._check({"model_params": model_params}, entrenar.SETTINGS)

    def validate_with_data(self, stats: entrenar.CorpusStats) -> HyperparamDiagnostics:
        """What entrenar's contracts say of these settings with this data (C-HP-004 and 008).

        Args:
            stats: the three numbers of a ``DataStats``.
        """
        facts = {
            "p99_token_length": stats.p99_token_length,
            "imbalance_ratio": stats.imbalance_ratio,
            "minority_count": stats.minority_count,
        }
        return self._check(facts, entrenar.DATA)

    def _check(
        self, facts: dict[str, Any], contracts: tuple[Contract[entrenar.FlatSituation], ...]
    ) -> HyperparamDiagnostics:
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        return entrenar.check(entrenar.FlatSituation.of(settings, facts), contracts)
