"""Weights to codes and back: one set of functions, three implementations, bitwise equal results.

What the functions compute (n weights, groups of size g, all arrays flat):

    quantize_book       w -> code of the nearest level of w / absmax             nf4, fp4
    quantize_integer    w -> round(w / scale), or round((w - offset) / scale)    int4, int8
    quantize_scales     scales in [-1, 1] -> code of the nearest dynamic level
    expand_scales       8-bit scale codes -> fp32 scales
    dequantize4, dequantize4_double, dequantize8
                        code -> level[code] * scale + offset, rounded once to the output's type

Two 4-bit codes share a byte, the first in the high half. Every product, quotient and sum is a single fp32 operation in
a fixed order (float64 where a difference could overflow), with none fused, so that equal results can be demanded and
not only hoped for: an adapter that was trained against one machine's rounding of the base weights must meet the same
base weights elsewhere.

``reference`` is plain torch and runs anywhere. ``cpu`` is numba. ``cuda`` is Triton, for going back to numbers; going
to codes happens once per model and the reference does it there. ``kernels_for`` chooses.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Protocol

import torch
from torch import Tensor

from qlassify.quant.codebook import CodeBook
from qlassify.quant.kernels import reference


class Kernels(Protocol):
    """The functions that every implementation has. Results go into tensors that the caller made."""

    def quantize_book(self, weight_N: Tensor, group_size: int, book: CodeBook, codes: Tensor, absmax_G: Tensor) -> None:
        """fp32 (N,) -> packed uint8 codes (ceil(N/2),) and each group's largest magnitude, fp32 (G,).

        A group that holds NaN or infinity gets a non-finite absmax; its codes then mean nothing.
        """

    def quantize_integer(
        self, weight_N: Tensor, group_size: int, bits: int, codes: Tensor, scales_G: Tensor, offsets_G: Tensor | None
    ) -> None:
        """fp32 (N,) -> uint8 codes (packed for 4 bits), fp32 scales and, unless None, offsets, (G,) each.

        A group that holds NaN or infinity gets a non-finite scale; its codes then mean nothing.
        """

    def quantize_scales(self, values_G: Tensor, codes_G: Tensor) -> None:
        """fp32 numbers in [-1, 1] (G,) -> uint8 index of the nearest dynamic level (G,)."""

    def expand_scales(self, codes_G: Tensor, maxima_S: Tensor, mean: Tensor, out_G: Tensor) -> None:
        """8-bit scale codes (G,), fp32 maxima of 256 scales each (S,), fp32 mean () -> fp32 scales (G,)."""

    def dequantize4(
        self, codes: Tensor, levels: Tensor, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
    ) -> None:
        """Packed codes (ceil(N/2),), fp32 levels (16,) -> fp32 or bf16 (N,)."""

    def dequantize4_double(
        self,
        codes: Tensor,
        levels: Tensor,
        scale_codes_G: Tensor,
        maxima_S: Tensor,
        mean: Tensor,
        group_size: int,
        out_N: Tensor,
    ) -> None:
        """``dequantize4`` with scales in their 8-bit form."""

    def dequantize8(
        self, codes_N: Tensor, zero: int, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
    ) -> None:
        """Codes (N,), of which ``zero`` stands for no step -> fp32 or bf16 (N,)."""


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation for tensors on ``device``."""
    if device.type == "cpu":
        return _cpu()
    if device.type == "cuda":
        return _cuda()
    return reference


@functools.cache
def _cpu() -> Kernels:
    """numba's, or the reference with one warning where numba cannot be used."""
    try:
        module: Kernels = importlib.import_module("qlassify.quant.kernels.cpu")
    except ImportError as error:
        warnings.warn(
            f"low-bit weights are computed by plain torch, several times slower, because numba cannot be used: {error}",
            stacklevel=2,
        )
        return reference
    return module


@functools.cache
def _cuda() -> Kernels:
    """Triton's, or the reference with one warning where Triton is missing."""
    try:
        module: Kernels = importlib.import_module("qlassify.quant.kernels.cuda")
    except ImportError as error:
        warnings.warn(
            f"low-bit weights are computed by plain torch, several times slower, because Triton cannot be used: "
            f"{error}",
            stacklevel=2,
        )
        return reference
    return module
