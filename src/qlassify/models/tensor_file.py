"""What loading needs to know of a file of tensors, whatever its format: names, types, and one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class TensorHeader(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that it is read as."""
        ...


class TensorFile(Protocol):
    """A file, or several, of named tensors."""

    @property
    def entries(self) -> Mapping[str, TensorHeader]:
        """Name -> what is known of the tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        ...
