"""The kernels for the GPU: Triton, compiled on first use, each of them one pass over the codes.

Going back to numbers moves bytes and computes next to nothing, so what counts is that every byte moves once and in wide
pieces. A program takes a block of packed codes, loads them as words, looks up two levels per byte and stores the two
numbers side by side; no thread needs what another one has. The sixteen levels are gathered from global memory: they
lie in one cache line, and a load there is cheaper than fifteen selects. Both numbers of a byte are in one group
whenever the group size is even, and then the scale is looked up once for the two.

Which group a number is in takes a division. It is done in 64 bits once for the block's first number, from where 32
bits do for the rest, and by a constant: the group size is compiled in, for few of them ever meet in one process.

Bitwise equality with ``reference`` rests on two things. Product and sum must be rounded one by one, so Triton is told
not to fuse them into a multiply-add, which rounds once. And bf16 must be rounded to nearest, ties to even. The
hardware's conversion does that (and Triton spells it out for GPUs without one), but Triton's interpreter, in which the
kernels are tested where there is no GPU, cuts the low bits off; there the rounding is done on the bits instead.

The alternatives: CUDA C++ needs nvcc on every user's machine, or a wheel for each version of CUDA and torch; torch's
own operations (the reference) write and read every intermediate result, many times the bytes. Going to codes happens
once per model and stays with the reference. Without Triton, importing this module raises ``ImportError``.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlassify.config.quant import SCALES_PER_SUPER_GROUP
from qlassify.quant.codebook import dynamic_levels
from qlassify.quant.kernels import reference

quantize_book = reference.quantize_book
quantize_integer = reference.quantize_integer
quantize_scales = reference.quantize_scales

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether Triton's interpreter runs these kernels; settled when they are decorated, that is, on import."""
TUNED_FROM = 1 << 20
"""Fewest bytes of codes for which block sizes are timed. Below, a launch takes longer than the work."""
BLOCK = 512
"""Codes or bytes of a program that is not tuned: with four warps a thread writes 16 bytes of bf16 at once."""

_SUPER_GROUP = tl.constexpr(SCALES_PER_SUPER_GROUP)
_INDEX_LIMIT = tl.constexpr(1 << 30)


# Triton. A program handles one block; positions within it are counted from the block's first number.


@triton.jit  # type: ignore[untyped-decorator]
def _round_to(values, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 to the output's type, to nearest, ties to even."""
    if dtype == tl.bfloat16 and INTERPRETED:
        bits = values.to(tl.uint32, bitcast=True)
        # A carry out of the mantissa belongs in the exponent, where this sum puts it.
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        values = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)


@triton.jit
def _scale(values, scales, offsets, groups, inside):  # type: ignore[no-untyped-def]
    """values * scale + offset, two operations."""
    values = values * tl.load(scales + groups, mask=inside, other=0.0)
    if offsets is not None:
        values = values + tl.load(offsets + groups, mask=inside, other=0.0)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def _locate(first, GROUP_SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(group of number ``first``, its place in that group); the place in 32 bits if a block more still fits them."""
    group = first // GROUP_SIZE
    place = first - group * GROUP_SIZE
    if GROUP_SIZE <= _INDEX_LIMIT:
        place = place.to(tl.int32)
    return group, place


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize4(  # type: ignore[no-untyped-def]
    codes, levels, scales, offsets, out, bytes_of_codes, count, GROUP_SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """``BLOCK`` bytes to twice as many numbers."""
    first_byte = tl.program_id(0).to(tl.int64) * BLOCK
    first = 2 * first_byte
    byte, number = tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK)
    inside = byte < bytes_of_codes - first_byte
    pairs = tl.load(codes + first_byte + byte, mask=inside, other=0).to(tl.int32)
    high, low = tl.load(levels + (pairs >> 4)), tl.load(levels + (pairs & 15))
    group, place = _locate(first, GROUP_SIZE)
    groups = group + (place + 2 * byte) // GROUP_SIZE
    high = _scale(high, scales, offsets, groups, inside)
    if GROUP_SIZE % 2 == 1:
        # After an odd count the low half of the last byte can lie in a group that does not exist.
        groups = group + (place + 2 * byte + 1) // GROUP_SIZE
        inside = 2 * byte + 1 < count - first
    low = _scale(low, scales, offsets, groups, inside)
    dtype: tl.constexpr = out.dtype.element_ty
    # join and reshape are what interleave is made of. That one is a kernel itself and, unlike these, only interpreted
    # if the interpreter was on when Triton was imported.
    values = tl.reshape(tl.join(_round_to(high, dtype), _round_to(low, dtype)), (2 * BLOCK,))
    tl.store(out + first + number, values, mask=number < count - first)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize8(  # type: ignore[no-untyped-def]
    codes, scales, offsets, out, count, ZERO: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """``BLOCK`` codes to as many numbers."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    number = tl.arange(0, BLOCK)
    inside = number < count - first
    steps = tl.load(codes + first + number, mask=inside, other=0).to(tl.int32) - ZERO
    group, place = _locate(first, GROUP_SIZE)
    values = _scale(steps.to(tl.float32), scales, offsets, group + (place + number) // GROUP_SIZE, inside)
    tl.store(out + first + number, _round_to(values, out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _expand_scales(codes, levels, maxima, mean, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``BLOCK`` scale codes to as many scales."""
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = group < count
    values = tl.load(levels + tl.load(codes + group, mask=inside, other=0).to(tl.int32))
    values = values * tl.load(maxima + group // _SUPER_GROUP, mask=inside, other=0.0)
    tl.store(out + group, values + tl.load(mean), mask=inside)


# Launches


def _tuned(kernel: Any, blocks: tuple[int, int, int]) -> Any:
    """``kernel`` with its block size and warps timed once per group size and output type; all give the same results.

    Timing takes a quarter of a gigabyte of the GPU's memory for a moment.
    """
    if INTERPRETED:
        return kernel
    small, middle, large = blocks
    sizes = ((small, 4), (middle, 4), (middle, 8), (large, 4), (large, 8))
    configs = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in sizes]
    return triton.autotune(configs=configs, key=["GROUP_SIZE"])(kernel)


# With these a thread writes 4 to 16 numbers; 4 of fp32 and 8 of bf16 are the widest store that there is.
_tuned_dequantize4 = _tuned(_dequantize4, (256, 512, 1024))
_tuned_dequantize8 = _tuned(_dequantize8, (512, 1024, 2048))


def expand_scales(codes_G: Tensor, maxima_S: Tensor, mean: Tensor, out_G: Tensor) -> None:
    """See ``Kernels.expand_scales``."""
    levels = _dynamic_levels(codes_G.device)
    arguments = (codes_G, levels, maxima_S, mean, out_G, len(out_G))
    _launch(_expand_scales, None, len(out_G), arguments, {})


def dequantize4(
    codes: Tensor, levels: Tensor, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize4``."""
    count = len(out_N)
    bytes_of_codes = -(-count // 2)
    arguments = (codes, levels, scales_G, offsets_G, out_N, bytes_of_codes, count)
    _launch(_dequantize4, _tuned_dequantize4, bytes_of_codes, arguments, {"GROUP_SIZE": group_size})


def dequantize4_double(
    codes: Tensor, levels: Tensor, scale_codes_G: Tensor, maxima_S: Tensor, mean: Tensor, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize4_double``: scales first, then numbers."""
    scales = torch.empty(len(scale_codes_G), dtype=torch.float32, device=codes.device)
    expand_scales(scale_codes_G, maxima_S, mean, scales)
    dequantize4(codes, levels, scales, None, group_size, out_N)


def dequantize8(
    codes_N: Tensor, zero: int, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize8``."""
    arguments = (codes_N, scales_G, offsets_G, out_N, len(out_N))
    _launch(_dequantize8, _tuned_dequantize8, len(out_N), arguments, {"ZERO": zero, "GROUP_SIZE": group_size})


def _launch(kernel: Any, tuned: Any, elements: int, arguments: tuple[Any, ...], constants: dict[str, int]) -> None:
    """Run ``kernel``, or its tuned form where that is worth it, over ``elements`` bytes of codes."""
    device = arguments[0].device
    # Said, not left to the default: that is an environment variable, and versions of Triton differ on it.
    options: dict[str, Any] = {**constants, "enable_fp_fusion": False}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if tuned is None or INTERPRETED or elements < TUNED_FROM:
            kernel[(-(-elements // BLOCK),)](*arguments, **options, BLOCK=BLOCK, num_warps=4)
        else:
            tuned[lambda chosen: (-(-elements // chosen["BLOCK"]),)](*arguments, **options)


@functools.lru_cache(maxsize=16)
def _dynamic_levels(device: torch.device) -> Tensor:
    """(256,) fp32 levels of the scales' codes on ``device``; copied there once, not at every product."""
    return torch.from_numpy(dynamic_levels().copy()).to(device)
