"""The classification head: one fp32 linear layer, always trained, always saved.

It stays in fp32 whatever the backbone computes in: its gradients are the only ones that see the labels directly, and
a head in half precision or, worse, in a quantised one is a well-known way to a classifier that cannot learn. Weights
start small and normal, as BERT's do (standard deviation 0.02), from a generator of their own; biases start at zero.

A head for a causal model pooled at the last token has no bias unless one is asked for: transformers' own heads for
such models have none, so a classifier with one could not be given to them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.models.pooling import PoolingMode
from qlassify.seeding import torch_generator

INITIAL_STD = 0.02


def wants_bias(setting: bool | str, *, causal: bool, pooling: PoolingMode) -> bool:
    """Whether a head has a bias: as ``setting`` says, or by architecture and pooling when it is ``auto``."""
    return bool(setting) if setting != "auto" else not (causal and pooling == "last")


class ClassificationHead(nn.Module):
    """logits = vectors W^T + b.

    Args:
        hidden_size: H, width of the pooled vectors.
        num_classes: C, number of labels.
        seed: the run's seed; the stream is ``init/head``.
        bias: whether b is there; without it, b is None.
        dtype: fp32; float64 only for numerical tests.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        *,
        seed: int,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generator = torch_generator(seed, "init/head")
        weight = torch.empty(num_classes, hidden_size, dtype=dtype).normal_(0, INITIAL_STD, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_classes, dtype=dtype)) if bias else None

    def cool(self, temperature: float) -> None:
        """Divide all future logits by ``temperature``, by dividing weight and bias."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(temperature)

    def forward(self, vectors_BH: Tensor) -> Tensor:
        """(B, H) -> (B, C), in the head's own precision."""
        return nn.functional.linear(vectors_BH.to(self.weight.dtype), self.weight, self.bias)
