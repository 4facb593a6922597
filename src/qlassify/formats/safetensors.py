"""safetensors files, one tensor at a time and without a memory map.

A file is 8 bytes with the length of a JSON header, the header (name -> type, shape, range of bytes; and free text under
``__metadata__``), and the bytes. Reading a tensor here is a seek and a read into memory that the tensor then owns. A
memory map would do the same with less code, but every page that it has touched counts as memory of the process until
the system takes it back, and a load that is promised to stay below a bound must not look as if it did not.

A header comes from outside: its length, types, shapes and ranges are checked against each other and against the file
before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.own_memory import own_memory

MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        dtype: its type.
        shape: its shape.
        start: its first byte, from the beginning of the file.
        nbytes: its size.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A file whose header has been read and checked.

    Attributes:
        path: the file.
        entries: name -> where it lies, in the header's order.
        metadata: the header's free text.
        data_start: the first byte after the header.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            ModelError: the file has become shorter than its header says.
        """
        entry = self.entries[name]
        flat = own_memory(entry.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            view, done = flat.numpy().data, 0
            while done < entry.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise ModelError("the file ends inside a tensor", where=f"{self.path}: {name}")
                done += count
        return flat.view(entry.dtype).view(entry.shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check a file's header.

    Raises:
        ModelError: not a safetensors file, or one that contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _damaged(path, f"{size} bytes")
            length = struct.unpack("<Q", prefix)[0]
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unrepeated)
        if not isinstance(header, dict):
            raise _damaged(path, "a header that is no object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise _damaged(path, "free text that is no object")
        entries = {name: _entry(path, name, item, 8 + length, size) for name, item in header.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    _require_apart(path, entries)
    return SafetensorsFile(path, entries, {str(key): str(value) for key, value in metadata.items()}, 8 + length)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless a name stands in it twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _require_apart(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse tensors that share bytes."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.nbytes and entry.start < end:
            raise _damaged(path, f"{before} and {name} share bytes")
        if entry.nbytes:
            end, before = entry.start + entry.nbytes, name


def _entry(path: Path, name: str, item: Any, data_start: int, size: int) -> TensorEntry:
    try:
        dtype, shape = item["dtype"], item["shape"]
        start, stop = item["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"no dtype, shape and data_offsets for {name}") from None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise _damaged(path, f"{name}: dtype {dtype!r} and shape {shape!r}")
    if dtype not in DTYPES:
        raise ModelError(
            "a tensor has a type that is not read", where=f"{path}: {name}", got=dtype, wanted=", ".join(DTYPES)
        )
    whole = all(type(number) is int and 0 <= number < 2**63 for number in (start, stop, *shape))
    if not whole or data_start + stop > size or stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"{name}: {dtype} {shape} at bytes {start} to {stop} of {size - data_start}")
    return TensorEntry(DTYPES[dtype], tuple(shape), data_start + start, stop - start)


def _damaged(path: Path, got: str) -> ModelError:
    return ModelError("not a whole safetensors file", where=path, got=got, do="Fetch or write it again.")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file without a second copy of its tensors; it appears under its name only when it is whole.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        offsets = [position, position + nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for chunk in tensor_bytes(tensors):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def tensor_bytes(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of tensors in their order, as a file holds them."""
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data
