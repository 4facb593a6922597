"""Token ids on disk: written while texts are tokenised, mapped into memory, found again by what they were made from.

    FOLDER/<64 hexadecimal digits>/token_ids.bin  offsets.bin  lost_tokens.bin  [token_type_ids.bin  window_*.bin]
                                   entry.json

The name of an entry is the SHA-256 of everything that its tokens depend on: the texts, the tokeniser as the library
writes it out, the library's version, the maximal length and what is read of longer texts. So there is no entry that is
out of date, only one that nobody asks for any more. The alternative, the data file's name and time, is wrong the first
time that a file is restored or a setting is changed.

An entry is written in a folder beside its place, chunk by chunk, so that what is in memory does not grow with the
rows, and is renamed when it is whole. ``entry.json`` holds the size and SHA-256 of each file and one of itself. Both
are checked each time an entry is opened, which takes a second for 300 MB, and places are held against one another; an
entry that does not pass is made again, and so is said. What is given out are read-only maps of the files: pages that
are in use are in memory, and the system takes them back when it needs the room.

The store is bounded: after an entry was written, those that were used least recently are removed until all together
are within ``max_bytes``. On Linux, maps of a removed entry stay valid until their process lets go of them.

One flat file of a known format (NumPy's ``.npy``, Arrow) for each array was the alternative to raw bytes; they would
have to be rewritten at the end for a length that is not known at the beginning, and still need the checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from qlassify.data.token_chunk import TokenChunk
from qlassify.data.tokenise import CHUNK_ROWS, Encoded, TextEncoder, Windows

MAX_BYTES = 8 * 2**30
"""What all entries together may take on disk, if nothing else is said."""
FORMAT = 1
"""Of the files; part of every entry's name."""
ABANDONED_SECONDS = 24 * 3600
"""Age from which a folder of an unfinished entry belongs to a process that was killed."""

_DTYPES = {
    "token_ids": "<i4",
    "token_type_ids": "|i1",
    "offsets": "<i8",
    "lost_tokens": "<i4",
    "window_offsets": "<i8",
    "window_lengths": "<i8",
    "repeated_tokens": "<i4",
}
"""Every array there can be, one after another in a file of its own."""
_WINDOWS = ("window_offsets", "window_lengths", "repeated_tokens")
_RECORD = "entry.json"
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_UNFINISHED = ".unfinished-"


class TokenStore:
    """A folder of tokenised texts.

    Args:
        folder: made when the first entry is written.
        max_bytes: what all entries together may take; the one that was written last stays in any case.

    Attributes:
        folder: the same.
        max_bytes: the same.
        notes: a sentence for each thing that did not go as it should; nothing is wrong with the tokens then.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.notes: list[str] = []

    def encode(
        self,
        encoder: TextEncoder,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Encoded:
        """What ``encoder.encode`` gives for the same arguments, from the store, or made and put there.

        Where the store cannot be written, the tokens are kept in memory and a note says why.

        Raises:
            ConfigError: pairs, and longer texts are not to be truncated.
        """
        encoder.long.require_single(pair=pairs is not None)
        name = content_name(encoder, texts, pairs)
        entry = self.folder / name
        if os.path.isdir(entry):  # Path.is_dir raises where the folder cannot be looked into
            try:
                found = _read(entry, name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self.notes.append(f"Stored tokens in {entry} were damaged and are made again: {error}.")
            else:
                with contextlib.suppress(OSError):  # somebody else's, or not to be written: good all the same
                    os.utime(entry / _RECORD)
                if progress is not None:
                    progress(len(found))
                return found
        try:
            return self._write(entry, encoder.chunks(texts, pairs), progress)
        except (OSError, ValueError) as error:
            self.notes.append(f"Tokens could not be stored in {self.folder} and are kept in memory: {error}.")
        return encoder.encode(texts, pairs, progress=progress)

    def _write(self, entry: Path, chunks: Iterator[TokenChunk], progress: Callable[[int], None] | None) -> Encoded:
        """Write an entry, put it in its place and map it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            with _EntryWriter(scratch) as writer:
                for chunk in chunks:
                    writer.add(chunk)
                    if progress is not None:
                        progress(writer.num_rows)
                writer.finish(entry.name)
            _replace(scratch, entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._keep_within_bounds(entry)
        return _read(entry, entry.name)

    def _keep_within_bounds(self, newest: Path) -> None:
        """Remove what was used least recently, and what killed processes have left."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process may be removing it, too
                if path.name.startswith(_UNFINISHED) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                elif _NAME.match(path.name) and path.is_dir():
                    size = sum(file.stat().st_size for file in path.iterdir())
                    found.append(((path / _RECORD).stat().st_mtime_ns, path, size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self.max_bytes:
                break
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


def content_name(encoder: TextEncoder, texts: Sequence[str], pairs: Sequence[str] | None) -> str:
    """SHA-256, as 64 hexadecimal digits, of everything that the tokens of these texts depend on."""
    settings = {"format": FORMAT, "rows": len(texts), "pairs": pairs is not None, **encoder.settings()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8"))
    for column in (texts, pairs or ()):
        for start in range(0, len(column), CHUNK_ROWS):
            chunk = column[start : start + CHUNK_ROWS]
            # Lengths first: the same characters divided otherwise are other texts.
            digest.update(np.fromiter(map(len, chunk), "<i8", len(chunk)).tobytes())
            digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class _EntryWriter:
    """Writes the files of one entry, chunk by chunk; counts and hashes what it writes."""

    def __init__(self, folder: Path) -> None:
        self.num_rows = 0
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in _DTYPES}
        self._num_tokens = self._num_windows = self._num_empty = 0

    def __enter__(self) -> _EntryWriter:
        for name in _DTYPES:
            self._files[name] = self._stack.enter_context((self._folder / f"{name}.bin").open("wb"))
        self._put("offsets", np.zeros(1))
        self._put("window_offsets", np.zeros(1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, chunk: TokenChunk) -> None:
        """Write a chunk behind the others."""
        self._put("token_ids", chunk.token_ids)
        if chunk.token_type_ids is not None:
            self._put("token_type_ids", chunk.token_type_ids)
        self._put("offsets", self._num_tokens + np.cumsum(chunk.lengths, dtype=np.int64))
        self._put("lost_tokens", chunk.lost_tokens)
        self._put("window_offsets", self._num_windows + np.cumsum(chunk.windows_of_row, dtype=np.int64))
        self._put("window_lengths", chunk.window_lengths)
        self._put("repeated_tokens", chunk.repeated_tokens)
        self.num_rows += len(chunk.lengths)
        self._num_tokens += len(chunk.token_ids)
        self._num_windows += len(chunk.window_lengths)
        self._num_empty += chunk.num_empty

    def finish(self, entry_name: str) -> None:
        """Leave out what there is nothing of, and write the record last."""
        sizes = {name: file.tell() for name, file in self._files.items()}
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        unneeded = set(_WINDOWS) if self._num_windows == self.num_rows else set()
        if not sizes["token_type_ids"]:
            unneeded.add("token_type_ids")
        for name in unneeded:
            (self._folder / f"{name}.bin").unlink()
        record: dict[str, Any] = {
            "name": entry_name,
            "num_rows": self.num_rows,
            "num_empty": self._num_empty,
            "files": {
                name: {"bytes": sizes[name], "sha256": self._hashes[name].hexdigest()}
                for name in _DTYPES
                if name not in unneeded
            },
        }
        text = json.dumps({**record, "sha256": _record_hash(record)}, indent=2)
        with (self._folder / _RECORD).open("wb") as record_file:
            record_file.write(text.encode("utf-8"))
            record_file.flush()
            os.fsync(record_file.fileno())

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, dtype=_DTYPES[name]).data
        self._files[name].write(data)
        self._hashes[name].update(data)


def _replace(scratch: Path, entry: Path) -> None:
    """Put a finished folder in its place; the same entry, written by another process meanwhile, serves as well."""
    try:
        scratch.rename(entry)
    except OSError:
        aside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=entry.parent))
        try:
            entry.rename(aside / entry.name)  # what stands there was damaged, or is the same
            scratch.rename(entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _read(entry: Path, name: str) -> Encoded:
    """Check an entry and map its files.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not the one that was written, or the files contradict each other.
        KeyError, TypeError, AttributeError: a record with a right checksum that has another form.
    """
    record = _record(entry, name)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for array, facts in record["files"].items():
        path = entry / f"{array}.bin"
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != facts["bytes"]:
                raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {facts['bytes']}")
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise ValueError(f"{path.name} has another SHA-256")
        dtype = np.dtype(_DTYPES[array])
        # An empty file cannot be mapped. A plain array in place of np.memmap, whose every slice is a Python object's
        # worth of bookkeeping; it keeps the map alive.
        arrays[array] = np.memmap(path, dtype, mode="r").view(np.ndarray) if facts["bytes"] else np.zeros(0, dtype)
    windows = None
    if _WINDOWS[0] in arrays:
        windows = Windows(*(arrays[part] for part in _WINDOWS))
    _require_in_step(arrays, record["num_rows"])
    return Encoded(
        token_ids=arrays["token_ids"],
        offsets=arrays["offsets"],
        token_type_ids=arrays.get("token_type_ids"),
        lost_tokens=arrays["lost_tokens"],
        num_empty=record["num_empty"],
        windows=windows,
    )


def _require_in_step(arrays: Mapping[str, npt.NDArray[Any]], num_rows: int) -> None:
    """Hold rows, windows and tokens against one another.

    Whoever can write to the folder can make checksums, too. Places outside the tokens must not get as far as compiled
    loops, which look at no bounds.

    Raises:
        ValueError: they contradict each other.
    """
    offsets, tokens = arrays["offsets"], arrays["token_ids"]
    good = len(offsets) == num_rows + 1 and len(arrays["lost_tokens"]) == num_rows
    good = good and _rise(offsets, len(tokens)) and len(arrays.get("token_type_ids", tokens)) == len(tokens)
    if good and _WINDOWS[0] in arrays:
        places, lengths, repeated = (arrays[name] for name in _WINDOWS)
        good = len(places) == num_rows + 1 and len(repeated) == num_rows and _rise(places, len(lengths))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        good = good and bool((lengths > 0).all()) and np.array_equal(ends[places], offsets)
    if not good:
        raise ValueError("its files contradict each other")


def _rise(places: npt.NDArray[np.int64], end: int) -> bool:
    """Whether places begin at zero, rise, and end at ``end``."""
    return int(places[0]) == 0 and int(places[-1]) == end and bool((places[1:] > places[:-1]).all())


def _record(entry: Path, name: str) -> dict[str, Any]:
    record: Any = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.pop("sha256", None) != _record_hash(record):
        raise ValueError(f"{_RECORD} has another SHA-256")
    if record["name"] != name:
        raise ValueError(f"{_RECORD} is of another entry")
    return record


def _record_hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8")).hexdigest()
