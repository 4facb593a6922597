"""``RunConfig``: everything that one training run is, in five sections and a seed.

Every field has a concrete value and a static default. What "the user said nothing" should become for *this* data
and *this* model is decided by ``recommend``, as a layer of settings under the user's own; the resolved result is
what a run writes into ``run.yaml`` and is enough to repeat it. The alternative, ``None`` for "decide later", would
spread that decision over every reader of the field.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import pydantic

from qlassify.config.method import LoraConfig, MethodConfig, with_kind
from qlassify.config.quant import QuantConfig
from qlassify.config.section import Section

DEFAULT_BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The base model when none is named: small, Apache-2.0, and installable without a hub (the ``demo`` extra)."""

ClassWeighting = Literal["uniform", "inverse", "sqrt_inverse", "effective_number"]
LongPolicy = Literal["truncate", "head_tail", "windows"]
Pooling = Literal["auto", "last", "cls", "mean"]
Precision = Literal["auto", "bf16", "fp32"]
Sampling = Literal["shuffled", "balanced"]
TrackingTool = Literal["tensorboard", "mlflow", "wandb"]
Schedule = Literal["linear", "cosine", "constant"]


class DataConfig(Section):
    """Where the labelled text is and how to read it."""

    train: str = ""
    """File with the training rows: CSV, TSV, JSONL or Parquet."""
    eval: str | None = None
    """File for model selection; without one a stratified share of the training rows is held out."""
    test: str | None = None
    """File that is looked at once, after training."""
    text: str | None = None
    """Name (or, without a header, 1-based number) of the text column; found by name when not given."""
    text_pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = None
    """Column of the label or labels."""
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """File format; from the suffix, else from the content, when not given."""
    header: bool | None = None
    """Whether a delimited file starts with a header; decided from the first row when not given."""
    label_separator: str | None = None
    """Splits one cell into several labels, which makes the task multi-label."""
    multi_label: bool | None = None
    """Several labels per row or exactly one; decided from the data when not given."""
    eval_fraction: float = pydantic.Field(default=0.1, gt=0, le=0.5)
    """Share of the training rows that is held out when ``eval`` is not given."""
    slices: tuple[str, ...] = ()
    """Columns of the scored file, by name or number, by whose values the scores are also given."""
    audit: bool = True
    """Look for repeated texts, leaks, damage and doubtful labels before training; nothing is changed by it."""
    token_cache: str = pydantic.Field(default="auto", min_length=1)
    """Where tokens are kept on disk, to be mapped and used again: a folder, off, or auto, which keeps those of ten
    million characters and more in the user's cache folder."""

    @pydantic.field_validator("token_cache", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare off as false


class ModelConfig(Section):
    """The pretrained model and how a text becomes one vector."""

    base: str = DEFAULT_BASE_MODEL
    """A directory, an APR file, the name of an installed packaged model, or a Hugging Face id."""
    pooling: Pooling = "auto"
    """Which hidden states make the text's vector; by architecture when auto."""
    max_length: int = pydantic.Field(default=512, ge=4)
    """Longest text in tokens, special tokens included; never above what the model has positions for."""
    long: LongPolicy = "truncate"
    """What is read of a longer text: its first tokens (truncate), its first quarter of the limit and its last tokens
    (head_tail), or all of it in overlapping windows whose vectors are averaged (windows)."""
    window_overlap: int | None = pydantic.Field(default=None, ge=0)
    """Tokens that a window shares with the one before it; a quarter of max_length when null."""
    max_windows: int = pydantic.Field(default=16, ge=1)
    """Windows of one text at most; what lies behind them is not read, and counted."""
    head_bias: Literal["auto"] | bool = "auto"
    """Whether the classification head adds a bias; auto gives none to a causal model pooled at the last token, because
    the heads that transformers has for such models have none, and one everywhere else."""
    precision: Precision = "auto"
    """Arithmetic of the frozen backbone; bf16 where the hardware multiplies it, else fp32, when auto."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; the first CUDA device when there is one and auto."""
    dense_copies: Literal["never", "auto", "always"] = "never"
    """Keep low-bit weights as numbers beside their codes while training, which saves forming them anew for every
    product and gives up the memory that was saved; auto does so where half of the free memory holds all that is
    planned. The results are bitwise the same."""


class TrainingConfig(Section):
    """How the trainable parameters move."""

    epochs: int = pydantic.Field(default=3, ge=1)
    """Passes over the training rows."""
    batch_size: int = pydantic.Field(default=32, ge=1)
    """Rows whose gradients are summed before accumulation."""
    accumulation_steps: int = pydantic.Field(default=1, ge=1)
    """Batches per optimiser step; the step equals one big batch of batch_size * accumulation_steps rows."""
    token_budget: int = pydantic.Field(default=8192, ge=1)
    """Most tokens computed at once; changes memory use, never the result's meaning."""
    learning_rate: float = pydantic.Field(default=4e-4, gt=0)
    """Peak learning rate of the method's parameters."""
    head_learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    """Peak learning rate of the classification head."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices; biases and norms have none."""
    schedule: Schedule = "linear"
    """What follows the warm-up: linear or cosine decay to zero, or a constant rate."""
    warmup_fraction: float = pydantic.Field(default=0.06, ge=0, lt=1)
    """Share of all optimiser steps over which the rate rises from zero; honoured by every schedule."""
    gradient_clip_norm: float | None = pydantic.Field(default=1.0, gt=0)
    """Largest global L2 norm of the averaged gradient; none when null."""
    class_weights: ClassWeighting | tuple[float, ...] = "uniform"
    """A weighting strategy, or one positive weight per class in the order of the label names."""
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of the target's mass spread evenly over all classes (single-label only)."""
    focal_gamma: float = pydantic.Field(default=0.0, ge=0)
    """Exponent of the focal loss: a row's loss is multiplied by (1 - p)^gamma, p its class's probability; 0 for the
    plain loss. Does not go with label smoothing."""
    sampling: Sampling = "shuffled"
    """Which rows an epoch consists of: all of them once, or as many draws with every class equally often (single-label
    only)."""
    selection_metric: str = "macro_f1"
    """Evaluation score by which the best weights are chosen, or ``loss``."""
    early_stopping_patience: int | None = pydantic.Field(default=3, ge=1)
    """Evaluations without improvement after which training stops; never when null."""
    evaluations_per_epoch: int = pydantic.Field(default=1, ge=1)
    """How often per epoch the held-out rows are scored."""
    checkpoint_every_steps: int = pydantic.Field(default=200, ge=1)
    """Optimiser steps between checkpoints; one is also written at every evaluation and on SIGINT or SIGTERM."""
    log_interval: int = pydantic.Field(default=10, ge=1)
    """Optimiser steps between lines of metrics.jsonl."""
    max_skipped_steps: int = pydantic.Field(default=3, ge=1)
    """Steps in a row with a non-finite loss or gradient after which training stops."""

    @pydantic.model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError(
                "training.focal_gamma and training.label_smoothing do not go together: one lowers the loss of rows "
                "whose class is nearly certain, the other raises it; set one of them to 0"
            )
        return self


class EvaluationConfig(Section):
    """How probabilities become answers, and how the answers are scored."""

    threshold: Literal["tuned"] | float = "tuned"
    """Several labels per text: the probability from which a label is given; tuned chooses one per label on
    the validation rows. With a positive class: its probability from which it is the answer; tuned follows the costs."""
    calibrate: bool = True
    """After training, divide the logits by the temperature that suits the validation rows, and choose thresholds and
    label sets on them."""
    coverage: float | None = pydantic.Field(default=0.95, gt=0, lt=1)
    """Share of the label sets that are to hold the true class (one label per text); no sets when null."""
    abstain_below: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Give no answer where its probability is below this (one label per text)."""
    positive: str | None = None
    """The class that matters, of two; it makes the answer depend on a threshold or on costs."""
    false_positive_cost: float = pydantic.Field(default=1.0, gt=0)
    """What it costs to answer with the positive class where it is wrong."""
    false_negative_cost: float = pydantic.Field(default=1.0, gt=0)
    """What it costs to miss the positive class."""

    @pydantic.field_validator("threshold", mode="before")
    @classmethod
    def _threshold_is_a_probability(cls, value: Any) -> Any:
        try:
            if value == "tuned" or 0 < float(value) < 1:
                return value
        except (TypeError, ValueError):
            pass
        raise ValueError("it should be tuned, or greater than 0 and less than 1")

    baselines: bool = True
    """Score the majority class and TF-IDF + logistic regression beside the model."""


class RunConfig(Section):
    """One training run: data, model, quant, method, training, evaluation, seed."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    quant: QuantConfig | None = None
    """Format of low-bit frozen weights. Without one they keep their numbers, unless the method's name begins with q."""
    method: MethodConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = pydantic.Field(default=42, ge=0)
    """The one seed; every random stream is derived from it by name."""
    accepted_contracts: tuple[str, ...] = ()
    """Ids of hyper-parameter contracts that the run may break knowingly; they are still told, and stop nothing."""
    tracking: tuple[TrackingTool, ...] = ()
    """Tools that are told the run's curves while it trains, each through its own package."""

    @property
    def wanted_quant(self) -> QuantConfig | None:
        """The format that the settings ask for: the one given, or the default one where the method's name says low-bit.

        A base model that is quantised already has its own, which then holds.
        """
        named = isinstance(self.method, LoraConfig) and self.method.low_bit
        return QuantConfig() if self.quant is None and named else self.quant

    @pydantic.model_validator(mode="after")
    def _steps_or_solution(self) -> Self:
        for name, usual in (("sampling", "shuffled"), ("focal_gamma", 0.0)):
            if self.method.kind == "probe" and getattr(self.training, name) != usual:
                raise ValueError(
                    f"training.{name} does not go with method.kind=probe, which is solved for over all rows at once "
                    "and has one solution only with the plain loss; training.class_weights goes with it"
                )
        return self

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _method_kind(cls, value: Any) -> Any:
        return with_kind(value)
