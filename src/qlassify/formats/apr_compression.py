"""APR files of which everything after the header is compressed.

The flag alone does not say so: the format's main writer sets it and compresses nothing. A file whose metadata lies
there as JSON is taken as it is. Otherwise all bytes after the header are one block of LZ4 (with its unpacked length in
four bytes before it) or one frame of Zstandard, and all places in the header are those of the unpacked file.

What is unpacked goes into a file without a name, not into memory, and its length is bounded before and while it is
written: weights hardly shrink, so a file that grows by more than ``MAX_EXPANSION`` is not one of weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from qlassify.errors import ModelError
from qlassify.formats.apr_header import COMPRESSED, HEADER_BYTES, Flags, Header, damaged
from qlassify.formats.byte_source import ByteSource, UnpackedBytes, chunks, take

MAX_EXPANSION = 32
"""Largest length after unpacking over the length before."""
ALWAYS_ALLOWED_BYTES = 64 << 20
"""What any file may unpack to: small models of zeros are used in tests."""
WINDOW_BYTES = 128 << 20
"""Most memory that a Zstandard frame may ask for."""


def unpacked(source: ByteSource, header: Header, *, where: str) -> ByteSource:
    """The file's bytes as its header counts them: as they are, or unpacked.

    Raises:
        ModelError: the module for the compression is not installed, or the block is damaged or grows too much.
    """
    if not header.flags & COMPRESSED or _lies_open(source, header, where):
        return source
    limit = max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * (source.size - HEADER_BYTES))
    parts = _lz4(source, limit, where) if header.flags & Flags.LZ4 else _zstd(source, where)
    file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as what reads from it
    try:
        size = _write_all(file, take(source, 0, HEADER_BYTES, where=where), 0)
        for part in parts:
            if size + len(part) > limit:
                raise _too_large(where, f"more than {limit}", limit)
            size = _write_all(file, part, size)
    except BaseException:
        file.close()
        raise
    return UnpackedBytes(file, size)


def _write_all(file: IO[bytes], part: bytes, size: int) -> int:
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]
    return size + len(part)


def _lies_open(source: ByteSource, header: Header, where: str) -> bool:
    """Whether the metadata can be seen where the header says it is."""
    start, length = header.metadata_offset, header.metadata_bytes
    if length < 2 or start + length > source.size:
        return False
    first = take(source, start, 1, where=where)
    last = take(source, start + length - 1, 1, where=where)
    return first == b"{" and last == b"}"


def _lz4(source: ByteSource, limit: int, where: str) -> Iterable[bytes]:
    """One block, whole: the format of LZ4 blocks has no way to unpack a part of one."""
    block = _module("lz4.block", "LZ4", where)
    packed = source.size - HEADER_BYTES - 4
    if packed < 0:
        raise damaged(where, f"{source.size - HEADER_BYTES} bytes of LZ4")
    length = int.from_bytes(take(source, HEADER_BYTES, 4, where=where), "little")
    if length > limit:
        raise _too_large(where, length, limit)
    try:
        whole: bytes = block.decompress(take(source, HEADER_BYTES + 4, packed, where=where), uncompressed_size=length)
    except (block.LZ4BlockError, ValueError, OverflowError, MemoryError) as error:
        raise damaged(where, f"LZ4: {error}") from None
    if len(whole) != length:
        raise damaged(where, f"LZ4: {len(whole)} bytes where {length} were promised")
    return (whole,)


def _zstd(source: ByteSource, where: str) -> Iterator[bytes]:
    """One frame, in parts."""
    module = _module("zstandard", "Zstandard", where)
    try:
        unpacker = module.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
        for packed in chunks(source, HEADER_BYTES, source.size, where=where):
            # In small pieces: what one piece can unpack to is what is held at once.
            for start in range(0, len(packed), 1 << 12):
                yield unpacker.decompress(bytes(packed[start : start + (1 << 12)]))
                if unpacker.eof:
                    break
            if unpacker.eof:
                break
    except module.ZstdError as error:
        raise damaged(where, f"Zstandard: {error}") from None
    if not unpacker.eof:
        raise damaged(where, "a Zstandard frame that is cut off")


def _module(name: str, compression: str, where: str) -> Any:
    """The package that unpacks, which is not installed by default: hardly a file needs it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModelError(
            f"the file is compressed with {compression}, and the package that unpacks it is not installed",
            where=where,
            do="pip install 'qlassify[apr]'",
        ) from None


def _too_large(where: str, got: object, limit: int) -> ModelError:
    return ModelError(
        "the file unpacks to more than weights can",
        where=where,
        got=f"{got} bytes",
        wanted=f"at most {limit} bytes, {MAX_EXPANSION} times its size",
        do="Weights hardly shrink; this is no model. Unpack it yourself if you know better.",
    )
