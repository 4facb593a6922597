"""Bottleneck adapters: a small trained network behind the sublayers of each block.

    y = h + f(h D^T + d) U^T + u,    h the sublayer's output, D (size, H) drawn, U (H, size) zero at first

``houlsby`` puts one behind attention and one behind the feed-forward network (Houlsby et al. 2019, arXiv:1902.00751),
``pfeiffer`` only behind the feed-forward network (Pfeiffer et al. 2021, arXiv:2005.00247). Both stand before the
residual sum and its norm, on the output of the sublayer's last product.

The network is not linear, so it cannot be merged; predicting costs two more products per sublayer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlassify.config.method import BottleneckConfig
from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import linear_shape, placement_of
from qlassify.methods.roles import Role, require_roles
from qlassify.methods.targets import match_targets
from qlassify.seeding import torch_generator

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class BottleneckLinear(AdapterModule):
    """A frozen linear layer with a bottleneck behind it.

    Attributes:
        down, down_bias: (size, H) and (size,), fp32 (float64 for a float64 layer).
        up, up_bias: (H, size) and (H,), same type.
    """

    mergeable: ClassVar[bool] = False

    def __init__(self, base: nn.Module, config: BottleneckConfig, *, init: torch.Generator) -> None:
        super().__init__(base)
        hidden, (device, dtype) = linear_shape(base)[0], placement_of(base)
        self._activation = _ACTIVATIONS[config.activation]
        bound = hidden**-0.5
        down = torch.empty(config.size, hidden, dtype=dtype).uniform_(-bound, bound, generator=init)
        self.down = nn.Parameter(down.to(device))
        self.down_bias = nn.Parameter(torch.zeros(config.size, dtype=dtype, device=device))
        self.up = nn.Parameter(torch.zeros(hidden, config.size, dtype=dtype, device=device))
        self.up_bias = nn.Parameter(torch.zeros(hidden, dtype=dtype, device=device))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the layer's path -> trainable parameter."""
        return {
            "adapter_down.weight": self.down,
            "adapter_down.bias": self.down_bias,
            "adapter_up.weight": self.up,
            "adapter_up.bias": self.up_bias,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., H)."""
        h: Tensor = self.base(x)
        kind = h.dtype
        inner = self._activation(functional.linear(h, self.down.to(kind), self.down_bias.to(kind)))
        return h + functional.linear(inner, self.up.to(kind), self.up_bias.to(kind))


def targets(model: nn.Module, config: BottleneckConfig) -> set[str]:
    """Paths of the layers that get a bottleneck behind them.

    Raises:
        ConfigError: a named target matches nothing, or the architecture's roles are not known.
    """
    if config.target_modules != "auto":
        return set(match_targets(model, config.target_modules))
    roles: dict[str, tuple[Role, ...]] = {"feed-forward outputs": ("feed_forward_output",)}
    if config.placement == "houlsby":
        roles["attention outputs"] = ("attention_output",)
    return {path for paths in require_roles(model, roles, "adapter").values() for path in paths}


def wrap(model: nn.Module, config: BottleneckConfig, *, seed: int) -> dict[str, BottleneckLinear]:
    """Path -> wrapper of each sublayer's last product; see ``targets`` for the errors."""
    chosen = targets(model, config)
    return {
        path: BottleneckLinear(module, config, init=torch_generator(seed, f"init/{path}"))
        for path, module in model.named_modules()
        if path in chosen
    }
