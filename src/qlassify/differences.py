"""Rows that two classifiers label differently, and their file: the place to look for why one is better.

They are told by the numbers that they have in their own file, so that a person finds them there. The format follows
from the suffix, as it does for files that are read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlassify.data.spreadsheet import guarded
from qlassify.durable import write_text
from qlassify.errors import ConfigError

Labels = tuple[str, ...]
"""Label names of a row; one of a single-label classifier."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row for which A and B predict different labels."""

    row: int
    text: str
    text_pair: str | None
    true: Labels
    a: Labels
    b: Labels

    @property
    def right(self) -> str:
        """Who has every label right: ``a``, ``b`` or ``neither``."""
        truth = set(self.true)
        return "a" if set(self.a) == truth else "b" if set(self.b) == truth else "neither"


def write_differences(path: Path, differences: Sequence[Difference]) -> None:
    """Write the rows that differ as JSONL, CSV, TSV or Parquet, by the suffix, whole or not at all.

    Labels are lists; in CSV and TSV several are separated by a vertical bar. The file has the second text of pairs if
    there are pairs.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    require_suffix(path)
    records = [_record(one) for one in differences]
    try:
        _write_records(path, records, paired=any(one.text_pair is not None for one in differences))
    except OSError as error:
        raise ConfigError("cannot write the rows that differ", where=path, got=error) from None


def require_suffix(path: Path) -> None:
    """Refuse a file for the rows that differ whose format its suffix does not tell.

    Raises:
        ConfigError: names the suffixes that do.
    """
    if path.suffix.lower() not in (".jsonl", ".csv", ".tsv", ".parquet"):
        raise ConfigError("unknown output format", where=path, got=path.suffix, wanted=".jsonl, .csv, .tsv or .parquet")


def _record(one: Difference) -> dict[str, Any]:
    record: dict[str, Any] = {**asdict(one), "right": one.right}
    if one.text_pair is None:
        del record["text_pair"]
    return record


def _write_records(path: Path, records: list[dict[str, Any]], *, paired: bool) -> None:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
        return
    columns = ["row", "text", *(["text_pair"] if paired else []), "true", "a", "b", "right"]
    if suffix == ".parquet":
        import polars

        lists = polars.List(polars.String)
        kinds: dict[str, Any] = {"row": polars.Int64, "true": lists, "a": lists, "b": lists}
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.tmp")
        schema = {name: kinds.get(name, polars.String) for name in columns}
        polars.DataFrame(records, schema=schema).write_parquet(scratch)
        scratch.replace(path)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
    writer.writeheader()
    for one in records:
        writer.writerow({key: _cell(value) for key, value in one.items()})
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    """A cell of CSV: labels joined by a bar, and words that a spreadsheet would run guarded."""
    joined = "|".join(value) if isinstance(value, tuple) else value
    return guarded(joined) if isinstance(joined, str) else joined
