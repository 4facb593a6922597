"""Which reader a file or stream gets, and the options that one cannot honour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from qlassify.data.delimited import DelimitedTable
from qlassify.data.jsonl import JsonTable
from qlassify.data.parquet import ParquetTable
from qlassify.data.records import Columns, ReadOptions, Record, Table
from qlassify.data.source import LINE_LIMIT, TextSource, detect_format, existing_file, repair, text_source
from qlassify.errors import ConfigError


def open_file(path: Path, options: ReadOptions, *, for_prediction: bool) -> tuple[str, Table]:
    """The format of a file and its table.

    Raises:
        DataError: the file or its beginning cannot be read.
        ConfigError: an option that means nothing for this format.
    """
    format = detect_format(existing_file(path), options, for_prediction=for_prediction)
    if options.header is not None and format not in ("csv", "tsv"):
        raise ConfigError(
            f"a {format} file has no header row", where=path, got="--header or --no-header", do="Leave it out"
        )
    if format == "parquet":
        return format, ParquetTable(path)
    source = text_source(path)
    if format == "jsonl":
        return format, JsonTable(source, options)
    if format == "lines":
        return format, LineTable(source)
    return format, DelimitedTable(source, format, options)


def open_stream(stream: IO[bytes], options: ReadOptions) -> tuple[str, Table]:
    """The same for a stream of bytes: JSON lines if the first character says so, else one text a line.

    Raises:
        ConfigError: another format is asked for; those need a file that can be read twice.
    """
    source = text_source(stream)
    format = options.format or ("jsonl" if source.head.lstrip()[:1] == "{" else "lines")
    if format == "jsonl":
        return format, JsonTable(source, options)
    if format == "lines":
        return format, LineTable(source)
    raise ConfigError(
        "this format cannot be read from a stream", got=format, wanted="jsonl or lines", do="Save it as a file"
    )


class LineTable:
    """One text a line: no header, no labels; the row number is the number of the line, blank ones included."""

    names = ("text",)
    quoting = ""

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self.encoding = source.encoding

    def records(self, columns: Columns) -> Iterator[Record]:
        """Every line."""
        for row, line in enumerate(self._source.lines(), start=1):
            if len(line) > LINE_LIMIT:
                yield Record(row, reason=f"line longer than {LINE_LIMIT} characters")
                continue
            text = repair(line)
            yield Record(row, text, repaired=text is not line)
