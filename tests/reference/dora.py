"""A linear layer with a low-rank path and trained row lengths in float64, row by row and token by token.

V = W + scaling * B A;  y_i = m_i / ||V_i|| * (W_i x + scaling * B_i A (mask * x)) + b_i

The lengths ||V_i|| are taken out of the graph; the gradients are those that torch derives from the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_lengths(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """(out,) lengths of the rows of W + scaling * B A, with a graph."""
    rows = [
        weight + scaling * sum(b[index] * a_RI[index] for index in range(len(a_RI)))
        for weight, b in zip(weight_OI, b_OR, strict=True)
    ]
    return torch.stack([(row * row).sum().sqrt() for row in rows])


def dora_forward(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    magnitude_O: Tensor,
    scaling: float,
    mask_TI: Tensor | None = None,
) -> Tensor:
    """(T, in) -> (T, out)."""
    lengths_O = row_lengths(weight_OI, a_RI, b_OR, scaling).detach()
    outputs: list[Tensor] = []
    for index, token in enumerate(x_TI):
        dropped = token if mask_TI is None else mask_TI[index] * token
        direction = weight_OI @ token + scaling * (b_OR @ (a_RI @ dropped))
        output = magnitude_O / lengths_O * direction
        outputs.append(output if bias_O is None else output + bias_O)
    return torch.stack(outputs)
