"""Predictions for a machine (JSONL, CSV, TSV, or one JSON document) or for a person."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlassify.data.spreadsheet import guarded
from qlassify.errors import ConfigError
from qlassify.terminal import json_text, visible

if TYPE_CHECKING:
    from qlassify.scoring import Prediction

FORMATS = ("jsonl", "csv", "tsv", "json")


@dataclass(frozen=True, slots=True)
class Total:
    """How many rows were written, and how many of them carry an error in place of a prediction."""

    rows: int
    rejected: int


def write_lines(chunks: Iterator[list[Prediction]], form: str, names: Sequence[str], *, sets: bool = False) -> Total:
    """Write predictions to standard output as they come; one line per input row, in order.

    Nothing is written before the first chunk is there, so that a mistake in the request leaves no header behind. The
    one document of ``json`` is written when all of it is there, and so is never half of one.

    Args:
        chunks: the predictions.
        form: one of ``FORMATS``.
        names: of the classes.
        sets: whether each prediction has a label set.
    """
    rows = rejected = 0
    first = next(chunks, [])
    writer = _writer(form, names, sets=sets) if form in ("csv", "tsv") else None
    document: list[str] = []
    for chunk in itertools.chain([first], chunks):
        for prediction in chunk:
            rows += 1
            rejected += prediction.error is not None
            if writer is not None:
                writer.writerow(_cells(prediction, names, sets=sets))
            elif form == "json":
                document.append(json_text(_record(prediction, names)))
            else:
                print(json_text(_record(prediction, names)))
        sys.stdout.flush()
    if form == "json":
        print("[\n" + ",\n".join(document) + "\n]" if document else "[]")
    return Total(rows, rejected)


def _writer(form: str, names: Sequence[str], *, sets: bool) -> Any:
    """A writer of CSV or TSV that has written the header."""
    out = _Screen() if sys.stdout.isatty() else sys.stdout
    writer = csv.writer(out, delimiter="," if form == "csv" else "\t", lineterminator="\n")
    probabilities = [f"p({name})" for name in names]
    writer.writerow(["row", "label", "probability", "error", *probabilities, *(["label_set"] if sets else [])])
    return writer


class _Screen:
    """Standard output where it is a terminal: what is in a file as it was is here shown so that it cannot steer."""

    def write(self, text: str) -> int:
        """Print a part of a line."""
        return sys.stdout.write(visible(text))


def has_formulas(form: str, names: Sequence[str]) -> bool:
    """Whether labels are written in another form, because a spreadsheet would run them."""
    return form in ("csv", "tsv") and any(guarded(name) != name for name in names)


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
    if isinstance(prediction.label, tuple):
        return {"row": prediction.row, "labels": list(prediction.label), "probabilities": scores}
    record: dict[str, Any] = {"row": prediction.row, "label": prediction.label}
    record["probability"] = round(probability_of(prediction, names), 6)
    if prediction.label_set is not None:
        record["label_set"] = list(prediction.label_set)
    return {**record, "probabilities": scores}


def probability_of(prediction: Prediction, names: Sequence[str]) -> float:
    """The probability of the label, or of the likeliest one where the classifier abstains."""
    if isinstance(prediction.label, str):
        return prediction.probabilities[names.index(prediction.label)]
    return max(prediction.probabilities)


def _cells(prediction: Prediction, names: Sequence[str], *, sets: bool) -> list[Any]:
    """One line of CSV; several labels are separated by a vertical bar, and an abstention is an empty cell.

    A label that a spreadsheet would run as a formula has an apostrophe in front (``data.spreadsheet``).
    """
    label = prediction.label if isinstance(prediction.label, str) else "|".join(prediction.label or ())
    best = f"{probability_of(prediction, names):.6f}" if prediction.probabilities else ""
    return [
        prediction.row,
        guarded(label),
        best,
        guarded(prediction.error or ""),
        *(f"{value:.6f}" for value in prediction.probabilities),
        *([""] * (len(names) - len(prediction.probabilities)) if sets else []),
        *([guarded("|".join(prediction.label_set or ()))] if sets else []),
    ]


def show_predictions(
    predictions: list[Prediction], texts: Sequence[str], pairs: Sequence[str] | None, names: Sequence[str]
) -> None:
    """A table for a person."""
    from rich.table import Table
    from rich.text import Text

    from qlassify.cli.console import make_console

    columns = ["label", "probability", *(["label set"] if any(one.label_set for one in predictions) else []), "text"]
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name == "probability" else "left", overflow="fold")
    for index, prediction in enumerate(predictions):
        shown = texts[index] if pairs is None else f"{texts[index]} | {pairs[index]}"
        share = f"{100 * probability_of(prediction, names):.1f} %" if prediction.probabilities else ""
        cells = [Text(_shown_label(prediction), style="bold"), Text(share)]
        cells += [Text(", ".join(prediction.label_set or ()))] if len(columns) > 3 else []
        table.add_row(*cells, Text(shown))
    make_console().print(table)


def _shown_label(prediction: Prediction) -> str:
    """The answer in a table; in brackets where there is none."""
    if prediction.error is not None:
        return f"({prediction.error})"
    if isinstance(prediction.label, tuple):
        return ", ".join(prediction.label) or "(none)"
    return prediction.label if prediction.label is not None else "(abstains)"
