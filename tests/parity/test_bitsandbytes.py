"""NF4, FP4 and double quantisation against bitsandbytes on the CPU: codes, scales, numbers, and each other's weights.

Everything is the same to the bit, with three exceptions that are bitsandbytes' own:

* Its FP4 has a second zero, which comes back as 0 or as -0 depending on the tensor's size. Zeros are compared as equal.
* A short last group of nothing but zeros gets the absmax 1e-38 there, and 0 here.
* It finds a scale's 8-bit code in a table of 65,536 evenly spaced entries over [-1, 1], so a scale within half an entry
  of the middle between two levels may get the next level; and it sums the scales' mean in fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.quant.codebook import code_book, dynamic_levels, dynamic_midpoints
from qlassify.quant.double import DoubleScales, quantize_scales
from qlassify.quant.tensor import QuantizedTensor, from_tensors, quantize
from reference.quant import same_bits

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
bnb = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes to compare with")

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_thread", "uncompiled")]

KINDS = ["nf4", "fp4"]
GROUP_SIZES = [64, 128, 4096]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(64, 128), (3, 4096), (7, 333), (5000, 3), (1000,), (3, 4097), (2, 2), (1, 5)]
"""Full groups, short last groups of even and odd size, and weights that are shorter than any group."""


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[None]:
    """Where bitsandbytes has no kernel it compiles its Python; the same operations one after the other are as good."""
    with torch.compiler.set_stance("force_eager"):
        yield


def weight_of(shape: tuple[int, ...], dtype: torch.dtype, *, heavy: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    weight = 0.02 * torch.randn(shape, generator=generator)
    if heavy:
        weight = weight / torch.rand(shape, generator=generator).clamp(min=1e-3)
    return weight.to(dtype)


def theirs(weight: Tensor, kind: str, group_size: int, *, double: bool = False) -> tuple[Tensor, Any]:
    """bitsandbytes' packed codes and state."""
    packed, state = bnb.quantize_4bit(weight, blocksize=group_size, quant_type=kind, compress_statistics=double)
    return packed, state


def numbers_of(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """bitsandbytes' numbers in ``dtype``, -0 as 0."""
    state.dtype = dtype
    return bnb.dequantize_4bit(packed, state).reshape(state.shape) + 0.0


def codes_of(packed: Tensor, count: int) -> Tensor:
    """Its bytes, flat; what it puts into the low half of the last byte after an odd count is not kept."""
    flat = packed.reshape(-1).clone()
    if count % 2:
        flat[-1] &= 0xF0
    return flat


def as_ours(packed: Tensor, state: Any) -> QuantizedTensor:
    """A weight of bitsandbytes' in our hands."""
    config = QuantConfig(kind=state.quant_type, group_size=state.blocksize, double=state.nested)
    if state.nested:
        scales = {"scale_codes": state.absmax, "scale_maxima": state.state2.absmax, "scale_mean": state.offset}
    else:
        scales = {"scales": state.absmax}
    return from_tensors(config, tuple(state.shape), {"codes": packed.reshape(-1), **scales})


def as_theirs(weight: QuantizedTensor) -> tuple[Tensor, Any]:
    """A weight of ours in bitsandbytes' hands."""
    tensors, config = weight.tensors(), weight.config
    common = {"shape": torch.Size(weight.shape), "blocksize": config.group_size, "quant_type": config.kind}
    common["dtype"] = torch.float32
    if config.double:
        inner = bnb.QuantState(
            absmax=tensors["scale_maxima"], blocksize=256, code=bnb.create_dynamic_map(), dtype=torch.float32
        )
        state = bnb.QuantState(absmax=tensors["scale_codes"], offset=tensors["scale_mean"], state2=inner, **common)
    else:
        state = bnb.QuantState(absmax=tensors["scales"], **common)
    return tensors["codes"].view(-1, 1), state


# Levels


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_theirs(kind: str) -> None:
    """NF4's to the bit; FP4's up to the sign of the second zero."""
    found, wanted = torch.from_numpy(code_book(kind).levels.copy()), bnb.get_4bit_type(kind, device="cpu")
    if kind == "nf4":
        assert same_bits(found, wanted)
    else:
        assert torch.equal(found, wanted)


def test_dynamic_levels_are_theirs() -> None:
    assert same_bits(torch.from_numpy(dynamic_levels().copy()), bnb.create_dynamic_map())


# Codes, scales, numbers


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_scales_and_numbers(kind: str, group_size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for heavy in (False, True):
        weight = weight_of(shape, dtype, heavy=heavy)
        packed, state = theirs(weight, kind, group_size)
        ours = quantize(weight, QuantConfig(kind=kind, group_size=group_size, double=False))
        assert torch.equal(ours.codes, codes_of(packed, weight.numel()))
        assert isinstance(ours.scales, Tensor)
        assert same_bits(ours.scales, state.absmax)
        for output in DTYPES:
            assert same_bits(ours.dequantize(output) + 0.0, numbers_of(packed, state, output))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_on_midpoints_get_the_same_code(kind: str) -> None:
    middles = torch.from_numpy(code_book(kind).midpoints.copy())
    above, below = (torch.nextafter(middles, torch.tensor(end)) for end in (2.0, -2.0))
    weight = torch.cat([middles, above, below, torch.tensor([1.0, 0.0, -0.0])])
    for scale in (1.0, 2.0**-60, 0.3):
        full, short = torch.nn.functional.pad(scale * weight, (0, 64 - len(weight))), scale * weight
        for one in (full, short):
            packed, _ = theirs(one, kind, 64)
            ours = quantize(one, QuantConfig(kind=kind, double=False))
            assert torch.equal(ours.codes, codes_of(packed, len(one)))


@pytest.mark.parametrize("kind", KINDS)
def test_zeros(kind: str) -> None:
    """The same in full groups; in a short one their absmax is the smallest divisor."""
    packed, state = theirs(torch.zeros(64 + 10), kind, 64)
    ours = quantize(torch.zeros(64 + 10), QuantConfig(kind=kind, double=False))
    assert torch.equal(ours.codes, packed.reshape(-1))
    assert isinstance(ours.scales, Tensor)
    assert ours.scales.tolist() == [0, 0]
    assert state.absmax.tolist() == [0, float(np.float32(1e-38))]
    assert torch.equal(ours.dequantize(), numbers_of(packed, state, torch.float32))


# Double quantisation


def assert_scale_codes_agree(scales: Tensor, codes: Tensor, maxima: Tensor, mean: Tensor) -> tuple[int, int]:
    """Our codes against theirs, wherever the middle between two levels is not near; (scales compared, all scales).

    Theirs is the level nearest to an entry of their table, which is at most 1/65535 from the number, plus what the
    means differ by in units of the largest deviation. Three roundings on either side are far below 1e-6.
    """
    ours = quantize_scales(scales)
    # The mean of n fp32 numbers, added in fp32: pairwise sums over blocks lose a few units of 2**-24.
    torch.testing.assert_close(ours.mean, mean, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.maxima, maxima, rtol=1e-5, atol=2e-6 * float(mean))
    spread = ours.maxima.double().clamp(min=1e-38).repeat_interleave(256)[: len(scales)]
    positions = (scales.double() - ours.mean.double()) / spread
    middles = torch.from_numpy(dynamic_midpoints().astype(np.float64))
    distances = (positions[:, None] - middles).abs().amin(dim=1)
    differences = (ours.mean - mean).abs().double() + (ours.maxima - maxima).abs().double().max()
    clear = distances > 1 / 65535 + differences / spread + 1e-6
    assert torch.equal(ours.codes[clear], codes[clear])
    # Where it is near, they may differ, but not by more than two levels half an entry around it: the others' error is
    # the table's.
    levels = torch.from_numpy(dynamic_levels().astype(np.float64))
    excess = (positions - levels[codes.long()]).abs() - (positions - levels[ours.codes.long()]).abs()
    assert bool((excess <= 2 / 65535 + 2 * differences / spread + 1e-6).all())
    # Ours is the nearest.
    assert bool((excess >= -1e-6).all())
    return int(clear.sum()), len(scales)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_double_quantisation(kind: str, dtype: torch.dtype) -> None:
    compared = total = 0
    for shape in ((64, 128), (1000,), (3, 4097), (600, 129), (256, 256)):
        for heavy in (False, True):
            weight = weight_of(shape, dtype, heavy=heavy)
            packed, state = theirs(weight, kind, 64, double=True)
            ours = quantize(weight, QuantConfig(kind=kind, double=True))
            assert torch.equal(ours.codes, codes_of(packed, weight.numel()))
            single = quantize(weight, QuantConfig(kind=kind, double=False)).scales
            assert isinstance(single, Tensor)
            found = assert_scale_codes_agree(single, state.absmax, state.state2.absmax, state.offset)
            compared, total = compared + found[0], total + found[1]
            # The scales that come of it are off by half a gap each at most, and theirs by their table's entry more.
            assert isinstance(ours.scales, DoubleScales)
            mine = ours.scales.expand(torch.empty(len(single)))
            other = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
            gap = 0.9 / 64 + 2 / 65535 + 1e-5
            assert float((mine - other).abs().max()) <= gap * float(ours.scales.maxima.max())
    # The exempted stretches, 255 of them each two entries wide, are 255 * 2 * 2 / 65535 / 2 = 0.8% of [-1, 1]; most of
    # them lie around zero, where scales are more frequent.
    assert compared > 0.95 * total


# In both directions


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", KINDS)
def test_we_read_their_weights(kind: str, double: bool, group_size: int, shape: tuple[int, ...]) -> None:
    packed, state = theirs(weight_of(shape, torch.bfloat16, heavy=True), kind, group_size, double=double)
    ours = as_ours(packed, state)
    for dtype in DTYPES:
        assert same_bits(ours.dequantize(dtype) + 0.0, numbers_of(packed, state, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_read_our_weights(kind: str, double: bool, group_size: int, shape: tuple[int, ...]) -> None:
    config = QuantConfig(kind=kind, group_size=group_size, double=double)
    ours = quantize(weight_of(shape, torch.float32, heavy=True), config)
    packed, state = as_theirs(ours)
    for dtype in DTYPES:
        assert same_bits(numbers_of(packed, state, dtype), ours.dequantize(dtype) + 0.0)
