"""LoRA: a frozen linear layer plus a trainable low-rank path, as one autograd function.

    y = x W^T + b + scaling * (drop(x) A^T) B^T        W (out, in) frozen, A (rank, in), B (out, rank)

A starts Kaiming-uniform with a = sqrt(5), that is uniform within 1 / sqrt(in), and B at zero, so the layer starts as
the layer it wraps (Hu et al. 2021, arXiv:2106.09685, section 4.1; the initialisation is the authors' code's).

Written with modules, this is two linear layers, a dropout, a multiplication and an addition: five graph nodes and
three (T, out)-sized temporaries for each wrapped layer. As one function it is one node that keeps x (which the wrapped
layer's input keeps alive anyway) and the (T, rank) product x A^T; backward is five matrix products that accumulate
into their result. The frozen weight gets no gradient, and what is kept of it is the layer that has it: a low-bit layer
forms its numbers again for backward (QLoRA: Dettmers et al. 2023, arXiv:2305.14314, equations 5 and 6).

Two other starts are known. PiSSA (Meng et al. 2024, arXiv:2404.02948) trains the principal components of W: A and B
begin as these, and what is frozen is W without them. Here W stays whole, and what A and B began with is subtracted
beside it, y = x W^T + scaling * (B A - B0 A0) x: a path of twice the rank. The base weights are untouched, the frozen
rest is not rounded a second time, and what is saved is an ordinary LoRA of twice the rank on the ordinary base model,
which is what a PiSSA adapter has to be converted to before others can use it. LoftQ (Li et al. 2023,
arXiv:2310.08659, with one step of its alternation) begins with the best approximation of what quantising took from W;
a second step would change the codes, which then no longer follow from the base model alone.

A and B are fp32 whatever the backbone computes in, and B is kept unscaled: scaling it on the way would divide its
effective learning rate. The products run in the type of x.

Dropout on the path's input is a hash of an element's place and of a key drawn for the call (``methods.dropout``): no
mask is kept, and backward finds the dropped elements again. The factor 1 / P(kept) goes into the scaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.errors import ConfigError
from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import bias_of, dense_layer, dense_weight, linear_shape, placement_of
from qlassify.methods.dropout import Dropout
from qlassify.quant.linear import LowBitLinear
from qlassify.quant.low_rank import leading_factors


class _LoraFunction(torch.autograd.Function):
    """y = x W^T + b + scaling * (drop(x) A^T) B^T, where drop(x) is x with its dropped elements zero."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: nn.Module,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        dropout: Dropout | None,
    ) -> Tensor:
        """Compute y.

        Args:
            ctx: autograd's context.
            x: (..., in).
            base: the frozen layer whose weight (out, in) this is about.
            bias: (out,) frozen, or None.
            lora_a: (rank, in).
            lora_b: (out, rank).
            scaling: factor on the low-rank path; with dropout, divided by the keep probability.
            dropout: what the low-rank path does not see, or None.
        """
        rows = x.reshape(-1, x.shape[-1])
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        inner = (rows if dropout is None else dropout.apply(rows)) @ a.T  # (tokens, rank)
        y = nn.functional.linear(rows, dense_weight(base, x.dtype), bias)
        y = y.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, lora_a, lora_b, inner)
        ctx.base, ctx.scaling, ctx.dropout, ctx.shape = base, scaling, dropout, x.shape
        return y.view(*x.shape[:-1], len(lora_b))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None, None]:
        """Gradients of x, A and B."""
        rows, lora_a, lora_b, inner = ctx.saved_tensors
        scaling: float = ctx.scaling
        dropout: Dropout | None = ctx.dropout
        g = grad.reshape(-1, grad.shape[-1])
        grad_inner = (g @ lora_b.to(g.dtype)).mul_(scaling)  # (tokens, rank)
        grad_x: Tensor | None = None
        spare: Tensor | None = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ dense_weight(ctx.base, g.dtype)
            if dropout is None:
                grad_x.addmm_(grad_inner, lora_a.to(g.dtype))
            else:
                spare = grad_inner @ lora_a.to(g.dtype)
                dropout.add_to(grad_x, spare)
            grad_x = grad_x.view(ctx.shape)
        grad_a: Tensor | None = None
        if ctx.needs_input_grad[3]:
            seen = rows if dropout is None else dropout.apply(rows, out=spare)
            grad_a = (grad_inner.T @ seen).to(lora_a.dtype)
        grad_b: Tensor | None = None
        if ctx.needs_input_grad[4]:
            # (inner^T g)^T and not g^T inner: a product with few rows is nearly twice as fast as one with few columns.
            grad_b = (inner.T @ g).T.to(lora_b.dtype, memory_format=torch.contiguous_format).mul_(scaling)
        return grad_x, None, None, grad_a, grad_b, None, None


class LoraLinear(AdapterModule):
    """A frozen linear layer with a LoRA path.

    Args:
        base: the layer to wrap: ``nn.Linear``, transformers' ``Conv1D``, or ``LowBitLinear``.
        config: rank, alpha, dropout, scaling rule.
        init: generator for A.
        dropout: generator for dropout masks; shared by all layers of an attachment.

    Attributes:
        lora_A: (rank, in) fp32 (float64 for a float64 layer).
        lora_B: (out, rank), same type.
    """

    def __init__(self, base: nn.Module, config: LoraConfig, *, init: torch.Generator, dropout: torch.Generator) -> None:
        super().__init__(base)
        self.scaling = config.scaling
        self.dropout = config.dropout
        self._dropout_generator = dropout
        out_features, in_features = linear_shape(base)
        device, dtype = placement_of(base)
        bound = in_features**-0.5
        a = torch.empty(config.rank, in_features, dtype=dtype).uniform_(-bound, bound, generator=init)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, config.rank, dtype=dtype, device=device))
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self._begin(config)

    @property
    def weight(self) -> Tensor:
        """The frozen weight (out, in); that of a low-bit layer is good until another one's is asked for."""
        return dense_weight(self.base, self.lora_A.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (out,), or None."""
        return bias_of(self.base, self.lora_A.dtype)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the layer's path -> trainable parameter."""
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def stored(self) -> dict[str, Tensor]:
        """Name in a saved file, below the layer's path -> tensor: A and B of ``factors``."""
        a, b = self.factors()
        return {**super().stored(), "lora_A.weight": a.detach(), "lora_B.weight": b.detach()}

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the one low-rank path that this layer is: its own, and after PiSSA those it began with, negated.

        Returns:
            (rank, in) and (out, rank); twice the rank after PiSSA.
        """
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    def delta(self) -> Tensor:
        """scaling * B A, (out, in), in the type of A: what the low-rank path adds to the weight."""
        a, b = self.factors()
        return (b @ a).mul_(self.scaling)

    @torch.no_grad()
    def _begin(self, config: LoraConfig) -> None:
        """Fill A and B with what ``config.start`` says, if that is not zero.

        Raises:
            ConfigError: LoftQ on a layer of which nothing is known but its quantised weight, or that has none.
        """
        if config.start == "pissa":
            weight = dense_weight(self.base, self.lora_A.dtype).to(self.lora_A.dtype)
            b, a = leading_factors(weight, config.rank)
        elif config.start == "loftq":
            b, a = _lost_to_quantising(self.base, config.rank)
        else:
            return
        root = math.sqrt(self.scaling)
        self.lora_A.copy_(a / root)
        self.lora_B.copy_(b / root)
        if config.start == "pissa":
            self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight (out, in) of the one layer that computes the same, formed in the type of A."""
        return dense_weight(self.base, self.lora_A.dtype).to(self.lora_A.dtype) + self.delta()

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Module:
        """The layer with the low-rank path added to its weight; a low-bit layer becomes an unquantised one.

        The sum is formed in the type of A and rounded once to the weight's.
        """
        weight = self.merged_weight()
        plain = dense_layer(self.base, dtype)
        dense_weight(plain, dtype).copy_(weight)
        return plain

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.product(x, bias_of(self.base, x.dtype))

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out): x (W + scaling * B A)^T + bias, with dropout before A while training."""
        dropout: Dropout | None = None
        scaling = self.scaling
        if self.training and self.dropout > 0:
            dropout = Dropout.draw(self.dropout, self._dropout_generator)
            scaling *= dropout.scale
        y: Tensor = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            x, self.base, bias, *self.factors(), scaling, dropout
        )
        return y


def _lost_to_quantising(base: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    """B and A of the best approximation of original minus quantised weight, which loading has left on the layer."""
    residual = base.residual if isinstance(base, LowBitLinear) else None
    if residual is None:
        raise ConfigError(
            "LoftQ begins with what quantising took from the weights",
            where="method.start",
            got="weights that are not quantised" if not isinstance(base, LowBitLinear) else "quantised weights alone",
            wanted="a base model with its original weights, and low-bit frozen weights (method qlora, or quant)",
        )
    b, a = residual
    if len(a) != rank:
        raise ConfigError("the rank has changed since the weights were loaded", got=rank, wanted=len(a))
    return b, a
