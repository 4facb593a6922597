"""``qlassify calibrate``: thresholds, costs, label sets and abstentions of a trained classifier, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlassify.cli import options
from qlassify.cli.printing import say, say_json

if TYPE_CHECKING:
    from qlassify.calibrating import Calibration

DECISIONS = "Decisions"


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the model folder of one.")],
    data: Annotated[
        Path | None, typer.Argument(help="Labelled rows that were not trained on; the run's validation rows if none.")
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="From which probability a label (several) or the positive class (of two) is given; or tuned.",
            rich_help_panel=DECISIONS,
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Share of the label sets that are to hold the true class.", rich_help_panel=DECISIONS),
    ] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="No answer where its probability is below this.", rich_help_panel=DECISIONS)
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The class that matters, of two.", rich_help_panel=DECISIONS)
    ] = None,
    false_positive_cost: Annotated[
        float | None, typer.Option(help="Cost of answering with it where it is wrong.", rich_help_panel=DECISIONS)
    ] = None,
    false_negative_cost: Annotated[
        float | None, typer.Option(help="Cost of missing it.", rich_help_panel=DECISIONS)
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Undo it: the logits as they were trained.", rich_help_panel=DECISIONS)
    ] = False,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    label_separator: options.LabelSeparator = None,
    header: options.Header = None,
    format: options.Format = None,
    base: options.Base = None,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Choose RUN's decisions anew on DATA: temperature, thresholds, label sets. The model folder is written anew."""
    from qlassify.calibrating import calibrate_run

    reading = options.reading_settings(
        text=text, text_pair=text_pair, label=label, label_separator=label_separator, header=header, format=format
    )
    wanted = options.given(
        threshold=threshold,
        coverage=coverage,
        abstain_below=abstain_below,
        positive=positive,
        false_positive_cost=false_positive_cost,
        false_negative_cost=false_negative_cost,
        calibrate=False if plain else None,
    )
    result = calibrate_run(run, data, reading, wanted, base=base, device=device or "auto")
    if json:
        say_json(result.as_dict())
    elif quiet:
        say(result.directory)
    else:
        _show(result, run)


def _show(result: Calibration, run: Path) -> None:
    """A few lines for a person."""
    rule, before, after = result.rule, result.before.values, result.after.values
    say(f"rows         {result.after.num_rows} {result.part} rows; the scores below are of these rows")
    say(f"temperature  {rule.temperature:.3f} (was {result.former.temperature:.3f})")
    for name in ("ece", "log_loss", "macro_f1"):
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None:
            say(f"{name.replace('_', ' '):12} {old:.4f} -> {new:.4f}")
    if rule.thresholds is not None:
        say(f"thresholds   {min(rule.thresholds):.3f} to {max(rule.thresholds):.3f}, one per label")
    if rule.positive is not None:
        say(f"positive     {result.labels[rule.positive.index]} from a probability of {rule.positive.threshold:.3f}")
    if rule.coverage is not None:
        say(f"label sets   every class from {rule.set_floor:.4f} on, for a coverage of {rule.coverage:.0%}")
    if rule.abstain_below is not None:
        say(f"abstains     below a probability of {rule.abstain_below:g}")
    for note in result.notes:
        say(f"note         {note}")
    say(f"saved        {result.directory}")
    say("\nnext:")
    say(f"  qlassify evaluate {run} FILE")
