"""The classification head: one fp32 linear layer, always trained, always saved.

It stays in fp32 whatever the backbone computes in: its gradients are the only ones that see the labels directly, and
a head in half precision or, worse, in a quantised one is a well-known way to a classifier that cannot learn. Weights
start small and normal, as BERT's do (standard deviation 0.02), from a generator of their own; biases start at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.seeding import torch_generator

INITIAL_STD = 0.02


class ClassificationHead(nn.Module):
    """logits = vectors W^T + b.

    Args:
        hidden_size: H, width of the pooled vectors.
        num_classes: C, number of labels.
        seed: the run's seed; the stream is ``init/head``.
        dtype: fp32; float64 only for numerical tests.
    """

    def __init__(self, hidden_size: int, num_classes: int, *, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch_generator(seed, "init/head")
        weight = torch.empty(num_classes, hidden_size, dtype=dtype).normal_(0, INITIAL_STD, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_classes, dtype=dtype))

    def forward(self, vectors_BH: Tensor) -> Tensor:
        """(B, H) -> (B, C), in the head's own precision."""
        return nn.functional.linear(vectors_BH.to(self.weight.dtype), self.weight, self.bias)
