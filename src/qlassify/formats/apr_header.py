"""The first 64 bytes of an APR version 2 file, and what was called APR before it.

    0   4s   magic 41 50 52 00          24  u64  where the index of tensors begins
    4   u8   2, the major version       32  u64  where the data begins
    5   u8   0, the minor version       40  u32  CRC-32 of bytes 0 to 39 and 44 to 63
    6   u16  flags                      44  20s  reserved
    8   u32  number of tensors
    12  u64  where the metadata begins
    20  u32  length of the metadata

All integers are little-endian. The checksum covers the header alone, so it is always verified: nothing that follows is
believed before it. Lengths and places are then held against one another and against the file, and only after that is
anything allocated or parsed.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag

from qlassify.errors import ModelError

MAGIC = b"APR\x00"
ALTERNATIVE_MAGIC = b"APR2"
"""Some tools take it for version 2; none is known to write it."""
HEADER_BYTES = 64
ALIGNMENT_BYTES = 64
FOOTER_BYTES = 4
MAX_METADATA_BYTES = 16 << 20
"""The format's own limit, which its other readers do not enforce."""
MAX_TENSORS = 1 << 18
"""Several times what the largest mixtures of experts have."""
SMALLEST_ENTRY_BYTES = 20
"""An index entry with an empty name and no dimension."""
_FORMAT = "<4sBBHIQIQQI20s"
_REASONS = {
    b"APRN": "an APR file of version 1, which holds one model of another kind (MessagePack and bincode), not tensors",
    b"APR1": "an early Whisper file with an index inside its data, which nothing writes any more",
}


class Flags(IntFlag):
    """What a file says of itself in its header."""

    LZ4 = 0x0001
    ZSTD = 0x0002
    ENCRYPTED = 0x0004
    SIGNED = 0x0008
    SHARDED = 0x0010
    QUANTIZED = 0x0020
    FILTERBANK = 0x0040
    MODEL_CARD = 0x0080
    STREAMING = 0x0100
    HAS_VOCAB = 0x0200
    ROW_MAJOR = 0x0400
    COLUMN_MAJOR = 0x0800


KNOWN = int(~Flags(0))
COMPRESSED = Flags.LZ4 | Flags.ZSTD


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields.

    Attributes:
        flags: see ``Flags``.
        tensor_count: entries of the index.
        metadata_offset: first byte of the metadata.
        metadata_bytes: its length without padding.
        index_offset: first byte of the index.
        data_offset: first byte of the data; offsets in the index count from here.
        magic: the file's first four bytes.
    """

    flags: Flags
    tensor_count: int
    metadata_offset: int
    metadata_bytes: int
    index_offset: int
    data_offset: int
    magic: bytes = MAGIC

    def pack(self) -> bytes:
        """The 64 bytes, checksum included."""
        fields = (self.magic, 2, 0, int(self.flags), self.tensor_count, self.metadata_offset, self.metadata_bytes)
        raw = struct.pack(_FORMAT, *fields, self.index_offset, self.data_offset, 0, bytes(20))
        return raw[:40] + struct.pack("<I", header_checksum(raw)) + raw[44:]


def header_checksum(raw: bytes) -> int:
    """CRC-32 of a header but for the four bytes that hold it."""
    return zlib.crc32(raw[44:HEADER_BYTES], zlib.crc32(raw[:40]))


def read_header(raw: bytes, *, where: object) -> Header:
    """Read a header and check what it says of itself.

    Args:
        raw: the file's first 64 bytes, or what there is of them.
        where: the file.

    Raises:
        ModelError: another format or version, a wrong checksum, or flags that change what the bytes mean.
    """
    magic = raw[:4]
    if magic in _REASONS:
        raise ModelError(
            _REASONS[magic], where=where, wanted="APR version 2", do="Convert the model again with a current tool."
        )
    if magic not in (MAGIC, ALTERNATIVE_MAGIC):
        raise ModelError("not an APR file", where=where, got=f"first bytes {magic.hex(' ') or 'none'}", wanted="APR\\0")
    if len(raw) < HEADER_BYTES:
        raise damaged(where, f"{len(raw)} bytes, less than a header")
    _, major, minor, flags, count, metadata, length, index, data, checksum, _ = struct.unpack(_FORMAT, raw)
    if (major, minor) != (2, 0):
        raise ModelError(
            "an APR file of another version",
            where=where,
            got=f"{major}.{minor}",
            wanted="2.0",
            do="Convert the model again with a current tool.",
        )
    if checksum != header_checksum(raw):
        raise damaged(where, f"header checksum {checksum:08x}, computed {header_checksum(raw):08x}")
    _require_readable(flags, where)
    return Header(Flags(flags), count, metadata, length, index, data, magic)


def _require_readable(flags: int, where: object) -> None:
    """Refuse flags under which the bytes do not mean what they seem to."""
    if flags & ~KNOWN:
        raise ModelError("flags that this version does not know", where=where, got=f"0x{flags & ~KNOWN:04x}")
    if flags & Flags.ENCRYPTED:
        raise ModelError("an encrypted APR file", where=where, do="Version 2 has no way to decrypt; get a plain copy.")
    if flags & Flags.COLUMN_MAJOR:
        raise ModelError(
            "matrices stored by columns",
            where=where,
            wanted="rows, as every writer of the format stores them",
            do="Write the file again with a current tool.",
        )
    if flags & Flags.LZ4 and flags & Flags.ZSTD:
        raise damaged(where, "flags of two compressions")


def require_places(header: Header, size: int, *, where: object) -> None:
    """Hold the header's places and counts against one another and against the size of the (uncompressed) file.

    Raises:
        ModelError: parts that overlap, lie outside the file, or cannot hold what they are said to.
    """
    if header.metadata_bytes > MAX_METADATA_BYTES:
        raise damaged(where, f"metadata of {header.metadata_bytes} bytes, more than {MAX_METADATA_BYTES}")
    if header.tensor_count > MAX_TENSORS:
        raise damaged(where, f"{header.tensor_count} tensors, more than {MAX_TENSORS}")
    ends = (
        (HEADER_BYTES, "header"),
        (header.metadata_offset, "metadata"),
        (header.metadata_offset + header.metadata_bytes, "end of the metadata"),
        (header.index_offset, "index"),
        (header.index_offset + SMALLEST_ENTRY_BYTES * header.tensor_count, "index's smallest end"),
        (header.data_offset, "data"),
        (size - FOOTER_BYTES, "footer"),
    )
    for (before, first), (after, second) in itertools.pairwise(ends):
        if before > after:
            raise damaged(where, f"{second} at byte {after}, {first} at byte {before}, in a file of {size}")


def damaged(where: object, got: str) -> ModelError:
    """The error for a file that contradicts itself."""
    return ModelError("not a whole APR file", where=where, got=got, do="Fetch or write it again.")
