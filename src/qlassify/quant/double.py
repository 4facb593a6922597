"""Double quantisation: the scales of a weight's groups, stored in 8 bits themselves.

    scale[g] = level[code[g]] * maximum[g // 256] + mean

The mean of all scales is taken off first, because scales are positive and nearly equal and the book is symmetric
(Dettmers et al. 2023, arXiv:2305.14314, section 3, "Double Quantization"). The levels are the dynamic tree type. A
code is the nearest level; the widest gap between levels is 0.01406, so a scale is off by at most 0.00703 times the
largest deviation from the mean among its 256 neighbours.

The mean is summed in float64, so that it does not depend on the number of threads that add.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlassify.config.quant import SCALES_PER_SUPER_GROUP
from qlassify.quant.kernels import kernels_for

SMALLEST = 1e-38
"""Deviations are divided by at least this."""


@dataclass(frozen=True, slots=True, eq=False)
class DoubleScales:
    """Scales in 8 bits.

    Attributes:
        codes: (G,) uint8.
        maxima: (ceil(G / 256),) fp32, the largest deviation from the mean in each super-group.
        mean: () fp32.
    """

    codes: Tensor
    maxima: Tensor
    mean: Tensor

    def expand(self, out_G: Tensor) -> Tensor:
        """The scales in fp32, written into ``out_G``."""
        kernels_for(self.codes.device).expand_scales(self.codes, self.maxima, self.mean, out_G)
        return out_G


def quantize_scales(scales_G: Tensor) -> DoubleScales:
    """Quantise fp32 scales (G,)."""
    count = len(scales_G)
    mean = scales_G.double().mean().float()
    deviations = scales_G - mean
    padded = torch.nn.functional.pad(deviations.abs(), (0, -count % SCALES_PER_SUPER_GROUP))
    maxima = padded.view(-1, SCALES_PER_SUPER_GROUP).amax(dim=1)
    spread = maxima.clamp(min=SMALLEST).repeat_interleave(SCALES_PER_SUPER_GROUP)[:count]
    codes = torch.empty(count, dtype=torch.uint8, device=scales_G.device)
    kernels_for(scales_G.device).quantize_scales(deviations / spread, codes)
    return DoubleScales(codes, maxima, mean)
