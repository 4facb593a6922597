"""Dropout without masks: what is kept follows from an element's place and one 64-bit key per call.

What decides is a hash of the place and the key (``kernels.counter_hash``). The key is drawn from the attachment's
generator, so a resumed run continues the same stream, and forward and backward find the same elements again from 8
bytes. On the CPU compiled loops do it in one pass over memory (``kernels.drop``); elsewhere torch computes the same
hash, so a run's masks do not depend on the device. Storing a mask costs as much memory as what it is for, and torch's
generator, one number after the other on one thread, took a sixth of a small model's training step.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Self

import torch
from torch import Tensor

from qlassify.kernels.counter_hash import FIRST, SECOND, SHIFTS


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which elements of one call's input are zero.

    Attributes:
        key: 64 bits, drawn for the call.
        threshold: 2^32 times the probability of a zero, rounded; below 2^32, so that something may be kept.
    """

    key: int
    threshold: int

    @classmethod
    def draw(cls, probability: float, generator: torch.Generator) -> Self:
        """The next key of a stream.

        Args:
            probability: of a zero, below 1.
            generator: on the CPU.
        """
        key = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator))
        return cls(key & 0xFFFFFFFFFFFFFFFF, min(round(probability * 2**32), 2**32 - 1))

    @property
    def scale(self) -> float:
        """The factor 1 / P(kept) that leaves expected sums as they are."""
        return 1 / (1 - self.threshold / 2**32)

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``x`` with zeros in place of what is dropped, not scaled; into ``out``, which may be ``x``, where given."""
        kernels = _kernels()
        if kernels is not None and kernels.suits(x) and (out is None or _alike(out, x)):
            out = torch.empty_like(x) if out is None else out
            kernels.keep(x, out, self.key, self.threshold)
            return out
        return torch.where(self.kept(x), x, x.new_zeros(()), out=out)

    def add_to(self, target: Tensor, x: Tensor) -> Tensor:
        """``target`` + ``apply(x)``, in place of ``target``; ``x`` may be overwritten."""
        kernels = _kernels()
        if kernels is not None and x.dtype == torch.float32 and kernels.suits(x) and _alike(target, x):
            kernels.add(x, target, self.key, self.threshold)
            return target
        return target.add_(self.apply(x, out=x))

    def kept(self, like: Tensor) -> Tensor:
        """Flags of the shape of ``like``: the hash of each place reaches the threshold. In plain torch, int32."""
        value = torch.arange(like.numel(), dtype=torch.int32, device=like.device).view(like.shape)
        value = value.add_(_signed(self.key))
        value = _shifted(value, SHIFTS[0]).mul_(_signed(FIRST))
        value = _shifted(value, SHIFTS[1]).add_(_signed(self.key >> 32)).mul_(_signed(SECOND))
        # Unsigned order is signed order after the top bit has been turned round.
        return _shifted(value, SHIFTS[2]).bitwise_xor_(-(2**31)) >= self.threshold - 2**31


def _alike(target: Tensor, x: Tensor) -> bool:
    """Whether a kernel that reads contiguous ``x`` may write to ``target`` element by element."""
    return target.shape == x.shape and target.dtype == x.dtype and target.is_contiguous()


def _shifted(value: Tensor, bits: int) -> Tensor:
    """value ^ (value >> bits), without the sign's copies; in place."""
    return value.bitwise_xor_((value >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _signed(bits: int) -> int:
    """The low 32 bits as a signed number."""
    return ((bits & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


@functools.cache
def _kernels() -> ModuleType | None:
    """The compiled loops, or None with one warning where numba cannot be used."""
    try:
        return importlib.import_module("qlassify.kernels.drop")
    except ImportError as error:
        warnings.warn(
            f"dropout is computed by plain torch, several times slower, because numba cannot be used: {error}",
            stacklevel=2,
        )
        return None
