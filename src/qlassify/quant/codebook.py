"""Code books: which numbers the codes of a low-bit format stand for, in units of the group's scale.

NF4's levels are quantiles of a standard normal distribution, because pretrained weights are nearly normal and a code
is used best when all levels are used equally often (Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E).
Take eight evenly spaced probabilities from 0.9677083 down to 1/2 (the last one left out) for the positive half, seven
for the negative half, add zero, and divide by the largest quantile:

    q = 0.9677083 = (1 - 1/(2*15) + 1 - 1/(2*16)) / 2,   levels = {Phi^-1(linspace(q, 1/2, 9)[:8]) , 0,
                                                                    -Phi^-1(linspace(q, 1/2, 8)[:7])} / Phi^-1(q)

Zero is a level, so a pruned weight stays zero. The values stand here as the fp32 numbers that everybody's NF4 has, and
a test derives them again. FP4 is a float with one sign bit, two exponent bits, one mantissa bit, and its largest value
12 scaled to 1. The 8-bit book for the scales themselves is the dynamic tree type (Dettmers 2015, arXiv:1511.04561;
Dettmers et al. 2021, arXiv:2110.02861): ever fewer fraction bits at ever smaller powers of ten.

INT4 and INT8 have no book: their levels are whole numbers (see ``kernels``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NF4's sixteen levels in the order of their codes."""
FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""FP4's magnitudes before scaling, by the low three bits of the code; the high bit is the sign."""


@dataclass(frozen=True, eq=False)
class CodeBook:
    """Sixteen levels and the way from a number to the nearest one.

    Attributes:
        levels: (16,) fp32, by code; the largest magnitude is 1.
        midpoints: (15,) fp32 between neighbouring levels in ascending order. A number on a midpoint goes down.
        order: (16,) uint8, the code of each level in ascending order.
    """

    levels: npt.NDArray[np.float32]
    midpoints: npt.NDArray[np.float32]
    order: npt.NDArray[np.uint8]

    @property
    def widest_gap(self) -> float:
        """Largest distance between neighbouring levels; half of it bounds the error of a number within [-1, 1]."""
        return float(np.diff(self.levels[self.order].astype(np.float64)).max())


@cache
def code_book(kind: str) -> CodeBook:
    """The code book of ``nf4`` or ``fp4``."""
    if kind == "nf4":
        levels = np.array(NF4_LEVELS, np.float32)
    else:
        magnitudes = np.array(FP4_MAGNITUDES, np.float32) / np.float32(12)
        levels = np.concatenate([magnitudes, -magnitudes])
    order = np.argsort(levels, kind="stable")
    ascending = levels[order]
    midpoints = (ascending[:-1] + ascending[1:]) / np.float32(2)
    for array in (levels, midpoints):
        array.flags.writeable = False
    return CodeBook(levels, midpoints, order.astype(np.uint8))


@cache
def dynamic_levels() -> npt.NDArray[np.float32]:
    """(256,) fp32 ascending levels in (-1, 1] of the 8-bit dynamic tree type.

    For each power of ten from 1e-6 to 1 the interval (0.1, 1] is cut into 1, 2, 4 ... 64 equal parts, whose centres
    are the levels; both signs, zero, and 1.
    """
    positive: list[npt.NDArray[np.float32]] = []
    for exponent in range(7):
        edges = _tenth_to_one(2**exponent)
        centres = (edges[:-1] + edges[1:]) / np.float32(2)
        positive.append(centres * np.float32(10.0 ** (exponent - 6)))
    half = np.concatenate(positive)
    levels = np.sort(np.concatenate([-half, half, np.array([0, 1], np.float32)]))
    levels.flags.writeable = False
    return levels


@cache
def dynamic_midpoints() -> npt.NDArray[np.float32]:
    """(255,) fp32 between neighbouring dynamic levels."""
    levels = dynamic_levels()
    midpoints = (levels[:-1] + levels[1:]) / np.float32(2)
    midpoints.flags.writeable = False
    return midpoints


def _tenth_to_one(parts: int) -> npt.NDArray[np.float32]:
    """(parts + 1,) edges from 0.1 to 1, counted from the nearer end and rounded to fp32 once each.

    This is how torch's ``linspace`` rounds, and with it everybody else's table of this type; numpy's differs from it
    in the last bit here and there.
    """
    start, index = np.float32(0.1), np.arange(parts + 1)
    step = np.float64((np.float32(1) - start) / np.float32(parts))
    edges = np.where(index < (parts + 1) // 2, np.float64(start) + step * index, 1 - step * (parts - index))
    return edges.astype(np.float32)
