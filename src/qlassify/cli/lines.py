"""Predictions for a machine (JSONL, CSV, TSV, or one JSON document) or for a person."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlassify.errors import ConfigError

if TYPE_CHECKING:
    from qlassify.scoring import Prediction

FORMATS = ("jsonl", "csv", "tsv", "json")


@dataclass(frozen=True, slots=True)
class Total:
    """How many rows were written, and how many of them carry an error in place of a prediction."""

    rows: int
    rejected: int


def write_lines(chunks: Iterator[list[Prediction]], form: str, names: Sequence[str]) -> Total:
    """Write predictions to standard output as they come; one line per input row, in order."""
    rows = rejected = 0
    writer: Any = None
    if form in ("csv", "tsv"):
        writer = csv.writer(sys.stdout, delimiter="," if form == "csv" else "\t", lineterminator="\n")
        writer.writerow(["row", "label", "probability", "error", *(f"p({name})" for name in names)])
    for chunk in chunks:
        for prediction in chunk:
            rows += 1
            rejected += prediction.error is not None
            if writer is not None:
                writer.writerow(_cells(prediction))
                continue
            opening = ("[\n" if rows == 1 else ",\n") if form == "json" else ""
            print(opening + json.dumps(_record(prediction, names), ensure_ascii=False), end="" if opening else "\n")
        sys.stdout.flush()
    if form == "json":
        print("\n]" if rows else "[]")
    return Total(rows, rejected)


def check_form(form: str) -> None:
    """Refuse an output form that does not exist.

    Raises:
        ConfigError: names those that do.
    """
    if form not in FORMATS:
        raise ConfigError("unknown output form", where="--output", got=form, wanted=", ".join(FORMATS))


def _record(prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
    """One line of JSONL."""
    if prediction.error is not None:
        return {"row": prediction.row, "error": prediction.error}
    scores = {name: round(value, 6) for name, value in zip(names, prediction.probabilities, strict=True)}
    if isinstance(prediction.label, str):
        best = round(max(prediction.probabilities), 6)
        return {"row": prediction.row, "label": prediction.label, "probability": best, "probabilities": scores}
    return {"row": prediction.row, "labels": list(prediction.label), "probabilities": scores}


def _cells(prediction: Prediction) -> list[Any]:
    """One line of CSV; several labels are separated by a vertical bar."""
    label = prediction.label if isinstance(prediction.label, str) else "|".join(prediction.label)
    best = f"{max(prediction.probabilities):.6f}" if prediction.probabilities else ""
    return [
        prediction.row,
        label,
        best,
        prediction.error or "",
        *(f"{value:.6f}" for value in prediction.probabilities),
    ]


def show_predictions(predictions: list[Prediction], texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """A table for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("label", "probability", "text"):
        table.add_column(name, justify="right" if name == "probability" else "left", overflow="fold")
    for index, prediction in enumerate(predictions):
        shown = texts[index] if pairs is None else f"{texts[index]} | {pairs[index]}"
        if prediction.error is not None:
            label, share = f"({prediction.error})", ""
        else:
            single = isinstance(prediction.label, str)
            label = str(prediction.label) if single else ", ".join(prediction.label) or "(none)"
            share = f"{100 * max(prediction.probabilities):.1f} %"
        table.add_row(Text(label, style="bold"), share, Text(shown))
    Console().print(table)
