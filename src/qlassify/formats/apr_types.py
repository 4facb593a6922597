"""The element types of APR files: how many bytes a tensor of each takes, and which type an id means.

Ids below 32 follow GGML. Files from before that rule used 2, 3, 8, 9 and 10 for other types, in two dialects that
contradict each other. What such an id means is found by the tensor's size: each candidate needs its own number of
bytes. Where several need the same number, the file is refused; guessing would give numbers that look like weights.

The types come in three kinds: plain ones that are read as they lie, blocks that decode to fp32, and rows of blocks,
where a writer may have padded each row to whole blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qlassify.errors import ModelError

MAX_ELEMENTS = 1 << 48
"""Elements of a tensor, and the largest dimension of one without elements: beyond any file, far from overflow."""


@dataclass(frozen=True, slots=True)
class AprType:
    """An element type.

    Attributes:
        name: as it is printed.
        id: the number that a writer puts into the index.
        decoded: the type of the tensor that reading gives.
        block_elements: elements that are encoded together; 1 for plain types.
        block_bytes: bytes of such a block.
        head_bytes: bytes before the first block, in a tensor that has elements.
        by_row: whether rows may be padded to whole blocks.
    """

    name: str
    id: int
    decoded: torch.dtype
    block_elements: int
    block_bytes: int
    head_bytes: int = 0
    by_row: bool = False

    @property
    def plain(self) -> bool:
        """Whether the bytes are the numbers."""
        return self.block_elements == 1 and self.head_bytes == 0

    @property
    def quantized(self) -> bool:
        """Whether numbers were rounded to a few bits."""
        return not self.plain

    def flat_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose elements follow each other without regard to rows."""
        count = math.prod(shape)
        return (self.head_bytes + self.block_bytes * -(-count // self.block_elements)) if count else 0

    def row_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose rows are padded to whole blocks."""
        if not shape or not math.prod(shape):
            return self.flat_bytes(shape)
        return math.prod(shape[:-1]) * self.block_bytes * -(-shape[-1] // self.block_elements)

    def fits(self, shape: tuple[int, ...], nbytes: int) -> bool:
        """Whether a tensor of this shape can have that many bytes."""
        return nbytes == self.flat_bytes(shape) or (self.by_row and nbytes == self.row_bytes(shape))


F32 = AprType("F32", 0, torch.float32, 1, 4)
F16 = AprType("F16", 1, torch.float16, 1, 2)
BF16 = AprType("BF16", 30, torch.bfloat16, 1, 2)
F64 = AprType("F64", 3, torch.float64, 1, 8)
I32 = AprType("I32", 4, torch.int32, 1, 4)
I64 = AprType("I64", 5, torch.int64, 1, 8)
I8 = AprType("I8", 6, torch.int8, 1, 1)
U8 = AprType("U8", 7, torch.uint8, 1, 1)
APR_Q4 = AprType("AprQ4", 128, torch.float32, 32, 18)
APR_Q8 = AprType("AprQ8", 129, torch.float32, 1, 1, head_bytes=4)
Q4_K = AprType("Q4_K", 12, torch.float32, 256, 144, by_row=True)
Q6_K = AprType("Q6_K", 14, torch.float32, 256, 210, by_row=True)
Q8_0 = AprType("Q8_0", 10, torch.float32, 32, 34)
"""Read where old files have it; a writer has no id for it."""

TYPES = (F32, F16, BF16, F64, I32, I64, I8, U8, APR_Q4, APR_Q8, Q4_K, Q6_K)
"""Types that have an id of their own."""
PLAIN = {one.decoded: one for one in TYPES if one.plain}
"""The type that keeps a tensor as it is."""
CANDIDATES: dict[int, tuple[AprType, ...]] = {one.id: (one,) for one in TYPES} | {
    2: (BF16,),
    3: (F64, I8),
    8: (APR_Q4, Q4_K, Q8_0),
    9: (APR_Q8, Q6_K),
    10: (Q8_0,),
}
"""Id -> what it can mean, with the older meanings."""


def type_of(type_id: int, shape: tuple[int, ...], nbytes: int, *, where: str) -> AprType:
    """The type that an id means for a tensor of this shape and size.

    Args:
        type_id: from the index.
        shape: of the tensor.
        nbytes: its size in the file.
        where: file and tensor, for errors.

    Raises:
        ModelError: an unknown id, a size that no meaning of it has, or one that several have.
    """
    candidates = CANDIDATES.get(type_id)
    if candidates is None:
        raise ModelError(
            "a tensor has a type that is not read",
            where=where,
            got=f"type id {type_id}",
            wanted=", ".join(f"{one.name} ({one.id})" for one in TYPES),
        )
    fitting = [one for one in candidates if one.fits(shape, nbytes)]
    if not fitting:
        needs = " or ".join(f"{one.flat_bytes(shape)} for {one.name}" for one in candidates)
        raise ModelError(
            "a tensor's size is not that of its type and shape",
            where=where,
            got=f"{nbytes} bytes for shape {list(shape)}",
            wanted=f"{needs} bytes",
            do="The file is damaged; write or fetch it again.",
        )
    if len(fitting) > 1 and nbytes:
        raise ModelError(
            "an old type id can mean two types of this size",
            where=where,
            got=f"type id {type_id}, which is " + " or ".join(one.name for one in fitting),
            do="Write the file again with a converter that uses today's ids.",
        )
    return fitting[0]


def require_shape(shape: tuple[int, ...], *, where: str) -> None:
    """Refuse shapes that no tensor can have, before anything is computed with them.

    Raises:
        ModelError: too many elements, or a dimension beyond all measure beside one of zero.
    """
    if max(shape, default=0) > MAX_ELEMENTS or math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise ModelError("a tensor's shape is beyond all measure", where=where, got=list(shape))
