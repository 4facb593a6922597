"""One cell to a text, or to label names; or to the reason why its row is rejected.

Texts lose the blanks at their ends (GLUE has one after every text; a model sees no difference, a duplicate check
does). What is left must be text: not missing, not blank, not longer than the limit, without NUL characters and without
unpaired surrogates, which no tokeniser can encode.

Labels become names. ``3``, ``3.0`` and ``" 3\\r"`` are "3", ``true`` is "true". NaN, null and the empty cell are
missing labels; the words "None" and "NaN" in a CSV file are names like any other, since "none" is a popular class. A
name that spans lines is rejected: it is the trace of a stray quote.

What a label *is* can only be said for a whole file (``label_reader``): a file whose label cells all look like
``["a", "b"]`` holds lists, and lists of numbers are either class ids (``[2, 5]``) or one flag per class (``[0, 1, 0]``,
where 0.5 is the threshold and classes are named "0" to "K-1"). They are flags if most of them have one common length
of at least 2 and either repeat a value (ids do not) or hold fractions; or if all have that length and nothing but 0 and
1. Decided by majority, because one row of a wrong length must cost that row and not turn all the others into ids. A
file may have flags on some rows and a single class on others; its class must then be one of the K.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qlassify.data.records import ReadOptions

ACTIVE = 0.5
"""A flag above this is set."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class RejectedRow(Exception):
    """A cell that rejects its row; the message is the reason."""


def clean_text(value: object, max_chars: int, noun: str = "text") -> str:
    """The text in a cell, without blanks at its ends.

    Raises:
        RejectedRow: the cell holds no text that can be classified.
    """
    if value is None:
        raise RejectedRow(f"missing {noun}")
    if not isinstance(value, str):
        raise RejectedRow(f"{noun} is of type {type(value).__name__}")
    text = value.strip()
    if not text:
        raise RejectedRow(f"blank {noun}")
    if len(text) > max_chars:
        raise RejectedRow(f"{noun} longer than {max_chars} characters")
    _check_characters(text, noun)
    return text


@dataclass(frozen=True, slots=True)
class LabelReader:
    """How the label cells of one file are read."""

    multi_label: bool
    separator: str | None = None
    list_cells: bool = False
    """Strings are lists written as JSON or in Python's way."""
    num_flags: int | None = None
    """Lists of numbers are flags, this many."""

    @property
    def declared(self) -> tuple[str, ...]:
        """Names that the file defines whether or not a row has them."""
        return () if self.num_flags is None else tuple(str(index) for index in range(self.num_flags))

    def names(self, value: object) -> tuple[str, ...]:
        """The label names in a cell, each once; empty only for a list without any.

        Raises:
            RejectedRow: no label, or not as many as this file's rows have, or one that is no name.
        """
        unpacked = _unpack(value, self.separator, self.list_cells)
        if self.num_flags is not None and isinstance(unpacked, list) and _is_numeric(unpacked):
            if len(unpacked) != self.num_flags:
                raise RejectedRow(f"{len(unpacked)} label flags, wanted {self.num_flags}")
            names = tuple(str(index) for index, flag in enumerate(unpacked) if float(flag) > ACTIVE)
        else:
            items = unpacked if isinstance(unpacked, list) else [unpacked]
            names = tuple(dict.fromkeys(scalar_name(item) for item in items))
            if self.num_flags is not None and not set(names) <= set(self.declared):
                raise RejectedRow(f"label is none of the {self.num_flags} that have flags in this file")
        if not self.multi_label and len(names) != 1:
            raise RejectedRow(f"{len(names)} labels, wanted 1" if names else "missing label")
        return names


def label_reader(values: Sequence[object], options: ReadOptions) -> LabelReader:
    """How to read the label cells of a file, decided from all of them and the options."""
    separator = options.label_separator
    list_cells = separator is None and _are_list_cells(values)
    lists = [cell for value in values if isinstance(cell := _unpack_or_none(value, separator, list_cells), list)]
    multi_label = options.multi_label
    if multi_label is None:
        multi_label = separator is not None or bool(lists)
    return LabelReader(multi_label, separator, list_cells, _num_flags([cell for cell in lists if _is_numeric(cell)]))


def scalar_name(value: object) -> str:
    """The name of one label.

    Raises:
        RejectedRow: there is none.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RejectedRow("missing label")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise RejectedRow(f"label is of type {type(value).__name__}")
    name = value.strip()
    if not name:
        raise RejectedRow("missing label")
    if "\n" in name or "\r" in name:
        raise RejectedRow("label spans lines")
    _check_characters(name, "label")
    return name


def carried_value(value: object) -> str | None:
    """What a column that is only carried along has in a cell, as text; None where the cell is empty, null or NaN.

    Numbers and truth values are spelled as labels are: ``3.0`` is "3", ``True`` is "true". Nothing is rejected.
    """
    if isinstance(value, (bool, int, float)):
        try:
            return scalar_name(value)
        except RejectedRow:
            return None
    return None if value is None else str(value).strip() or None


def _unpack(value: object, separator: str | None, list_cells: bool) -> object:
    """A list if the cell stands for several labels, else the value itself."""
    if not isinstance(value, str) or (separator is None and not list_cells):
        return value
    if separator is None:
        found = _parse_list(value)
        return value if found is None else found
    # "2,5," has two labels: a separator at an end, or twice, adds none.
    parts = [part for part in value.split(separator) if part.strip()]
    return parts or None


def _unpack_or_none(value: object, separator: str | None, list_cells: bool) -> object:
    return value if isinstance(value, list) else _unpack(value, separator, list_cells)


def _are_list_cells(values: Sequence[object]) -> bool:
    cells = [value for value in values if isinstance(value, str) and value.strip()]
    return bool(cells) and all(_parse_list(cell) is not None for cell in cells)


def _parse_list(cell: str) -> list[object] | None:
    """The list that a cell spells: JSON, or Python's repr, which is what pandas writes; None if it spells none."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, list) else None


def _is_numeric(items: list[object]) -> bool:
    return bool(items) and all(isinstance(item, (int, float)) for item in items)


def _num_flags(lists: Sequence[list[object]]) -> int | None:
    """The number of flags if lists of numbers are flags, None if they are class ids; see the module's docstring."""
    if not lists:
        return None
    length, frequency = Counter(len(items) for items in lists).most_common(1)[0]
    if length < 2:
        return None
    of_length = [items for items in lists if len(items) == length]
    no_ids = sum(len(set(items)) < length or any(_is_fraction(item) for item in items) for items in of_length)
    if 2 * no_ids > len(lists):
        return length
    all_binary = frequency == len(lists) and all(item in (0, 1) for items in lists for item in items)
    return length if all_binary else None


def _is_fraction(item: object) -> bool:
    return isinstance(item, float) and not item.is_integer()


def _check_characters(text: str, noun: str) -> None:
    if "\0" in text:
        raise RejectedRow(f"NUL character in {noun}" if noun != "text" else "NUL character")
    if not text.isascii() and _SURROGATE.search(text) is not None:
        raise RejectedRow(f"unpaired surrogate in {noun}")
