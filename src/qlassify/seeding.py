"""The one place where randomness starts.

A run has one seed. Whatever draws numbers asks for a generator by name (``split``, ``init``, ``shuffle``, ``dropout``
...) and, where it draws repeatedly, by index (the epoch). A generator's state is the SHA-256 of seed, name and
indices, so streams are independent of one another and of the order in which they are made: adding a draw to one never
moves another, and resuming at epoch 3 needs no replay of epochs 0 to 2. The alternative, one global generator that
everything shares, makes each result depend on everything that ran before it.

Nothing here touches the global state of ``random``, NumPy or torch.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive_seed(seed: int, name: str, *indices: int) -> int:
    """A 63-bit seed that is a function of its arguments alone, the same on every platform."""
    text = "/".join([str(seed), name, *(str(index) for index in indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, name: str, *indices: int) -> numpy.random.Generator:
    """A NumPy generator for the stream ``name`` (and ``indices``) of ``seed``."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(derive_seed(seed, name, *indices)))


def torch_generator(seed: int, name: str, *indices: int) -> torch.Generator:
    """A CPU torch generator for the stream ``name`` (and ``indices``) of ``seed``."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, name, *indices))
    return generator
