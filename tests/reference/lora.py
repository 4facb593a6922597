"""A linear layer with a low-rank path in float64, token by token: slow, and plainly what the formula says.

y = W x + b + scaling * B (A (mask * x)); the gradients are those that torch derives from the formula itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lora_forward(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scaling: float,
    mask_TI: Tensor | None = None,
) -> Tensor:
    """(T, in) -> (T, out)."""
    outputs: list[Tensor] = []
    for index, token in enumerate(x_TI):
        dropped = token if mask_TI is None else mask_TI[index] * token
        output = weight_OI @ token + scaling * (b_OR @ (a_RI @ dropped))
        outputs.append(output if bias_O is None else output + bias_O)
    return torch.stack(outputs)
