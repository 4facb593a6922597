"""Full fine-tuning: every weight of the backbone is trained.

Each module that holds weights gets fp32 copies that are trained, and runs on those copies rounded to the type that the
model computes in. The loaded weights themselves stay as they are: ``detach`` gives the pretrained model back bit for
bit, and updates too small for bf16 are not lost. The price is 4 bytes per parameter over training the weights in place,
on top of the gradient and the two moments that full fine-tuning costs anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qlassify.errors import ConfigError
from qlassify.methods.adapter_module import AdapterModule
from qlassify.quant.linear import low_bit_layers


class TrainedModule(AdapterModule):
    """A module that runs on trained copies of its weights. What it is asked for and has not, its base answers."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.trained = nn.ParameterDict()
        for name, weight in base.named_parameters(recurse=False):
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            self.trained[name] = nn.Parameter(weight.detach().to(dtype, copy=True))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the module's path -> trainable parameter."""
        return dict(self.trained.items())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, with the trained weights."""
        own = dict(self.base.named_parameters(recurse=False))
        weights: dict[str, Tensor] = {name: value.to(own[name].dtype) for name, value in self.trained.items()}
        return torch.func.functional_call(self.base, weights, args, kwargs)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Module:
        """The module itself with the trained weights in it, rounded to its own types."""
        for name, weight in self.base.named_parameters(recurse=False):
            weight.copy_(self.trained[name])
        return self.base


def targets(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> each module that holds weights, inner modules first.

    Raises:
        ConfigError: the model has low-bit weights, which cannot be trained.
    """
    if low_bit_layers(model):
        raise cannot_train_low_bit()
    holding = [
        (path, module)
        for path, module in model.named_modules()
        if path and any(True for _ in module.parameters(recurse=False))
    ]
    return dict(reversed(holding))


def wrap(model: nn.Module) -> dict[str, TrainedModule]:
    """Path -> wrapper of each module that holds weights; see ``targets`` for the error."""
    return {path: TrainedModule(module) for path, module in targets(model).items()}


def cannot_train_low_bit() -> ConfigError:
    """The error for full fine-tuning of low-bit weights."""
    return ConfigError(
        "low-bit weights cannot be trained",
        where="method.kind",
        got="full on low-bit weights",
        do="Leave quant out, or use a method that adds to frozen weights, such as lora.",
    )
