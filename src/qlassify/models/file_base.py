"""Base models that are files: what loading, pooling and conversion need to know of one, whatever its format."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from qlassify.errors import ModelError
from qlassify.formats.gguf import is_gguf
from qlassify.models.apr_base import AprBase, is_apr_base, open_apr_base
from qlassify.models.gguf_base import GgufBase, open_gguf_base

FileBase = AprBase | GgufBase
"""Both have ``path``, ``settings``, ``entries``, ``pooling`` and ``read``."""


def is_file_base(path: Path) -> bool:
    """Whether a path is a file that is a base model by its name: APR, a manifest of such files, or GGUF."""
    return is_apr_base(path) or is_gguf(path)


def open_file_base(path: Path, *, verify: bool = False) -> FileBase:
    """Open a file as a base model.

    Args:
        path: for which ``is_file_base`` holds.
        verify: compute the checksum of the whole file, where the format has one.

    Raises:
        ModelError: damaged, of an architecture that is not known, or with tensors that its metadata denies.
    """
    return open_gguf_base(path) if is_gguf(path) else open_apr_base(path, verify=verify)


def require_numbers(base: FileBase, model: nn.Module | None) -> None:
    """Refuse a configuration of a larger model than there are numbers for, before memory is taken for it.

    Args:
        base: the file.
        model: the architecture on the meta device.

    Raises:
        ModelError: it has more parameters than the file has numbers.
    """
    there = sum(math.prod(entry.shape) for entry in base.entries.values())
    wanted = 0 if model is None else sum(parameter.numel() for parameter in model.parameters())
    if wanted > there:
        raise ModelError(
            "tensors of the model are missing from its files, or its configuration is of a larger model",
            where=base.path,
            got=f"{there} numbers",
            wanted=f"{wanted}, as the configuration says",
        )
