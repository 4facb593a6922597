"""The kernels in plain torch: the definition that the others are held to, and the way out where they cannot run.

Whole groups are handled as rows of a matrix; a short last group follows by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlassify.quant.codebook import CodeBook, dynamic_levels, dynamic_midpoints

SMALLEST = 1e-38
"""A group whose largest magnitude is below this is divided by this: its reciprocal must not overflow."""


def quantize_book(weight_N: Tensor, group_size: int, book: CodeBook, codes: Tensor, absmax_G: Tensor) -> None:
    """See ``Kernels.quantize_book``.

    Full groups are multiplied by the reciprocal of their absmax and a short one is divided by it: bitsandbytes does
    so, and the codes are to be the same.
    """
    midpoints = torch.from_numpy(book.midpoints.copy()).to(weight_N.device)
    order = torch.from_numpy(book.order).to(weight_N.device)
    parts: list[Tensor] = []
    for rows, absmax, full in _groups(weight_N, group_size, absmax_G):
        absmax.copy_(rows.abs().amax(dim=1))
        largest = absmax.clamp(min=SMALLEST)[:, None]
        parts.append((rows * (1.0 / largest) if full else rows / largest).reshape(-1))
    codes.copy_(_pack(order[torch.bucketize(torch.cat(parts), midpoints)]))


def quantize_integer(
    weight_N: Tensor, group_size: int, bits: int, codes: Tensor, scales_G: Tensor, offsets_G: Tensor | None
) -> None:
    """See ``Kernels.quantize_integer``."""
    parts: list[Tensor] = []
    position = 0
    for rows, scales, _ in _groups(weight_N, group_size, scales_G):
        offsets = None if offsets_G is None else offsets_G[position : position + len(rows)]
        parts.append(_integer_codes(rows, bits, scales, offsets).reshape(-1))
        position += len(rows)
    flat = torch.cat(parts).to(torch.uint8)
    codes.copy_(_pack(flat) if bits == 4 else flat)


def _integer_codes(rows: Tensor, bits: int, scales: Tensor, offsets: Tensor | None) -> Tensor:
    """Codes of the groups in ``rows``, whose scales and offsets are filled in."""
    absmax = rows.abs().amax(dim=1)
    if offsets is None:
        steps = 2 ** (bits - 1) - 1
        scales.copy_(absmax / steps)
        quotients = rows / scales[:, None]
        quotients = torch.where(scales[:, None] == 0, 0.0, quotients)
        signed: Tensor = quotients.round().clamp(-steps, steps)
        return signed.add_(steps + 1)
    steps = 2**bits - 1
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    scales.copy_((high.double() - low.double()) / steps)
    scales[~torch.isfinite(absmax)] = torch.nan
    offsets.copy_(low + 0.0)  # zero without a sign
    quotients = (rows.double() - low.double()[:, None]) / scales.double()[:, None]
    quotients = torch.where(scales[:, None] == 0, 0.0, quotients)
    return quotients.round().clamp(0, steps)


def quantize_scales(values_G: Tensor, codes_G: Tensor) -> None:
    """See ``Kernels.quantize_scales``."""
    codes_G.copy_(torch.bucketize(values_G, torch.from_numpy(dynamic_midpoints().copy()).to(values_G.device)))


def expand_scales(codes_G: Tensor, maxima_S: Tensor, mean: Tensor, out_G: Tensor) -> None:
    """See ``Kernels.expand_scales``."""
    levels = torch.from_numpy(dynamic_levels().copy()).to(codes_G.device)
    maxima = maxima_S.repeat_interleave(256)[: len(codes_G)]
    torch.mul(levels[codes_G.long()], maxima, out=out_G).add_(mean)


def dequantize4(
    codes: Tensor, levels: Tensor, scales_G: Tensor, offsets_G: Tensor | None, group_size: int, out_N: Tensor
) -> None:
    """See ``Kernels.dequantize4``."""
    pairs = torch.stack((codes >> 4, codes & 15), dim=1).reshape(-1)[: len(out_N)]
    _scale(levels[pairs.long()], scales_G, offsets_G, group_size, out_N)


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
    _scale(codes_N.float() - zero, scales_G, offsets_G, group_size, out_N)


def _scale(values: Tensor, scales: Tensor, offsets: Tensor | None, group_size: int, out: Tensor) -> None:
    """values * scale + offset into ``out``; ``values`` is used up."""
    repeats = min(group_size, len(values))
    values.mul_(scales.repeat_interleave(repeats)[: len(values)])
    if offsets is not None:
        values.add_(offsets.repeat_interleave(repeats)[: len(values)])
    out.copy_(values)


def _pack(codes_N: Tensor) -> Tensor:
    """Two 4-bit codes to a byte, the first in the high half; an odd last one is followed by zero."""
    even, odd = codes_N[::2], codes_N[1::2]
    packed = even << 4
    packed[: len(odd)] |= odd
    return packed


def _groups(weight_N: Tensor, group_size: int, per_group: Tensor) -> list[tuple[Tensor, Tensor, bool]]:
    """(groups as rows, their part of ``per_group``, whether they are full): the full groups, then a short last one."""
    full = len(weight_N) // group_size
    found = []
    if full:
        found.append((weight_N[: full * group_size].view(full, group_size), per_group[:full], True))
    if full * group_size < len(weight_N):
        found.append((weight_N[full * group_size :].view(1, -1), per_group[full:], False))
    return found
