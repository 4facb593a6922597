"""The element types of GGUF files, and how blocks of each become numbers.

Every tensor is rows of whole blocks; the size of a tensor follows from type and shape and is not in the file. Q8_0,
Q4_K and Q6_K are decoded here, by the code that APR files share. The others go through the ``gguf`` package of the
format's authors: a second set of decoders would be one more thing that could differ from what the weights were made
for. Types that the package does not decode either are refused by name when a model is loaded, not when the file is
looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from qlassify.errors import ModelError
from qlassify.formats.apr_blocks import Bytes, Floats, decode_q4_k, decode_q6_k, decode_q8_0

INSTALL = "Install it: pip install 'qlassify[gguf]'."


@dataclass(frozen=True, slots=True)
class GgufType:
    """An element type.

    Attributes:
        name: as it is printed.
        id: its number in files.
        block_elements: elements that are encoded together; 1 for plain types.
        block_bytes: bytes of such a block.
        decoded: the type of the tensor that reading gives.
    """

    name: str
    id: int
    block_elements: int
    block_bytes: int
    decoded: torch.dtype = torch.float32

    @property
    def plain(self) -> bool:
        """Whether the bytes are the numbers."""
        return self.block_elements == 1

    @property
    def quantized(self) -> bool:
        """Whether numbers were rounded to a few bits."""
        return not self.plain

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, whose last dimension is a multiple of ``block_elements``."""
        return math.prod(shape) // self.block_elements * self.block_bytes


TYPES = {
    one.id: one
    for one in (
        GgufType("F32", 0, 1, 4),
        GgufType("F16", 1, 1, 2, torch.float16),
        GgufType("BF16", 30, 1, 2, torch.bfloat16),
        GgufType("F64", 28, 1, 8, torch.float64),
        GgufType("I8", 24, 1, 1, torch.int8),
        GgufType("I16", 25, 1, 2, torch.int16),
        GgufType("I32", 26, 1, 4, torch.int32),
        GgufType("I64", 27, 1, 8, torch.int64),
        GgufType("Q4_0", 2, 32, 18),
        GgufType("Q4_1", 3, 32, 20),
        GgufType("Q5_0", 6, 32, 22),
        GgufType("Q5_1", 7, 32, 24),
        GgufType("Q8_0", 8, 32, 34),
        GgufType("Q8_1", 9, 32, 40),
        GgufType("Q2_K", 10, 256, 84),
        GgufType("Q3_K", 11, 256, 110),
        GgufType("Q4_K", 12, 256, 144),
        GgufType("Q5_K", 13, 256, 176),
        GgufType("Q6_K", 14, 256, 210),
        GgufType("Q8_K", 15, 256, 292),
        GgufType("IQ2_XXS", 16, 256, 66),
        GgufType("IQ2_XS", 17, 256, 74),
        GgufType("IQ3_XXS", 18, 256, 98),
        GgufType("IQ1_S", 19, 256, 50),
        GgufType("IQ4_NL", 20, 32, 18),
        GgufType("IQ3_S", 21, 256, 110),
        GgufType("IQ2_S", 22, 256, 82),
        GgufType("IQ4_XS", 23, 256, 136),
        GgufType("IQ1_M", 29, 256, 56),
        GgufType("TQ1_0", 34, 256, 54),
        GgufType("TQ2_0", 35, 256, 66),
        GgufType("MXFP4", 39, 32, 17),
    )
}
"""Id -> type. Ids that are not here are of types that were taken back, or that came later."""
OWN = {"Q8_0": decode_q8_0, "Q4_K": decode_q4_k, "Q6_K": decode_q6_k}
"""Types that are decoded without the package."""
WITHOUT_DECODER = ("Q8_1", "Q8_K")
"""Types of intermediate results, which nobody decodes."""


def type_of(type_id: int, shape: tuple[int, ...], *, where: str) -> GgufType:
    """The type of a tensor.

    Raises:
        ModelError: an unknown one, or rows that are not whole blocks.
    """
    kind = TYPES.get(type_id)
    if kind is None:
        names = ", ".join(one.name for one in TYPES.values())
        raise ModelError("a tensor has a type that is not read", where=where, got=f"type id {type_id}", wanted=names)
    columns = shape[-1] if shape else 1
    if columns % kind.block_elements:
        raise ModelError(
            "a tensor's rows are not whole blocks of its type",
            where=where,
            got=f"{columns} columns of {kind.name}",
            wanted=f"a multiple of {kind.block_elements}",
            do="The file is damaged; write or fetch it again.",
        )
    return kind


def require_decoder(kind: GgufType, *, where: str) -> None:
    """Refuse a type of which no numbers can be made here.

    Raises:
        ModelError: nobody decodes it, or the package that does is not installed.
    """
    if kind.plain or kind.name in OWN:
        return
    if kind.name in WITHOUT_DECODER:
        raise ModelError("a type of intermediate results, not of weights", where=where, got=kind.name)
    try:
        import gguf.quants  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"numbers in {kind.name} need the package gguf", where=where, got=error, wanted="gguf", do=INSTALL
        ) from None


def decode(kind: GgufType, blocks: Bytes, *, where: str) -> Floats:
    """(N, block bytes) -> (N, block elements).

    Raises:
        ModelError: as ``require_decoder``; or the installed package is too old for the type.
    """
    require_decoder(kind, where=where)
    # Scales may be anything, also NaN; what comes of them is looked for in the decoded numbers.
    with np.errstate(all="ignore"):
        if kind.name in OWN:
            return OWN[kind.name](blocks)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            decoded: Floats = dequantize(blocks, GGMLQuantizationType(kind.id))
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                "the installed package gguf does not decode a type", where=where, got=f"{kind.name}: {error}",
                do="Install a newer one: pip install -U gguf.",
            ) from None  # fmt: skip
    return decoded
