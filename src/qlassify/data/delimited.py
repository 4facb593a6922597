"""CSV and TSV as a table.

The delimiter of a TSV file is the tab. That of a CSV file is the comma, or, when the first line has none, the first of
semicolon, tab and bar that it has (spreadsheets write semicolons where the comma is the decimal point). The quoting is
decided by evidence from the whole file, see ``quoting``; a header by what the first row says, see
``columns.is_header``. The same file is therefore read the same way for training and for prediction.

Rows are counted from 1 after the header, whatever number of lines they have. Empty lines are no rows; a line of blanks
is one, with one field.
"""

from __future__ import annotations

from collections.abc import Iterator

from qlassify.data.columns import is_header
from qlassify.data.quoting import RFC4180, RawRecord, choose_quoting, plain_records, quoted_records
from qlassify.data.records import Columns, ReadOptions, Record
from qlassify.data.source import TextSource, repair
from qlassify.errors import DataError


class DelimitedTable:
    """A CSV or TSV file: looked through once for its quoting, then read by ``records``.

    Args:
        source: a file; a stream cannot be looked through before it is read.
        format: "csv" or "tsv".
        options: header and column names or numbers.

    Raises:
        DataError: no rows, a first row that is damaged, no way to tell whether it is a header.
    """

    def __init__(self, source: TextSource, format: str, options: ReadOptions) -> None:
        self._source = source
        self.encoding = source.encoding
        first_line = next((line for line in source.lines() if line.strip("\r\n")), None)
        if first_line is None:
            raise DataError("the file has no rows", where=source.name, got="empty lines", wanted="a header and rows")
        self.delimiter = "\t" if format == "tsv" else _delimiter_of(first_line)
        self.quoting = choose_quoting(source.lines(), self.delimiter, format)
        first = next(self._raw_records())
        if first.reason is not None:
            raise DataError("the first row is damaged", where=source.name, got=first.reason, do="Mend or remove it")
        cells = [repair(cell).strip() for cell in first.fields]
        header = is_header(cells, options)
        if header is None:
            raise DataError(
                "cannot tell whether the first row is a header",
                where=source.name,
                got=", ".join(repr(cell[:40]) for cell in cells[:8]),
                wanted="a known column name, such as text and label",
                do="Pass --header with --text NAME --label NAME, or --no-header with --text 1 --label 2",
            )
        self._has_header = header
        self.names = tuple(cells) if header else tuple(str(number) for number in range(1, len(cells) + 1))

    def records(self, columns: Columns) -> Iterator[Record]:
        """Every row, good or damaged, with its number."""
        text_place = self.names.index(columns.text)
        pair_place = None if columns.text_pair is None else self.names.index(columns.text_pair)
        label_place = None if columns.label is None else self.names.index(columns.label)
        extra_places = [self.names.index(name) for name in columns.extra]
        for row, raw in enumerate(self._raw_records(), start=0 if self._has_header else 1):
            if row == 0:
                continue
            if raw.reason is not None:
                yield Record(row, reason=raw.reason)
                continue
            cells, repaired = raw.fields, False
            if not raw.text.isascii():
                cells = [repair(cell) for cell in raw.fields]
                repaired = cells != raw.fields
            pair = None if pair_place is None else cells[pair_place]
            label = None if label_place is None else cells[label_place]
            extra = tuple(cells[place] for place in extra_places)
            yield Record(row, cells[text_place], pair, label, None, repaired, extra)

    def _raw_records(self) -> Iterator[RawRecord]:
        split = quoted_records if self.quoting == RFC4180 else plain_records
        return split(self._source.lines(), self.delimiter)


def _delimiter_of(first_line: str) -> str:
    return next((mark for mark in (",", ";", "\t", "|") if mark in first_line), ",")
