"""The low-bit formats: levels, how far a number can be off, what special numbers come to, and the size in bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from qlassify.config.quant import SCALES_PER_SUPER_GROUP, QuantConfig
from qlassify.errors import ModelError
from qlassify.quant import tensor as formats
from qlassify.quant.codebook import code_book, dynamic_levels, dynamic_midpoints
from qlassify.quant.double import DoubleScales, quantize_scales
from qlassify.quant.tensor import QuantizedTensor, allocate, from_tensors, quantize, squared_error
from reference.quant import (
    FP32_EPSILON,
    FP32_SMALLEST,
    SMALLEST_ABSMAX,
    Drawn,
    drawn_weights,
    dynamic_tree_levels,
    fp4_level,
    nearest,
    same_bits,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = settings(max_examples=30)
"""For a property of every format: a few hundred weights all together."""

Doubles = npt.NDArray[np.float64]

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"kind": "nf4", "double": False},
    "fp4": {"kind": "fp4", "double": False},
    "int4": {"kind": "int4", "double": False},
    "int8": {"kind": "int8", "double": False},
    "int4 with zero points": {"kind": "int4", "zero_point": True},
    "int8 with zero points": {"kind": "int8", "zero_point": True},
    "nf4 double": {"kind": "nf4", "double": True},
    "fp4 double": {"kind": "fp4", "double": True},
    "int4 double": {"kind": "int4", "double": True},
    "int8 double": {"kind": "int8", "double": True},
}
SYMMETRIC = [name for name, settings in FORMATS.items() if "zero_point" not in settings]
SINGLE = [name for name, settings in FORMATS.items() if not settings.get("double")]

HALF_GAP = {"nf4": 0.15190360, "fp4": 1 / 6, "dynamic": 0.9 / 64 / 2}
"""Half the widest gap between neighbouring levels: of NF4 from -1 to -0.6962, of FP4 from 8/12 to 1, of the dynamic
levels between the centres of the 64 parts of (0.1, 1]."""


def config_of(name: str, group_size: int = 64) -> QuantConfig:
    return QuantConfig(group_size=group_size, **FORMATS[name])


def codes_of(quantized: QuantizedTensor) -> list[int]:
    """One code per number."""
    count = math.prod(quantized.shape)
    if quantized.config.bits == 8:
        return [int(code) for code in quantized.codes]
    return [half for byte in quantized.codes.tolist() for half in (byte >> 4, byte & 15)][:count]


def scales_of(quantized: QuantizedTensor) -> Tensor:
    """The scales that the weight is multiplied with."""
    if isinstance(quantized.scales, DoubleScales):
        return quantized.scales.expand(torch.empty(len(quantized.scales.codes)))
    return quantized.scales


def by_group(values: Doubles, group_size: int) -> list[Doubles]:
    return [values[start : start + group_size] for start in range(0, len(values), group_size)]


# Levels


def test_nf4_levels_are_normal_quantiles() -> None:
    """The published values were computed in fp32, from probabilities in fp32 up to 0.97. A probability off by half an
    fp32 step there (3e-8) moves a quantile by 3e-8 / density(1.85) = 4e-7, which 1.85 divides again; two such errors,
    numerator and denominator, stay below 1e-6.
    """
    top = 0.9677083
    quantiles = [norm.ppf(p) for p in np.linspace(top, 0.5, 9)[:-1]]
    quantiles += [-norm.ppf(p) for p in np.linspace(top, 0.5, 8)[:-1]]
    wanted = np.array(sorted([*quantiles, 0.0])) / norm.ppf(top)
    np.testing.assert_allclose(code_book("nf4").levels, wanted, rtol=0, atol=1e-6)


def test_fp4_levels_are_its_bits() -> None:
    wanted = np.array([np.float32(fp4_level(code)) for code in range(16)])
    # One division of exact numbers, rounded once by both.
    np.testing.assert_array_equal(code_book("fp4").levels, wanted)


def test_dynamic_levels_are_centres() -> None:
    """Edge, centre and power of ten are rounded once each, and the power itself was: four steps of 2**-24."""
    np.testing.assert_allclose(dynamic_levels(), dynamic_tree_levels(), rtol=4 * FP32_EPSILON, atol=0)
    assert dynamic_levels()[127] == 0


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_code_book_is_complete(kind: str) -> None:
    book = code_book(kind)
    assert (book.levels.dtype, book.midpoints.dtype, book.order.dtype) == (np.float32, np.float32, np.uint8)
    assert sorted(book.order.tolist()) == list(range(16))
    ascending = book.levels[book.order].astype(np.float64)
    assert (np.diff(ascending) >= 0).all()
    assert np.abs(ascending).max() == 1
    # Zero is a level: a pruned weight stays zero.
    assert 0 in ascending
    # The sum of two neighbours is rounded once; halving it is exact.
    middles = (ascending[1:] + ascending[:-1]) / 2
    np.testing.assert_allclose(book.midpoints, middles, rtol=FP32_EPSILON, atol=0)
    assert (np.diff(book.midpoints) > 0).all()


def test_dynamic_midpoints_are_in_the_middle() -> None:
    levels = dynamic_levels().astype(np.float64)
    assert (levels.dtype, dynamic_levels().dtype, dynamic_midpoints().dtype) == (np.float64, np.float32, np.float32)
    assert (np.diff(levels) > 0).all()
    np.testing.assert_allclose(dynamic_midpoints(), (levels[1:] + levels[:-1]) / 2, rtol=FP32_EPSILON, atol=0)


def test_widest_gaps() -> None:
    # Stated to eight digits.
    assert code_book("nf4").widest_gap / 2 == pytest.approx(HALF_GAP["nf4"], abs=5e-9)
    # The two levels are rounded to fp32.
    assert code_book("fp4").widest_gap / 2 == pytest.approx(HALF_GAP["fp4"], rel=2 * FP32_EPSILON)
    assert np.diff(dynamic_levels().astype(np.float64)).max() / 2 == pytest.approx(
        HALF_GAP["dynamic"], abs=2 * FP32_EPSILON
    )


@pytest.mark.parametrize("table", [code_book("nf4").levels, code_book("fp4").midpoints, dynamic_levels()])
def test_shared_tables_cannot_be_changed(table: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


# How far off


def bound_of_group(config: QuantConfig, group: Doubles) -> float:
    """The largest error of a number of a group, scales being exact. u is 2**-24, an fp32 operation's relative error.

    A code book's level is the nearest one to x = w / absmax, |x| <= 1, so it is off by half the widest gap at most;
    x has two roundings (a reciprocal, a product), the midpoint that it is compared with one, the product level x
    absmax one: 4u in units of absmax, and |x| <= 1 up to 2u. 6u is said below.

    A symmetric integer of K steps is off by half a scale, scale = absmax / K. In units of the scale the quotient, up
    to K, is rounded once and the product once more: 2Ku; and the scale's own rounding may put the largest number up
    to Ku beyond the last step: 4Ku. With zero points the quotient and difference are formed in float64; the scale's
    rounding (Ku) and the product's (Ku) remain, and the sum with the offset is rounded to the size of the numbers
    (2u max|w|).

    The products of tiny numbers are rounded to multiples of 2**-149. An absmax below 1e-38 is divided as if it was
    1e-38: nothing is said then but that a number comes back with its sign and no larger than absmax.
    """
    absmax = float(np.abs(group).max())
    if config.zero_point:
        steps = 2**config.bits - 1
        scale = (float(group.max()) - float(group.min())) / steps
        return scale * (0.5 + 3 * steps * FP32_EPSILON) + 2 * FP32_EPSILON * absmax + steps * FP32_SMALLEST
    if absmax < 1e-36:  # where the integers' scales, too, are far from subnormal
        return absmax
    if config.kind in HALF_GAP:
        return absmax * (HALF_GAP[config.kind] + 6 * FP32_EPSILON) + FP32_SMALLEST
    steps = 2 ** (config.bits - 1) - 1
    return absmax / steps * (0.5 + 5 * steps * FP32_EPSILON) + FP32_SMALLEST


def assert_within_bounds(weight: Tensor, quantized: QuantizedTensor) -> None:
    config = quantized.config
    exact = weight.double().numpy().reshape(-1)
    # Everything begins with fp32; from float64 that is one more rounding.
    numbers = weight.float().double().numpy().reshape(-1)
    found = quantized.dequantize().double().numpy().reshape(-1)
    errors, groups = by_group(np.abs(found - numbers), config.group_size), by_group(numbers, config.group_size)
    off_by_double = np.zeros(len(groups))
    if config.double:
        steps = 1 if config.bits == 4 and config.kind != "int4" else 2 ** (config.bits - 1) - 1
        scales = np.array([np.abs(group).max() for group in groups]) / steps
        mean = scales.mean()
        for start in range(0, len(scales), SCALES_PER_SUPER_GROUP):
            part = slice(start, start + SCALES_PER_SUPER_GROUP)
            largest = float(np.abs(scales[part] - mean).max())
            # The level's own error, in units of the scale, is in the bound of the group; a level is at most `steps`.
            off_by_double[part] = steps * scale_error(largest, mean)
    for error, group, off in zip(errors, groups, off_by_double, strict=True):
        assert error.max() <= bound_of_group(config, group) + off, (error.max(), group)
    assert (np.abs(numbers - exact) <= FP32_EPSILON * np.abs(exact) + FP32_SMALLEST).all()


def scale_error(largest: float, mean: float) -> float:
    """How far a scale is off at most that is stored in 8 bits.

    Its deviation from the mean comes back as the nearest level times the largest deviation of its 256: half the widest
    gap. Difference, quotient, midpoint, product and the largest deviation itself are rounded once each, and the last
    sum and the mean in units of the scale (at most mean + largest). A largest deviation below 1e-38 is divided as if it
    was that, and may be lost altogether.
    """
    rounding = 6 * FP32_EPSILON * largest + 3 * FP32_EPSILON * (abs(mean) + largest)
    return HALF_GAP["dynamic"] * largest + rounding + SMALLEST_ABSMAX


@pytest.mark.parametrize("name", FORMATS)
@DRAWN
@given(drawn=drawn_weights())
@example(Drawn(count=5000, group_size=64, exponent=30, tail="heavy", dtype=torch.float32, seed=1))
@example(Drawn(count=5999, group_size=1, exponent=0, tail="normal", dtype=torch.float32, seed=2))
@example(Drawn(count=5001, group_size=5000, exponent=-30, tail="uneven", dtype=torch.bfloat16, seed=3))
def test_numbers_come_back_within_the_bound(name: str, drawn: Drawn) -> None:
    weight = drawn.weight()
    assert_within_bounds(weight, quantize(weight, config_of(name, drawn.group_size)))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_bound_is_reached(name: str) -> None:
    """A number in the middle of the widest gap is off by just that half: the bound above is no looser than it must."""
    book = code_book(name)
    ascending = book.levels[book.order]
    widest = int(np.argmax(np.diff(ascending)))
    weight = torch.tensor([1.0, float(book.midpoints[widest])])
    error = (quantize(weight, config_of(name, 2)).dequantize() - weight).abs().max()
    assert float(error) == pytest.approx(HALF_GAP[name], rel=1e-6)


@pytest.mark.parametrize("name", SINGLE)
@DRAWN
@given(drawn=drawn_weights())
def test_scales_are_the_groups_extremes(name: str, drawn: Drawn) -> None:
    """absmax to the bit; quotients of it correctly rounded, that is, as float64's quotient rounded once more: a float64
    has more than twice fp32's bits and two more, where rounding twice is rounding once."""
    config = config_of(name, drawn.group_size)
    weight = drawn.weight()
    quantized = quantize(weight, config)
    for index, group in enumerate(by_group(weight.float().double().numpy(), drawn.group_size)):
        if config.zero_point:
            assert quantized.offsets is not None
            assert float(quantized.offsets[index]) == group.min()
            wanted = (group.max() - group.min()) / (2**config.bits - 1)
        else:
            wanted = np.abs(group).max() / {"int4": 7, "int8": 127}.get(config.kind, 1)
        assert float(scales_of(quantized)[index]) == float(np.float32(wanted))


# The nearest level


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@DRAWN
@given(drawn=drawn_weights(max_count=300, max_group_size=300))
def test_the_level_is_the_nearest(name: str, drawn: Drawn) -> None:
    """By exhaustive search in float64, wherever one level is nearer than the next by more than rounding. Three errors
    of 2**-24 (two in the ratio, one in the midpoint) move a number over the middle; that is twice as much in the
    difference of the two distances."""
    weight = drawn.weight()
    quantized = quantize(weight, config_of(name, drawn.group_size))
    codes = codes_of(quantized)
    levels = [float(level) for level in code_book(name).levels]
    # FP4 has two zeros: the distance to the next best is that to another number.
    different = sorted(set(levels))
    for group_index, group in enumerate(by_group(weight.float().double().numpy(), drawn.group_size)):
        absmax = np.abs(group).max()
        if absmax < SMALLEST_ABSMAX:
            continue
        for index, w in enumerate(group, group_index * drawn.group_size):
            best, margin = nearest(different, w / absmax)
            if margin > 6 * FP32_EPSILON:
                assert levels[codes[index]] == different[best]


@pytest.mark.parametrize("full", [True, False], ids=["full group", "short group"])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_number_on_a_midpoint_goes_down(name: str, full: bool) -> None:
    """With an absmax of 1 nothing is rounded on the way to the comparison."""
    book = code_book(name)
    numbers = np.concatenate(
        [book.midpoints, np.nextafter(book.midpoints, np.float32(2)), np.nextafter(book.midpoints, np.float32(-2)), [1]]
    ).astype(np.float32)
    size = len(numbers) if full else 64
    codes = codes_of(quantize(torch.from_numpy(numbers), config_of(name, size)))
    below, above = book.order[:-1].tolist(), book.order[1:].tolist()
    assert codes == [*below, *above, *below, int(book.order[-1])]


@pytest.mark.parametrize("short", [False, True], ids=["full group", "short group"])
@pytest.mark.parametrize("name", ["int4", "int8", "int4 with zero points", "int8 with zero points"])
def test_integers_round_halves_to_even(name: str, short: bool) -> None:
    """Whole and half steps of scale 1: the first number is the last step, so nothing is rounded before the step is."""
    config = config_of(name)
    steps = 2**config.bits - 1 if config.zero_point else 2 ** (config.bits - 1) - 1
    low = 0 if config.zero_point else -steps
    numbers = [steps, low, *(half / 2 for half in range(2 * low, 2 * steps + 1))]
    wanted = [round(number) - low + (0 if config.zero_point else 1) for number in numbers]
    size = 2 * len(numbers) if short else len(numbers)
    quantized = quantize(torch.tensor(numbers), config.replace(group_size=size))
    assert codes_of(quantized) == wanted
    assert scales_of(quantized).tolist() == [1.0]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_the_nearest_dynamic_level(numbers: list[float]) -> None:
    """A mean of zero and a largest deviation of 1, so the code is that of the number itself: drawn numbers and their
    negatives, 1 and -1. As multiples of 2**-40 they add up to exactly zero in float64."""
    numbers = [round(number * 2**40) / 2**40 for number in numbers]
    scales = [1.0, -1.0, *numbers, *(-number for number in numbers)]
    found = quantize_scales(torch.tensor(scales))
    assert float(found.mean) == 0
    assert found.maxima.tolist() == [1.0]
    levels = [float(level) for level in dynamic_levels()]
    for number, code in zip(scales, found.codes.tolist(), strict=True):
        best, margin = nearest(levels, number)
        # Only the midpoint is rounded, relative to its size.
        if margin > 2 * FP32_EPSILON * abs(number):
            assert code == best


@pytest.mark.parametrize("name", SINGLE)
@DRAWN
@given(drawn=drawn_weights(max_count=1000))
def test_quantising_again_gives_the_same_codes(name: str, drawn: Drawn) -> None:
    """Levels are levels: the largest number is one of them, so the scale comes back, and every other number is near
    the middle of its code's interval.

    Not so with zero points where fp32 cannot tell the levels apart, that is, where a scale is within a few roundings
    of the numbers themselves; and not with double quantisation, which the scale does not survive.
    """
    config = config_of(name, drawn.group_size)
    weight = drawn.weight()
    once = quantize(weight, config)
    dense = once.dequantize()
    for group in by_group(dense.double().numpy(), drawn.group_size):
        if config.zero_point:
            # The scale is off by two roundings of the numbers over all steps, a number by one more.
            assume(group.max() == group.min() or 8 * FP32_EPSILON * np.abs(group).max() < (np.ptp(group)) / 255 / 4)
        else:
            assume(np.abs(group).max() == 0 or np.abs(group).max() > 1e-36)
    twice = quantize(dense, config)
    first, second = codes_of(once), codes_of(twice)
    if name == "fp4":
        # Its second zero is a zero.
        first = [0 if code == 8 else code for code in first]
        second = [0 if code == 8 else code for code in second]
    assert second == first
    if name in ("nf4", "fp4"):
        assert same_bits(scales_of(twice), scales_of(once))


@pytest.mark.parametrize("name", ["nf4", "fp4", "int4"])
@DRAWN
@given(drawn=drawn_weights(max_count=1000))
def test_quantising_bf16_numbers_again_gives_the_same_codes(name: str, drawn: Drawn) -> None:
    """bf16 rounds by 2**-9, twice in a ratio: 0.4%. Half the gap beside any level other than zero is 4% of it or more
    (NF4's -0.6962 and -0.5251: 12%; INT4's 6 and 7: 7%)."""
    weight = drawn.weight()
    config = config_of(name, drawn.group_size)
    once = quantize(weight, config)
    dense = once.dequantize(torch.bfloat16)
    for group in by_group(dense.double().numpy(), drawn.group_size):
        assume(np.abs(group).max() == 0 or np.abs(group).max() > 1e-36)
    first, second = codes_of(once), codes_of(quantize(dense, config))
    if name == "fp4":
        first = [0 if code == 8 else code for code in first]
        second = [0 if code == 8 else code for code in second]
    assert second == first


# Special numbers


@pytest.mark.parametrize("group_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", FORMATS)
def test_zeros_come_back_as_zeros(name: str, group_size: int) -> None:
    """Also in a weight whose other groups are none, where double quantisation gives the zeros a scale."""
    config = config_of(name, group_size)
    assert torch.equal(quantize(torch.zeros(300), config).dequantize(), torch.zeros(300))
    if not config.double:
        assert float(scales_of(quantize(torch.zeros(300), config)).abs().max()) == 0
    mixed = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    zeros = slice(group_size, 2 * group_size)
    mixed[zeros] = 0
    found = quantize(mixed, config).dequantize()
    assert torch.equal(found[zeros], torch.zeros(len(mixed[zeros])))
    assert float(found.abs().max()) > 1


@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, -3e-20, 12345.678, -1e30])
@pytest.mark.parametrize("name", FORMATS)
def test_a_repeated_number_comes_back(name: str, value: float) -> None:
    """It is the absmax and thereby a level. Equal scales have no deviation from their mean, and with zero points the
    offset is the number: only the integers' scale is rounded, and its product with 7 or 127: 2**-23 together."""
    config = config_of(name)
    weight = torch.full((300,), value)
    quantized = quantize(weight, config)
    found = quantized.dequantize()
    if config.kind in ("nf4", "fp4") or config.zero_point:
        assert torch.equal(found, weight)
    else:
        torch.testing.assert_close(found, weight, rtol=2 * FP32_EPSILON, atol=0)
    if config.zero_point:
        assert quantized.offsets is not None
        assert float(scales_of(quantized).abs().max()) == 0
        assert quantized.offsets.unique().tolist() == [float(np.float32(value))]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("position", "dtype"), [(0, torch.float32), (63, torch.bfloat16), (200, torch.float16)])
def test_a_number_that_is_not_finite_is_refused(name: str, bad: float, position: int, dtype: torch.dtype) -> None:
    """Position 200 is in the short group at the end."""
    weight = torch.randn(3, 67, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight.view(-1)[position] = bad
    with pytest.raises(ModelError) as caught:
        quantize(weight, config_of(name), name="encoder.layer.3.weight")
    assert caught.value.where == "encoder.layer.3.weight"
    assert caught.value.got == f"{bad} at position {position} of 201"
    assert "encoder.layer.3.weight" in str(caught.value)


def test_the_first_of_several_is_named() -> None:
    weight = torch.ones(1000)
    weight[[900, 321, 333, 322]] = math.nan
    weight[321] = math.inf
    with pytest.raises(ModelError, match="got inf at position 321 of 1000"):
        quantize(weight, QuantConfig())


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_beyond_fp32_is_refused(name: str) -> None:
    """Finite in float64, and still infinite where the computation begins."""
    weight = torch.ones(200, dtype=torch.float64)
    weight[70] = -1e39
    with pytest.raises(ModelError, match="position 70 of 200"):
        quantize(weight, config_of(name))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_only_floating_point_is_quantised(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=f"classifier.weight: .*got {dtype}"):
        quantize(torch.zeros(4, 4, dtype=dtype), QuantConfig(), name="classifier.weight")


@pytest.mark.parametrize("name", FORMATS)
@DRAWN
@given(
    numbers=st.lists(st.floats(-(2.0**-119), 2.0**-119, width=32), min_size=1, max_size=80),
    group_size=st.integers(1, 80),
)
def test_tiny_numbers_keep_their_sign_and_size(name: str, numbers: list[float], group_size: int) -> None:
    """Around and below fp32's smallest normal number. Nothing is said of their digits; they may become zero, but
    neither larger than their group's largest nor of the other sign (up to the error of an 8-bit scale, which is
    bounded by the largest scale of all)."""
    config = config_of(name, group_size)
    weight = torch.tensor(numbers)
    found = quantize(weight, config).dequantize()
    largest = float(weight.abs().max())
    for index, group in enumerate(by_group(weight.double().numpy(), group_size)):
        absmax = float(np.abs(group).max())
        back = found[index * group_size : (index + 1) * group_size].double().numpy()
        steps = {"int4": 7, "int8": 127}.get(config.kind, 1)
        # A scale of absmax / steps is rounded to a multiple of 2**-149, and so is the product with it.
        slack = steps * FP32_SMALLEST + 2 * FP32_EPSILON * absmax
        slack += (steps * scale_error(largest / steps, largest / steps)) if config.double else 0
        slack += absmax if config.zero_point else 0
        assert np.abs(back).max() <= absmax + slack
        if not config.double and not config.zero_point:
            assert (back * group >= 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_negative_zero_is_zero(name: str) -> None:
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0))
    weight[::3] = 0.0
    other = weight.clone()
    other[::3] = -0.0
    first, second = (quantize(one, config_of(name)).tensors() for one in (weight, other))
    assert all(same_bits(first[key], second[key]) for key in first)


@pytest.mark.parametrize("value", [3.0, -2e-5, 0.0])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", FORMATS)
def test_one_number(name: str, shape: tuple[int, ...], value: float) -> None:
    quantized = quantize(torch.full(shape, value), config_of(name))
    found = quantized.dequantize()
    assert found.shape == shape
    # As for a repeated number.
    torch.testing.assert_close(found, torch.full(shape, value), rtol=2 * FP32_EPSILON, atol=0)
    assert quantized.nbytes == quantized.config.storage_bytes(1)


@pytest.mark.parametrize("name", FORMATS)
def test_strides_do_not_matter(name: str) -> None:
    whole = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    for view in (whole.T, whole[::2], whole[:, 1::3], whole[5:, 7:], whole[3], whole[:, 4], whole[:1].expand(7, 50)):
        copy = view.clone(memory_format=torch.contiguous_format)
        found, wanted = (quantize(one, config_of(name)) for one in (view, copy))
        assert found.shape == tuple(view.shape)
        for key, tensor in found.tensors().items():
            assert same_bits(tensor, wanted.tensors()[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_the_weight_is_not_changed(name: str, dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.randn(31, 33, generator=torch.Generator().manual_seed(0)).to(dtype))
    before = weight.detach().clone()
    quantized = quantize(weight, config_of(name))
    quantized.dequantize().zero_()
    assert same_bits(weight.detach(), before)
    for tensor in quantized.tensors().values():
        assert not tensor.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_the_type_only_says_which_numbers(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, wanted = quantize(weight, config_of(name)).tensors(), quantize(weight.float(), config_of(name)).tensors()
    assert all(same_bits(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("group_size", [1, 3, 50, 64, 333, 5000])
@pytest.mark.parametrize("name", FORMATS)
def test_chunks_do_not_show(name: str, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is converted piece by piece; where the pieces end is nobody's business."""
    weight = torch.randn(10_001, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = quantize(weight, config_of(name, group_size)).tensors()
    for chunk in (1, 100, 999, 4096):
        monkeypatch.setattr(formats, "CHUNK", chunk)
        pieces = quantize(weight, config_of(name, group_size)).tensors()
        assert all(same_bits(pieces[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["nf4", "int4", "int8", "int8 with zero points"])
def test_one_group_for_everything(name: str) -> None:
    """A group size that no memory could hold is a way to say so; it takes no more than the weight."""
    weight = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    found = quantize(weight, config_of(name, 10**15))
    wanted = quantize(weight, config_of(name, 1002))
    assert all(same_bits(found.tensors()[key], wanted.tensors()[key]) for key in wanted.tensors())
    assert same_bits(found.dequantize(), wanted.dequantize())


# Back to numbers


@pytest.mark.parametrize("name", FORMATS)
@DRAWN
@given(drawn=drawn_weights(max_count=500))
def test_other_types_are_roundings_of_fp32(name: str, drawn: Drawn) -> None:
    quantized = quantize(drawn.weight(), config_of(name, drawn.group_size))
    dense = quantized.dequantize()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert same_bits(quantized.dequantize(dtype), dense.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMATS)
def test_an_output_is_written_into(name: str, dtype: torch.dtype) -> None:
    """All of it, whatever was there, and nothing beside it."""
    weight = torch.randn(37, 27, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, config_of(name))
    wanted = quantized.dequantize(dtype)
    assert (wanted.dtype, wanted.shape) == (dtype, (37, 27))
    room = torch.full((weight.numel() + 200,), math.nan, dtype=dtype)
    out = room[100:-100].view(27, 37)
    assert quantized.dequantize(dtype, out=out) is out
    assert same_bits(out.view(37, 27), wanted)
    assert bool(room[:100].isnan().all())
    assert bool(room[-100:].isnan().all())


@given(st.permutations(range(16)))
def test_the_first_code_is_in_the_high_half(codes: list[int]) -> None:
    """Every byte value comes about in some order; level by level, by hand."""
    pairs = zip(codes[::2], codes[1::2], strict=True)
    packed = torch.tensor([16 * first + second for first, second in pairs], dtype=torch.uint8)
    config = QuantConfig(kind="nf4", group_size=8, double=False)
    weight = from_tensors(config, (16,), {"codes": packed, "scales": torch.tensor([2.0, 0.5])})
    levels = code_book("nf4").levels
    wanted = [float(levels[code]) * (2.0 if index < 8 else 0.5) for index, code in enumerate(codes)]
    assert weight.dequantize().tolist() == wanted


# Sizes


@pytest.mark.parametrize("name", FORMATS)
@DRAWN
@given(count=st.integers(1, 40_000), group_size=st.integers(1, 300))
def test_bytes_are_those_counted(name: str, count: int, group_size: int) -> None:
    config = config_of(name, group_size)
    planned = allocate(config, (count,), "meta")
    measured = quantize(torch.zeros(count), config)
    assert measured.nbytes == planned.nbytes == config.storage_bytes(count)
    assert measured.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in measured.tensors().values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(7, 33), (1, 1), (256, 128), (5, 3, 4)])
def test_planned_tensors_are_the_real_ones(name: str, shape: tuple[int, ...]) -> None:
    for group_size in (1, 5, 64):
        config = config_of(name, group_size)
        planned, real = allocate(config, shape, "meta"), quantize(torch.ones(shape), config)
        assert planned.shape == real.shape == shape
        assert list(planned.tensors()) == list(real.tensors())
        for key, tensor in real.tensors().items():
            meta = planned.tensors()[key]
            assert meta.is_meta
            assert (meta.shape, meta.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_make_the_weight_again(name: str) -> None:
    quantized = quantize(torch.randn(37, 29, generator=torch.Generator().manual_seed(0)), config_of(name))
    expected = {"codes"}
    expected |= {"scale_codes", "scale_maxima", "scale_mean"} if quantized.config.double else {"scales"}
    expected |= {"offsets"} if quantized.config.zero_point else set()
    assert set(quantized.tensors()) == expected
    again = from_tensors(quantized.config, quantized.shape, quantized.tensors())
    assert all(again.tensors()[key] is tensor for key, tensor in quantized.tensors().items())
    assert same_bits(again.dequantize(), quantized.dequantize())


# The error of a whole weight


@pytest.mark.parametrize("group_size", [3, 64])
@pytest.mark.parametrize("name", FORMATS)
def test_the_squared_error_is_the_sum(name: str, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Difference and square are fp32 operations: three roundings of 2**-24 in a square, and sums in float64 add none.
    However many pieces it is computed in."""
    weight = torch.randn(37, 129, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantized = quantize(weight, config_of(name, group_size))
    exact = weight.double()
    wanted = float((quantized.dequantize().double() - exact).square().sum()), float(exact.square().sum())
    assert wanted[0] > 0
    for chunk in (formats.CHUNK, 1, 500):
        monkeypatch.setattr(formats, "CHUNK", chunk)
        assert squared_error(weight, quantized) == pytest.approx(wanted, rel=4 * FP32_EPSILON)
        assert squared_error(weight.T.contiguous().T, quantized) == squared_error(weight, quantized)


# Double quantisation


@given(drawn=drawn_weights(max_count=1500))
def test_scales_come_back_within_the_bound(drawn: Drawn) -> None:
    scales = drawn.weight().float().abs()
    stored = quantize_scales(scales)
    found = stored.expand(torch.empty_like(scales)).double().numpy()
    exact = scales.double().numpy()
    mean = exact.mean()
    # The mean is summed in float64 and rounded once.
    assert abs(float(stored.mean) - mean) <= FP32_EPSILON * mean * (1 + 1e-6) + FP32_SMALLEST
    super_groups = by_group(exact, SCALES_PER_SUPER_GROUP)
    assert len(stored.maxima) == len(super_groups)
    for index, group in enumerate(super_groups):
        largest = float(np.abs(group - mean).max())
        assert float(stored.maxima[index]) == pytest.approx(
            largest, rel=2 * FP32_EPSILON, abs=FP32_EPSILON * mean + FP32_SMALLEST
        )
        back = found[index * SCALES_PER_SUPER_GROUP : (index + 1) * SCALES_PER_SUPER_GROUP]
        assert np.abs(back - group).max() <= scale_error(largest, mean)


def test_a_super_group_is_256_scales() -> None:
    """An outlier spoils its own super-group only."""
    scales = torch.rand(3 * 256 + 5, generator=torch.Generator().manual_seed(0)) + 1
    calm = quantize_scales(scales)
    scales[256] = 1000.0
    wild = quantize_scales(scales)
    assert wild.maxima[1] > 900
    others = torch.tensor([0, 2, 3])
    # The mean moved by 1.3; the other deviations with it, but not by the outlier's 1000.
    assert float(wild.maxima[others].max()) < 2.5
    assert len(calm.codes) == 3 * 256 + 5
    error = (wild.expand(torch.empty_like(scales)) - scales).abs()
    assert float(error[torch.arange(len(scales)) // 256 != 1].max()) < 0.02
    # Beside the outlier the others' deviations are 0.001 of the largest, where levels are 0.00056 apart.
    assert 0.1 < float(error[256:512].max()) < 1000 * 0.00057 / 2


def test_the_mean_does_not_depend_on_the_order() -> None:
    """Summed in fp32 a mean of many scales would lose digits: here half of them would not count at all."""
    scales = torch.cat([torch.full((1,), 2.0**25), torch.ones(2**16)])
    exact = (2.0**25 + 2**16) / (2**16 + 1)
    for order in (scales, scales.flip(0)):
        assert float(quantize_scales(order).mean) == float(np.float32(exact))
