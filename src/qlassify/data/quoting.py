r"""From lines to records: quoted fields, and how a damaged row is kept from eating its neighbours.

Two dialects are in use. RFC 4180: a field may stand in quotes, may then hold delimiters and line ends, and a quote
within it is doubled. None: a quote is a character like any other, a line is a record (GLUE, MRPC). Reading one
as the other is the classical silent loss: a reader that knows quotes takes a bare ``"`` for the start of a field
and swallows rows until the next one.

**Which dialect** is decided for the file from evidence (``choose_quoting``). The file is read as RFC 4180, and four
things are counted: records; *quoted* fields that are well formed; those that *needed* their quotes, for they hold a
delimiter, a line end or a doubled quote; and *damaged* records, those with a quote in them that fit no grammar or have
the wrong number of fields. Then

* CSV is RFC 4180, unless two or more records are damaged, they outnumber the quoted fields, and reading without
  quotes would get more of them right. One damaged record is an accident, several are a habit.
* TSV has no quoting, unless more fields needed their quotes than records are damaged, or all is well formed and every
  record has a quoted field.

**A stray quote** in an RFC 4180 file costs its own row. The grammar is the strict one: a quote inside a field that
does not begin with one is damage. A quote that opens a field and is not closed within ``RECORD_LINES`` lines or
``LINE_LIMIT`` characters is damage of that line alone, and reading goes on with the next. When a record of several
lines closes but is malformed, or has the wrong number of fields, it is either a row that swallowed others or one
damaged row; the swallowed lines tell: if most of them are whole records by themselves, only the first line is
rejected, else all of them as one record. (Not told apart: a stray quote that happens to meet a second one such that
grammar and field count are right. No reader can.)

The parser is our own, a few lines around three regular expressions: the standard library's ``csv`` gives no way back
to the second line after it has swallowed a hundred, is lenient about stray quotes in a way that cannot be seen
afterwards, and limits a field's length by a global variable of the process. polars' CSV reader is fast but knows no
row-level rejection at all. ``csv`` is the independent reference in the tests.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from qlassify.data.source import LINE_LIMIT

RECORD_LINES = 10_000
"""Lines after which a quoted field counts as never closed."""

RFC4180 = "rfc4180"
NO_QUOTING = "none"


class RawRecord(NamedTuple):
    """The fields of one record, or the reason why it has none that can be trusted."""

    fields: list[str]
    reason: str | None
    text: str
    """As it stands in the file, without its line end."""


class Grammar:
    """RFC 4180 for one delimiter."""

    def __init__(self, delimiter: str) -> None:
        mark = re.escape(delimiter)
        inner = r'(?:[^"]++|"")*+'
        field = rf'(?:"{inner}"|[^"{mark}]*+)'
        self.delimiter = delimiter
        self._record = re.compile(rf"{field}(?:{mark}{field})*+")
        self._fields = re.compile(rf"(?:\A|{mark})({field})")
        self._opens = re.compile(rf'(?:{field}{mark})*+"{inner}')

    def raw_fields(self, text: str) -> list[str] | None:
        """The fields with their quotes; None if ``text`` is no record."""
        if '"' not in text:
            return text.split(self.delimiter)
        return self._fields.findall(text) if self._record.fullmatch(text) else None

    def fields(self, text: str) -> list[str] | None:
        """The fields without their quotes; None if ``text`` is no record."""
        raw = self.raw_fields(text)
        if raw is None or '"' not in text:
            return raw
        return [field[1:-1].replace('""', '"') if field.startswith('"') else field for field in raw]

    def opens(self, line: str) -> bool:
        """Whether ``line`` begins a record and ends inside one of its quoted fields."""
        return self._opens.fullmatch(line) is not None


def quoted_records(lines: Iterable[str], delimiter: str) -> Iterator[RawRecord]:
    """The records of an RFC 4180 file. The first good one sets the number of fields.

    Empty lines are no records.
    """
    feed = _Feed(lines)
    grammar = Grammar(delimiter)
    num_fields: int | None = None
    while (line := feed.take()) is not None:
        text = _without_end(line)
        if not text:
            continue
        if '"' in text:
            record = _quoted_record(line, feed, grammar, num_fields)
        else:
            record = _checked(text.split(delimiter), text, num_fields)
        if num_fields is None and record.reason is None:
            num_fields = len(record.fields)
        yield record


def plain_records(lines: Iterable[str], delimiter: str) -> Iterator[RawRecord]:
    """The records of a file without quoting, one a line, with the same conventions."""
    num_fields: int | None = None
    for line in lines:
        text = _without_end(line)
        if not text:
            continue
        record = _checked(text.split(delimiter), text, num_fields)
        if num_fields is None and record.reason is None:
            num_fields = len(record.fields)
        yield record


def choose_quoting(lines: Iterable[str], delimiter: str, format: str) -> str:
    """``RFC4180`` or ``NO_QUOTING`` for a "csv" or "tsv" file, by the rule in the module's docstring."""
    grammar = Grammar(delimiter)
    records = quoted = needed = with_quoted = damaged = damaged_plain = 0
    plain_delimiters: int | None = None
    for record in quoted_records(lines, delimiter):
        records += 1
        if plain_delimiters is None:
            plain_delimiters = record.text.partition("\n")[0].count(delimiter)
        if '"' not in record.text:
            continue
        damaged_plain += record.text.count(delimiter) != plain_delimiters or "\n" in record.text
        if record.reason is not None:
            damaged += 1
            continue
        in_quotes = [field[1:-1] for field in grammar.raw_fields(record.text) or () if field.startswith('"')]
        quoted += len(in_quotes)
        with_quoted += bool(in_quotes)
        needed += sum('""' in field or delimiter in field or "\n" in field or "\r" in field for field in in_quotes)
    if format == "csv":
        return NO_QUOTING if damaged >= 2 and damaged > quoted and damaged_plain < damaged else RFC4180
    return RFC4180 if needed > damaged or (damaged == 0 and 0 < with_quoted == records) else NO_QUOTING


class _Feed:
    """Lines that can be handed back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._returned: deque[str] = deque()

    def take(self) -> str | None:
        return self._returned.popleft() if self._returned else next(self._lines, None)

    def give_back(self, lines: list[str]) -> None:
        self._returned.extendleft(reversed(lines))


def _quoted_record(line: str, feed: _Feed, grammar: Grammar, num_fields: int | None) -> RawRecord:
    """The record that begins with ``line``, which has a quote in it; takes from ``feed`` what belongs to it."""
    text = _without_end(line)
    # In a well-formed record an odd number of quotes so far means: inside a quoted field. So a line is compared with
    # the grammar once, and a record of many lines once more at its end, never at each of its lines.
    if line.count('"') % 2 == 0:
        return _parsed(text, grammar, num_fields)
    if not grammar.opens(line):
        return RawRecord([], "stray quote", text)
    gathered, num_chars = [line], len(line)
    while num_chars <= LINE_LIMIT and len(gathered) < RECORD_LINES:
        more = feed.take()
        if more is None:
            break
        gathered.append(more)
        num_chars += len(more)
        if more.count('"') % 2:
            record = _parsed(_without_end("".join(gathered)), grammar, num_fields)
            if record.reason is None or not _stand_alone(gathered[1:], grammar, num_fields):
                return record
            break
    feed.give_back(gathered[1:])
    return RawRecord([], "quote never closed", text)


def _stand_alone(lines: list[str], grammar: Grammar, num_fields: int | None) -> bool:
    """Whether most of ``lines`` are whole records by themselves; the last may also be the beginning of one."""
    whole = sum(_parsed(_without_end(line), grammar, num_fields).reason is None for line in lines)
    return 2 * (whole + grammar.opens(lines[-1])) > len(lines)


def _parsed(text: str, grammar: Grammar, num_fields: int | None) -> RawRecord:
    fields = grammar.fields(text)
    return RawRecord([], "stray quote", text) if fields is None else _checked(fields, text, num_fields)


def _checked(fields: list[str], text: str, num_fields: int | None) -> RawRecord:
    reason = None
    if len(text) > LINE_LIMIT:
        reason = f"line longer than {LINE_LIMIT} characters"
    elif num_fields is not None and len(fields) != num_fields:
        reason = f"{len(fields)} field{'s' * (len(fields) != 1)}, wanted {num_fields}"
    elif "\0" in text:
        reason = "NUL character"
    return RawRecord(fields, reason, text)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
