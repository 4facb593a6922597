"""``LowBitLinear``: a frozen linear layer that keeps its weight in few bits and computes with it in the type of x.

    y = x W^T + b,    W = dequantise(codes), formed anew for forward and for backward

Numbers exist only while a product needs them: they are written into one buffer per thread, type and device, which all
layers share. Fresh memory for every product would cost more than the dequantisation itself (the system hands out
zeroed pages, one fault each), and keeping the numbers for backward would keep the whole model in full.

Where memory is plentiful the layer can be told to keep its numbers (``keep_dense``). The products are the same ones on
the same numbers, so the results are bitwise the same.

Low-bit weights save memory, not time: the arithmetic is that of an unquantised layer plus the dequantisation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from qlassify.config.quant import QuantConfig
from qlassify.quant.tensor import QuantizedTensor, allocate, from_tensors, quantize

_buffers = threading.local()


class _LowBitFunction(torch.autograd.Function):
    """y = x W^T + b with W formed twice, so that nothing of its size is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LowBitLinear) -> Tensor:
        """(..., in) -> (..., out)."""
        ctx.layer = layer
        return nn.functional.linear(x, layer.dense_weight(x.dtype), layer.bias_as(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return grad @ ctx.layer.dense_weight(grad.dtype), None


class LowBitLinear(nn.Module):
    """A frozen linear layer in a low-bit format.

    Args:
        weight: (out, in), quantised; on the meta device when its numbers are still to come.
        bias: (out,) in any floating-point type, or None.
        transposed: whether the layer whose place this one takes keeps its weight as (in, out).

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        config: the format.
        transposed: whether the layer whose place this one took keeps its weight as (in, out).
        residual: B (out, rank) and A (rank, in), fp32, whose product is nearest to what quantising took from the
            weight; None unless loading was asked for it.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.out_features, self.in_features = weight.shape
        self.config = weight.config
        for name, tensor in weight.tensors().items():
            self.register_buffer(f"weight_{name}", tensor)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self._dense: Tensor | None = None
        self.residual: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, config: QuantConfig | None = None, *, name: str = "weight"
    ) -> Self:
        """Quantise a weight (out, in); see ``quantize`` for the errors."""
        return cls(quantize(weight, config or QuantConfig(), name=name), bias)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        config: QuantConfig,
        *,
        bias: Tensor | None = None,
        transposed: bool = False,
        device: torch.device | str = "meta",
    ) -> Self:
        """A layer whose weight is still to come, tensor by tensor."""
        return cls(allocate(config, shape, device), bias, transposed=transposed)

    @property
    def weight(self) -> QuantizedTensor:
        """The weight as it is stored."""
        tensors = {name.removeprefix("weight_"): tensor for name, tensor in self._buffers.items() if tensor is not None}
        return from_tensors(self.config, (self.out_features, self.in_features), tensors)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        codes = self._buffers["weight_codes"]
        assert codes is not None
        return codes.device

    def keep_dense(self, dtype: torch.dtype | None) -> None:
        """Keep the weight's numbers in ``dtype`` from now on; None gives them up."""
        self._dense = None if dtype is None else self.weight.dequantize(dtype)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight's numbers (out, in). Valid until any layer's are asked for again in this thread."""
        if self._dense is not None and self._dense.dtype == dtype:
            return self._dense
        buffer = _buffer(self.out_features * self.in_features, dtype, self.device)
        return self.weight.dequantize(dtype, out=buffer.view(self.out_features, self.in_features))

    def bias_as(self, dtype: torch.dtype) -> Tensor | None:
        """The bias in the type of a product."""
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of x."""
        y: Tensor = _LowBitFunction.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.config}"

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Numbers that were kept belong to the codes that were there before."""
        self._dense = None
        super()._load_from_state_dict(*arguments, **keywords)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow a model to another device, but keep codes and scales in their own types.

        ``model.to(torch.bfloat16)`` means the type to compute in; scales rounded to it would be another weight.
        """
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self._dense = None
        return self


def _buffer(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``count`` numbers of this thread's shared buffer, which grows to the largest weight."""
    buffers: dict[tuple[torch.dtype, torch.device], Tensor] = _buffers.__dict__.setdefault("of", {})
    found = buffers.get((dtype, device))
    if found is None or len(found) < count:
        # A tensor that is made under inference_mode could not be written to outside it, and this one outlives the call.
        with torch.inference_mode(False):
            found = buffers[dtype, device] = torch.empty(count, dtype=dtype, device=device)
    return found[:count]


def low_bit_layers(model: nn.Module) -> dict[str, LowBitLinear]:
    """Dotted path -> low-bit layer of a model, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LowBitLinear)}
