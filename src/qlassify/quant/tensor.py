"""``QuantizedTensor``: a weight in a low-bit format, and the two ways between it and numbers.

The format is groups over the flattened weight: code -> level -> times the group's scale (-> plus its offset). What a
group of special numbers comes to is decided here and not left to chance:

* all zeros: scale 0, and exactly zeros come back;
* one number repeated: nf4, fp4 and the symmetric integers give it back (it is the absmax, a level of all of them) up to
  the scale's rounding; with zero points the scale is 0 and the offset is the number;
* NaN or infinity: an error that names the weight, because a scale would spread it over the whole group;
* magnitudes below 1e-38, where fp32 has no reciprocals: they may come back as zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.errors import ModelError
from qlassify.quant.codebook import code_book
from qlassify.quant.double import DoubleScales, quantize_scales
from qlassify.quant.kernels import kernels_for

CHUNK = 1 << 20
"""Numbers converted to fp32 at a time while quantising: the weight in its own type is all that is ever whole."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A weight in a low-bit format.

    Attributes:
        config: the format.
        shape: the weight's.
        codes: uint8; two 4-bit codes to a byte, the first in the high half.
        scales: (G,) fp32, or their 8-bit form.
        offsets: (G,) fp32 with zero points, else None.
    """

    config: QuantConfig
    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor | DoubleScales
    offsets: Tensor | None

    _is_hf_initialized: ClassVar[bool] = True
    """transformers asks weights for this before it fills those that a checkpoint lacked with random numbers."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, as they are saved."""
        named = {"codes": self.codes}
        if isinstance(self.scales, DoubleScales):
            named |= {
                "scale_codes": self.scales.codes,
                "scale_maxima": self.scales.maxima,
                "scale_mean": self.scales.mean,
            }
        else:
            named["scales"] = self.scales
        return named if self.offsets is None else named | {"offsets": self.offsets}

    def dequantize(self, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None) -> Tensor:
        """The weight as numbers.

        Args:
            dtype: fp32 and bf16 are written directly; others are converted from fp32.
            out: contiguous tensor to write into, of the weight's size and of ``dtype``; a new one when None.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            dense = self.dequantize().to(dtype)
            return dense if out is None else out.copy_(dense.view(out.shape))
        if out is None:
            out = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        kernels, flat = kernels_for(self.codes.device), out.view(-1)
        group_size, scales = self.config.group_size, self.scales
        if self.config.bits == 8:
            kernels.dequantize8(self.codes, _zero(self.config), self._scales(), self.offsets, group_size, flat)
            return out
        levels = _levels(self.config, self.codes.device)
        if isinstance(scales, DoubleScales):
            kernels.dequantize4_double(self.codes, levels, scales.codes, scales.maxima, scales.mean, group_size, flat)
        else:
            kernels.dequantize4(self.codes, levels, scales, self.offsets, group_size, flat)
        return out

    def _scales(self) -> Tensor:
        if isinstance(self.scales, Tensor):
            return self.scales
        codes = self.scales.codes
        return self.scales.expand(torch.empty(len(codes), dtype=torch.float32, device=codes.device))


def quantize(weight: Tensor, config: QuantConfig, *, name: str = "weight") -> QuantizedTensor:
    """Quantise a weight of any floating-point type and any strides.

    Args:
        weight: what to quantise; not changed.
        config: the format.
        name: how an error names the weight.

    Raises:
        ModelError: the weight holds NaN or infinity, or is no floating-point tensor.
    """
    if not weight.is_floating_point():
        raise ModelError("only floating-point weights are quantised", where=name, got=weight.dtype)
    parts = allocate(config, tuple(weight.shape), weight.device)
    flat = weight.detach().contiguous().view(-1)
    scales = torch.empty(-(-len(flat) // config.group_size), dtype=torch.float32, device=weight.device)
    wide: Tensor | None = None
    for chunk in _chunks(len(flat), config):
        numbers = flat[chunk.numbers]
        if numbers.dtype != torch.float32:
            # One buffer for all stretches: fresh memory costs a page fault every thousand numbers.
            wide = torch.empty(len(numbers), dtype=torch.float32, device=flat.device) if wide is None else wide
            numbers = wide[: len(numbers)].copy_(numbers)
        offsets = None if parts.offsets is None else parts.offsets[chunk.groups]
        _quantize_chunk(numbers, config, parts.codes[chunk.bytes], scales[chunk.groups], offsets)
    _require_finite(scales, flat, config.group_size, name)
    if isinstance(parts.scales, DoubleScales):
        return QuantizedTensor(config, parts.shape, parts.codes, quantize_scales(scales), parts.offsets)
    return QuantizedTensor(config, parts.shape, parts.codes, scales, parts.offsets)


def squared_error(weight: Tensor, quantized: QuantizedTensor) -> tuple[float, float]:
    """(sum of squared errors, sum of squares) of a weight that was quantised; in chunks that stay in a cache."""
    flat, scales = weight.detach().contiguous().view(-1), quantized._scales()
    error = total = 0.0
    for chunk in _chunks(len(flat), quantized.config, CHUNK // 16):
        part = QuantizedTensor(
            quantized.config,
            (chunk.numbers.stop - chunk.numbers.start,),
            quantized.codes[chunk.bytes],
            scales[chunk.groups],
            None if quantized.offsets is None else quantized.offsets[chunk.groups],
        )
        numbers = flat[chunk.numbers].float()
        difference = (part.dequantize() - numbers).double()
        numbers = numbers.double()
        error += float(difference @ difference)
        total += float(numbers @ numbers)
    return error, total


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A stretch of whole groups: its numbers, groups and bytes of codes."""

    numbers: slice
    groups: slice
    bytes: slice


def _chunks(count: int, config: QuantConfig, wanted: int | None = None) -> Iterator[_Chunk]:
    """Stretches of about ``wanted`` numbers (``CHUNK`` when None), each an even number of groups.

    So each begins at a whole byte.
    """
    size, bits = config.group_size, config.bits
    step = size * max(2, (wanted or CHUNK) // size // 2 * 2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield _Chunk(
            slice(start, stop), slice(start // size, -(-stop // size)), slice(start * bits // 8, -(-stop * bits // 8))
        )


def allocate(config: QuantConfig, shape: tuple[int, ...], device: torch.device | str) -> QuantizedTensor:
    """A quantised weight of which only the sizes are settled; on the ``meta`` device it takes no memory."""
    count = math.prod(shape)
    groups = -(-count // config.group_size)
    codes = torch.empty(-(-count * config.bits // 8), dtype=torch.uint8, device=device)
    scales: Tensor | DoubleScales
    if config.double:
        scales = DoubleScales(
            torch.empty(groups, dtype=torch.uint8, device=device),
            torch.empty(-(-groups // 256), dtype=torch.float32, device=device),
            torch.empty((), dtype=torch.float32, device=device),
        )
    else:
        scales = torch.empty(groups, dtype=torch.float32, device=device)
    offsets = torch.empty(groups, dtype=torch.float32, device=device) if config.zero_point else None
    return QuantizedTensor(config, shape, codes, scales, offsets)


def from_tensors(config: QuantConfig, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> QuantizedTensor:
    """The weight whose ``tensors()`` these are."""
    scales: Tensor | DoubleScales
    if config.double:
        scales = DoubleScales(tensors["scale_codes"], tensors["scale_maxima"], tensors["scale_mean"])
    else:
        scales = tensors["scales"]
    return QuantizedTensor(config, shape, tensors["codes"], scales, tensors.get("offsets"))


def _quantize_chunk(weight: Tensor, config: QuantConfig, codes: Tensor, scales: Tensor, offsets: Tensor | None) -> None:
    kernels = kernels_for(weight.device)
    if config.kind in ("nf4", "fp4"):
        kernels.quantize_book(weight, config.group_size, code_book(config.kind), codes, scales)
    else:
        kernels.quantize_integer(weight, config.group_size, config.bits, codes, scales, offsets)


def _require_finite(scales: Tensor, flat: Tensor, group_size: int, name: str) -> None:
    bad = torch.isfinite(scales).logical_not_()
    if not bool(bad.any()):
        return
    group = int(bad.nonzero()[0])
    values = flat[group * group_size : (group + 1) * group_size]
    inside = int(torch.isfinite(values.float()).logical_not_().nonzero()[0])
    raise ModelError(
        "the weight holds a number that is not finite in fp32",
        where=name,
        got=f"{values[inside].item()} at position {group * group_size + inside} of {len(flat)}",
        wanted="finite numbers; one of these would spoil its whole group",
        do="The checkpoint is damaged or diverged in training; get it again.",
    )


@functools.lru_cache(maxsize=16)
def _levels(config: QuantConfig, device: torch.device) -> Tensor:
    """(16,) fp32 levels by code; made once, for it is asked for at every product."""
    if config.kind in ("nf4", "fp4"):
        return torch.from_numpy(code_book(config.kind).levels.copy()).to(device)
    return torch.arange(16, dtype=torch.float32, device=device) - _zero(config)


def _zero(config: QuantConfig) -> int:
    """The code of no step: the middle one, or the first with zero points."""
    return 0 if config.zero_point else 2 ** (config.bits - 1)
