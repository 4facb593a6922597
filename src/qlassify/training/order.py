"""Which rows make up which optimiser step: a function of the seed and the step's number alone.

An epoch visits the rows in a permutation of its own, or draws as many with the classes equally often (``sampling``); a
step takes the next few of them, and the last step of an epoch what remains. Because every step is known beforehand, so
is the one that takes most memory, and one that takes an ordinary amount of time: plans and rehearsals ask here instead
of guessing from averages.

The order of the latest epoch is kept, eight bytes a row: a step is asked for by its number, and drawing two million
rows anew for thirty-two of them would take longer than many a step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.config.run import TrainingConfig
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import ConfigError
from qlassify.seeding import numpy_generator
from qlassify.training.sampling import BalancedDraws

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepOrder:
    """The steps of a run.

    Attributes:
        num_rows: training rows.
        rows_per_step: of an optimiser step.
        epochs: passes over the rows.
        seed: the run's.
        balanced: draws the classes equally often; None to visit every row once an epoch.
    """

    num_rows: int
    rows_per_step: int
    epochs: int
    seed: int
    balanced: BalancedDraws | None = None

    @classmethod
    def of(cls, num_rows: int, config: TrainingConfig, seed: int, targets: npt.NDArray[Any] | None = None) -> StepOrder:
        """The steps that the settings make of ``num_rows`` rows.

        Args:
            num_rows: training rows.
            config: batch size, epochs and sampling.
            seed: the run's.
            targets: (N,) classes of the rows, which balanced sampling needs.

        Raises:
            ConfigError: sampling is balanced and the rows have no classes, or several labels each.
        """
        balanced = None
        if config.sampling == "balanced":
            if targets is None:
                raise ConfigError("balanced sampling needs the class of each row", where="training.sampling")
            require_single_label(config, multi_label=targets.ndim == 2)
            balanced = BalancedDraws.of(targets, seed)
        return cls(num_rows, config.batch_size * config.accumulation_steps, config.epochs, seed, balanced)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass, or of as many draws; the last may be smaller."""
        return max(1, math.ceil(self.num_rows / self.rows_per_step))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all passes."""
        return self.epochs * self.steps_per_epoch

    def rows_of_step(self, step: int) -> IntArray:
        """The rows of optimiser step ``step`` (0 is the first)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._rows_of_epoch(epoch)[within * self.rows_per_step : (within + 1) * self.rows_per_step]

    def tokens_of_steps(self, lengths: IntArray) -> IntArray:
        """(total_steps,) tokens of each step, from the (num_rows,) tokens of each row."""
        starts = np.arange(0, self.num_rows, self.rows_per_step)
        passes = [np.add.reduceat(lengths[self._rows_of_epoch(epoch)], starts) for epoch in range(self.epochs)]
        return np.concatenate(passes)

    def heaviest_batches(self, encoded: Encoded, token_budget: int) -> tuple[PackedBatch, ...]:
        """The micro-batches that take most memory: the one with most tokens, and the one with the longest text.

        They are the same, and there is one, in most runs. What attention takes grows with the longest text, everything
        else with the tokens; which of the two is more depends on the model.
        """
        if not self.num_rows:
            return ()
        lengths = encoded.lengths.astype(np.int64)
        most_tokens = self.rows_of_step(int(np.argmax(self.tokens_of_steps(lengths))))
        longest = self.rows_of_step(self._step_of_longest(lengths))
        largest = max(micro_batches(encoded, most_tokens, token_budget), key=lambda batch: batch.num_tokens)
        first = next(micro_batches(encoded, longest, token_budget))  # longest first
        if first.num_tokens > largest.num_tokens:  # a text beyond the budget, alone or in windows
            largest, first = first, largest
        return (largest,) if int(largest.lengths.max()) >= int(first.lengths.max()) else (largest, first)

    def typical_step(self, lengths: IntArray) -> int:
        """A step with as many tokens as the mean step, or as near as there is one."""
        tokens = self.tokens_of_steps(lengths)
        return int(np.argmin(np.abs(tokens - tokens.mean())))

    def _step_of_longest(self, lengths: IntArray) -> int:
        """The first step with the longest text that is read; draws may leave rows out of an epoch, or of the run."""
        best, found = -1, 0
        for epoch in range(self.epochs if self.balanced is not None else 1):
            rows = self._rows_of_epoch(epoch)
            longest = int(lengths[rows].max())
            if longest > best:
                row = int(rows[lengths[rows] == longest].min())
                place = int(np.flatnonzero(rows == row)[0])
                best, found = longest, epoch * self.steps_per_epoch + place // self.rows_per_step
        return found

    def _rows_of_epoch(self, epoch: int) -> IntArray:
        return _rows_of_epoch(self, epoch)


@functools.lru_cache(maxsize=1)
def _rows_of_epoch(order: StepOrder, epoch: int) -> IntArray:
    """The rows of an epoch; read-only, because every step of it is a view of the same array."""
    if order.balanced is not None:
        rows = order.balanced.rows_of_epoch(epoch)
    else:
        rows = numpy_generator(order.seed, "shuffle", epoch).permutation(order.num_rows)
    rows.flags.writeable = False
    return rows


def require_single_label(config: TrainingConfig, *, multi_label: bool) -> None:
    """Refuse balanced sampling of rows with several labels.

    A row with a rare label has frequent ones too, so drawing it more often draws those more often: no choice of rows
    makes all labels equally frequent.

    Raises:
        ConfigError: says what to do instead.
    """
    if multi_label and config.sampling == "balanced":
        raise ConfigError(
            "rows with several labels cannot be drawn so that every label is equally frequent",
            where="training.sampling",
            got="balanced",
            wanted="shuffled",
            do="Weight the labels instead: training.class_weights=sqrt_inverse.",
        )
