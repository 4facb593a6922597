"""``qlassify compare``: whether one trained classifier is better than another, or whether it is chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options


def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder; with DATA also a model folder.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, with the same labels.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled text that both predict; without it, the rows that both runs were scored on."),
    ] = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    label_separator: options.LabelSeparator = None,
    header: options.Header = None,
    format: options.Format = None,
    base: options.Base = None,
    device: options.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the rows that differ: .jsonl, .csv, .tsv or .parquet.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Is RUN_B better than RUN_A, or is it chance? Scores with intervals, the rows that differ, settings and costs."""
    from qlassify import comparing, differences
    from qlassify.cli.show_comparison import show_comparison
    from qlassify.errors import ConfigError

    if out is not None:
        differences.require_suffix(out)
    reading = options.reading_settings(
        text=text, text_pair=text_pair, label=label, label_separator=label_separator, header=header, format=format
    )
    if data is None and (reading or base or device):
        raise ConfigError(
            "without DATA nothing is read or predicted",
            got="options that say how",
            do="Give DATA, or leave them out.",
        )
    found = comparing.compare_runs(a, b, data, reading, base=base, device=device or "auto")
    if out is not None:
        differences.write_differences(out, found.differences)
    show_comparison(found, out, as_json=json, quiet=quiet)
