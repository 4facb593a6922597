"""APR version 2 files, one tensor at a time.

    64 bytes of header, metadata (JSON), index, data, and the CRC-32 of everything before it in the last four bytes

``open_apr`` reads header, metadata and index and checks them against one another and the file's size before anything
is believed: places and counts from the header alone, so a file that claims 4 GiB of metadata costs 64 bytes of
reading. ``AprFile.read`` decodes one tensor; blocks of few bits become fp32 in stretches, so what is held above the
tensor itself is about a megabyte.

The header's checksum is always verified. The footer's covers the whole file, and computing it means reading all of it;
``verify`` does, and so does whoever loads a model. Looking at a file of 30 GB must not cost 30 GB of reading.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr_blocks import DECODERS, Bytes, decode_apr_q8
from qlassify.formats.apr_compression import unpacked
from qlassify.formats.apr_header import FOOTER_BYTES, HEADER_BYTES, Header, damaged, read_header, require_places
from qlassify.formats.apr_index import AprEntry, read_index
from qlassify.formats.apr_metadata import AprMetadata, read_metadata
from qlassify.formats.apr_types import APR_Q8
from qlassify.formats.byte_source import ByteSource, FileBytes, chunks, read_exactly, take
from qlassify.formats.own_memory import own_memory

SUFFIX = ".apr"
STRETCH_ELEMENTS = 1 << 16
"""Elements that are decoded at a time: what is held beside the tensor is some twenty bytes for each."""


@dataclass(frozen=True, slots=True, eq=False)
class AprFile:
    """A file whose header, metadata and index have been read and checked.

    Attributes:
        path: the file.
        header: its first 64 bytes.
        metadata: what it says of the model.
        entries: name -> tensor, sorted by the names' bytes.
        source: its bytes, unpacked if they were compressed.
    """

    path: Path
    header: Header
    metadata: AprMetadata
    entries: Mapping[str, AprEntry]
    source: ByteSource

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own: plain types as they are, blocks as fp32.

        Raises:
            ModelError: the file has become shorter than its header says.
        """
        entry = self.entries[name]
        if entry.type.plain:
            flat = own_memory(entry.nbytes)
            read_exactly(self.source, flat.numpy().data, entry.start, where=f"{self.path}: {name}")
            return flat.view(entry.dtype).view(entry.shape)
        out = own_memory(4 * math.prod(entry.shape)).view(torch.float32)
        # A scale may be infinite and a code 0. What comes of it is looked for in the numbers, by whoever loads them.
        with np.errstate(invalid="ignore", over="ignore"):
            self._decode(name, entry, out.numpy())
        return out.view(entry.shape)

    def stored(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes as they lie in the file, in stretches that are good until the next one.

        Raises:
            ModelError: the file has become shorter.
        """
        entry = self.entries[name]
        return chunks(self.source, entry.start, entry.start + entry.nbytes, where=f"{self.path}: {name}")

    def _decode(self, name: str, entry: AprEntry, out: npt.NDArray[np.float32]) -> None:
        where, kind = f"{self.path}: {name}", entry.type
        if not len(out):
            return
        start = entry.start
        if kind == APR_Q8:
            scale = np.frombuffer(take(self.source, start, 4, where=where), "<f4")[0]
            for first in range(0, len(out), STRETCH_ELEMENTS):
                part = out[first : first + STRETCH_ELEMENTS]
                part[:] = decode_apr_q8(self._bytes(start + 4 + first, len(part), where), scale)
            return
        size, count = kind.block_bytes, entry.nbytes // kind.block_bytes
        columns = entry.shape[-1] if entry.shape else 1
        by_row = kind.by_row and entry.nbytes == kind.row_bytes(entry.shape) and columns % kind.block_elements
        # The last dimension is cut out of each row of whole blocks; without padded rows, everything is one row.
        width = columns if by_row else len(out)
        blocks_per_row = -(-width // kind.block_elements)
        rows = out.reshape(-1, width)
        if len(rows) == 1:
            step = STRETCH_ELEMENTS // kind.block_elements
            for first in range(0, count, step):
                blocks = self._bytes(start + first * size, min(step, count - first) * size, where).reshape(-1, size)
                part = rows[0, first * kind.block_elements :][: len(blocks) * kind.block_elements]
                part[:] = DECODERS[kind](blocks).reshape(-1)[: len(part)]
            return
        step = max(1, STRETCH_ELEMENTS // (blocks_per_row * kind.block_elements))
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            raw = self._bytes(start + first * blocks_per_row * size, len(some) * blocks_per_row * size, where)
            some[:] = DECODERS[kind](raw.reshape(-1, size)).reshape(len(some), -1)[:, :width]

    def _bytes(self, offset: int, length: int, where: str) -> Bytes:
        return np.frombuffer(take(self.source, offset, length, where=where), np.uint8)

    def verify(self) -> None:
        """Compute the footer's checksum over the whole file.

        Raises:
            ModelError: it is another one; the file was damaged after it was written.
        """
        end, found = self.source.size - FOOTER_BYTES, 0
        for chunk in chunks(self.source, 0, end, where=str(self.path)):
            found = zlib.crc32(chunk, found)
        (wanted,) = struct.unpack("<I", take(self.source, end, FOOTER_BYTES, where=str(self.path)))
        if found != wanted:
            raise damaged(self.path, f"checksum {wanted:08x} at its end, computed {found:08x}")

    def canonical_sha256(self) -> str:
        """The model's hash, which does not depend on where tensors lie or on what is said of them.

        SHA-256 over the tensors in order of name: name, a zero byte, type id, dimensions as u64, bytes.
        """
        digest = hashlib.sha256()
        for name, entry in self.entries.items():
            digest.update(name.encode("utf-8") + b"\0" + bytes([entry.type.id]))
            digest.update(struct.pack(f"<{len(entry.shape)}Q", *entry.shape))
            for chunk in self.stored(name):
                digest.update(chunk)
        return digest.hexdigest()


def is_apr(path: Path) -> bool:
    """Whether a path is a file whose name says APR."""
    return path.suffix == SUFFIX and path.is_file()


def open_apr(path: Path, *, verify: bool = False) -> AprFile:
    """Read and check header, metadata and index.

    Args:
        path: the file.
        verify: compute the checksum of the whole file, too.

    Raises:
        ModelError: not an APR file of version 2, or one that contradicts itself.
    """
    where = str(path)
    try:
        source: ByteSource = FileBytes(path, path.stat().st_size)
        head = bytearray(min(HEADER_BYTES, source.size))
        read_exactly(source, memoryview(head), 0, where=where)
    except OSError as error:
        raise ModelError("cannot read the file", where=where, got=error) from None
    header = read_header(bytes(head), where=where)
    source = unpacked(source, header, where=where)
    require_places(header, source.size, where=where)
    metadata = read_metadata(take(source, header.metadata_offset, header.metadata_bytes, where=where), where=where)
    index_bytes = header.data_offset - header.index_offset
    if index_bytes > _most_index_bytes(header.tensor_count):
        raise damaged(where, f"an index of {index_bytes} bytes for {header.tensor_count} tensors")
    entries = read_index(
        take(source, header.index_offset, index_bytes, where=where),
        header.tensor_count,
        data_offset=header.data_offset,
        footer=source.size - FOOTER_BYTES,
        where=where,
    )
    file = AprFile(path, header, metadata, entries, source)
    if verify:
        file.verify()
    return file


def _most_index_bytes(count: int) -> int:
    """The largest index of so many tensors: names of 256 bytes, eight dimensions, and the padding to 64."""
    return count * (2 + 256 + 2 + 8 * 8 + 16) + 64
