"""What contracts look at: the run as it is settled, and what is known of model, data and device.

Every fact may be unknown (None). A contract that needs one that is not known says nothing and is listed as not checked:
a check before the data is read is worth something, and a guess in place of a fact is worth less than nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from qlassify.config.run import LongPolicy, ModelConfig, RunConfig
from qlassify.contracts import arithmetic


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the base model.

    Attributes:
        parameters: how many it has.
        decoder: whether it attends causally.
        smallest_side: the smallest min(in, out) over the layers that the method is attached to.
        max_positions: the longest text in tokens, special ones included, that it has positions for.
        model_type: its architecture's name in its configuration.
        linear_bytes: bytes that the weights of linear layers take as numbers, also if the run keeps them in few bits.
        other_bytes: bytes of everything else: embeddings, norms, biases.
        bytes_per_parameter: bytes of one such number: 2 for bf16, 4 for fp32.
    """

    parameters: int | None = None
    decoder: bool | None = None
    smallest_side: int | None = None
    max_positions: int | None = None
    model_type: str | None = None
    linear_bytes: int | None = None
    other_bytes: int | None = None
    bytes_per_parameter: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Tokens of the training texts, special ones included, before anything is cut: percentiles and the longest."""

    p50: int
    p90: int
    p95: int
    p99: int
    longest: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """What was cut off the training texts.

    Attributes:
        max_length: the limit in tokens at which it was counted.
        share: rows that lost a token, over all rows.
        share_by_class: the same within each class.
        end: which end was lost, or the middle.
        long: the policy for longer texts under which it was counted.
        max_windows: windows of one text at most, under which it was counted.
        window_step: tokens by which a window is, or would be, ahead of the one before it; 0 where not known.
    """

    max_length: int
    share: float
    share_by_class: tuple[float, ...] = ()
    end: Literal["tail", "head", "middle"] = "tail"
    long: LongPolicy = "truncate"
    max_windows: int = ModelConfig.model_fields["max_windows"].default
    window_step: int = 0


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of the data.

    Attributes:
        rows: training rows.
        class_counts: training rows of each class, or of each label when multi-label.
        class_names: their names, in the same order.
        token_lengths: of the training texts.
        truncation: what was cut off them.
        duplicates: training rows whose text stands in another training row, too.
        conflicts: training rows whose text stands in another training row with another label.
        leaks: validation rows whose text also stands in the training rows.
        validation_counts: validation rows of each class.
        multi_label: whether a row may have several labels.
        pairs: whether a row is two texts.
    """

    rows: int | None = None
    class_counts: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    token_lengths: TokenLengths | None = None
    truncation: Truncation | None = None
    duplicates: int | None = None
    conflicts: int | None = None
    leaks: int | None = None
    validation_counts: tuple[int, ...] | None = None
    multi_label: bool | None = None
    pairs: bool | None = None

    def name_of(self, index: int) -> str:
        """A class's name, or its number where names are not known."""
        return repr(self.class_names[index]) if self.class_names is not None else f"number {index}"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What is known of the place that computes.

    Attributes:
        kind: cpu or cuda.
        multiplies_bf16: whether its hardware multiplies bf16.
        free_bytes: memory that is free for the job.
    """

    kind: Literal["cpu", "cuda"] | None = None
    multiplies_bf16: bool | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """A run, and what is known of what it will meet."""

    run: RunConfig
    model: ModelFacts = ModelFacts()
    data: DataFacts = DataFacts()
    device: DeviceFacts = DeviceFacts()

    @classmethod
    def of(cls, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Self:
        """From dotted settings and dotted facts (``model.parameters``), as examples have them.

        Raises:
            ConfigError: a setting is wrong.
            KeyError, TypeError: there is no such fact.
        """
        groups: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "device": {}}
        for name, value in facts.items():
            group, _, fact = name.partition(".")
            groups[group][fact] = value
        return cls(
            RunConfig.parse(nested(settings)),
            ModelFacts(**groups["model"]),
            DataFacts(**groups["data"]),
            DeviceFacts(**groups["device"]),
        )

    def missing(self, needs: Iterable[str]) -> tuple[str, ...]:
        """Those of the dotted facts that are not known."""
        return tuple(name for name in needs if self._fact(name) in (None, ()))

    def _fact(self, name: str) -> Any:
        group, _, fact = name.partition(".")
        return getattr(getattr(self, group), fact)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step."""
        return self.run.training.batch_size * self.run.training.accumulation_steps

    @property
    def steps(self) -> int:
        """Optimiser steps if training does not stop early; the number of rows has to be known."""
        assert self.data.rows is not None
        return arithmetic.optimiser_steps(self.data.rows, self.rows_per_step, self.run.training.epochs)

    @property
    def imbalance(self) -> float:
        """Rows of the most frequent class over those of the rarest; class counts have to be known."""
        counts = self.data.class_counts
        assert counts
        return max(counts) / max(1, min(counts))

    def with_remedy(self, remedy: Mapping[str, Any]) -> Situation:
        """The situation with other settings; the facts stay.

        Raises:
            ConfigError: the settings do not go together.
        """
        run = self.run.model_dump()
        for name, value in remedy.items():
            section, _, option = name.partition(".")
            if option:
                run[section] = {**(run[section] or {}), option: value}
            else:
                run[section] = value
        return Situation(RunConfig.parse(run), self.model, self.data, self.device)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"training.epochs": 5}`` as ``{"training": {"epochs": 5}}``."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, option = name.partition(".")
        if option:
            result.setdefault(section, {})[option] = value
        else:
            result[section] = value
    return result
