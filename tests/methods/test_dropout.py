"""Dropout by a hash: compiled and plain torch give the same bits, and what is dropped looks like chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlassify.kernels import drop
from qlassify.methods import dropout
from qlassify.methods.dropout import Dropout
from qlassify.seeding import torch_generator

SHAPES = [(16,), (3, 32), (7, 5, 16), (1000, 48)]


def hashed(key: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The hash of each place by another route: numpy's unsigned 32-bit numbers."""
    with np.errstate(over="ignore"):
        value = np.arange(count, dtype=np.uint32) + np.uint32(key & 0xFFFFFFFF)
        value = (value ^ (value >> np.uint32(16))) * np.uint32(0x7FEB352D)
        value = ((value ^ (value >> np.uint32(15))) + np.uint32(key >> 32)) * np.uint32(0x846CA68B)
        return value ^ (value >> np.uint32(16))


@pytest.mark.parametrize("key", [0, 1, 2**31, 2**32 - 1, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.999])
def test_what_is_kept_is_the_hash(key: int, probability: float) -> None:
    one = Dropout(key, round(probability * 2**32))
    wanted = hashed(key, 4096) >= one.threshold
    assert np.array_equal(one.kept(torch.empty(64, 64)).view(-1).numpy(), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_plain_torch_agree_bitwise(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    one = Dropout.draw(0.3, generator)
    assert drop.suits(x)
    compiled = one.apply(x), one.add_to(y.clone(), x.clone()), one.apply(x.clone(), out=torch.empty_like(x))
    monkeypatch.setattr(dropout, "_kernels", lambda: None)
    plain = one.apply(x), one.add_to(y.clone(), x.clone()), one.apply(x.clone(), out=torch.empty_like(x))
    for found, wanted in zip(compiled, plain, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(compiled[0], torch.where(one.kept(x), x, torch.zeros((), dtype=dtype)))
    assert torch.equal(compiled[1], y + compiled[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_dropped_is_zero_whatever_it_was(value: float) -> None:
    """A product with zero would leave NaN."""
    x = torch.full((4, 16), value)
    one = Dropout(3, 2**31)
    assert torch.equal(one.apply(x) == 0, ~one.kept(x))


@pytest.mark.parametrize(("shape", "dtype"), [((5, 3), torch.float32), ((4, 16), torch.float64)])
def test_other_sizes_and_types_go_through_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(shape, dtype=dtype)
    assert not drop.suits(x)
    one = Dropout(77, 2**31)
    assert torch.equal(one.apply(x), one.kept(x).to(dtype))


def test_a_target_of_another_type_or_layout_is_not_written_as_if_it_were_the_same(generator: torch.Generator) -> None:
    x, one = torch.randn(16, 32, generator=generator), Dropout(5, 2**30)
    wanted = one.apply(x)
    turned = torch.zeros(32, 16).T
    assert torch.equal(one.apply(x, out=turned), wanted)
    assert torch.equal(one.add_to(torch.zeros(32, 16).T, x.clone()), wanted)
    wide = one.add_to(torch.zeros(16, 32, dtype=torch.float64), x.clone())
    assert torch.equal(wide, wanted.double())


def test_the_largest_probability_below_one_keeps_next_to_nothing(generator: torch.Generator) -> None:
    """Rounded to 32 bits it is one: the threshold would be zero to a kernel, and the scale has no value."""
    one = Dropout.draw(math.nextafter(1.0, 0.0), generator)
    assert math.isfinite(one.scale)
    # A place is kept with a chance of 2^-32.
    assert not one.apply(torch.ones(64, 16)).any()
    assert not one.kept(torch.ones(64, 16)).any()


def test_parts_on_threads_change_no_bit(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, one = torch.randn(37, 48, generator=generator), Dropout(99, 2**30)
    whole = one.apply(x)
    monkeypatch.setattr(drop, "PART", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(one.apply(x), whole)


def test_the_meta_device_gets_shapes() -> None:
    x = torch.empty(4, 16, device="meta")
    one = Dropout(1, 2**31)
    assert one.apply(x).shape == one.add_to(x, x).shape == (4, 16)


def flags(one: Dropout, rows: int = 512, columns: int = 384) -> torch.Tensor:
    return one.kept(torch.empty(rows, columns)).double()


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_what_is_dropped_looks_like_chance(probability: float) -> None:
    """Shares of rows and columns, neighbours, and masks of calls that follow one another."""
    stream = torch_generator(5, "dropout")
    first, *others = (Dropout.draw(probability, stream) for _ in range(9))
    mask, keep = flags(first), 1 - probability
    variance = keep * probability
    # Five deviations of a mean of n independent draws.
    assert float(mask.mean()) == pytest.approx(keep, abs=5 * math.sqrt(variance / mask.numel()))
    for dim in (0, 1):
        shares = mask.mean(dim=dim)
        # The spread of the shares of k rows of n draws is known to about 1 / sqrt(2 k): a third is six deviations.
        assert float(shares.std()) == pytest.approx(math.sqrt(variance / mask.shape[dim]), rel=0.33)
    centred = mask - keep
    pairs = [(centred[:, :-step], centred[:, step:]) for step in (1, 2, 16, 128)] + [(centred[:-1], centred[1:])]
    pairs += [(centred, flags(other) - keep) for other in others]
    for left, right in pairs:
        # The mean product of independent numbers has the deviation variance / sqrt(n).
        assert abs(float((left * right).mean())) < 5 * variance / math.sqrt(left.numel())


def test_keys_are_a_stream() -> None:
    first, again, other = (torch_generator(seed, "dropout") for seed in (1, 1, 2))
    keys = [Dropout.draw(0.1, first) for _ in range(3)]
    assert len(set(keys)) == 3
    assert [Dropout.draw(0.1, again) for _ in range(3)] == keys
    assert Dropout.draw(0.1, other) != keys[0]


def test_the_scale_leaves_sums_as_they_are() -> None:
    # Rounding to 32 bits moves a probability by at most 2^-33.
    assert Dropout.draw(0.25, torch_generator(0, "dropout")).scale == pytest.approx(4 / 3, rel=1e-9)
