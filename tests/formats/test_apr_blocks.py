"""Decoders of blocks: bitwise what the gguf package gives, and the formulas element by element in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlassify.errors import ModelError
from qlassify.formats.apr import STRETCH_ELEMENTS, open_apr
from qlassify.formats.apr_blocks import (
    DECODERS,
    Bytes,
    apr_q8_scale,
    decode_apr_q4,
    decode_apr_q8,
    encode_apr_q4,
    encode_apr_q8,
)
from qlassify.formats.apr_types import APR_Q4, Q4_K, Q6_K, Q8_0, AprType
from reference.apr import RawFile, RawTensor, apr_q4_each, q4_k_each, q6_k_each

FP32_EPSILON = 2.0**-24
HALF_EPSILON = 2.0**-11
"""Largest relative error of rounding to fp16, where it has normal numbers."""
HALVES = {Q4_K: (0, 2), Q6_K: (208,), Q8_0: (0,), APR_Q4: (0,)}
"""Where a block's fp16 numbers stand."""


def random_blocks(kind: AprType, count: int, seed: int) -> Bytes:
    """Blocks of any bits, but for their factors, which are finite."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, size=(count, kind.block_bytes), dtype=np.uint8)
    for place in HALVES[kind]:
        halves = generator.normal(0, 0.1, size=count).astype("<f2")
        blocks[:, place : place + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks


@pytest.mark.parity
@pytest.mark.parametrize("kind", [Q4_K, Q6_K, Q8_0], ids=lambda kind: kind.name)
def test_blocks_are_decoded_as_the_gguf_package_does(kind: AprType) -> None:
    gguf = pytest.importorskip("gguf")
    blocks = random_blocks(kind, 300, seed=1)
    theirs = gguf.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(DECODERS[kind](blocks).reshape(-1).view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize(
    ("kind", "each"), [(Q4_K, q4_k_each), (Q6_K, q6_k_each), (APR_Q4, apr_q4_each)], ids=["Q4_K", "Q6_K", "AprQ4"]
)
def test_blocks_are_decoded_as_the_formula_says(kind: AprType, each: object) -> None:
    blocks = random_blocks(kind, 12, seed=2)
    wanted = np.array([each(block.tobytes()) for block in blocks])  # type: ignore[operator]
    found = DECODERS[kind](blocks).astype(np.float64)
    # Two products and a difference in fp32; each errs by half a step of its result, the largest of which is below
    # the sum of the parts: at most |d| * 63 * 15 + |dmin| * 63 with factors below 1, about 1000.
    np.testing.assert_allclose(found, wanted, rtol=3 * FP32_EPSILON, atol=1000 * 3 * FP32_EPSILON)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7C01, 0x0001, 0x83FF, 0x0000])
def test_an_apr_q4_scale_that_is_no_normal_number_counts_as_zero(bits: int) -> None:
    block = np.full((1, 18), 0xF0, np.uint8)
    block[0, :2] = np.array([bits], "<u2").view(np.uint8)
    assert not decode_apr_q4(block).any()
    block[0, :2] = np.array([0x0400], "<u2").view(np.uint8)  # the smallest normal one
    assert decode_apr_q4(block)[0, 1] == 7 * 2.0**-14


floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@given(numbers=st.lists(floats, min_size=1, max_size=70), shrink=st.sampled_from([1.0, 1e-3]))
def test_apr_q4_is_the_nearest_code_of_a_scale_of_a_seventh(numbers: list[float], shrink: float) -> None:
    values = np.array(numbers, np.float32) * np.float32(shrink)
    blocks = encode_apr_q4(values)
    assert blocks.shape == (-(-len(values) // 32), 18)
    decoded = decode_apr_q4(blocks).reshape(-1)
    assert not decoded[len(values) :].any(), "what fills the last block is zero"
    for start in range(0, len(values), 32):
        part = values[start : start + 32].astype(np.float64)
        largest = np.abs(part).max()
        scale = float(blocks[start // 32, :2].copy().view("<f2")[0])
        if largest == 0:
            assert scale == 1.0
        elif largest / 7 < 2.0**-14:
            # Below fp16's normal numbers a reader takes the scale for zero.
            assert not decoded[start : start + 32].any() or scale >= 2.0**-14
        else:
            # The division in fp32 and the rounding to fp16.
            assert abs(scale - largest / 7) <= largest / 7 * (HALF_EPSILON + FP32_EPSILON)
            # Half a step; what the scale's rounding cut off the largest number; and the fp32 rounding of quotients
            # of up to 7.01 steps, which moves the tie.
            bound = scale / 2 + largest * HALF_EPSILON + 8 * scale * 2 * FP32_EPSILON
            assert np.abs(decoded[start : start + len(part)] - part).max() <= bound


@given(numbers=st.lists(floats, min_size=1, max_size=70))
def test_apr_q8_is_the_nearest_code_of_a_scale_of_a_127th(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    largest = float(np.abs(values).max())
    scale = apr_q8_scale(largest)
    assert abs(float(scale) - (largest / 127 or 1.0)) <= largest / 127 * FP32_EPSILON + 2.0**-149
    codes = encode_apr_q8(values, scale)
    wanted = [float(code - 256 if code > 127 else code) * float(scale) for code in codes.tolist()]
    found = decode_apr_q8(codes, scale)
    np.testing.assert_allclose(found, wanted, rtol=FP32_EPSILON, atol=2.0**-149)
    # Half a step, and the fp32 rounding of quotients of up to 127 steps.
    assert np.abs(found - values).max() <= float(scale) * (0.5 + 128 * 3 * FP32_EPSILON) + 2.0**-149


def test_ties_go_away_from_zero() -> None:
    """At a scale of exactly 1, where the code of 2.5 is a matter of the rule."""
    numbers = np.array([7, 2.5, -2.5, 0.5, -0.5], np.float32)
    assert decode_apr_q4(encode_apr_q4(numbers))[0, :5].tolist() == [7, 3, -3, 1, -1]
    numbers = np.array([127, 2.5, -2.5, 0.5], np.float32)
    assert decode_apr_q8(encode_apr_q8(numbers, np.float32(1)), np.float32(1)).tolist() == [127, 3, -3, 1]


def test_a_number_beyond_the_scale_is_refused() -> None:
    encode_apr_q4(np.array([7 * 65504.0], np.float32))
    with pytest.raises(ModelError, match="too large for AprQ4"):
        encode_apr_q4(np.array([7.1 * 65504.0], np.float32))


# Rows


def write(path: Path, kind: AprType, shape: tuple[int, ...], blocks: Bytes) -> Path:
    path.write_bytes(RawFile((RawTensor(b"w", kind.id, shape, blocks.tobytes()),)).pack())
    return path


@pytest.mark.parametrize("kind", [Q4_K, Q6_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(5, 300), (2, 3, 40), (3, 256), (200, 896)], ids=str)
def test_rows_that_were_padded_to_whole_blocks_are_cut(tmp_path: Path, kind: AprType, shape: tuple[int, ...]) -> None:
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    per_row = -(-columns // 256)
    blocks = random_blocks(kind, rows * per_row, seed=3)
    wanted = DECODERS[kind](blocks).reshape(rows, -1)[:, :columns].reshape(shape)
    found = open_apr(write(tmp_path / "a.apr", kind, shape, blocks), verify=True).read("w")
    assert torch.equal(found, torch.from_numpy(wanted.copy()))


@pytest.mark.parametrize("shape", [(7, 300), (300,), (3 * STRETCH_ELEMENTS // 256 + 1, 256), (40, 1000)], ids=str)
def test_blocks_without_regard_to_rows_are_read_flat(tmp_path: Path, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    blocks = random_blocks(Q4_K, -(-count // 256), seed=4)
    wanted = DECODERS[Q4_K](blocks).reshape(-1)[:count].reshape(shape)
    found = open_apr(write(tmp_path / "a.apr", Q4_K, shape, blocks)).read("w")
    assert torch.equal(found, torch.from_numpy(wanted.copy()))


def test_another_number_of_blocks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.apr", Q4_K, (7, 300), random_blocks(Q4_K, 13, seed=5))
    with pytest.raises(ModelError, match="not that of its type and shape") as caught:
        open_apr(path)
    assert caught.value.got == f"{13 * 144} bytes for shape [7, 300]"


def test_long_tensors_are_decoded_in_stretches_without_a_seam(tmp_path: Path) -> None:
    count = 2 * STRETCH_ELEMENTS + 77
    numbers = np.random.default_rng(6).normal(size=count).astype(np.float32)
    blocks = encode_apr_q4(numbers)
    found = open_apr(write(tmp_path / "a.apr", APR_Q4, (count,), blocks)).read("w").numpy()
    np.testing.assert_array_equal(found, decode_apr_q4(blocks).reshape(-1)[:count])
    scale = apr_q8_scale(float(np.abs(numbers).max()))
    raw = scale.tobytes() + encode_apr_q8(numbers, scale).tobytes()
    (tmp_path / "b.apr").write_bytes(RawFile((RawTensor(b"w", 129, (count,), raw),)).pack())
    found = open_apr(tmp_path / "b.apr").read("w").numpy()
    np.testing.assert_array_equal(found, np.frombuffer(raw[4:], np.int8).astype(np.float32) * scale)


# Old ids


@pytest.mark.parametrize(
    ("type_id", "shape", "nbytes", "name"),
    [
        (2, (3, 5), 30, "BF16"), (3, (3, 5), 120, "F64"), (3, (3, 5), 15, "I8"), (8, (40,), 36, "AprQ4"),
        (8, (300,), 288, "Q4_K"), (8, (64,), 68, "Q8_0"), (9, (300,), 304, "AprQ8"), (9, (300,), 420, "Q6_K"),
        (10, (33,), 68, "Q8_0"), (128, (40,), 36, "AprQ4"), (129, (0,), 0, "AprQ8"), (3, (0, 4), 0, "F64"),
    ],
)  # fmt: skip
def test_an_old_id_means_what_its_size_says(
    tmp_path: Path, type_id: int, shape: tuple[int, ...], nbytes: int, name: str
) -> None:
    path = tmp_path / "a.apr"
    path.write_bytes(RawFile((RawTensor(b"w", type_id, shape, bytes(nbytes)),)).pack())
    file = open_apr(path)
    assert file.entries["w"].type.name == name
    assert file.read("w").shape == shape


def test_an_old_id_that_can_mean_two_types_is_refused(tmp_path: Path) -> None:
    """AprQ4 and Q4_K both need 144 bytes for 256 numbers."""
    path = tmp_path / "a.apr"
    path.write_bytes(RawFile((RawTensor(b"w", 8, (2, 256), bytes(288)),)).pack())
    with pytest.raises(ModelError, match="can mean two types") as caught:
        open_apr(path)
    assert caught.value.got == "type id 8, which is AprQ4 or Q4_K"
    path.write_bytes(RawFile((RawTensor(b"w", 2, (2, 256), bytes(288)),)).pack())
    with pytest.raises(ModelError, match="size is not that of its type"):
        open_apr(path)


@pytest.mark.parametrize("kind", [Q4_K, Q6_K, Q8_0], ids=lambda kind: kind.name)
def test_a_scale_that_is_not_finite_is_read_without_a_warning(kind: AprType, tmp_path: Path) -> None:
    """Infinity times a code of zero; numpy would warn on standard error, and whoever loads a model refuses NaN."""
    blocks = np.zeros((2, kind.block_bytes), np.uint8)
    for place in (1, 3, kind.block_bytes - 1):  # the high bytes of the scales, wherever the type has them
        blocks[:, place] = 0x7C
    count = 2 * kind.block_elements
    path = tmp_path / "m.apr"
    path.write_bytes(RawFile((RawTensor(b"a", kind.id, (count,), blocks.tobytes()),)).pack())
    assert not open_apr(path).read("a").isfinite().all()
