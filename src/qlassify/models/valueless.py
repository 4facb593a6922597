"""What an architecture is told when it asks a model without weights for a value.

Some of transformers' models look at what is in a tensor before they compute: whether the positions are those of one
text alone, whether a mask hides nothing, whether an id is the padding id. On the meta device there is nothing to look
at, and torch refuses. Each such question is whether a shortcut may be taken, and for the batches that plans are about
(several texts, of different lengths) the answer is no. So that is the answer here, and shapes and lifetimes come out as
in a real call. The alternative, tensors that are traced as in compilation, takes other branches than a real call does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_QUESTIONS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
)
"""How a value is asked for; the last two only in inference mode, where they are not taken apart first."""


class AnswerNo(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is open, a truth value on the meta device is False; any other value is refused as ever."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _QUESTIONS and args[0].is_meta and args[0].dtype == torch.bool:
            return False
        return func(*args, **(kwargs or {}))
