"""DoRA: the low-rank update turns the weight's rows, and a trained vector sets their lengths.

    y = m / n * (x (W + s B A)^T) + b,    n_i = ||row i of W + s B A||

where m (out,) starts at n, so that y starts at x W^T + b (Liu et al. 2024, arXiv:2402.09353). The lengths n are treated
as constants in backward, as the paper's section 4.3 proposes: the gradient is nearly the same and a graph of the size
of W is saved.

W + s B A is never formed for its lengths. With w_i and b_i rows of W and B,

    n_i^2 = ||w_i||^2 + 2 s (W A^T)_i . b_i + s^2 b_i (A A^T) . b_i

where ||w_i|| is known from the start and the rest are products with the rank as one side: rank / tokens of the layer's
own work. They are formed in every forward pass. Keeping them until A or B change would need to know when that is, and
a fused optimiser moves parameters without counting up their versions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.methods.base_layer import bias_of, dense_weight
from qlassify.methods.lora import LoraLinear

MAGNITUDE = "lora_magnitude_vector"
"""The vector's name in a saved file, which is PEFT's."""
_ROWS = 1024
"""Rows whose squares are formed at a time."""


class DoraLinear(LoraLinear):
    """A frozen linear layer with a LoRA path and trained row lengths.

    Attributes:
        magnitude: (out,) in the type of A, the lengths m.
    """

    def __init__(self, base: nn.Module, config: LoraConfig, *, init: torch.Generator, dropout: torch.Generator) -> None:
        super().__init__(base, config, init=init, dropout=dropout)
        self.register_buffer("_squares", self._row_squares(), persistent=False)
        self._squares: Tensor
        self.magnitude = nn.Parameter(self._squares.sqrt())

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a saved file, below the layer's path -> trainable parameter."""
        return {**super().trainable(), MAGNITUDE: self.magnitude}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = bias_of(self.base, x.dtype)
        y = self.product(x, bias)
        # The change of the factor m / n from one is what is rounded to the type of x: at first it is exactly zero, and
        # later small numbers keep their digits.
        change = (self.magnitude / self.lengths() - 1).to(x.dtype)
        return torch.addcmul(y, y if bias is None else y - bias, change)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight (out, in) of the one layer that computes the same, formed in the type of A."""
        return super().merged_weight().mul_((self.magnitude / self.lengths())[:, None])

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """(out,) lengths of the rows of W + scaling * B A, without a graph."""
        a, b = self.factors()
        weight = dense_weight(self.base, a.dtype)
        mixed = (weight @ a.to(weight.dtype).T).to(a.dtype)  # (out, rank)
        cross = (mixed * b).sum(dim=1)
        own = ((b @ (a @ a.T)) * b).sum(dim=1)
        squares = self._squares + 2 * self.scaling * cross + self.scaling**2 * own
        # A row that the update cancels exactly has length zero; rounding must not make its square negative.
        return squares.clamp(min=torch.finfo(a.dtype).tiny).sqrt()

    @torch.no_grad()
    def _row_squares(self) -> Tensor:
        """(out,) squared lengths of the frozen rows, summed in the type of A."""
        dtype = self.lora_A.dtype
        weight = dense_weight(self.base, dtype)
        return torch.cat([rows.to(dtype).square().sum(dim=1) for rows in torch.split(weight, _ROWS)])
