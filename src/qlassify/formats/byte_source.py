"""Bytes that are read at a place: a file's, or those of a file that was unpacked.

Reading is a seek and a read into memory of the reader's, for the reason that ``safetensors`` gives: the touched pages
of a memory map count as memory of the process, and a load that is promised to stay below a bound must not look as if
it did not.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from qlassify.errors import ModelError

CHUNK_BYTES = 1 << 22


class ByteSource(Protocol):
    """Where bytes come from.

    Attributes:
        size: how many there are.
    """

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from byte ``offset`` on; returns how many bytes were there."""
        ...


@dataclass(frozen=True, slots=True)
class FileBytes:
    """The bytes of a file, which is opened for each read.

    Attributes:
        path: the file.
        size: its size when it was first looked at.
    """

    path: Path
    size: int

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from byte ``offset`` on; returns how many bytes were there."""
        with self.path.open("rb", buffering=0) as file:
            return _fill(file, view, offset)


@dataclass(frozen=True, slots=True, eq=False)
class UnpackedBytes:
    """The bytes of a file that has no name and goes when it is dropped.

    Attributes:
        file: open for reading and writing, unbuffered.
        size: its size.
    """

    file: IO[bytes]
    size: int

    def __del__(self) -> None:
        self.file.close()

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from byte ``offset`` on; returns how many bytes were there."""
        done = 0
        while done < len(view):
            # At a place of its own and not from where the file stands: several threads may read.
            count = os.preadv(self.file.fileno(), [view[done:]], offset + done)
            if not count:
                break
            done += count
        return done


def _fill(file: io.FileIO, view: memoryview, offset: int) -> int:
    file.seek(offset)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            break
        done += count
    return done


def read_exactly(source: ByteSource, view: memoryview, offset: int, *, where: str) -> None:
    """Fill ``view`` from byte ``offset`` on.

    Raises:
        ModelError: the bytes end before, or cannot be read.
    """
    try:
        done = source.read_into(view, offset)
    except OSError as error:
        raise ModelError("cannot read the file", where=where, got=error) from None
    if done < len(view):
        raise ModelError("the file ends inside a tensor", where=where)


def take(source: ByteSource, offset: int, length: int, *, where: str) -> bytes:
    """``length`` bytes from ``offset`` on.

    Raises:
        ModelError: as ``read_exactly``.
    """
    buffer = bytearray(length)
    read_exactly(source, memoryview(buffer), offset, where=where)
    return bytes(buffer)


def chunks(source: ByteSource, start: int, stop: int, *, where: str) -> Iterator[memoryview]:
    """The bytes from ``start`` to ``stop`` in stretches of some MB; each is only good until the next is asked for.

    Raises:
        ModelError: as ``read_exactly``.
    """
    buffer = bytearray(min(CHUNK_BYTES, max(stop - start, 0)))
    for position in range(start, stop, CHUNK_BYTES):
        view = memoryview(buffer)[: min(CHUNK_BYTES, stop - position)]
        read_exactly(source, view, position, where=where)
        yield view
