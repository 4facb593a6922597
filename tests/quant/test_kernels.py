"""The kernels of the CPU: the reference held to a twin that works number by number, and numba's held to the reference.

Everything is compared bit for bit. numba's kernels have two paths, one written for AVX-512 and plain loops for the
rest, and may cut the work among threads; each way has to give the same bytes, and to write nothing but its own output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlassify.quant.codebook import code_book, dynamic_levels, dynamic_midpoints
from qlassify.quant.kernels import cpu, kernels_for, reference
from reference.quant import (
    BITS,
    Drawn,
    Floats,
    Groups,
    dequantize_each,
    drawn_weights,
    quantize_each,
    round_to_bf16,
    same_bits,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = settings(max_examples=30)
"""For a property of every format and path: a few hundred weights all together."""

FORMATS = [
    ("nf4", False),
    ("fp4", False),
    ("int4", False),
    ("int8", False),
    ("int4", True),
    ("int8", True),
]
IDS = ["nf4", "fp4", "int4", "int8", "int4 with zero points", "int8 with zero points"]
GROUP_SIZES = (1, 2, 3, 7, 16, 31, 32, 33, 48, 64, 65, 96, 100, 128, 1000, 1024, 1025, 4096)
PATHS = [False, True] if cpu.AVX512 else [False]
GUARD = 64
"""Bytes around every output that nothing may be written to."""

Kernels = Any


@dataclass
class Guarded:
    """Tensors with something around them that must stay as it is."""

    rooms: list[Tensor]

    def empty(self, count: int, dtype: torch.dtype, shift: int = 0) -> Tensor:
        """``count`` numbers of rubbish; with ``shift`` they begin off the usual alignment."""
        room = torch.full((count + 2 * GUARD + shift,), 77, dtype=dtype)
        self.rooms.append(room)
        return room[GUARD + shift : GUARD + shift + count]

    def assert_untouched(self) -> None:
        for room in self.rooms:
            assert bool((room[:GUARD] == 77).all())
            assert bool((room[-GUARD:] == 77).all())


@dataclass
class Case:
    """A flat fp32 weight in one format, computed by one implementation into guarded outputs."""

    kernels: Kernels
    weight: Tensor
    kind: str
    zero_point: bool
    group_size: int
    shift: int = 0

    def quantize(self) -> dict[str, Tensor]:
        """Codes, scales and, with zero points, offsets."""
        guarded, count = Guarded([]), len(self.weight)
        groups, before = -(-count // self.group_size), self.weight.clone()
        codes = guarded.empty(-(-count * BITS[self.kind] // 8), torch.uint8, self.shift)
        found = {"codes": codes, "scales": guarded.empty(groups, torch.float32, self.shift)}
        if self.zero_point:
            found["offsets"] = guarded.empty(groups, torch.float32, self.shift)
        if self.kind in ("nf4", "fp4"):
            book = code_book(self.kind)
            self.kernels.quantize_book(self.weight, self.group_size, book, codes, found["scales"])
        else:
            self.kernels.quantize_integer(
                self.weight, self.group_size, BITS[self.kind], codes, found["scales"], found.get("offsets")
            )
        guarded.assert_untouched()
        assert same_bits(self.weight, before)
        return found

    def dequantize(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight that ``tensors`` stand for."""
        guarded = Guarded([])
        out = guarded.empty(len(self.weight), dtype, self.shift)
        scales, offsets = tensors["scales"], tensors.get("offsets")
        if BITS[self.kind] == 4:
            levels = torch.from_numpy(self.levels())
            self.kernels.dequantize4(tensors["codes"], levels, scales, offsets, self.group_size, out)
        else:
            zero = 0 if self.zero_point else 128
            self.kernels.dequantize8(tensors["codes"], zero, scales, offsets, self.group_size, out)
        guarded.assert_untouched()
        return out

    def levels(self) -> Floats:
        """The numbers that 4-bit codes stand for."""
        if self.kind in ("nf4", "fp4"):
            return code_book(self.kind).levels.copy()
        return np.arange(16, dtype=np.float32) - np.float32(0 if self.zero_point else 8)

    def everything(self) -> dict[str, Tensor]:
        """Codes, scales, offsets, and the numbers that come back in fp32 and bf16."""
        tensors = self.quantize()
        numbers = {str(dtype): self.dequantize(tensors, dtype) for dtype in (torch.float32, torch.bfloat16)}
        return tensors | numbers


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert same_bits(found[name], tensor), name


@contextmanager
def threads(count: int, *, part: int) -> Iterator[None]:
    """Let ``count`` threads work, each on no fewer than ``part`` numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with patch.object(cpu, "PART", part):
            yield
    finally:
        torch.set_num_threads(before)


def awkward(count: int, seed: int = 0) -> Tensor:
    """Numbers of many sizes and both signs, zeros of both signs among them, and some that fp32 has no reciprocal of."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).clamp(min=1e-4)
    kind = torch.randint(0, 20, (count,), generator=generator)
    weight[kind == 0] = 0.0
    weight[kind == 1] = -0.0
    weight[kind == 2] *= 1e-42
    return weight


# The reference against the twin


@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
@DRAWN
@given(drawn=drawn_weights(max_count=150, max_group_size=200))
def test_the_reference_is_the_twin(kind: str, zero_point: bool, drawn: Drawn) -> None:
    assert_twin(kind, zero_point, drawn.weight().float(), drawn.group_size)


@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
@DRAWN
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    group_size=st.integers(1, 70),
)
def test_the_reference_is_the_twin_for_any_number(
    kind: str, zero_point: bool, numbers: list[float], group_size: int
) -> None:
    """From the smallest subnormal to the largest number, where products overflow: in the same places."""
    assert_twin(kind, zero_point, torch.tensor(numbers), group_size)


def assert_twin(kind: str, zero_point: bool, weight: Tensor, group_size: int) -> None:
    case = Case(reference, weight, kind, zero_point, group_size)
    levels = case.levels() if kind in ("nf4", "fp4") else None
    wanted = quantize_each(weight.numpy(), kind, group_size, levels, zero_point=zero_point)
    found = case.quantize()
    assert found["codes"].tolist() == wanted.packed(BITS[kind])
    assert same_bits(found["scales"], torch.from_numpy(wanted.scales))
    if wanted.offsets is not None:
        assert same_bits(found["offsets"], torch.from_numpy(wanted.offsets))
    numbers = dequantize_each(wanted, kind, group_size, levels)
    if not np.isnan(numbers).any():
        assert same_bits(case.dequantize(found, torch.float32), torch.from_numpy(numbers))
        short = torch.tensor([round_to_bf16(float(number)) for number in numbers])
        assert torch.equal(short.signbit(), torch.from_numpy(np.signbit(numbers)))
        assert torch.equal(case.dequantize(found, torch.bfloat16).float(), short)


# numba's kernels against the reference


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_every_format_and_group_size(kind: str, zero_point: bool, group_size: int, avx512: bool) -> None:
    """Full groups only; a short one after them, of even and of odd size; and one that is short from the start."""
    for count in {4 * group_size, 3 * group_size + 1, 5 * group_size - 1, 2 * group_size + group_size // 2, 5000}:
        weight = awkward(count, seed=count)
        wanted = Case(reference, weight, kind, zero_point, group_size).everything()
        with patch.object(cpu, "AVX512", avx512):
            assert_same(Case(cpu, weight, kind, zero_point, group_size).everything(), wanted)


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
@DRAWN
@given(drawn=drawn_weights())
def test_drawn_weights(kind: str, zero_point: bool, avx512: bool, drawn: Drawn) -> None:
    weight = drawn.weight().float()
    wanted = Case(reference, weight, kind, zero_point, drawn.group_size).everything()
    with patch.object(cpu, "AVX512", avx512):
        assert_same(Case(cpu, weight, kind, zero_point, drawn.group_size).everything(), wanted)


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
@DRAWN
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    repeats=st.integers(1, 5),
    group_size=st.sampled_from([1, 3, 16, 32, 64, 96]),
)
def test_any_number(
    kind: str, zero_point: bool, avx512: bool, numbers: list[float], repeats: int, group_size: int
) -> None:
    weight = torch.tensor(numbers * repeats)
    wanted = Case(reference, weight, kind, zero_point, group_size).quantize()
    with patch.object(cpu, "AVX512", avx512):
        assert_same(Case(cpu, weight, kind, zero_point, group_size).quantize(), wanted)


@pytest.mark.parametrize("pattern", ["+-", "-+", "+++-", "---+", "-" * 40 + "+" * 40])
@pytest.mark.parametrize("largest", [0.0, 1.0], ids=["zeros only", "zeros are the least"])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_zeros_of_both_signs(kind: str, zero_point: bool, largest: float, pattern: str) -> None:
    """Which of them is the least of a group depends on the order of comparisons, so what is stored must not."""
    weight = torch.tensor([-0.0 if sign == "-" else 0.0 for sign in (pattern * 200)[:400]])
    weight[::7] = largest
    for group_size in (1, 2, 5, 16, 33, 64, 400):
        wanted = Case(reference, weight, kind, zero_point, group_size).quantize()
        for path in PATHS:
            with patch.object(cpu, "AVX512", path):
                assert_same(Case(cpu, weight, kind, zero_point, group_size).quantize(), wanted)
        if zero_point:
            assert not bool(wanted["offsets"].signbit().any())
        assert not bool(wanted["scales"].signbit().any())


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize("shift", [1, 3, 5])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_memory_may_begin_anywhere(kind: str, zero_point: bool, shift: int, avx512: bool) -> None:
    """Rows of a larger weight and pieces of a file lie where they lie."""
    weight = awkward(64 * 7 + 5 + shift)[shift:]
    assert weight.data_ptr() % 64
    wanted = Case(reference, weight.clone(), kind, zero_point, 64).everything()
    with patch.object(cpu, "AVX512", avx512):
        assert_same(Case(cpu, weight, kind, zero_point, 64, shift).everything(), wanted)


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize("group_size", [1, 3, 33, 63, 64, 100, 320])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_threads_do_not_show(kind: str, zero_point: bool, group_size: int, avx512: bool) -> None:
    """Cut among two and five threads, with groups whose codes begin in the middle of a byte."""
    for count in (3001, 20 * group_size, 20 * group_size + 1):
        weight = awkward(count)
        wanted = Case(reference, weight, kind, zero_point, group_size).everything()
        for workers in (2, 5):
            with threads(workers, part=64), patch.object(cpu, "AVX512", avx512):
                assert_same(Case(cpu, weight, kind, zero_point, group_size).everything(), wanted)


def test_threads_work_on_their_own_ranges() -> None:
    """All groups, each by one thread, cut on even ones: or the test above would not test anything."""
    ranges: list[tuple[int, int]] = []
    record = {"_nearest_scales": lambda *arguments: ranges.append(arguments[-2:])}
    values, codes = torch.zeros(1001), torch.zeros(1001, dtype=torch.uint8)
    with threads(4, part=100), patch.dict(cpu._KERNELS, record):
        cpu.quantize_scales(values, codes)
    busy = sorted(pair for pair in ranges if pair[0] < pair[1])
    assert len(busy) == 4
    assert [first for first, _ in busy[1:]] == [last for _, last in busy[:-1]]
    assert (busy[0][0], busy[-1][1]) == (0, 1001)
    assert all(first % 2 == 0 for first, _ in busy)
    ranges.clear()
    with threads(4, part=1001), patch.dict(cpu._KERNELS, record):
        cpu.quantize_scales(values, codes)
    assert ranges == [(0, 1001)]


@pytest.mark.skipif(not cpu.AVX512, reason="no AVX-512 here")
@pytest.mark.parametrize(
    ("group_size", "names"),
    [
        (64, ["_quantize_book_simd", "_dequantize4_fp32_simd", "_dequantize4_bf16_simd"]),
        (48, ["_quantize_book_simd", "_dequantize4_fp32_plain", "_dequantize4_bf16_plain"]),
        (40, ["_quantize_book_plain", "_dequantize4_fp32_plain", "_dequantize4_bf16_plain"]),
    ],
)
def test_which_kernel_runs(group_size: int, names: list[str]) -> None:
    """The fast path where the group fits it; the others only ever see the short group at its end."""
    called: list[str] = []

    def recording(name: str) -> Any:
        kernel = cpu._KERNELS[name]
        return lambda *arguments: called.append(name) or kernel(*arguments)

    with patch.dict(cpu._KERNELS, {name: recording(name) for name in cpu._KERNELS}):
        Case(cpu, awkward(4 * group_size), "nf4", False, group_size).everything()
        assert called == names
        called.clear()
        Case(cpu, awkward(4 * group_size + 1), "nf4", False, group_size).everything()
    plain = [f"{name.rpartition('_')[0]}_plain" for name in names]
    assert called == [one for name, other in zip(names, plain, strict=True) for one in dict.fromkeys((name, other))]


# What only some implementations could get wrong


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_what_is_not_finite_makes_the_scale_so(kernels: Kernels, kind: str, zero_point: bool, bits: int) -> None:
    """Infinities and every kind of NaN, wherever in the group; the groups beside it are as without."""
    clean = torch.randn(64 * 3 + 10, generator=torch.Generator().manual_seed(0))
    scales = Case(kernels, clean, kind, zero_point, 64).quantize()["scales"]
    for path in PATHS:
        for position in (0, 15, 64, 100, 127, 129, 192, 201):
            weight = clean.clone()
            weight.view(torch.int32)[position] = bits if bits < 2**31 else bits - 2**32
            with patch.object(cpu, "AVX512", path):
                found = Case(kernels, weight, kind, zero_point, 64).quantize()["scales"]
            spoilt = torch.arange(4) == position // 64
            assert torch.equal(~found.isfinite(), spoilt)
            assert same_bits(found[~spoilt], scales[~spoilt])


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_full_groups_multiply_and_short_ones_divide(kernels: Kernels, kind: str) -> None:
    """Numbers next to midpoints that a product with the reciprocal and a quotient put on different sides."""
    book, differ = code_book(kind), 0
    for absmax in (np.float32(a) for a in (0.3, 1.7, 5.5, 1e-20, 3e20)):
        near = [np.nextafter(m * absmax, np.float32(end)) for m in book.midpoints for end in (-3e38, 3e38)]
        near += [m * absmax for m in book.midpoints]
        numbers = np.array([absmax, *near, *[0] * 18], np.float32)
        ranks = [
            np.searchsorted(book.midpoints, x, side="left")
            for x in (numbers * (np.float32(1) / absmax), numbers / absmax)
        ]
        differ += int((ranks[0] != ranks[1]).sum())
        for size, rank in zip((64, 65), ranks, strict=True):
            codes = [int(code) for code in book.order[rank]]
            wanted = Groups(codes, np.array([absmax]), None).packed(4)
            for path in PATHS:
                with patch.object(cpu, "AVX512", path):
                    found = Case(kernels, torch.from_numpy(numbers), kind, False, size).quantize()
                assert found["codes"].tolist() == wanted
    assert differ > 5


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_product_and_sum_are_rounded_one_by_one(kernels: Kernels, kind: str) -> None:
    """Scales and offsets for which a fused multiply-add, which rounds once, gives another number in most places."""
    generator = torch.Generator().manual_seed(0)
    scales, offsets = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator) * 3
    codes = [int(code) for code in torch.randint(1, 2 ** BITS[kind], (256,), generator=generator)]
    groups = Groups(codes, scales.numpy(), offsets.numpy())
    wanted = dequantize_each(groups, kind, 32, None)
    products = np.array(codes) * scales.double().numpy().repeat(32)
    fused = (products + offsets.double().numpy().repeat(32)).astype(np.float32)
    assert (fused != wanted).sum() > 10
    tensors = {
        "codes": torch.tensor(groups.packed(BITS[kind]), dtype=torch.uint8),
        "scales": scales,
        "offsets": offsets,
    }
    for path in PATHS:
        with patch.object(cpu, "AVX512", path):
            found = Case(kernels, torch.empty(256), kind, True, 32).dequantize(tensors, torch.float32)
        assert same_bits(found, torch.from_numpy(wanted))


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bf16_ties_go_to_even(kernels: Kernels, kind: str) -> None:
    """Scales from which 1.0 or one step makes numbers in the middle between two of bf16's, and just beside it; large
    ones that round to infinity, subnormal ones, and both signs."""
    middles = [1 + (2 * i + 1) / 256 for i in range(8)]
    scales = [factor * number for number in middles for factor in (1.0, 2.0**-126, 2.0**-130, 2.0**127)]
    scales += [float(np.nextafter(np.float32(s), np.float32(end))) for s in scales for end in (0, 3e38)]
    scales += [3.4e38, float(np.finfo(np.float32).max), 1e-45]
    for sign in (1, -1):
        code = {"nf4": 15 if sign == 1 else 0, "int8": 128 + sign}[kind]
        count = 32 * len(scales)
        codes = torch.full((count if kind == "int8" else count // 2,), code * (17 if kind == "nf4" else 1)).byte()
        wanted = [sign * round_to_bf16(scale) for scale in scales]
        for path in PATHS:
            case = Case(kernels, torch.empty(count), kind, False, 32)
            with patch.object(cpu, "AVX512", path):
                found = case.dequantize({"codes": codes, "scales": torch.tensor(scales)}, torch.bfloat16)
            assert torch.equal(found.float().view(-1, 32), torch.tensor(wanted)[:, None].expand(-1, 32))


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_every_code_stands_for_its_level(kernels: Kernels, kind: str, zero_point: bool) -> None:
    """Also the codes that quantising never gives: -8 and -128 steps."""
    bits = BITS[kind]
    codes = list(range(2**bits)) * 2
    groups = Groups(codes, np.array([0.1, 3.0] * (2 ** (bits - 4)), np.float32), None)
    if zero_point:
        groups = Groups(codes, groups.scales, -groups.scales)
    packed = torch.tensor(groups.packed(bits), dtype=torch.uint8)
    tensors = {"codes": packed, "scales": torch.from_numpy(groups.scales)}
    if groups.offsets is not None:
        tensors["offsets"] = torch.from_numpy(groups.offsets)
    case = Case(kernels, torch.empty(len(codes)), kind, zero_point, 16)
    levels = case.levels() if kind in ("nf4", "fp4") else None
    assert same_bits(
        case.dequantize(tensors, torch.float32), torch.from_numpy(dequantize_each(groups, kind, 16, levels))
    )


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("kind", "zero_point"), FORMATS, ids=IDS)
def test_a_group_larger_than_any_memory(kernels: Kernels, kind: str, zero_point: bool) -> None:
    """It takes no more than the weight, and is a short group like any other."""
    weight = awkward(1001)
    found = Case(kernels, weight, kind, zero_point, 10**15).everything()
    assert_same(found, Case(kernels, weight, kind, zero_point, 1002).everything())


# Scales


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
def test_scale_codes_at_and_beside_the_midpoints(kernels: Kernels) -> None:
    middles = dynamic_midpoints()
    values = np.concatenate(
        [
            middles,
            np.nextafter(middles, np.float32(2)),
            np.nextafter(middles, np.float32(-2)),
            dynamic_levels(),
            np.array([-1, 1, 0, -0.0], np.float32),
        ]
    )
    guarded = Guarded([])
    codes = guarded.empty(len(values), torch.uint8, shift=3)
    kernels.quantize_scales(torch.from_numpy(values), codes)
    guarded.assert_untouched()
    zero = dynamic_levels().tolist().index(0)
    below, above = list(range(255)), list(range(1, 256))
    assert codes.tolist() == [*below, *above, *below, *range(256), 0, 255, zero, zero]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=600))
def test_scale_codes_of_drawn_numbers(numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    wanted, found = (torch.empty(len(values), dtype=torch.uint8) for _ in range(2))
    reference.quantize_scales(values, wanted)
    cpu.quantize_scales(values, found)
    assert torch.equal(found, wanted)
    with threads(3, part=10):
        cpu.quantize_scales(values, found.zero_())
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 1000])
def test_scales_come_back_by_the_formula(kernels: Kernels, count: int) -> None:
    """level * maximum + mean, with numpy's fp32, one number at a time: two roundings, not one."""
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(0, 256, (count,), generator=generator).byte()
    maxima, mean = torch.rand(-(-count // 256), generator=generator) + 0.1, torch.tensor(0.7)
    wanted = [
        dynamic_levels()[code] * maxima.numpy()[index // 256] + mean.numpy()
        for index, code in enumerate(codes.tolist())
    ]
    for workers in (1, 3):
        guarded = Guarded([])
        out = guarded.empty(count, torch.float32, shift=1)
        with threads(workers, part=64):
            kernels.expand_scales(codes, maxima, mean, out)
        guarded.assert_untouched()
        assert same_bits(out, torch.tensor(np.array(wanted)))


def double_numbers(
    kernels: Kernels, count: int, group_size: int, dtype: torch.dtype, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Numbers of random codes with 8-bit scales: formed in one go, and from the reference's scales."""
    generator = torch.Generator().manual_seed(count)
    groups = -(-count // group_size)
    codes = torch.randint(0, 256, (-(-count // 2) + shift,), generator=generator).byte()[shift:]
    scale_codes = torch.randint(0, 256, (groups + shift,), generator=generator).byte()[shift:]
    maxima, mean = torch.rand(-(-groups // 256), generator=generator) + 0.1, torch.tensor(0.7)
    levels = torch.from_numpy(code_book("nf4").levels.copy())
    guarded, scales = Guarded([]), torch.empty(groups)
    found, wanted = guarded.empty(count, dtype, shift), torch.empty(count, dtype=dtype)
    kernels.dequantize4_double(codes, levels, scale_codes, maxima, mean, group_size, found)
    guarded.assert_untouched()
    reference.expand_scales(scale_codes, maxima, mean, scales)
    reference.dequantize4(codes, levels, scales, None, group_size, wanted)
    return found, wanted


@pytest.mark.parametrize("avx512", PATHS, ids=lambda on: "AVX-512" if on else "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [1, 3, 16, 32, 33, 48, 64, 96, 1024])
def test_numbers_from_8_bit_scales(group_size: int, dtype: torch.dtype, avx512: bool) -> None:
    """Full groups and a short one, more than 256 of them; from anywhere in memory; on several threads."""
    for count in {4 * group_size, 3 * group_size + 1, 5 * group_size - 1, 600 * min(group_size, 64)}:
        for shift, workers in ((0, 1), (3, 1), (0, 3)):
            with patch.object(cpu, "AVX512", avx512), threads(workers, part=64):
                found, wanted = double_numbers(cpu, count, group_size, dtype, shift)
            assert same_bits(found, wanted)
        found, wanted = double_numbers(reference, count, group_size, dtype)
        assert same_bits(found, wanted)


def test_the_cpu_is_served_by_numba() -> None:
    assert kernels_for(torch.device("cpu")) is cpu
    assert kernels_for(torch.device("meta")) is reference
