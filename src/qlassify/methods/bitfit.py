"""BitFit: only biases are trained.

    y = module(x) + d        d (out,) starts at zero; merging adds it to the bias

(Ben Zaken et al. 2022, arXiv:2106.10199). Training the difference in fp32 beside the frozen bias is training the bias,
with two things gained: the frozen weights stay bitwise what they were, and small updates are not lost in bf16.

Modules: every linear layer and norm that has a bias. An architecture without any (Llama, Mistral, Qwen3) gets one on
each linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import is_linear, linear_shape, placement_of


class BiasShift(AdapterModule):
    """A frozen module whose output is shifted.

    Attributes:
        shift: (out,) fp32 (float64 for a float64 module).
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        if is_linear(base):
            size, (device, dtype) = linear_shape(base)[0], placement_of(base)
        else:
            bias = base.bias
            assert isinstance(bias, Tensor)
            size, device = len(bias), bias.device
            dtype = torch.float64 if bias.dtype == torch.float64 else torch.float32
        self.shift = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the module's path -> trainable parameter."""
        return {"bias_shift": self.shift}

    def forward(self, x: Tensor) -> Tensor:
        """The module's output, shifted."""
        y: Tensor = self.base(x)
        return y + self.shift.to(y.dtype)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Module:
        """The module itself with the shift added to its bias; a low-bit layer stays one."""
        bias = self.base.bias
        if bias is None:
            self.base.bias = nn.Parameter(self.shift.to(dtype), requires_grad=False)
        else:
            assert isinstance(bias, Tensor)
            bias.copy_(bias.to(self.shift.dtype) + self.shift)
        return self.base


def targets(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> each module with a bias; without any, each linear layer."""
    biased = {path: module for path, module in model.named_modules() if _has_bias(module)}
    return biased or {path: module for path, module in model.named_modules() if is_linear(module)}


def wrap(model: nn.Module) -> dict[str, BiasShift]:
    """Path -> wrapper of each module whose bias is trained."""
    return {path: BiasShift(module) for path, module in targets(model).items()}


def _has_bias(module: nn.Module) -> bool:
    """A linear layer or norm with a bias: a module without further modules whose output the bias is added to."""
    bias = getattr(module, "bias", None)
    return isinstance(bias, Tensor) and bias.dim() == 1 and not any(True for _ in module.children())
