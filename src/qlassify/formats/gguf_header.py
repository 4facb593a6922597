"""The part of a GGUF file that comes before its numbers: metadata and the table of tensors.

    magic GGUF, u32 version, u64 tensors, u64 keys
    key:     string, u32 type, value; an array is u32 type, u64 count, values
    tensor:  string, u32 dimensions, u64 each (the fastest first), u32 type, u64 offset from the beginning of the data

All numbers are little-endian, a string is u64 length and UTF-8. The table is followed by the data, at the next multiple
of ``general.alignment``.

The ``gguf`` package's reader makes a numpy array of every element of every array and believes the counts that the file
gives: a file of 100 MB can claim an array of as many bytes and take 10 GB. It is therefore not used for this part.
Here, every length is held against what is left of the file and against a limit before anything is allocated, long
arrays (vocabularies) are walked over and not kept, and what is read counts against one limit for the whole header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlassify.errors import ModelError
from qlassify.formats.byte_source import ByteSource, take

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 had counts of 32 bits; no program has written it since 2023."""
MAX_HEADER_BYTES = 1 << 28
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME_BYTES = 1 << 10
MAX_TEXT_BYTES = 1 << 24
MAX_STRINGS = 1 << 22
"""Strings of one array; the largest vocabularies and lists of merges have some 600,000."""
MAX_DIMENSIONS = 4
KEPT_ELEMENTS = 64
"""Arrays up to this length are values; longer ones are ``GgufArray``."""
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
WINDOW_BYTES = 1 << 20
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> how ``struct`` calls it."""
STRING, ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufArray:
    """A long array that was passed over.

    Attributes:
        kind: the type of its elements, a key of ``SCALARS`` or ``STRING``.
        count: how many there are.
        start: the first byte of the first element.
    """

    kind: int
    count: int
    start: int

    def __str__(self) -> str:
        return f"{self.count} {'strings' if self.kind == STRING else 'numbers'}"


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as the table has it, with its dimensions turned round: the first is the slowest.

    Attributes:
        name: its name.
        shape: its shape.
        type_id: of its elements.
        offset: from the beginning of the data.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the numbers.

    Attributes:
        version: 2 or 3.
        metadata: key -> number, truth, text, list, or ``GgufArray``.
        tensors: in the table's order.
        data_start: the first byte of the data.
        alignment: what every offset is a multiple of.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[RawTensor, ...]
    data_start: int
    alignment: int


def damaged(where: object, got: str) -> ModelError:
    """The error for a file that contradicts itself."""
    return ModelError("not a whole GGUF file", where=where, got=got, do="Fetch or write it again.")


def read_gguf_header(source: ByteSource, *, where: str) -> GgufHeader:
    """Read and check everything before the numbers.

    Raises:
        ModelError: another format or version, or a header that contradicts itself or the file's size.
    """
    cursor = _Cursor(source, where)
    version, tensor_count, key_count = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text(MAX_NAME_BYTES)
        if key in metadata:
            raise damaged(where, f"the key {key} twice")
        metadata[key] = _value(cursor, key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise damaged(where, f"general.alignment {alignment}, which is no power of two")
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    return GgufHeader(version, metadata, tensors, -(-cursor.position // alignment) * alignment, alignment)


def array_values(source: ByteSource, array: GgufArray, *, where: str) -> list[Any]:
    """The elements of a long array.

    Raises:
        ModelError: the file has changed since it was looked at.
    """
    cursor = _Cursor(source, where, array.start)
    return list(_elements(cursor, array.kind, array.count))


@dataclass(slots=True)
class _Cursor:
    """A place in a file that only moves forward, and the stretch of the file around it."""

    source: ByteSource
    where: str
    position: int = 0
    window: bytes = field(default=b"", repr=False)
    window_start: int = 0

    def claim(self, count: int, what: str) -> None:
        """Refuse to go on over more bytes than there are, or than a header may have."""
        if count > self.source.size - self.position:
            raise damaged(self.where, f"{what} of {count} bytes at byte {self.position} of {self.source.size}")
        if self.position + count > MAX_HEADER_BYTES:
            raise ModelError(
                "more metadata than is read", where=self.where, got=f"{what} at byte {self.position}",
                wanted=f"at most {MAX_HEADER_BYTES} bytes",
            )  # fmt: skip

    def take(self, count: int, what: str) -> bytes:
        self.claim(count, what)
        first = self.position - self.window_start
        if first < 0 or first + count > len(self.window):
            length = min(max(count, WINDOW_BYTES), self.source.size - self.position)
            self.window = take(self.source, self.position, length, where=self.where)
            self.window_start, first = self.position, 0
        self.position += count
        return self.window[first : first + count]

    def skip(self, count: int, what: str) -> None:
        self.claim(count, what)
        self.position += count

    def skip_strings(self, count: int, what: str) -> None:
        """Go on over strings; vocabularies have hundreds of thousands, and a file is opened several times in a run."""
        while count:
            self.skip(self.number("Q"), what)
            count -= 1
            # Most lengths that follow are in the window. A length beyond it ends the inner loop and is looked at below.
            window, place = self.window, self.position - self.window_start
            while count and place + 8 <= len(window):
                place += 8 + _LENGTH.unpack_from(window, place)[0]
                count -= 1
            self.skip(self.window_start + place - self.position, what)

    def number(self, kind: str = "I") -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}"), "a number"))[0]

    def text(self, most: int) -> str:
        length = self.number("Q")
        if length > most:
            raise damaged(self.where, f"a text of {length} bytes at byte {self.position}")
        try:
            return self.take(length, "a text").decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.where, f"a text before byte {self.position}: {error}") from None


def _counts(cursor: _Cursor) -> tuple[int, int, int]:
    """(version, tensors, keys)."""
    size, where = cursor.source.size, cursor.where
    if size < 24 or cursor.take(4, "the magic") != MAGIC:
        raise ModelError("not a GGUF file", where=where, got=f"{size} bytes" if size < 24 else "another beginning")
    version = cursor.number()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = f"version {swapped}, big-endian" if swapped in (1, *VERSIONS) else f"version {version}"
        raise ModelError(
            "a version of GGUF that is not read", where=where, got=kind, wanted="version 2 or 3, little-endian",
            do="Convert the original model with today's converter of llama.cpp.",
        )  # fmt: skip
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    # The smallest tensor of the table has 24 bytes, the smallest key 13.
    if tensors > min(MAX_TENSORS, size // 24) or keys > min(MAX_KEYS, size // 13):
        raise damaged(where, f"{tensors} tensors and {keys} keys in {size} bytes")
    return version, tensors, keys


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number()
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == STRING:
        return cursor.text(MAX_TEXT_BYTES)
    if kind != ARRAY:
        raise damaged(cursor.where, f"{key} is of the unknown type {kind}")
    element, count = cursor.number(), cursor.number("Q")
    if element not in SCALARS and element != STRING:
        what = "an array of arrays" if element == ARRAY else f"an array of the unknown type {element}"
        raise damaged(cursor.where, f"{key} is {what}")
    if count <= KEPT_ELEMENTS:
        return list(_elements(cursor, element, count))
    array = GgufArray(element, count, cursor.position)
    if element in SCALARS:
        cursor.skip(count * struct.calcsize(f"<{SCALARS[element]}"), key)
        return array
    if count > MAX_STRINGS:
        raise damaged(cursor.where, f"{key} has {count} strings")
    cursor.skip_strings(count, key)
    return array


def _elements(cursor: _Cursor, kind: int, count: int) -> Iterator[Any]:
    for _ in range(count):
        yield cursor.text(MAX_TEXT_BYTES) if kind == STRING else cursor.number(SCALARS[kind])


def _tensor(cursor: _Cursor) -> RawTensor:
    name, dimensions = cursor.text(MAX_NAME_BYTES), cursor.number()
    if dimensions > MAX_DIMENSIONS:
        raise damaged(cursor.where, f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return RawTensor(name, shape, cursor.number(), cursor.number("Q"))
