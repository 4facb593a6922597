"""Numbers in few bits as APR files hold them: blocks to fp32 and back, with numpy over many blocks at once.

    AprQ4   32 elements: fp16 scale, 16 bytes; element 2k in the low half of byte k, 2k + 1 in the high one
            value = (code - 8) * scale
    AprQ8   one fp32 scale for the tensor, then a signed byte an element; value = code * scale
    Q8_0    32 elements: fp16 scale, 32 signed bytes; value = code * scale
    Q4_K    256 elements in eight groups of 32, each with a 6-bit scale and a 6-bit minimum under two fp16 factors
    Q6_K    256 elements in sixteen groups of 16, each with an 8-bit scale under one fp16 factor

Q8_0, Q4_K and Q6_K are GGML's; their decoders give bitwise what the ``gguf`` package gives. They are not encoded here:
choosing good scales is a search, and a poor one would be written under a good name.

Products are taken in fp32 in the order that the formulas are written in, so that a value does not depend on how many
blocks are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qlassify.errors import ModelError
from qlassify.formats.apr_types import APR_Q4, Q4_K, Q6_K, Q8_0, AprType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
MIN_NORMAL_HALF = np.float32(2.0**-14)
MAX_HALF = 65504.0


def decode_apr_q4(blocks: Bytes) -> Floats:
    """(N, 18) bytes -> (N, 32). A scale that is NaN, infinite or subnormal counts as 0, as in the format's readers."""
    scales = _halves(blocks[:, :2])
    usable = np.isfinite(scales) & (np.abs(scales) >= MIN_NORMAL_HALF)
    scales = np.where(usable, scales, np.float32(0))
    codes = np.empty((len(blocks), 32), np.int8)
    codes[:, 0::2] = blocks[:, 2:] & 15
    codes[:, 1::2] = blocks[:, 2:] >> 4
    return (codes - np.int8(8)).astype(np.float32) * scales[:, None]


def encode_apr_q4(numbers: Floats) -> Bytes:
    """(n,) finite numbers -> (ceil(n / 32), 18) bytes; the last block is filled with zeros.

    The scale is max|x| / 7, rounded to fp16 before numbers are divided by it, because that is what a reader multiplies
    by; 1 for a block of zeros. Ties are rounded away from zero.

    Raises:
        ModelError: a block's largest number is beyond what an fp16 scale reaches.
    """
    padded = np.zeros((-(-len(numbers) // 32), 32), np.float32)
    padded.reshape(-1)[: len(numbers)] = numbers
    largest = np.abs(padded).max(axis=1, initial=0)
    if len(largest) and float(largest.max()) / 7 > MAX_HALF:
        raise ModelError("a number is too large for AprQ4", got=float(largest.max()), wanted=f"at most {7 * MAX_HALF}")
    scales = np.where(largest > 0, largest / np.float32(7), np.float32(1)).astype(np.float16)
    # A block whose scale underflows is read as zeros whatever its codes are; those of zero are the honest ones.
    divisors: Floats = scales.astype(np.float32)
    divisors[divisors < MIN_NORMAL_HALF] = np.inf
    quotients: Floats = padded / divisors[:, None]
    codes = (np.clip(_rounded(quotients), -8, 7) + 8).astype(np.uint8)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return np.concatenate([scales.astype("<f2").view(np.uint8).reshape(-1, 2), packed], axis=1)


def decode_apr_q8(codes: Bytes, scale: np.float32) -> Floats:
    """(n,) bytes of signed codes and the tensor's scale -> (n,)."""
    return codes.view(np.int8).astype(np.float32) * scale


def apr_q8_scale(largest: float) -> np.float32:
    """The scale of a tensor whose largest magnitude this is: max|x| / 127, or 1 for zeros."""
    return np.float32(largest) / np.float32(127) if largest > 0 else np.float32(1)


def encode_apr_q8(numbers: Floats, scale: np.float32) -> Bytes:
    """(n,) finite numbers -> (n,) bytes of signed codes; ties are rounded away from zero."""
    if scale == 0:  # max|x| / 127 underflowed
        return np.zeros(len(numbers), np.uint8)
    return np.clip(_rounded(numbers / scale), -127, 127).astype(np.int8).view(np.uint8)


def decode_q8_0(blocks: Bytes) -> Floats:
    """(N, 34) bytes -> (N, 32)."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks[:, :2])[:, None]


def decode_q4_k(blocks: Bytes) -> Floats:
    """(N, 144) bytes -> (N, 256)."""
    factor, factor_of_minimum = _halves(blocks[:, 0:2]), _halves(blocks[:, 2:4])
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    # Each stretch of 32 bytes holds two groups: the low halves of the bytes, then the high ones.
    codes = blocks[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & np.uint8(15)
    codes = codes.reshape(-1, 8, 32).astype(np.float32)
    group_scales = factor[:, None] * scales.astype(np.float32)
    group_minima = factor_of_minimum[:, None] * minima.astype(np.float32)
    numbers: Floats = codes * group_scales[:, :, None] - group_minima[:, :, None]
    return numbers.reshape(-1, 256)


def decode_q6_k(blocks: Bytes) -> Floats:
    """(N, 210) bytes -> (N, 256)."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & np.uint8(15)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)
    # Within half a block: low halves of bytes 0 to 31, of 32 to 63, then their high halves; the high bits likewise.
    codes = low.reshape(-1, 2, 4, 32) | high << np.uint8(4)
    numbers = (codes.astype(np.int8) - np.int8(32)).reshape(-1, 16, 16).astype(np.float32)
    scales = _halves(blocks[:, 208:210])[:, None] * blocks[:, 192:208].view(np.int8).astype(np.float32)
    decoded: Floats = numbers * scales[:, :, None]
    return decoded.reshape(-1, 256)


DECODERS: dict[AprType, Callable[[Bytes], Floats]] = {
    APR_Q4: decode_apr_q4,
    Q8_0: decode_q8_0,
    Q4_K: decode_q4_k,
    Q6_K: decode_q6_k,
}
"""(N, block bytes) -> (N, block elements) of each type in blocks."""


def _halves(two_bytes: Bytes) -> Floats:
    """(N, 2) bytes of fp16 -> (N,) fp32."""
    with np.errstate(invalid="ignore"):  # signalling NaNs become quiet ones
        widened: Floats = np.ascontiguousarray(two_bytes).view("<f2").reshape(-1).astype(np.float32)
    return widened


def _rounded(numbers: Floats) -> Floats:
    """To whole numbers, ties away from zero."""
    rounded: Floats = np.trunc(numbers + np.copysign(np.float32(0.5), numbers))
    return rounded
