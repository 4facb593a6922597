"""Rows for prediction: texts without labels, from a file of any size or a pipe, in bounded memory.

The same readers, columns and checks as ``read_corpus``, so a text is the same text when it is trained on and when it is
predicted; but labels are not looked for, and rows leave in chunks as they are read. Every row of the input is in
exactly one chunk, kept or rejected, in order: whoever writes predictions can write one line for each.

A ``.txt`` file or a stream holds JSON lines if its first character is ``{``, else one text a line. No rows are no
error here (a pipe may have nothing to say today); a table without even a header is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qlassify.data.cells import RejectedRow, clean_text
from qlassify.data.columns import find_columns
from qlassify.data.records import Columns, ReadOptions, Record, Rejection
from qlassify.data.tables import open_file, open_stream
from qlassify.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Some consecutive rows of a file. ``rows``, ``texts`` and ``pairs`` run in parallel."""

    rows: tuple[int, ...]
    """Numbers of the kept rows, as in ``Corpus``."""
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """None unless a second text was wanted."""
    rejections: tuple[Rejection, ...]
    """The rows among them that hold no text."""


def iter_text_rows(
    source: str | os.PathLike[str] | IO[bytes], options: ReadOptions, *, wants_pair: bool, chunk_rows: int = 2048
) -> Iterator[RowChunk]:
    """The rows of a file or stream, at most ``chunk_rows`` of them (kept and rejected) in memory at a time.

    A Parquet file is read in batches of ``parquet.BATCH_ROWS`` rows, a JSON array whole. The file is opened, and errors
    in its header or columns raised, at once and not with the first chunk.

    Args:
        source: a path, or a stream of bytes, which is left open.
        options: the label column is not needed; if it is named it is not taken for the text.
        wants_pair: whether the task has two texts.
        chunk_rows: rows in a chunk.

    Raises:
        DataError: as ``read_corpus``, for the text columns.
        ConfigError: ``chunk_rows`` below 1, an option that means nothing for the format.
    """
    if chunk_rows < 1:
        raise ConfigError("chunk_rows is too small", got=chunk_rows, wanted="1 or more")
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        _, table = open_file(Path(where), options, for_prediction=True)
    else:
        where = "the input stream"
        _, table = open_stream(source, options)
    if not table.names:  # JSON lines without a line have no columns that could be missed.
        return iter(())
    columns = find_columns(table.names, options, where=where, needs_label=False, pair=wants_pair)
    return _chunks(table.records(columns), columns, options.max_field_chars, chunk_rows)


def _chunks(records: Iterator[Record], columns: Columns, max_chars: int, chunk_rows: int) -> Iterator[RowChunk]:
    rows: list[int] = []
    texts: list[str] = []
    pairs: list[str] = []
    rejections: list[Rejection] = []

    def chunk() -> RowChunk:
        second = None if columns.text_pair is None else tuple(pairs)
        return RowChunk(tuple(rows), tuple(texts), second, tuple(rejections))

    for record in records:
        if len(rows) + len(rejections) == chunk_rows:
            yield chunk()
            for collected in (rows, texts, pairs, rejections):
                collected.clear()
        try:
            if record.reason is not None:
                raise RejectedRow(record.reason)
            text = clean_text(record.text, max_chars)
            pair = None if columns.text_pair is None else clean_text(record.pair, max_chars, "second text")
        except RejectedRow as rejected:
            rejections.append(Rejection(record.row, str(rejected)))
            continue
        rows.append(record.row)
        texts.append(text)
        if pair is not None:
            pairs.append(pair)
    if rows or rejections:
        yield chunk()
