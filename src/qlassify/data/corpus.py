"""A labelled file as a ``Corpus``: texts, label names, and an account of every row.

``read_corpus`` needs no options for a file that says what it is: format, delimiter, quoting, header, columns and the
kind of label are found out (how, is told in ``source``, ``quoting``, ``columns`` and ``cells``) and recorded in the
result. It never guesses between equals; then it raises a ``DataError`` that shows the option to pass.

The account always balances: rows kept plus rows rejected is the number of rows in the file. A row is rejected with its
number and a reason; it is never half read. A corpus is held in memory as Python strings: two million texts of 100
characters are 420 MB, half of which are not the characters but 49 bytes of each string, its row number and the places
that point to them. One buffer of UTF-8 with offsets would save 49 bytes a row, cost more than it saves in scripts that
take three bytes a character, and make a new string at every look. A file of any size that is only to be predicted goes
through ``rows.iter_text_rows``. A lazy data frame would lose the row numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qlassify.data.cells import LabelReader, RejectedRow, carried_value, clean_text, label_reader
from qlassify.data.columns import find_columns
from qlassify.data.records import READ_DEFAULTS, Columns, ReadOptions, Record, Rejection
from qlassify.data.tables import open_file
from qlassify.errors import DataError

__all__ = ["READ_DEFAULTS", "Columns", "Corpus", "ReadOptions", "Rejection", "read_corpus"]

_WANTED = "at least one row with a text and a label"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The usable rows of a labelled file, and the account of the others. Sequences over kept rows run in parallel."""

    path: str
    format: str
    """"csv", "tsv", "jsonl" or "parquet"."""
    columns: Columns
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """The second texts; None if the task has one text."""
    labels: tuple[tuple[str, ...], ...]
    """Label names of each kept row: exactly one, or any number, also none, if ``multi_label``."""
    multi_label: bool
    rows: tuple[int, ...]
    """Number of each kept row in the file, from 1, header not counted (JSON lines: number of the line)."""
    rejections: tuple[Rejection, ...]
    """In the order of the file."""
    total_rows: int
    """Kept and rejected."""
    sha256: str
    """Of the file's bytes as they are stored."""
    repaired_rows: tuple[int, ...] = ()
    """Numbers of the kept rows in which bytes that are not UTF-8 were read as Windows-1252."""
    encoding: str = "utf-8"
    """Of the text: "utf-8", "utf-16" or "utf-32"; "parquet" for a Parquet file."""
    quoting: str = ""
    """Of a delimited file: "rfc4180" or "none"."""
    declared_labels: tuple[str, ...] = ()
    """Names that exist even if no row has them: the classes of flag vectors."""
    extra: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Columns that were asked for beside texts and labels: name -> value of each kept row, None where missing."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def repaired(self) -> int:
        """Number of kept rows with repaired bytes."""
        return len(self.repaired_rows)

    def select(self, indices: Iterable[int]) -> Corpus:
        """The corpus of the kept rows at these 0-based positions, in their order; its account is of them alone."""
        chosen = [int(index) for index in indices]
        rows = tuple(self.rows[index] for index in chosen)
        present = set(rows) if self.repaired_rows else ()
        return replace(
            self,
            texts=tuple(self.texts[index] for index in chosen),
            pairs=None if self.pairs is None else tuple(self.pairs[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
            rows=rows,
            rejections=(),
            total_rows=len(chosen),
            repaired_rows=tuple(row for row in self.repaired_rows if row in present),
            extra={name: tuple(values[index] for index in chosen) for name, values in self.extra.items()},
        )

    def rejection_counts(self) -> dict[str, int]:
        """Number of rejected rows by reason, the most frequent first."""
        return dict(Counter(rejection.reason for rejection in self.rejections).most_common())


def read_corpus(path: str | os.PathLike[str], options: ReadOptions = READ_DEFAULTS) -> Corpus:
    """Reads a labelled CSV, TSV, JSONL or Parquet file.

    Args:
        path: the file; ``.gz`` is unpacked.
        options: what is known about it; nothing needs to be.

    Raises:
        DataError: no such file, no usable row, columns that cannot be found, anything that would make reading a guess.
        ConfigError: an option that means nothing for the file's format.
    """
    file = Path(path)
    format, table = open_file(file, options, for_prediction=False)
    where = str(file)
    if format == "lines":
        raise DataError("a file with one text a line has no labels", where=where, wanted="CSV, TSV, JSONL or Parquet")
    if not table.names:
        raise DataError("the file has no rows", where=where, wanted=_WANTED)
    columns = find_columns(table.names, options, where=where, needs_label=True)

    kept, rejections = _Kept(), []
    for record in table.records(columns):
        checked = _checked(record, columns, options.max_field_chars)
        if isinstance(checked, Rejection):
            rejections.append(checked)
        else:
            kept.add(checked)
    total_rows = len(kept.rows) + len(rejections)

    reader = label_reader(kept.labels, options)
    labels, unlabelled = _read_labels(kept, reader)
    rejections = sorted(rejections + unlabelled, key=lambda rejection: rejection.row)
    corpus = Corpus(
        path=where,
        format=format,
        columns=columns,
        texts=tuple(kept.texts),
        pairs=None if columns.text_pair is None else tuple(kept.pairs),
        labels=tuple(labels),
        multi_label=reader.multi_label,
        rows=tuple(kept.rows),
        rejections=tuple(rejections),
        total_rows=total_rows,
        sha256=_sha256(file),
        repaired_rows=tuple(kept.repaired),
        encoding=table.encoding,
        quoting=table.quoting,
        declared_labels=reader.declared,
        extra={
            name: tuple(carried_value(extra[place]) for extra in kept.extra) for place, name in enumerate(columns.extra)
        },
    )
    _require_rows(corpus)
    return corpus


def _checked(record: Record, columns: Columns, max_chars: int) -> Record | Rejection:
    """The record with its texts cleaned, or its rejection."""
    if record.reason is not None:
        return Rejection(record.row, record.reason)
    try:
        text = clean_text(record.text, max_chars)
        pair = None if columns.text_pair is None else clean_text(record.pair, max_chars, "second text")
    except RejectedRow as rejected:
        return Rejection(record.row, str(rejected))
    return record._replace(text=text, pair=pair)


class _Kept:
    """The rows that are kept so far, as columns: a record for each would take as much again as a short text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pairs: list[str] = []
        self.labels: list[object] = []
        self.rows: list[int] = []
        self.repaired: list[int] = []
        self.extra: list[tuple[object, ...]] = []
        self._known: dict[str, str] = {}

    def add(self, record: Record) -> None:
        """One more row; equal labels are kept once."""
        self.texts.append(str(record.text))
        if record.pair is not None:
            self.pairs.append(str(record.pair))
        label = record.label
        self.labels.append(self._known.setdefault(label, label) if isinstance(label, str) else label)
        self.rows.append(record.row)
        if record.repaired:
            self.repaired.append(record.row)
        if record.extra:
            self.extra.append(record.extra)

    def remove(self, positions: set[int]) -> None:
        """Take out rows again."""
        gone = {self.rows[position] for position in positions}
        self.repaired = [row for row in self.repaired if row not in gone]
        for name in ("texts", "pairs", "labels", "rows", "extra"):
            values = getattr(self, name)
            setattr(self, name, [value for position, value in enumerate(values) if position not in positions])


def _read_labels(kept: _Kept, reader: LabelReader) -> tuple[list[tuple[str, ...]], list[Rejection]]:
    """The names of each row, equal ones as one tuple; rows without are taken out of ``kept``."""
    labels: list[tuple[str, ...]] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    reasons: dict[int, str] = {}
    for position, value in enumerate(kept.labels):
        try:
            names = reader.names(value)
        except RejectedRow as rejected:
            reasons[position] = str(rejected)
        else:
            labels.append(known.setdefault(names, names))
    rejections = [Rejection(kept.rows[position], reason) for position, reason in reasons.items()]
    if reasons:
        kept.remove(set(reasons))
    return labels, rejections


def _require_rows(corpus: Corpus) -> None:
    if corpus.total_rows == 0:
        raise DataError("the file has no rows", where=corpus.path, got="a header at most", wanted=_WANTED)
    if len(corpus) == 0:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in list(corpus.rejection_counts().items())[:5])
        columns = f"text {corpus.columns.text!r}, label {corpus.columns.label!r}"
        do = f"Check the columns in use: {columns}"
        raise DataError("every row was rejected", where=corpus.path, got=reasons, wanted=_WANTED, do=do)


def _sha256(path: Path) -> str:
    with path.open("rb") as binary:
        return hashlib.file_digest(binary, "sha256").hexdigest()
