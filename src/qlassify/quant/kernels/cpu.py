"""The kernels for the CPU: numba, compiled on first use, kept on disk, run on as many threads as torch uses.

A group's sixteen products level x scale are formed once and rounded once to the output's type; after that every weight
is a look-up. With AVX-512 the table is a register and one instruction looks up sixteen fp32 or thirty-two bf16 numbers;
LLVM does not find that by itself, so it is written out (``simd``). Everywhere else, and for groups that are no multiple
of 32, plain loops do the same. Measured on one core (NF4, groups of 64, 590,000 weights):
0.05 ns per weight to bf16 and 0.06 to fp32 in place of 0.16 for bitsandbytes.

Threads are plain threads on ranges of groups, which numba's functions run without the interpreter lock. numba's own
parallel loops would bring a second pool of threads beside torch's.

The alternatives: C++ needs a compiler on every user's machine or wheels for all of them; torch's own operations take
ten times as long.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from qlassify.kernels.compiling import OPTIONS, kernel, run_parts
from qlassify.quant.codebook import CodeBook, dynamic_levels, dynamic_midpoints
from qlassify.quant.kernels.simd import (
    affine_group_to_bf16,
    affine_group_to_fp32,
    group_to_bf16,
    group_to_codes,
    group_to_fp32,
    has_avx512,
    largest_of_lanes,
)

PART = 1 << 20
"""Fewest weights that are worth a thread when they become numbers; a quarter of it when they become codes."""
_SMALLEST = np.float32(1e-38)
_INFINITY_BITS = 0x7F800000
_NO_OFFSETS = np.empty(0, np.float32)


AVX512 = has_avx512()


# numba. Loops run over slices from zero: numba then knows that no index is negative and LLVM vectorises them.


@numba.njit(**OPTIONS)
def _put(codes, position, code):  # type: ignore[no-untyped-def]
    """Write a 4-bit code; the low half of a byte is written after its high half."""
    if position & 1:
        codes[position >> 1] |= np.uint8(code)
    else:
        codes[position >> 1] = np.uint8(code << 4)


@numba.njit(**OPTIONS)
def _largest_bits(bits):  # type: ignore[no-untyped-def]
    """The bits of the largest magnitude. As integers, magnitudes order like numbers, with infinity and NaN on top."""
    whole = bits.size // 16
    largest = largest_of_lanes(bits.ctypes.data, whole)
    for i in range(16 * whole, bits.size):
        largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    return largest


@numba.njit(**OPTIONS)
def _to_bf16(bits):  # type: ignore[no-untyped-def]
    """The bits of an fp32 number that is not NaN, rounded to bf16: nearest, ties to even."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def _quantize_book_simd(weight, group_size, midpoints, order, order32, codes, absmax, first, last):  # type: ignore[no-untyped-def]
    bits, bits_of_absmax = weight.view(np.int32), absmax.view(np.int32)
    weight_at, codes_at = weight.ctypes.data, codes.ctypes.data
    table, ranks = midpoints.ctypes.data, order32.ctypes.data
    for group in range(first, last):
        start = group * group_size
        bits_of_absmax[group] = _largest_bits(bits[start : start + group_size])
        factor = np.float32(1) / max(absmax[group], _SMALLEST)
        group_to_codes(weight_at + 4 * start, codes_at + start // 2, table, ranks, factor, group_size // 16)


def _quantize_book_plain(weight, group_size, midpoints, order, order32, codes, absmax, first, last):  # type: ignore[no-untyped-def]
    bits_of_absmax = absmax.view(np.int32)
    for group in range(first, last):
        start = group * group_size
        values = weight[start : min(start + group_size, weight.size)]
        bits_of_absmax[group] = _largest_bits(values.view(np.int32))
        largest = max(absmax[group], _SMALLEST)
        factor = np.float32(1) / largest
        for i in range(values.size):
            x = values[i] * factor if values.size == group_size else values[i] / largest
            rank = 0
            for middle in range(15):
                rank += x > midpoints[middle]
            _put(codes, start + i, order[rank])


@numba.njit(**OPTIONS)
def _round_steps(values, scale, steps, rounded):  # type: ignore[no-untyped-def]
    """round(value / scale) within -steps and steps, counted from -steps - 1."""
    most = np.float32(steps)
    for i in range(values.size):
        rounded[i] = np.uint8(np.int32(min(max(np.rint(values[i] / scale), -most), most)) + np.int32(steps + 1))


@numba.njit(**OPTIONS)
def _round_steps_from(values, low, scale, steps, rounded):  # type: ignore[no-untyped-def]
    """round((value - low) / scale) within 0 and steps; in float64, where no difference overflows."""
    least, divisor, most = np.float64(low), np.float64(scale), np.float64(steps)
    for i in range(values.size):
        rounded[i] = np.uint8(np.int32(min(max(np.rint((np.float64(values[i]) - least) / divisor), 0.0), most)))


def _quantize_integer(weight, group_size, steps, codes, scales, offsets, packed, first, last):  # type: ignore[no-untyped-def]
    bits_of_scales = scales.view(np.int32)
    affine = offsets.size > 0
    room = np.empty(min(group_size, weight.size), np.uint8)
    for group in range(first, last):
        start = group * group_size
        values = weight[start : min(start + group_size, weight.size)]
        rounded = room[: values.size]
        largest = _largest_bits(values.view(np.int32))
        bits_of_scales[group] = largest
        if affine:
            low, high = values.min(), values.max()
            offsets[group] = low + np.float32(0)  # zero without a sign
            scale = np.float32((np.float64(high) - np.float64(low)) / steps)
            if largest >= _INFINITY_BITS:
                scale = np.float32(np.nan)
        else:
            low, scale = np.float32(0), scales[group] / np.float32(steps)
        scales[group] = scale
        if not scale > 0:
            rounded[:] = np.uint8(0 if affine else steps + 1)
        elif affine:
            _round_steps_from(values, low, scale, steps, rounded)
        else:
            _round_steps(values, scale, steps, rounded)
        if not packed:
            codes[start : start + rounded.size] = rounded
        elif start % 2 == 0 and rounded.size % 2 == 0:
            pairs = codes[start // 2 : (start + rounded.size) // 2]
            for i in range(pairs.size):
                pairs[i] = rounded[2 * i] << np.uint8(4) | rounded[2 * i + 1]
        else:
            for i in range(rounded.size):
                _put(codes, start + i, rounded[i])


def _nearest_scales(values, midpoints, codes, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        rank = 0
        for step in (128, 64, 32, 16, 8, 4, 2, 1):
            rank += step * (values[i] > midpoints[rank + step - 1])
        codes[i] = np.uint8(rank)


def _expand(codes, levels, maxima, mean, out, first, last):  # type: ignore[no-untyped-def]
    for group in range(first, last):
        out[group] = levels[codes[group]] * maxima[group >> 8] + mean


def _dequantize4_fp32_simd(codes, levels, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    codes_at, levels_at, out_at = codes.ctypes.data, levels.ctypes.data, out.ctypes.data
    bytes_of_group, steps = group_size // 2, group_size // 16
    if offsets.size > 0:
        for g in range(first, last):
            to, at = out_at + 4 * g * group_size, codes_at + g * bytes_of_group
            affine_group_to_fp32(to, at, levels_at, scales[g], offsets[g], steps)
    else:
        for g in range(first, last):
            to, at = out_at + 4 * g * group_size, codes_at + g * bytes_of_group
            group_to_fp32(to, at, levels_at, scales[g], np.float32(0), steps)


def _dequantize4_bf16_simd(codes, levels, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    codes_at, levels_at, out_at = codes.ctypes.data, levels.ctypes.data, out.ctypes.data
    bytes_of_group, steps = group_size // 2, group_size // 32
    if offsets.size > 0:
        for g in range(first, last):
            to, at = out_at + 2 * g * group_size, codes_at + g * bytes_of_group
            affine_group_to_bf16(to, at, levels_at, scales[g], offsets[g], steps)
    else:
        for g in range(first, last):
            to, at = out_at + 2 * g * group_size, codes_at + g * bytes_of_group
            group_to_bf16(to, at, levels_at, scales[g], np.float32(0), steps)


def _dequantize4_fp32_double(codes, levels, scale_codes, steps_of, maxima, mean, group_size, out, first, last):  # type: ignore[no-untyped-def]
    codes_at, levels_at, out_at = codes.ctypes.data, levels.ctypes.data, out.ctypes.data
    bytes_of_group, steps = group_size // 2, group_size // 16
    for g in range(first, last):
        scale = steps_of[scale_codes[g]] * maxima[g >> 8] + mean
        to, at = out_at + 4 * g * group_size, codes_at + g * bytes_of_group
        group_to_fp32(to, at, levels_at, scale, np.float32(0), steps)


def _dequantize4_bf16_double(codes, levels, scale_codes, steps_of, maxima, mean, group_size, out, first, last):  # type: ignore[no-untyped-def]
    codes_at, levels_at, out_at = codes.ctypes.data, levels.ctypes.data, out.ctypes.data
    bytes_of_group, steps = group_size // 2, group_size // 32
    for g in range(first, last):
        scale = steps_of[scale_codes[g]] * maxima[g >> 8] + mean
        to, at = out_at + 2 * g * group_size, codes_at + g * bytes_of_group
        group_to_bf16(to, at, levels_at, scale, np.float32(0), steps)


@numba.njit(**OPTIONS)
def _fill_table(table, levels, scale, offsets, group):  # type: ignore[no-untyped-def]
    for code in range(16):
        table[code] = levels[code] * scale
    if offsets.size > 0:
        for code in range(16):
            table[code] += offsets[group]


@numba.njit(**OPTIONS)
def _look_up_codes(codes, start, table, values):  # type: ignore[no-untyped-def]
    """values[i] = table[code of start + i]."""
    if start % 2 == 0 and values.size % 2 == 0:
        pairs = codes[start // 2 : (start + values.size) // 2]
        for i in range(pairs.size):
            values[2 * i] = table[pairs[i] >> np.uint8(4)]
            values[2 * i + 1] = table[pairs[i] & np.uint8(15)]
    else:
        for i in range(values.size):
            byte = np.int32(codes[(start + i) >> 1])
            values[i] = table[byte & 15 if (start + i) & 1 else byte >> 4]


def _dequantize4_fp32_plain(codes, levels, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    table = np.empty(16, np.float32)
    for group in range(first, last):
        _fill_table(table, levels, scales[group], offsets, group)
        start = group * group_size
        _look_up_codes(codes, start, table, out[start : min(start + group_size, out.size)])


def _dequantize4_bf16_plain(codes, levels, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    table, short = np.empty(16, np.float32), np.empty(16, np.uint16)
    bits = table.view(np.uint32)
    for group in range(first, last):
        _fill_table(table, levels, scales[group], offsets, group)
        for code in range(16):
            short[code] = _to_bf16(bits[code])
        start = group * group_size
        _look_up_codes(codes, start, short, out[start : min(start + group_size, out.size)])


@numba.njit(**OPTIONS)
def _scale_codes(codes, zero, scale, offsets, group, values):  # type: ignore[no-untyped-def]
    """values = (code - zero) * scale, plus the group's offset where there is one."""
    middle = np.int32(zero)
    if offsets.size > 0:
        offset = offsets[group]
        for i in range(values.size):
            values[i] = np.float32(np.int32(codes[i]) - middle) * scale + offset
    else:
        for i in range(values.size):
            values[i] = np.float32(np.int32(codes[i]) - middle) * scale


def _dequantize8_fp32(codes, zero, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    for group in range(first, last):
        start, stop = group * group_size, min((group + 1) * group_size, out.size)
        _scale_codes(codes[start:stop], zero, scales[group], offsets, group, out[start:stop])


def _dequantize8_bf16(codes, zero, scales, offsets, group_size, out, first, last):  # type: ignore[no-untyped-def]
    room = np.empty(min(group_size, 1024), np.float32)
    for group in range(first, last):
        stop = min((group + 1) * group_size, out.size)
        for start in range(group * group_size, stop, room.size):
            values = room[: min(room.size, stop - start)]
            _scale_codes(codes[start : start + values.size], zero, scales[group], offsets, group, values)
            bits, short = values.view(np.uint32), out[start : start + values.size]
            for i in range(short.size):
                short[i] = _to_bf16(bits[i])


_KERNELS = {
    function.__name__: kernel(function)
    for function in (
        _quantize_book_simd, _quantize_book_plain, _quantize_integer, _nearest_scales, _expand,
        _dequantize4_fp32_simd, _dequantize4_bf16_simd, _dequantize4_fp32_double, _dequantize4_bf16_double,
        _dequantize4_fp32_plain, _dequantize4_bf16_plain,
        _dequantize8_fp32, _dequantize8_bf16,
    )
}  # fmt: skip


# Calls


def quantize_book(weight_N: Tensor, group_size: int, book: CodeBook, codes: Tensor, absmax_G: Tensor) -> None:
    """See ``Kernels.quantize_book``."""
    order32 = book.order.astype(np.int32)
    arguments = (
        weight_N.numpy(), group_size, book.midpoints, book.order, order32, codes.numpy(), absmax_G.numpy(),
    )  # fmt: skip
    _by_groups("_quantize_book", arguments, len(weight_N), group_size, 16, part=PART // 4)


def quantize_integer(
    weight_N: Tensor, group_size: int, bits: int, codes: Tensor, scales_G: Tensor, offsets_G: Tensor | None
) -> None:
    """See ``Kernels.quantize_integer``."""
    steps = 2 ** (bits - 1) - 1 if offsets_G is None else 2**bits - 1
    arguments = (weight_N.numpy(), group_size, steps, codes.numpy(), scales_G.numpy(), _offsets(offsets_G), bits == 4)
    _run("_quantize_integer", arguments, 0, len(scales_G), group_size, part=PART // 4)


def quantize_scales(values_G: Tensor, codes_G: Tensor) -> None:
    """See ``Kernels.quantize_scales``."""
    arguments = (values_G.numpy(), dynamic_midpoints(), codes_G.numpy())
    _run("_nearest_scales", arguments, 0, len(values_G), 1)


def expand_scales(codes_G: Tensor, maxima_S: Tensor, mean: Tensor, out_G: Tensor) -> None:
    """See ``Kernels.expand_scales``."""
    arguments = (codes_G.numpy(), dynamic_levels(), maxima_S.numpy(), np.float32(mean.item()), out_G.numpy())
    _run("_expand", arguments, 0, len(codes_G), 1)


def dequantize4(
    codes: Tensor, levels: Tensor, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize4``."""
    name, out = _output(out_N)
    arguments = (codes.numpy(), levels.numpy(), scales_G.numpy(), _offsets(offsets_G), group_size, out)
    _by_groups(f"_dequantize4_{name}", arguments, len(out_N), group_size, 32)


def dequantize4_double(
    codes: Tensor, levels: Tensor, scale_codes_G: Tensor, maxima_S: Tensor, mean: Tensor, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize4_double``: with AVX-512 and full groups, scales are formed on the way."""
    if not AVX512 or group_size % 32 or len(out_N) % group_size:
        scales = torch.empty(len(scale_codes_G), dtype=torch.float32)
        expand_scales(scale_codes_G, maxima_S, mean, scales)
        dequantize4(codes, levels, scales, None, group_size, out_N)
        return
    name, out = _output(out_N)
    arguments = (
        codes.numpy(), levels.numpy(), scale_codes_G.numpy(), dynamic_levels(), maxima_S.numpy(),
        np.float32(mean.item()), group_size, out,
    )  # fmt: skip
    _run(f"_dequantize4_{name}_double", arguments, 0, len(scale_codes_G), group_size)


def dequantize8(
    codes_N: Tensor, zero: int, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize8``."""
    name, out = _output(out_N)
    arguments = (codes_N.numpy(), zero, scales_G.numpy(), _offsets(offsets_G), group_size, out)
    _run(f"_dequantize8_{name}", arguments, 0, len(scales_G), group_size)


def _output(out_N: Tensor) -> tuple[str, Any]:
    """The kernel's ending for this output and the array that it writes: bf16 as the bits that it is."""
    return ("bf16", out_N.view(torch.uint16).numpy()) if out_N.dtype == torch.bfloat16 else ("fp32", out_N.numpy())


def _offsets(offsets_G: Tensor | None) -> Any:
    return _NO_OFFSETS if offsets_G is None else offsets_G.numpy()


def _by_groups(
    stem: str, arguments: tuple[Any, ...], count: int, group_size: int, multiple: int, *, part: int | None = None
) -> None:
    """Full groups through AVX-512 where there is any and the size fits it; the rest through plain loops."""
    groups = -(-count // group_size)
    whole = count // group_size if AVX512 and group_size % multiple == 0 else 0
    if whole:
        _run(f"{stem}_simd", arguments, 0, whole, group_size, part=part)
    if whole < groups:
        _run(f"{stem}_plain", arguments, whole, groups, group_size, part=part)


def _run(
    name: str, arguments: tuple[Any, ...], first: int, last: int, group_size: int, *, part: int | None = None
) -> None:
    """A kernel over groups ``first`` to ``last``, cut among as many threads as torch has.

    Cuts fall on even groups, so that no two threads write halves of one byte.
    """
    parts = max(1, min(torch.get_num_threads(), (last - first) * group_size // (part or PART)))
    edges = [first + (last - first) * part // parts // 2 * 2 for part in range(parts)] + [last]
    run_parts(_KERNELS[name], arguments, edges)
