"""The words that all readers share: what may be asked of them, and what a row looks like when it leaves them.

Every format is reduced to a ``Table``: column names, and an iterator of ``Record``s with raw values (text, second text,
label, and what is carried along) or a reason why there are none. What comes after (checking texts, reading labels) is
written once, for all formats. The alternative, one data frame for everything, loses what is needed most when a file is
damaged: the number of the row and the reason why it could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from qlassify.errors import ConfigError

FORMATS = ("csv", "tsv", "jsonl", "parquet", "lines")


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row of a file that was not used, and why."""

    row: int
    """1-based number of the data row: a header is not counted; for JSON lines it is the number of the line."""
    reason: str
    """Short, and the same for rows with the same trouble, so that reasons can be counted."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns in use, by their names in the file; "1", "2", ... in a file without a header."""

    text: str
    text_pair: str | None
    label: str | None
    extra: tuple[str, ...] = ()
    """Columns that are carried along for slices of the scores."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """The file's other columns, which nobody looks at."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is to be read; every field may stay at its default, which means: find out.

    Raises:
        ConfigError: a value that no file could be read with.
    """

    text: str | None = None
    """Column of the text: its name or its 1-based number."""
    text_pair: str | None = None
    """Column of the second text, for tasks on pairs."""
    label: str | None = None
    """Column of the label or labels."""
    format: str | None = None
    """One of ``FORMATS``. None: from the suffix, else from the content. "lines" (one text a line) has no labels."""
    header: bool | None = None
    """Whether the first row of a delimited file names the columns. None: decided by ``columns.is_header``."""
    label_separator: str | None = None
    """What separates several labels in one cell; giving it makes the corpus multi-label. None: cells are not split."""
    multi_label: bool | None = None
    """Whether a row may have any number of labels. None: yes if any label is a list or a separator is given."""
    extra: tuple[str, ...] = ()
    """Columns, by name or number, to carry along beside texts and labels."""
    max_field_chars: int = 1_000_000
    """A row with a longer text, in characters, is rejected."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ConfigError("unknown data format", got=repr(self.format), wanted="one of " + ", ".join(FORMATS))
        if self.label_separator == "":
            raise ConfigError("the label separator is empty", wanted='one or more characters, such as ","')
        if self.max_field_chars < 1:
            raise ConfigError("max_field_chars is too small", got=self.max_field_chars, wanted="1 or more")


READ_DEFAULTS = ReadOptions()


class Record(NamedTuple):
    """One row as its format gave it. A named tuple, because it is made once per row of the file."""

    row: int
    text: object = None
    pair: object = None
    label: object = None
    reason: str | None = None
    """Set when the row could not be read at all; the values mean nothing then."""
    repaired: bool = False
    """Whether bytes that are not valid in the file's encoding were replaced in one of the values."""
    extra: tuple[object, ...] = ()
    """The values of ``Columns.extra``, in that order."""


class Table(Protocol):
    """A file of any format with its columns known and its rows not yet read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the file's order; "1", "2", ... where it has none."""

    @property
    def encoding(self) -> str:
        """How bytes became characters: "utf-8", "utf-16", "utf-32", "parquet"."""

    @property
    def quoting(self) -> str:
        """Of a delimited file: "rfc4180" or "none". Otherwise empty."""

    def records(self, columns: Columns) -> Iterator[Record]:
        """All rows, in order. A table read from a stream can be iterated once."""
