"""The index of an APR file: name, type, shape, place and size of each tensor.

An entry is ``u16`` length of the name, the name in UTF-8, ``u8`` type, ``u8`` number of dimensions, ``u64`` each, the
``u64`` offset from the beginning of the data, and the ``u64`` size. Entries are sorted by the bytes of their names;
the format's other readers search the index by halves and refuse one that is not sorted, and so does this one. The data
need not be in the same order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qlassify.formats.apr_header import damaged
from qlassify.formats.apr_types import AprType, require_shape, type_of

MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class AprEntry:
    """A tensor of an APR file.

    Attributes:
        type: its encoding.
        shape: its shape; the first dimension is the slowest.
        start: its first byte, from the beginning of the (uncompressed) file.
        nbytes: its size without padding.
    """

    type: AprType
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor that reading gives: fp32 for what is stored in few bits."""
        return self.type.decoded


def read_index(raw: bytes, count: int, *, data_offset: int, footer: int, where: object) -> dict[str, AprEntry]:
    """Read and check an index.

    Args:
        raw: from the index's first byte to the first of the data.
        count: entries that the header promises.
        data_offset: first byte of the data.
        footer: first byte behind it.
        where: the file.

    Returns:
        Name -> entry, in the index's order.

    Raises:
        ModelError: an entry that is cut off, unsorted, repeated, outside the data, or over another one.
    """
    entries: dict[str, AprEntry] = {}
    position, before = 0, b""
    for number in range(count):
        try:
            name, fields, position = _parse(raw, position)
            text = name.decode("utf-8")
        except (struct.error, UnicodeDecodeError) as error:
            raise damaged(where, f"entry {number} of the index: {error}") from None
        if number and name <= before:
            reason = "twice" if name == before else "unsorted"
            raise damaged(where, f"{text} stands in the index {reason}")
        before = name
        entries[text] = _entry(text, fields, data_offset, footer, where)
    _require_apart(entries, where)
    return entries


Fields = tuple[int, tuple[int, ...], int, int]
"""Type id, shape, offset, size."""


def _parse(raw: bytes, position: int) -> tuple[bytes, Fields, int]:
    """(name, fields, where the next entry begins).

    Raises:
        struct.error: the index ends inside the entry, or has more than the most dimensions.
    """
    (length,) = struct.unpack_from("<H", raw, position)
    name = raw[position + 2 : position + 2 + length]
    if length > MAX_NAME_BYTES or len(name) != length:
        raise struct.error(f"a name of {length} bytes")
    position += 2 + length
    type_id, dimensions = struct.unpack_from("<BB", raw, position)
    if dimensions > MAX_DIMENSIONS:
        raise struct.error(f"{dimensions} dimensions")
    numbers = struct.unpack_from(f"<{dimensions + 2}Q", raw, position + 2)
    return name, (type_id, numbers[:-2], numbers[-2], numbers[-1]), position + 2 + 8 * len(numbers)


def _entry(name: str, fields: Fields, data_offset: int, footer: int, where: object) -> AprEntry:
    type_id, shape, offset, nbytes = fields
    place = f"{where}: {name}"
    require_shape(shape, where=place)
    if data_offset + offset + nbytes > footer:
        raise damaged(where, f"{name} at bytes {offset} to {offset + nbytes} of {footer - data_offset} bytes of data")
    return AprEntry(type_of(type_id, shape, nbytes, where=place), shape, data_offset + offset, nbytes)


def _require_apart(entries: Mapping[str, AprEntry], where: object) -> None:
    """Refuse tensors that share bytes."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.nbytes and entry.start < end:
            raise damaged(where, f"{before} and {name} share bytes")
        if entry.nbytes:
            end, before = entry.start + entry.nbytes, name


def pack_entry(name: str, type_id: int, shape: tuple[int, ...], offset: int, nbytes: int) -> bytes:
    """An entry's bytes; ``offset`` counts from the beginning of the data."""
    raw = name.encode("utf-8")
    return (
        struct.pack("<H", len(raw))
        + raw
        + struct.pack(f"<BB{len(shape)}Q2Q", type_id, len(shape), *shape, offset, nbytes)
    )
