"""What is read of a text that is longer than the limit: its beginning, both ends, or all of it in windows.

* ``truncate``: the first tokens;
* ``head_tail``: the first ``max_length // 4`` tokens and the last ones (Sun et al. 2019, arXiv:1905.05583, section
  5.3.1, "head+tail": at a limit of 512 their 128 and 382 of 510);
* ``windows``: several sequences of at most ``max_length`` tokens, each with the tokeniser's special tokens, each
  beginning ``window_overlap`` tokens before the one before it ends. The last one is moved back until it is full: the
  mean over windows would otherwise give a leftover of a few tokens the weight of a whole window. ``max_windows`` bounds
  what one text may cost; what lies behind the last window is not read, and counted.

A text that fits is the same sequence under each of them. The alternative to windows that are averaged, one vector per
window with a recurrent net or attention on top (Pappagari et al. 2019, arXiv:1910.10781), trains a second model and
loads in no other library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from qlassify.config.run import LongPolicy, ModelConfig
from qlassify.errors import ConfigError

POLICIES: tuple[LongPolicy, ...] = get_args(LongPolicy)
SHARE = 4
"""Both the head of ``head_tail`` and the overlap of ``windows`` are ``max_length // SHARE`` tokens."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LongTexts:
    """The settings for texts that are longer than the limit.

    Attributes:
        policy: what is read of them.
        window_overlap: tokens that a window shares with the one before it; a quarter of the limit when None.
        max_windows: windows of one text at most.

    Raises:
        ConfigError: no such policy, or a number that is out of range.
    """

    policy: LongPolicy = "truncate"
    window_overlap: int | None = None
    max_windows: int = ModelConfig.model_fields["max_windows"].default

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError("no such policy", where="model.long", got=self.policy, wanted=", ".join(POLICIES))
        if self.window_overlap is not None and self.window_overlap < 0:
            raise ConfigError("a negative overlap", where="model.window_overlap", got=self.window_overlap)
        if self.max_windows < 1:
            raise ConfigError("too few windows", where="model.max_windows", got=self.max_windows, wanted="at least 1")

    @classmethod
    def of(cls, model: ModelConfig) -> LongTexts:
        """What the section ``model`` says."""
        return cls(model.long, model.window_overlap, model.max_windows)

    def settled(self, max_length: int, special_tokens: int) -> LongTexts:
        """The same for a limit, with the overlap in its place where windows have one.

        Args:
            max_length: the limit in tokens, special ones included.
            special_tokens: of each sequence.

        Raises:
            ConfigError: nothing but special tokens fits, or windows would overlap entirely.
        """
        if self.policy == "truncate":
            return self
        room = max_length - special_tokens
        if room < 1:
            raise ConfigError(
                "the special tokens leave no room for text",
                where="model.max_length",
                got=max_length,
                wanted=f"more than {special_tokens}",
            )
        if self.policy == "head_tail":
            return self
        overlap = _quarter(max_length, room) if self.window_overlap is None else self.window_overlap
        if overlap >= room:
            raise ConfigError(
                "the overlap leaves a window nothing of its own",
                where="model.window_overlap",
                got=overlap,
                wanted=f"less than the {room} tokens of text in a window",
                do="Lower it, or raise model.max_length.",
            )
        return LongTexts(self.policy, overlap, self.max_windows)

    def require_single(self, *, pair: bool) -> None:
        """Refuse text pairs where the policy has no meaning for them.

        Raises:
            ConfigError: it has none.
        """
        if pair and self.policy != "truncate":
            raise ConfigError(
                "only single texts can be read so",
                where="model.long",
                got=f"{self.policy} with text pairs",
                wanted="truncate",
                do="A part of one text is no counterpart for a part of the other. Keep model.long=truncate, which cuts "
                "the longer of the two first, and raise model.max_length as far as the model has positions.",
            )

    def sequences(self, length: int, max_length: int, special_tokens: int) -> list[tuple[Range, ...]]:
        """Which tokens of a text are read, sequence by sequence: ranges (first, one behind the last) of its tokens.

        Args:
            length: tokens of the text, special ones left out.
            max_length: the limit.
            special_tokens: of each sequence; they count towards the limit.
        """
        room = max_length - special_tokens
        if length <= room:
            return [((0, length),)]
        if self.policy == "truncate":
            return [((0, room),)]
        if self.policy == "head_tail":
            head = _quarter(max_length, room)
            return [((0, head), (length - (room - head), length))]
        step = self._step(max_length, room)
        count = min(_num_windows(length, room, step), self.max_windows)
        return [((start, start + room),) for start in (min(i * step, length - room) for i in range(count))]

    def unread(self, lengths: Sequence[int] | npt.NDArray[np.int64], max_length: int, special_tokens: int) -> int:
        """Tokens of texts that are not read, in all.

        Args:
            lengths: (N,) tokens of each text, special ones included, before anything is cut.
            max_length: the limit.
            special_tokens: of each sequence.
        """
        over = np.maximum(np.asarray(lengths, dtype=np.int64) - max_length, 0)
        if self.policy == "windows":
            room = max_length - special_tokens
            over = np.maximum(over - (self.max_windows - 1) * self._step(max_length, room), 0)
        return int(over.sum())

    def step(self, max_length: int, special_tokens: int) -> int:
        """Tokens by which a window is ahead of the one before it."""
        return self._step(max_length, max_length - special_tokens)

    def _step(self, max_length: int, room: int) -> int:
        overlap = _quarter(max_length, room) if self.window_overlap is None else self.window_overlap
        return max(1, room - overlap)  # less than 1 only where it is asked what windows would read


def _quarter(max_length: int, room: int) -> int:
    """A quarter of the limit, as long as a token is left beside it."""
    return min(max_length // SHARE, room - 1)


def _num_windows(length: int, room: int, step: int) -> int:
    return 1 + -(-(length - room) // step)
