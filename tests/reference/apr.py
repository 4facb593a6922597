"""APR files put together byte by byte from the layout, so that what is wrong with one can be said exactly.

Nothing here is taken from the package's own writer: a reader and a writer that share a mistake would agree.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

ROW_MAJOR = 0x0400


@dataclass(frozen=True)
class RawTensor:
    """An index entry and its bytes; every field can be told to lie."""

    name: bytes
    type_id: int
    shape: tuple[int, ...]
    data: bytes
    offset: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class RawFile:
    """The parts of a file; what is None is computed as it should be."""

    tensors: tuple[RawTensor, ...] = ()
    metadata: bytes = b'{"model_type":"toy"}'
    flags: int = ROW_MAJOR
    magic: bytes = b"APR\0"
    version: tuple[int, int] = (2, 0)
    count: int | None = None
    metadata_offset: int = 64
    metadata_bytes: int | None = None
    index_offset: int | None = None
    data_offset: int | None = None
    header_checksum: int | None = None
    footer: bytes | None = None
    reserved: bytes = field(default=bytes(20))

    def but(self, **changes: Any) -> RawFile:
        """The same file with other parts."""
        return replace(self, **changes)

    def pack(self) -> bytes:
        """Its bytes."""
        data, entries = b"", b""
        for one in self.tensors:
            offset = len(data) if one.offset is None else one.offset
            size = len(one.data) if one.size is None else one.size
            entries += struct.pack("<H", len(one.name)) + one.name + bytes([one.type_id, len(one.shape)])
            entries += b"".join(struct.pack("<Q", number) for number in (*one.shape, offset, size))
            data += padded(one.data)
        text, index = padded(self.metadata), padded(entries)
        index_offset = 64 + len(text) if self.index_offset is None else self.index_offset
        data_offset = 64 + len(text) + len(index) if self.data_offset is None else self.data_offset
        first = self.magic + bytes(self.version) + struct.pack("<H", self.flags)
        first += struct.pack("<I", len(self.tensors) if self.count is None else self.count)
        length = len(self.metadata) if self.metadata_bytes is None else self.metadata_bytes
        first += struct.pack("<QIQQ", self.metadata_offset, length, index_offset, data_offset)
        checksum = zlib.crc32(first + self.reserved) if self.header_checksum is None else self.header_checksum
        whole = first + struct.pack("<I", checksum) + self.reserved + text + index + data
        return whole + (struct.pack("<I", zlib.crc32(whole)) if self.footer is None else self.footer)


def padded(raw: bytes) -> bytes:
    """With zeros up to the next multiple of 64."""
    return raw + bytes(-len(raw) % 64)


def metadata(**values: Any) -> bytes:
    """Metadata as JSON."""
    return json.dumps(values, separators=(",", ":")).encode()


def half(raw: bytes) -> float:
    """The number that two bytes of fp16 are."""
    return float(np.frombuffer(raw, "<f2")[0])


def apr_q4_each(block: bytes) -> list[float]:
    """32 numbers of an AprQ4 block, one by one in float64."""
    scale = half(block[:2])
    if not math.isfinite(scale) or abs(scale) < 2.0**-14:
        scale = 0.0
    return [((block[2 + i // 2] >> (4 * (i % 2)) & 15) - 8) * scale for i in range(32)]


def q4_k_each(block: bytes) -> list[float]:
    """256 numbers of a Q4_K block, one by one in float64."""
    d, dmin, s, qs = half(block[0:2]), half(block[2:4]), block[4:16], block[16:]
    out = []
    for j in range(8):
        if j < 4:
            scale, minimum = s[j] & 63, s[j + 4] & 63
        else:
            scale, minimum = (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4)
        for i in range(32):
            code = qs[32 * (j // 2) + i] >> (4 * (j % 2)) & 15
            out.append(d * scale * code - dmin * minimum)
    return out


def q6_k_each(block: bytes) -> list[float]:
    """256 numbers of a Q6_K block, one by one in float64."""
    ql, qh, d = block[:128], block[128:192], half(block[208:210])
    scales = [number - 256 if number > 127 else number for number in block[192:208]]
    out = [0.0] * 256
    for h in (0, 1):
        for n in range(32):
            for part in range(4):
                low = ql[64 * h + 32 * (part % 2) + n] >> (4 * (part // 2)) & 15
                code = low | (qh[32 * h + n] >> (2 * part) & 3) << 4
                out[128 * h + 32 * part + n] = d * scales[8 * h + n // 16 + 2 * part] * (code - 32)
    return out
