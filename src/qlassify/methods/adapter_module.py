"""``AdapterModule``: what stands in a module's place and trains something beside it.

The one interface between a method's layers and everything that handles them: attaching, saving, merging, counting. A
method is a file with an ``AdapterModule`` and a ``wrap`` function that says which modules get one.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import nn


class AdapterModule(nn.Module):
    """A wrapper around a frozen module.

    Attributes:
        base: the module whose place it took. Nothing in it is trained or changed, except by ``merge``.
        mergeable: whether one plain module can compute the same.
    """

    is_adapter: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def train(self, mode: bool = True) -> Self:
        """What was put beside ``base`` follows ``mode``; the frozen module stays as it is, with its dropout asleep."""
        self.training = mode
        for child in self.children():
            if child is not self.base:
                child.train(mode)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the module's path -> trainable parameter."""
        raise NotImplementedError

    def stored(self) -> dict[str, torch.Tensor]:
        """Name in a saved file, below the module's path -> tensor: what is trained, unless another form is simpler."""
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    def merged(self, dtype: torch.dtype) -> nn.Module:
        """A plain module that computes the same, by changing ``base`` or replacing it.

        Args:
            dtype: the type that the model computes in, for a module that has to be made anew.
        """
        raise NotImplementedError
