"""From bytes to lines: which file, which format, which compression, which characters.

Encoding. A byte-order mark decides: UTF-8 (mark dropped), UTF-16, UTF-32; without one the file is UTF-8. Real files
break that in single rows, where somebody pasted a Windows-1252 character. Such a byte is read as Windows-1252 there
and only there (``repair``; the five bytes which that encoding leaves undefined become the Latin-1 control character),
valid UTF-8 beside it stays what it is, and the row is counted as repaired. The alternatives are worse: refusing the
file loses thousands of good rows, "ignore" glues words together, and decoding the whole file as Windows-1252 spoils
every other accent. UTF-16 and UTF-32 have no such neighbourly damage; a broken unit there is an error.

Lines end in LF or CRLF; a file that has only CR in its first 64 KiB is split there. Lines keep their ends, because
inside a quoted field they belong to the text. Nothing else splits a line (``str.splitlines`` knows eight more ends and
would cut texts in two). A line is read up to ``LINE_LIMIT`` characters, so that memory stays bounded when a binary
file comes along; a longer one arrives cut, one character longer than the limit, and its reader rejects it.

Gzip is undone wherever it is met, whatever the file is called.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from qlassify.data.records import ReadOptions
from qlassify.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LINE_LIMIT = 16_000_000
"""Characters of the longest line that is read whole."""

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}

_HEAD_BYTES = 1 << 16
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_TEXT = ((b"PAR1", "a Parquet file"), (b"PK\x03\x04", "a zip archive or an Excel sheet"), (b"%PDF", "a PDF"))
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_WINDOWS_1252 = {
    0xDC00 + byte: (
        bytes([byte]).decode("cp1252", "replace").replace("\N{REPLACEMENT CHARACTER}", "") or chr(byte)  # undefined
    )
    for byte in range(0x80, 0x100)
}


def repair(text: str) -> str:
    """``text`` with every byte that was not valid UTF-8 read as Windows-1252; ``text`` itself if there was none."""
    if text.isascii() or _ESCAPED_BYTE.search(text) is None:
        return text
    return text.translate(_WINDOWS_1252)


@dataclass(frozen=True, slots=True)
class TextSource:
    """A file or a stream of text, looked at but not yet read."""

    name: str
    """What to call it in a message."""
    origin: Path | io.BufferedReader
    """A path is opened anew by each reading; a stream can be read once and is left open."""
    encoding: str
    line_end: str
    head: str
    """The first characters, for guesses about the format."""

    def lines(self) -> Iterator[str]:
        """All lines with their ends; bytes that are not UTF-8 are left for ``repair``.

        Raises:
            DataError: damaged gzip, UTF-16 or UTF-32.
        """
        with self._open() as stream:
            while line := stream.readline(LINE_LIMIT + 1):
                if len(line) > LINE_LIMIT and not line.endswith(self.line_end):
                    yield line
                    while (more := stream.readline(LINE_LIMIT)) and not more.endswith(self.line_end):
                        pass
                    continue
                yield line

    def read(self) -> str:
        """Everything at once; raises as ``lines`` does."""
        with self._open() as stream:
            return stream.read()

    @contextmanager
    def _open(self) -> Iterator[io.TextIOWrapper]:
        binary = self.origin if isinstance(self.origin, io.BufferedReader) else _open_binary(self.origin)
        codec, errors = ("utf-8-sig", "surrogateescape") if self.encoding == "utf-8" else (self.encoding, "strict")
        try:
            # Closes what is below it; a borrowed stream is below that and stays open.
            with io.TextIOWrapper(binary, encoding=codec, errors=errors, newline=self.line_end) as stream:
                yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                "damaged gzip data", where=self.name, got=error, do="Compress or download it again"
            ) from None
        except UnicodeDecodeError as error:
            what = f"not valid {self.encoding.upper()}, which its byte-order mark promises"
            raise DataError(what, where=self.name, got=error.reason, do="Save it as UTF-8") from None


def text_source(origin: Path | IO[bytes]) -> TextSource:
    """Looks at the first 64 KiB of a file or stream.

    Raises:
        DataError: its content is a Parquet file, a zip archive, a PDF or unmarked UTF-16; or damaged gzip.
    """
    if isinstance(origin, Path):
        with _open_binary(origin) as binary:
            return _look(str(origin), origin, binary)
    stream = _buffered(_Borrowed(origin))
    if stream.peek(2)[:2] == _GZIP:
        stream = _buffered(gzip.GzipFile(fileobj=stream))
    return _look("the input stream", stream, stream)


def _look(name: str, origin: Path | io.BufferedReader, binary: io.BufferedReader) -> TextSource:
    try:
        head = binary.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("damaged gzip data", where=name, got=error, do="Compress or download it again") from None
    for magic, kind in _NOT_TEXT:
        if head.startswith(magic):
            do = "Pass --format parquet" if kind == "a Parquet file" else "Export it as CSV, TSV, JSONL or Parquet"
            raise DataError("not a text file", where=name, got=kind, do=do)
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 3 * head.count(0) > len(head):
        got = "a NUL byte in every few bytes"
        do = "This looks like UTF-16 without its byte-order mark: save it as UTF-8"
        raise DataError("not a text file", where=name, got=got, do=do)
    text = head.decode("utf-8-sig" if encoding == "utf-8" else encoding, "ignore")
    line_end = "\r" if "\r" in text and "\n" not in text else "\n"
    return TextSource(name=name, origin=origin, encoding=encoding, line_end=line_end, head=text)


def _open_binary(path: Path) -> io.BufferedReader:
    binary = _buffered(path.open("rb", buffering=0))
    if binary.peek(2)[:2] != _GZIP:
        return binary
    binary.close()
    return _buffered(gzip.GzipFile(path, "rb"))


def _buffered(stream: object) -> io.BufferedReader:
    # A GzipFile is no RawIOBase, but has its readinto, which is all that is asked of the stream below.
    return io.BufferedReader(cast(io.RawIOBase, stream), buffer_size=_HEAD_BYTES)


class _Borrowed(io.RawIOBase):
    """Somebody else's stream: read as its bytes arrive, and never closed by us."""

    def __init__(self, stream: IO[bytes]) -> None:
        # read1 returns what a pipe has; read would wait until the whole buffer is full.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)


def existing_file(path: Path) -> Path:
    """``path`` itself.

    Raises:
        DataError: there is no such file, it is a directory or a pipe, or it has no bytes.
    """
    if path.is_dir():
        raise DataError("this is a directory", where=path, wanted="a data file", do="Name one file in it")
    if not path.exists():
        nearby = sorted(other.name for other in path.parent.glob("*") if other.suffix in SUFFIXES)[:5]
        do = f"In that directory: {', '.join(nearby)}" if nearby else "Check the path"
        raise DataError("no such file", where=path, do=do)
    if not path.is_file():
        raise DataError("not a regular file", where=path, do="Save it first; a file is read more than once")
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=path, got="0 bytes", wanted="rows")
    return path


def detect_format(path: Path, options: ReadOptions, *, for_prediction: bool) -> str:
    """The format of a file: by option, by suffix (a ``.gz`` at its end does not count), by content.

    By content: Parquet has its magic bytes; ``{`` or ``[`` first is JSON; a tab in the first line is TSV; a comma CSV.
    Where texts alone are wanted, a ``.txt`` file that is not JSON has one text a line.

    Raises:
        DataError: nothing fits.
    """
    if options.format is not None:
        return options.format
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    with path.open("rb") as binary:
        if binary.read(4) == b"PAR1":
            return "parquet"
    head = text_source(path).head.lstrip()
    if head[:1] in ("{", "["):
        return "jsonl"
    if for_prediction and suffix == ".txt":
        return "lines"
    first_line = head.partition("\n")[0]
    for separator, found in (("\t", "tsv"), (",", "csv")):
        if separator in first_line:
            return found
    got = f"suffix {suffix!r} and a first line without tab or comma"
    raise DataError("unknown data format", where=path, got=got, wanted="CSV, TSV, JSONL or Parquet", do="Pass --format")
