"""``qlassify evaluate``: a trained classifier on labelled rows, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the model folder of one.")],
    data: Annotated[Path, typer.Argument(help="Labelled text: CSV, TSV, JSONL or Parquet.")],
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    label_separator: options.LabelSeparator = None,
    header: options.Header = None,
    format: options.Format = None,
    slices: options.Slices = None,
    base: options.Base = None,
    device: options.Device = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write scores, predictions and report.", rich_help_panel="Output")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Score RUN on DATA. Columns are found as they were for the training data unless they are given."""
    from qlassify import scoring
    from qlassify.cli.show import show_assessment

    reading = options.reading_settings(
        text=text,
        text_pair=text_pair,
        label=label,
        label_separator=label_separator,
        header=header,
        format=format,
        slices=slices,
    )
    result = scoring.evaluate_run(run, data, reading, base=base, device=device or "auto", out=out)
    show_assessment(result.assessment, result.directory, as_json=json, quiet=quiet)
