"""Writing APR files: deterministic, one tensor at a time, whole or not at all.

The same tensors and metadata give the same bytes: names sorted by their UTF-8 bytes in index and data alike, canonical
metadata, everything aligned to 64 bytes with zeros between, flags that follow from the contents. A file that this wrote
is therefore written again bit for bit by ``copy_apr``.

Sizes follow from types and shapes, so header and index are written before the first tensor is read, and no more than
one is held. The file appears under its name when it is whole and on the disk. NaN and infinity are refused: nobody
means to keep them, and from a checkpoint they would come back at the worst time.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr import STRETCH_ELEMENTS, AprFile
from qlassify.formats.apr_blocks import apr_q8_scale, encode_apr_q4, encode_apr_q8
from qlassify.formats.apr_checkpoint import require_flavour
from qlassify.formats.apr_header import ALIGNMENT_BYTES, HEADER_BYTES, Flags, Header
from qlassify.formats.apr_index import MAX_DIMENSIONS, MAX_NAME_BYTES, pack_entry
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_types import APR_Q4, APR_Q8, PLAIN, TYPES, AprType, require_shape
from qlassify.formats.finite import require_finite

KEPT_FLAGS = Flags.FILTERBANK | Flags.MODEL_CARD
"""Flags that do not follow from the contents, and that a copy has if the original had them."""
NONE = Flags(0)
WRITABLE = {one.name.lower(): one for one in (*PLAIN.values(), APR_Q4, APR_Q8)}
"""Types that numbers can be encoded as, by name in small letters."""
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class AprTensor:
    """A tensor to be written.

    Attributes:
        type: how it is encoded.
        shape: its shape.
        nbytes: its size in the file.
        stretches: gives its bytes when it is its turn.
    """

    type: AprType
    shape: tuple[int, ...]
    nbytes: int
    stretches: Callable[[], Iterator[Buffer]]

    @classmethod
    def of(cls, tensor: Tensor, kind: AprType | None = None) -> AprTensor:
        """A tensor that is there, as ``kind``; as it is when None."""
        return cls.later(lambda: tensor, tensor.dtype, tuple(tensor.shape), kind)

    @classmethod
    def later(
        cls, read: Callable[[], Tensor], dtype: torch.dtype, shape: tuple[int, ...], kind: AprType | None = None
    ) -> AprTensor:
        """A tensor that is read when it is its turn.

        Args:
            read: gives it.
            dtype: its type in memory.
            shape: its shape.
            kind: its type in the file; the same when None.

        Raises:
            ModelError: no such type, or one that numbers are not encoded as.
        """
        kind = kind or PLAIN.get(dtype)
        if kind is None or kind not in WRITABLE.values():
            raise ModelError("a type that is not written", got=kind.name if kind else dtype, wanted=", ".join(WRITABLE))
        if kind.quantized and not dtype.is_floating_point:
            raise ModelError("only numbers with fractions are written in few bits", got=dtype, wanted="a float type")
        return cls(kind, shape, kind.flat_bytes(shape), lambda: _encoded(read(), shape, kind))

    @classmethod
    def stored(cls, file: AprFile, name: str) -> AprTensor:
        """A tensor of another file, byte for byte.

        Raises:
            ModelError: its type has no id of its own, so that it cannot be written.
        """
        entry = file.entries[name]
        if entry.type not in TYPES:
            raise ModelError("a type that is not written", where=f"{file.path}: {name}", got=entry.type.name)

        def stretches() -> Iterator[Buffer]:
            if entry.dtype.is_floating_point:
                require_finite(file.read(name))
            return file.stored(name)

        return cls(entry.type, entry.shape, entry.nbytes, stretches)


def write_apr(path: Path, tensors: Mapping[str, AprTensor], metadata: AprMetadata, *, flags: Flags = NONE) -> None:
    """Write a file.

    Args:
        path: where; ``.adapter.apr`` and ``.ckpt.apr`` have rules of their own (``apr_checkpoint``).
        tensors: name -> tensor, in any order.
        metadata: what is said of the model.
        flags: of ``KEPT_FLAGS``; the others follow from the contents.

    Raises:
        ModelError: a name or shape that the format has no room for, numbers that are not finite, a tensor that is
            another than was announced, or metadata that the kind of file must not have.
        OSError: the file cannot be written.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: _name_bytes(path, item[0])))
    for name, tensor in ordered.items():
        require_shape(tensor.shape, where=f"{path}: {name}")
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise ModelError(
                "too many dimensions", where=f"{path}: {name}", got=len(tensor.shape), wanted=f"up to {MAX_DIMENSIONS}"
            )
    require_flavour(path, metadata, {name: tensor.shape for name, tensor in ordered.items()})
    text = metadata.text()
    index, header = _plan(ordered, metadata, len(text), flags & KEPT_FLAGS)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            out = _Checked(file)
            out.write(header.pack())
            for part in (text, index):
                out.write(part)
                out.pad()
            for name, tensor in ordered.items():
                _write_tensor(out, f"{path}: {name}", tensor)
            file.write(struct.pack("<I", out.checksum))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def copy_apr(file: AprFile, path: Path) -> None:
    """Write what a file holds anew: unpacked, sorted, canonical; the same bytes if it was so already.

    Raises:
        ModelError: numbers that are not finite, or a tensor of an old type.
        OSError: the file cannot be written.
    """
    tensors = {name: AprTensor.stored(file, name) for name in file.entries}
    write_apr(path, tensors, file.metadata, flags=file.header.flags)


class _Checked:
    """A file that is written from front to back, with the checksum of what has been written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.checksum = 0
        self.position = 0

    def write(self, data: Buffer) -> None:
        self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.position += len(data)

    def pad(self) -> None:
        self.write(bytes(-self.position % ALIGNMENT_BYTES))


def _name_bytes(path: Path, name: str) -> bytes:
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelError("a name that is no text", where=path, got=ascii(name), wanted=str(error)) from None
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise ModelError(
            "a name that an APR index has no room for",
            where=path,
            got=f"{name[:40]!r} of {len(raw)} bytes",
            wanted=f"1 to {MAX_NAME_BYTES} bytes",
        )
    return raw


def _plan(
    tensors: Mapping[str, AprTensor], metadata: AprMetadata, text_bytes: int, kept: Flags
) -> tuple[bytes, Header]:
    """The index and the header; everything has its place before anything is written."""
    entries, offset = [], 0
    flags = Flags.ROW_MAJOR | kept
    for name, tensor in tensors.items():
        entries.append(pack_entry(name, tensor.type.id, tensor.shape, offset, tensor.nbytes))
        offset += _aligned(tensor.nbytes)
        flags |= Flags.QUANTIZED if tensor.type.quantized else NONE
    flags |= Flags.HAS_VOCAB if "tokenizer.vocabulary" in metadata.custom else NONE
    flags |= Flags.SHARDED if "sharding" in metadata.typed else NONE
    index = b"".join(entries)
    index_offset = _aligned(HEADER_BYTES + text_bytes)
    data_offset = _aligned(index_offset + len(index))
    return index, Header(flags, len(tensors), HEADER_BYTES, text_bytes, index_offset, data_offset)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _write_tensor(out: _Checked, where: str, tensor: AprTensor) -> None:
    start = out.position
    try:
        for stretch in tensor.stretches():
            out.write(stretch)
    except ModelError as error:
        if error.where is not None:
            raise
        raise ModelError(error.what, where=where, got=error.got, wanted=error.wanted, do=error.do) from None
    if out.position - start != tensor.nbytes:
        raise ModelError(
            "a tensor is not the one that was announced",
            where=where,
            got=f"{out.position - start} bytes",
            wanted=f"{tensor.nbytes} bytes for shape {list(tensor.shape)}",
        )
    out.pad()


def _encoded(tensor: Tensor, shape: tuple[int, ...], kind: AprType) -> Iterator[Buffer]:
    """A tensor's bytes in a type, stretch by stretch."""
    if tuple(tensor.shape) != shape:
        raise ModelError("a tensor has another shape than was announced", got=list(tensor.shape), wanted=list(shape))
    flat = tensor.detach().cpu().contiguous().view(-1)
    require_finite(flat)
    scale = np.float32(1)
    if kind == APR_Q8 and len(flat):
        largest = _largest(flat)
        scale = apr_q8_scale(largest)
        if not np.isfinite(scale):
            raise ModelError("a number is too large for AprQ8", got=largest)
        yield struct.pack("<f", scale)
    for start in range(0, len(flat), STRETCH_ELEMENTS):
        part = flat[start : start + STRETCH_ELEMENTS]
        if kind == APR_Q4:
            yield encode_apr_q4(part.float().numpy()).tobytes()
        elif kind == APR_Q8:
            yield encode_apr_q8(part.float().numpy(), scale).tobytes()
        else:
            yield _converted(part, kind).view(torch.uint8).numpy().data


def _converted(part: Tensor, kind: AprType) -> Tensor:
    """In another plain type.

    Raises:
        ModelError: a number that is finite here is not there, or a whole number would not be the same.
    """
    converted = part.to(kind.decoded)
    if part.is_floating_point() and kind.decoded.is_floating_point:
        if not bool(torch.isfinite(converted).all()):
            raise ModelError(
                f"a number is too large for {kind.name}", got=float(part.abs().max()), do="Write it as F32 or BF16."
            )
    elif part.dtype != kind.decoded:
        raise ModelError("whole numbers are written as they are", got=f"{part.dtype} as {kind.name}")
    return converted


def _largest(flat: Tensor) -> float:
    """The largest magnitude, found in stretches."""
    return max(float(flat[at : at + STRETCH_ELEMENTS].abs().max()) for at in range(0, len(flat), STRETCH_ELEMENTS))


def _flush_folder(folder: Path) -> None:
    """Have the new name survive a power cut, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
