"""When memory ran out although a plan said that it would do: how that looks, and what a token budget does about it.

A plan can be too low, and another process can take what was free. What follows is an error of whoever allocated, and
each allocator has its own. They are told apart by their names and words and not by their classes, because one of them
is torch's, and this room knows no torch:

    MemoryError                  Python, NumPy, C++ (std::bad_alloc)
    RuntimeError                 torch on the CPU: "DefaultCPUAllocator: can't allocate memory"; oneDNN below it
    torch.OutOfMemoryError       torch on CUDA; a RuntimeError
    OSError with ENOMEM          a memory map

A micro-batch that is cut in two needs about half of the memory, so the budget is halved. The alternative, to look for
the largest budget that fits, would fail several times in order to waste a little less.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from qlassify.errors import MemoryPlanError

SAYINGS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "could not create a primitive",
    "could not create a memory object",
)
"""Words, in small letters, by which a ``RuntimeError`` says that memory ran out. The last two are oneDNN's, which says
no more when it has no memory for the code that it generates. It also says so of what it does not support; a step that
was rehearsed asks for nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A micro-batch for which there was not enough memory.

    Attributes:
        tokens: of the micro-batch; 0 if memory ran out while one was being cut.
        rows: texts of the micro-batch; 0 likewise.
        said: the first line of the allocator's error.
    """

    tokens: int
    rows: int
    said: str

    @property
    def where(self) -> str:
        """At what memory ran out, for a sentence."""
        return shortage_words(self.tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device and by whatever allocator."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(words in said for words in SAYINGS)


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its class where it has no text, as a bare ``MemoryError``."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortage_words(tokens: int) -> str:
    """At what memory ran out: ``at 900 tokens at once``, or at none yet."""
    return f"at {tokens} tokens at once" if tokens else "before anything was computed"


def halved(token_budget: int, shortage: Shortage) -> int:
    """The budget to go on with: halved, and again until the micro-batch that failed would be cut.

    Where memory ran out before a micro-batch was there, nothing is known of its size, and the budget is halved once:
    what is cut for a smaller one is smaller.

    Args:
        token_budget: tokens at once so far.
        shortage: the micro-batch that failed under it.

    Raises:
        MemoryPlanError: it was a single text, which no budget cuts; or not even one token at once is possible.
    """
    if shortage.rows == 0 and token_budget <= 1:
        raise MemoryPlanError(
            "memory ran out before anything was computed",
            got=shortage.said,
            do="A lower training.token_budget would not help. Free memory.",
        )
    if shortage.rows == 1:
        raise MemoryPlanError(
            "one text alone does not fit into memory",
            where=f"{shortage.tokens} tokens at once",
            got=shortage.said,
            do="A lower training.token_budget would not help. Lower model.max_length, choose method=qlora or a smaller "
            "base model, or free memory; `qlassify plan DATA --method all` compares methods.",
        )
    budget = token_budget // 2
    while shortage.rows and budget >= shortage.tokens:
        budget //= 2
    return budget
