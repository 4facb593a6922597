"""What a method needs to know of the layer that it wraps: its shape, its weight as numbers, its bias.

Three kinds of layer are linear: ``nn.Linear``; transformers' ``Conv1D`` (GPT-2), whose weight is stored (in, out); and
``LowBitLinear``, whose weight becomes numbers only on demand. A method that goes through these functions works on all
of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.quant.linear import LowBitLinear


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; ``Conv1D`` is known by its shape, so that transformers is not imported."""
    if isinstance(module, (nn.Linear, LowBitLinear)):
        return True
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a linear layer, whichever way its weight is stored."""
    if isinstance(layer, LowBitLinear):
        return layer.out_features, layer.in_features
    rows, columns = _stored(layer).shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)


def stores_transposed(layer: nn.Module) -> bool:
    """Whether the architecture's own layer keeps its weight as (in, out), as ``Conv1D`` does."""
    return layer.transposed if isinstance(layer, LowBitLinear) else not isinstance(layer, nn.Linear)


def dense_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight as numbers, (out, in).

    An unquantised layer gives its own tensor in its own type, which is the type that it computes in. A low-bit layer
    gives a shared buffer: use it before asking any layer for its weight again, and do not keep it.
    """
    if isinstance(layer, LowBitLinear):
        return layer.dense_weight(dtype)
    weight = _stored(layer)
    return weight if isinstance(layer, nn.Linear) else weight.T


def bias_of(layer: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """The bias (out,) in the type of the product that it is added to, or None."""
    if isinstance(layer, LowBitLinear):
        return layer.bias_as(dtype)
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def placement_of(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the weight, and the type for trainable values beside it: fp32, or float64 on a float64 layer."""
    if isinstance(layer, LowBitLinear):
        return layer.device, torch.float32
    weight = _stored(layer)
    return weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32


def dense_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The layer with numbers of its own: an unquantised one itself, a low-bit one as ``nn.Linear`` of ``dtype``."""
    if not isinstance(layer, LowBitLinear):
        return layer
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(layer.weight.dequantize(dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return plain.train(layer.training)


def _stored(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
