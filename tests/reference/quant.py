"""Low-bit formats number by number: slow, and plainly what the format says. Also the weights that the tests draw.

Two kinds of twin. ``quantize_each`` and ``dequantize_each`` repeat the format's single fp32 operations one by one with
numpy's fp32 scalars, so results can be demanded bit for bit. ``nearest``, ``round_to_bf16`` and the level functions
work in float64 and know nothing of the order of operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

Floats = npt.NDArray[np.float32]

FP32_EPSILON = 2.0**-24
"""Largest relative error of one fp32 operation whose result is not subnormal."""
FP32_SMALLEST = 2.0**-149
"""Distance of neighbouring subnormal fp32 numbers."""
SMALLEST_ABSMAX = 1e-38
"""What a group's absmax is divided as when it is smaller."""

BITS = {"nf4": 4, "fp4": 4, "int4": 4, "int8": 8}


# Levels


def fp4_level(code: int) -> float:
    """A float of one sign, two exponent bits (their order falls) and one mantissa bit; 12 is scaled to 1."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = mantissa * 2.0**-4 if exponent == 0 else 2.0 ** (4 - exponent) * (1 + mantissa / 2)
    return (-magnitude if code & 8 else magnitude) / 12


def dynamic_tree_levels() -> list[float]:
    """256 levels: both signs of the centres of 1, 2, 4 ... 64 equal parts of (0.1, 1] times 1e-6 ... 1; 0; 1."""
    levels = [0.0, 1.0]
    for power in range(-6, 1):
        parts = 2 ** (power + 6)
        for part in range(parts):
            centre = 10.0**power * (0.1 + 0.9 * (part + 0.5) / parts)
            levels += [centre, -centre]
    return sorted(levels)


def nearest(levels: Sequence[float], x: float) -> tuple[int, float]:
    """Index of the level nearest to ``x``, and how much nearer it is than the next best: 0 at a tie."""
    by_distance = sorted((abs(x - level), index) for index, level in enumerate(levels))
    return by_distance[0][1], by_distance[1][0] - by_distance[0][0]


# The format, one number at a time


@dataclass(frozen=True)
class Groups:
    """What a weight becomes: one code per number, scales and, with zero points, offsets."""

    codes: list[int]
    scales: Floats
    offsets: Floats | None

    def packed(self, bits: int) -> list[int]:
        """The bytes: of two 4-bit codes the first lies in the high half; after an odd count the low half is zero."""
        if bits == 8:
            return self.codes
        padded = [*self.codes, 0]
        return [16 * padded[i] + padded[i + 1] for i in range(0, len(self.codes), 2)]


def quantize_each(weight: Floats, kind: str, group_size: int, levels: Floats | None, *, zero_point: bool) -> Groups:
    """Codes, scales and offsets; ``levels`` by code for nf4 and fp4, None for int4 and int8."""
    codes: list[int] = []
    scales: list[np.float32] = []
    offsets: list[np.float32] = []
    with np.errstate(all="ignore"):
        for start in range(0, len(weight), group_size):
            group = weight[start : start + group_size]
            if levels is not None:
                found, scale = _book_group(group, levels, full=len(group) == group_size)
            elif zero_point:
                found, scale, offset = _affine_group(group, 2 ** BITS[kind] - 1)
                offsets.append(offset)
            else:
                found, scale = _symmetric_group(group, 2 ** (BITS[kind] - 1) - 1)
            codes += found
            scales.append(scale)
    return Groups(codes, np.array(scales, np.float32), np.array(offsets, np.float32) if zero_point else None)


def _book_group(group: Floats, levels: Floats, *, full: bool) -> tuple[list[int], np.float32]:
    absmax = np.float32(max(abs(float(w)) for w in group))
    divisor = max(absmax, np.float32(SMALLEST_ABSMAX))
    ascending = sorted(range(16), key=lambda code: levels[code])
    codes = []
    for w in group:
        x = w * (np.float32(1) / divisor) if full else w / divisor
        code = ascending[0]
        for lower, upper in itertools.pairwise(ascending):
            if x > (levels[lower] + levels[upper]) / np.float32(2):
                code = upper
        codes.append(code)
    return codes, absmax


def _symmetric_group(group: Floats, steps: int) -> tuple[list[int], np.float32]:
    scale = np.float32(max(abs(float(w)) for w in group)) / np.float32(steps)
    if scale == 0:
        return [steps + 1] * len(group), scale
    # Python rounds halves to even, too.
    return [min(max(round(float(w / scale)), -steps), steps) + steps + 1 for w in group], scale


def _affine_group(group: Floats, steps: int) -> tuple[list[int], np.float32, np.float32]:
    # A zero is a positive one.
    low, high = min(float(w) for w in group) + 0.0, max(float(w) for w in group) + 0.0
    scale = np.float32((high - low) / steps)
    if scale == 0:
        return [0] * len(group), scale, np.float32(low)
    codes = [min(max(round((float(w) - low) / float(scale)), 0), steps) for w in group]
    return codes, scale, np.float32(low)


def dequantize_each(groups: Groups, kind: str, group_size: int, levels: Floats | None) -> Floats:
    """Codes back to fp32: a product, then a sum."""
    values = []
    with np.errstate(all="ignore"):
        for index, code in enumerate(groups.codes):
            group = index // group_size
            if levels is not None:
                level = levels[code]
            else:
                level = np.float32(code - (0 if groups.offsets is not None else 2 ** (BITS[kind] - 1)))
            value = level * groups.scales[group]
            values.append(value if groups.offsets is None else value + groups.offsets[group])
    return np.array(values, np.float32)


def round_to_bf16(x: float) -> float:
    """The nearest number with eight significant bits, ties to the even one; fp32's range of exponents."""
    if x == 0 or math.isinf(x):
        return x
    quantum = 2.0 ** (max(math.frexp(x)[1], -125) - 8)
    rounded = round(x / quantum) * quantum
    return math.copysign(math.inf if abs(rounded) >= 2.0**128 else rounded, x)


# Comparing


def bits_of(tensor: Tensor) -> Tensor:
    """A tensor's numbers as integers, so that -0 differs from 0 and NaN equals itself."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether type, shape and every bit are the same."""
    return first.dtype == second.dtype and torch.equal(bits_of(first), bits_of(second))


# Drawing

TAILS = ("normal", "heavy", "uneven", "positive", "sparse", "constant", "steps")


@dataclass(frozen=True)
class Drawn:
    """A weight that is made up when asked for; its fields say all about it when a test fails."""

    count: int
    group_size: int
    exponent: int
    tail: str
    dtype: torch.dtype
    seed: int

    def weight(self) -> Tensor:
        """(count,) of ``dtype``, all finite; magnitudes around 10**exponent."""
        rng = np.random.default_rng(self.seed)
        normal = rng.standard_normal(self.count)
        values = {
            "normal": normal,
            # Ratios up to a million within a group.
            "heavy": normal / rng.uniform(1e-6, 1, self.count),
            # Neighbouring groups whose magnitudes differ by as much.
            "uneven": normal * 10.0 ** rng.uniform(-6, 6, self.count // self.group_size + 1)[self._groups()],
            "positive": rng.uniform(0.5, 1.5, self.count),
            "sparse": normal * (rng.uniform(0, 1, self.count) < 0.05),
            "constant": np.full(self.count, normal[0]),
            # Many numbers in the middle between two whole steps.
            "steps": rng.integers(-14, 15, self.count) / 14,
        }[self.tail]
        limit = 6e4 if self.dtype == torch.float16 else 3e38
        return torch.from_numpy(np.clip(values * 10.0**self.exponent, -limit, limit)).to(self.dtype)

    def _groups(self) -> npt.NDArray[np.int64]:
        return np.arange(self.count) // self.group_size


@st.composite
def drawn_weights(draw: st.DrawFn, *, max_count: int = 6000, max_group_size: int = 5000) -> Drawn:
    """Weights of every type, with groups that fit and groups that do not."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    sizes = st.one_of(
        st.sampled_from([size for size in (16, 32, 64, 96, 128, 1024) if size <= max_group_size]),
        st.integers(1, 40),
        st.integers(1, max_group_size),
    )
    return Drawn(
        count=draw(st.one_of(st.integers(1, 200), st.integers(1, max_count))),
        group_size=draw(sizes),
        exponent=draw(st.integers(-4, 3) if dtype == torch.float16 else st.integers(-30, 30)),
        tail=draw(st.sampled_from(TAILS)),
        dtype=dtype,
        seed=draw(st.integers(0, 2**31)),
    )
