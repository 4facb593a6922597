"""``qlassify evaluate``: a trained classifier on labelled rows, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options
from qlassify.cli.printing import say
from qlassify.cli.train import end_with


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
    open_report: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser.", rich_help_panel="Output")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Score RUN on DATA. Columns are found as they were for the training data unless they are given."""
    from qlassify import scoring
    from qlassify.cli.show import show_evaluation
    from qlassify.reporting import REPORT

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
    show_evaluation(result, as_json=json, quiet=quiet)
    if open_report and REPORT not in result.unwritten:  # of one that could not be written the last sentence tells
        open_in_browser(result.report)
    end_with(result.problem)


def open_in_browser(report: Path | None) -> None:
    """Open a report, or say on standard error why it cannot be seen; never an error: the scores are there."""
    import webbrowser

    if report is None:
        why = "this is a model folder without its run, and only a run knows its plan, its data and its curves"
        say(f"qlassify: there is no report to open: {why}. Give the run folder.", error=True)
        return
    try:
        opened = webbrowser.open(report.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        say(f"qlassify: no browser was found; the report is {report.resolve()}", error=True)
