"""``qlassify predict``: labels and probabilities for texts, in the order in which they came."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options
from qlassify.cli.options import READING
from qlassify.cli.printing import say
from qlassify.errors import ConfigError


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder, or the model folder of one.")],
    source: Annotated[
        str | None, typer.Argument(help="File with texts (CSV, TSV, JSONL, Parquet, or one text a line); - is stdin.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify (repeatable).")] = None,
    text_pair: Annotated[list[str] | None, typer.Option(help="The second text of each --text.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Text column of the file.", rich_help_panel=READING)] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of the second text.", rich_help_panel=READING)
    ] = None,
    header: options.Header = None,
    format: options.Format = None,
    base: options.Base = None,
    device: options.Device = None,
    output: Annotated[
        str | None,
        typer.Option(help="What to write: jsonl (default), csv, tsv or json (one document).", rich_help_panel="Output"),
    ] = None,
    sets: Annotated[
        bool,
        typer.Option(
            "--sets",
            help="Also a set of labels that holds the true one with the promised coverage.",
            rich_help_panel="Output",
        ),
    ] = False,
    abstain_below: Annotated[
        float | None,
        typer.Option(help="No answer where its probability is below this.", rich_help_panel="Output", min=0, max=1),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Classify texts with RUN: those of a file, of standard input, or those given with --text."""
    from qlassify import scoring
    from qlassify.cli import lines
    from qlassify.pipeline import ClassifyPipeline

    if (source is None) == (text is None):
        raise ConfigError("give either a file (or -) or --text", where="predict")
    if text_pair is not None and len(text_pair) != len(text or ()):
        raise ConfigError("--text-pair is given once for each --text", got=len(text_pair), wanted=len(text or ()))
    form = "json" if json else output
    lines.check_form(form or "jsonl")
    pipeline = ClassifyPipeline.load(run, device=device or "auto", base=base)
    if abstain_below is not None:
        pipeline.abstain_below(abstain_below)
    if text is not None:
        predictions = scoring.predict_texts(pipeline, text, text_pair, sets=sets)
        if form is not None or not sys.stdout.isatty():
            lines.write_lines(iter([predictions]), form or "jsonl", pipeline.labels.names, sets=sets)
        else:
            lines.show_predictions(predictions, text, text_pair, pipeline.labels.names)
        return
    reading = options.given(text=text_column, text_pair=text_pair_column, header=header, format=format)
    chunks = scoring.predict_file(pipeline, run, source or "-", reading, sets=sets)
    total = lines.write_lines(chunks, form or "jsonl", pipeline.labels.names, sets=sets)
    if not quiet:
        say(f"{total.rows} rows predicted, {total.rejected} rejected", error=True)
        if lines.has_formulas(form or "jsonl", pipeline.labels.names):
            say("labels that a spreadsheet would run have an apostrophe in front; --output jsonl has none", error=True)
