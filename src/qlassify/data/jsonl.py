"""JSON lines, and a JSON array of objects, as a table.

One object a line, blank lines skipped, the row number is the number of the line. A line that is not valid JSON, or is
no object, is rejected with the parser's reason; one bad line in a log of a million is no cause to refuse the file. A
file whose first character is ``[`` is one array; it is parsed whole (a parser that streams arrays would be a
dependency for a format that does not stream), its rows are its elements, and a syntax error anywhere is an error.

Objects need no common schema, so the column names are the keys of the first ``LOOK_AHEAD`` objects. One schema is
known to come mixed: ``{"input", "label"}`` on some lines and ``{"input", "labels"}`` on others. As long as no object
has both keys they are one column.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from qlassify.data.records import Columns, ReadOptions, Record
from qlassify.data.source import LINE_LIMIT, TextSource, repair
from qlassify.errors import DataError

LOOK_AHEAD = 1_000
"""Rows in which keys are looked for."""

_LABEL_KEYS = ("label", "labels")


class JsonTable:
    """A JSON file or stream, read as far as its column names.

    Args:
        source: a file or stream.
        options: only whether a label column is named in them.

    Raises:
        DataError: a broken array, no object at all among the first rows.
    """

    quoting = ""

    def __init__(self, source: TextSource, options: ReadOptions) -> None:
        self.encoding = source.encoding
        rows = _array_rows(source) if source.head.lstrip()[:1] == "[" else _line_rows(source)
        ahead = list(itertools.islice(rows, LOOK_AHEAD))
        self._rows = itertools.chain(ahead, rows)
        objects = [value for _, value, _ in ahead if isinstance(value, dict)]
        if ahead and not objects:
            reason = f"row {ahead[0][0]}: {ahead[0][1]}"
            raise DataError(
                "no row is a JSON object", where=source.name, got=reason, wanted='{"text": ..., "label": ...}'
            )
        names = dict.fromkeys(key for value in objects for key in value)
        self._one_label_column = options.label is None and not any(
            all(key in value for key in _LABEL_KEYS) for value in objects
        )
        if self._one_label_column and all(key in names for key in _LABEL_KEYS):
            del names["labels"]
        self.names = tuple(names)

    def records(self, columns: Columns) -> Iterator[Record]:
        """Every row, good or damaged, with its number. Can be iterated once."""
        other_label = None
        if self._one_label_column and columns.label in _LABEL_KEYS:
            other_label = _LABEL_KEYS[1 - _LABEL_KEYS.index(columns.label)]
        for row, value, repaired in self._rows:
            if not isinstance(value, dict):
                yield Record(row, reason=value)
                continue
            label = None if columns.label is None else value.get(columns.label)
            if label is None and other_label is not None:
                label = value.get(other_label)
            pair = None if columns.text_pair is None else value.get(columns.text_pair)
            extra = tuple(value.get(name) for name in columns.extra)
            yield Record(row, value.get(columns.text), pair, label, None, repaired, extra)


def _line_rows(source: TextSource) -> Iterator[tuple[int, dict[str, object] | str, bool]]:
    """(line number, object or reason for rejection, whether bytes were repaired) of every line that is not blank."""
    for number, line in enumerate(source.lines(), start=1):
        if len(line) > LINE_LIMIT:
            yield number, f"line longer than {LINE_LIMIT} characters", False
        elif not line.isspace():
            clean = repair(line)
            yield number, _object_or_reason(clean), clean is not line


def _object_or_reason(line: str) -> dict[str, object] | str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg}"
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits.
        return "not valid JSON: nested too deeply or a number too long"
    return value if isinstance(value, dict) else _no_object(value)


def _array_rows(source: TextSource) -> Iterator[tuple[int, dict[str, object] | str, bool]]:
    """The same of every element of the array; the file is read when the first is asked for."""
    text = source.read()
    clean = repair(text)
    try:
        values = json.loads(clean)
    except (ValueError, RecursionError) as error:
        do = "One object a line (JSONL) survives a damaged row, an array does not"
        raise DataError("not a valid JSON array", where=source.name, got=error, do=do) from None
    if not isinstance(values, list):
        raise DataError("not a JSON array", where=source.name, got=type(values).__name__)
    # Where in the text the repaired bytes stood is unknown here: an element is repaired if it holds their characters.
    spoiled = set(clean) - set(text) if clean is not text else set()
    for number, value in enumerate(values, start=1):
        repaired = bool(spoiled) and not spoiled.isdisjoint(json.dumps(value, ensure_ascii=False))
        yield number, value if isinstance(value, dict) else _no_object(value), repaired


def _no_object(value: object) -> str:
    return f"not a JSON object but {type(value).__name__}"
