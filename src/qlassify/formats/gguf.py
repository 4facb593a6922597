"""GGUF files, one tensor at a time.

``open_gguf`` reads metadata and the table of tensors (``gguf_header``) and holds every tensor's place against its type
and shape, the file's size and the other tensors. ``GgufFile.read`` decodes one tensor; blocks become fp32 in
stretches, so what is held above the tensor itself is some megabytes. Reading is a seek and a read, not a memory map,
for the reason that ``byte_source`` gives.

The format has no checksum. What can be verified is that everything lies where it should and that numbers are finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr_types import require_shape
from qlassify.formats.byte_source import ByteSource, FileBytes, read_exactly, take
from qlassify.formats.gguf_header import GgufArray, GgufHeader, array_values, damaged, read_gguf_header
from qlassify.formats.gguf_types import GgufType, decode, type_of
from qlassify.formats.own_memory import own_memory

SUFFIX = ".gguf"
STRETCH_ELEMENTS = 1 << 16
"""Elements that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """A tensor of a GGUF file.

    Attributes:
        type: its encoding.
        shape: its shape; the first dimension is the slowest.
        start: its first byte, from the beginning of the file.
        nbytes: its size there.
    """

    type: GgufType
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor that reading gives: fp32 for what is stored in few bits."""
        return self.type.decoded


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A file whose metadata and table of tensors have been read and checked.

    Attributes:
        path: the file.
        version: of the format.
        metadata: key -> number, truth, text, list, or ``GgufArray`` for long arrays.
        entries: name -> tensor, in the file's order.
        source: its bytes.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    entries: Mapping[str, GgufEntry]
    source: ByteSource

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own: plain types as they are, blocks as fp32.

        Raises:
            ModelError: the file has become shorter, or the type cannot be decoded.
        """
        entry, where = self.entries[name], f"{self.path}: {name}"
        if entry.type.plain:
            flat = own_memory(entry.nbytes)
            read_exactly(self.source, flat.numpy().data, entry.start, where=where)
            return flat.view(entry.dtype).view(entry.shape)
        out = own_memory(4 * math.prod(entry.shape)).view(torch.float32)
        numbers, kind = out.numpy(), entry.type
        step = STRETCH_ELEMENTS // kind.block_elements
        count = len(numbers) // kind.block_elements
        for first in range(0, count, step):
            length = min(step, count - first) * kind.block_bytes
            raw = np.frombuffer(take(self.source, entry.start + first * kind.block_bytes, length, where=where), "u1")
            decoded = decode(kind, raw.reshape(-1, kind.block_bytes), where=where)
            numbers[first * kind.block_elements :][: decoded.size] = decoded.reshape(-1)
        return out.view(entry.shape)

    def array(self, key: str) -> list[Any] | None:
        """The elements of an array of the metadata; None when there is no such key.

        Raises:
            ModelError: not an array.
        """
        value = self.metadata.get(key)
        if isinstance(value, GgufArray):
            return array_values(self.source, value, where=f"{self.path}: {key}")
        if value is not None and not isinstance(value, list):
            raise ModelError("no array", where=f"{self.path}: {key}", got=type(value).__name__)
        return value


def is_gguf(path: Path) -> bool:
    """Whether a path is a file whose name says GGUF."""
    return path.suffix == SUFFIX and path.is_file()


def open_gguf(path: Path) -> GgufFile:
    """Read and check metadata and the table of tensors.

    Raises:
        ModelError: not a GGUF file of version 2 or 3, one that contradicts itself, or one of several.
    """
    try:
        source = FileBytes(path, path.stat().st_size)
    except OSError as error:
        raise ModelError("cannot read the file", where=path, got=error) from None
    header = read_gguf_header(source, where=str(path))
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise ModelError(
            "one of several files of a model", where=path, got=f"split.count {parts}", wanted="a file that is whole",
            do="Put them together: llama-gguf-split --merge FIRST.gguf WHOLE.gguf.",
        )  # fmt: skip
    return GgufFile(path, header.version, header.metadata, _entries(header, source.size, path), source)


def _entries(header: GgufHeader, size: int, path: Path) -> dict[str, GgufEntry]:
    entries: dict[str, GgufEntry] = {}
    for raw in header.tensors:
        where = f"{path}: {raw.name}"
        if raw.name in entries:
            raise damaged(path, f"{raw.name} stands in the table twice")
        require_shape(raw.shape, where=where)
        kind = type_of(raw.type_id, raw.shape, where=where)
        entry = GgufEntry(kind, raw.shape, header.data_start + raw.offset, kind.nbytes(raw.shape))
        if raw.offset % header.alignment:
            raise damaged(path, f"{raw.name} at byte {raw.offset} of the data, no multiple of {header.alignment}")
        if entry.start + entry.nbytes > size:
            raise damaged(path, f"{raw.name} ends at byte {entry.start + entry.nbytes} of {size}")
        entries[raw.name] = entry
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.nbytes and entry.start < end:
            raise damaged(path, f"{before} and {name} share bytes")
        if entry.nbytes:
            end, before = entry.start + entry.nbytes, name
    return entries
