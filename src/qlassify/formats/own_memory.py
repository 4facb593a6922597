"""Memory that a tensor is read into, and that goes back to the system the moment the tensor is dropped.

Large tensors get pages of their own. From the heap, they would leave holes between what is kept of one tensor and of
the next, and a model that is converted tensor by tensor could end up holding its full size.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

OWN_PAGES_BYTES = 1 << 18


def own_memory(nbytes: int) -> Tensor:
    """(nbytes,) uint8 to read into; its values are not settled."""
    if nbytes < OWN_PAGES_BYTES:
        return torch.empty(nbytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
