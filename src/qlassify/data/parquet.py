"""Parquet as a table, through polars.

Polars reads the schema first and then ``BATCH_ROWS`` rows at a time, only the columns in use, so that memory is
bounded by the batch and not by the file. (Skipping whole row groups is cheap; within a group a batch may decode pages
again. At this batch size that costs little.) Values arrive as Python objects: strings, categories and enums as text,
list columns as lists, numbers as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qlassify.data.records import Columns, Record
from qlassify.data.source import repair
from qlassify.errors import DataError

if TYPE_CHECKING:
    import polars

BATCH_ROWS = 1 << 16


class ParquetTable:
    """A Parquet file with its schema read.

    Raises:
        DataError: not a Parquet file that polars can read.
    """

    encoding = "parquet"
    quoting = ""

    def __init__(self, path: Path) -> None:
        import polars

        self._path = path
        try:
            self.names = tuple(_scan(path).collect_schema().names())
        except (polars.exceptions.PolarsError, OSError) as error:
            raise DataError("not a readable Parquet file", where=path, got=_first_line(error)) from None

    def records(self, columns: Columns) -> Iterator[Record]:
        """Every row with its number.

        Raises:
            DataError: the file is damaged further down.
        """
        row = 0
        used = (columns.text, columns.text_pair, columns.label, *columns.extra)
        wanted = list(dict.fromkeys(name for name in used if name is not None))
        while (batch := self._batch(row, wanted)).height:
            missing = [None] * batch.height
            texts, pairs, labels = (
                missing if name is None else batch.get_column(name).to_list()
                for name in (columns.text, columns.text_pair, columns.label)
            )
            carried = [batch.get_column(name).to_list() for name in columns.extra]
            extras = zip(*carried, strict=True) if carried else iter([()] * batch.height)
            for text, pair, label, extra in zip(texts, pairs, labels, extras, strict=True):
                row += 1
                clean_text, text_repaired = _as_text(text)
                clean_pair, pair_repaired = _as_text(pair)
                values = tuple(_as_text(cell)[0] for cell in extra)
                yield Record(row, clean_text, clean_pair, label, None, text_repaired or pair_repaired, values)

    def _batch(self, start: int, names: list[str]) -> polars.DataFrame:
        import polars

        try:
            return _scan(self._path).select(polars.selectors.by_name(*names)).slice(start, BATCH_ROWS).collect()
        except (polars.exceptions.PolarsError, OSError) as error:
            raise DataError("damaged Parquet file", where=self._path, got=_first_line(error)) from None


def _scan(path: Path) -> polars.LazyFrame:
    import polars

    # glob=False: "data[1].parquet" is a file and not a pattern.
    return polars.scan_parquet(path, glob=False, hive_partitioning=False)


def _as_text(cell: object) -> tuple[object, bool]:
    """A binary cell as text, and whether it was repaired; Parquet without the text annotation has texts as bytes."""
    if not isinstance(cell, bytes):
        return cell, False
    text = cell.decode("utf-8", "surrogateescape")
    clean = repair(text)
    return clean, clean is not text


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
