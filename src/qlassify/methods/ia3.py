"""IA3: learned vectors that rescale keys, values and the feed-forward network's inner activations.

    y = l * (x W^T + b)      keys and values:  l (out,)
    y = (l * x) W^T + b      feed-forward:     l (in,), on the input of the network's second product

All vectors start at one (Liu et al. 2022, arXiv:2205.05638, section 3.3). In an architecture that computes
queries, keys and values in one product, its whole output is rescaled, as PEFT does for GPT-2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.config.method import AUTO, Ia3Config
from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import bias_of, dense_layer, dense_weight, linear_shape, placement_of
from qlassify.methods.roles import Role, require_roles
from qlassify.methods.targets import match_targets


class Ia3Linear(AdapterModule):
    """A frozen linear layer whose output, or input, is rescaled.

    Attributes:
        ia3_l: (out,) or, for the input, (in,), fp32 (float64 for a float64 layer).
        feedforward: whether the input is rescaled.
    """

    def __init__(self, base: nn.Module, *, feedforward: bool) -> None:
        super().__init__(base)
        self.feedforward = feedforward
        out_features, in_features = linear_shape(base)
        device, dtype = placement_of(base)
        self.ia3_l = nn.Parameter(torch.ones(in_features if feedforward else out_features, dtype=dtype, device=device))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the layer's path -> trainable parameter."""
        return {"ia3_l": self.ia3_l}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        scale = self.ia3_l.to(x.dtype)
        y: Tensor = self.base(x * scale) if self.feedforward else self.base(x) * scale
        return y

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Module:
        """The layer with the vector multiplied into its weight; a low-bit layer becomes an unquantised one."""
        plain = dense_layer(self.base, dtype)
        weight, bias, scale = dense_weight(plain, dtype), bias_of(plain, dtype), self.ia3_l
        rows = weight.to(scale.dtype)
        weight.copy_(rows * scale if self.feedforward else rows * scale[:, None])
        if bias is not None and not self.feedforward:
            bias.copy_(bias.to(scale.dtype) * scale)
        return plain


def targets(model: nn.Module, config: Ia3Config) -> tuple[set[str], set[str]]:
    """Paths of the layers whose output, and of those whose input, is rescaled.

    Raises:
        ConfigError: a named target matches nothing, or the architecture's roles are not known.
    """
    wanted: dict[str, tuple[Role, ...]] = {}
    if config.target_modules == AUTO:
        wanted["keys and values"] = ("key", "value", "fused")
    if config.feedforward_modules == AUTO:
        wanted["feed-forward outputs"] = ("feed_forward_output",)
    found = require_roles(model, wanted, "ia3")
    outputs = found.get("keys and values") or match_targets(model, config.target_modules)
    inputs = set(found.get("feed-forward outputs") or match_targets(model, config.feedforward_modules))
    return set(outputs) - inputs, inputs


def wrap(model: nn.Module, config: Ia3Config) -> dict[str, Ia3Linear]:
    """Path -> wrapper of each layer that is rescaled; see ``targets`` for the errors."""
    outputs, inputs = targets(model, config)
    return {
        path: Ia3Linear(module, feedforward=path in inputs)
        for path, module in model.named_modules()
        if path in outputs or path in inputs
    }
