"""What a person sees of a training with several seeds: each run as ``train`` shows it, and a table at the end."""

from __future__ import annotations

import sys
from typing import Self

from rich.table import Table
from rich.text import Text

from qlassify.cli.console import make_console
from qlassify.cli.printing import say_json
from qlassify.cli.show import TrainView
from qlassify.evaluation.wording import score_name
from qlassify.repeating import RepeatEvent, SeedDoneEvent, SeedEvent, SeedResult, SeedsFinishedEvent, Spread, as_json

SINGLE_LABEL = ("accuracy", "macro_f1", "weighted_f1", "mcc", "log_loss")
MULTI_LABEL = ("micro_f1", "macro_f1", "subset_accuracy", "lrap", "log_loss")
MAX_SHOWN_SEEDS = 5
"""Seeds with a column of their own; of more, only the spread is shown."""


class SeedsView:
    """Renders the events of a training with several seeds.

    Args:
        as_json: print one JSON document at the end and nothing else.
        quiet: print the result only.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        # In a file or a pipe there is no width to keep to, and a table cut at 80 columns says little.
        width = None if sys.stdout.isatty() else 120
        self.console = make_console(soft_wrap=True, width=width)
        self._view = TrainView(as_json=as_json, quiet=quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._view.__exit__(*exception)

    def show(self, event: RepeatEvent) -> None:
        """Render one event."""
        if isinstance(event, SeedsFinishedEvent):
            self._finished(event)
        elif isinstance(event, SeedEvent):
            # A view remembers its run's losses and speed; each run has one of its own.
            self._view = TrainView(as_json=self.as_json, quiet=self.quiet)
            self._line(f"\nseed {event.seed} ({event.number} of {event.count}), {event.folder}", bold=True)
        elif isinstance(event, SeedDoneEvent):
            self._done(event.result)
        else:
            self._view.show(event)

    def _line(self, text: str, *, bold: bool = False) -> None:
        if not (self.as_json or self.quiet):
            self.console.print(Text(text, style="bold" if bold else ""))

    def _done(self, result: SeedResult) -> None:
        scores = ", ".join(f"{score_name(name)} {_number(result.values[name])}" for name in _columns(result)[:2])
        self._line(f"seed      {result.seed}: {result.evaluated_on} {scores}")

    def _finished(self, event: SeedsFinishedEvent) -> None:
        commands = next_commands(event)
        if self.as_json:
            seeds = tuple(one.seed for one in event.results)
            record = {
                "run": str(event.folder),
                **as_json(seeds, list(event.results), event.notes),
                "next": list(commands),
            }
            say_json(record)
            return
        self.console.print()
        self.console.print(_table(event))
        if event.best is not None:
            best = event.best
            self.console.print(
                f"best by validation {score_name(best.metric)} ({_number(best.validation_score)}): seed {best.seed}"
            )
        if not self.quiet:
            for note in event.notes:
                self.console.print(f"note   {note}")
        self.console.print(f"runs   {event.folder}")
        self.console.print("\nnext:")
        for command in commands:
            self.console.print(f"  {command}")


def next_commands(event: SeedsFinishedEvent) -> tuple[str, ...]:
    """What a person would type next, about the best run."""
    run = event.folder / (event.best or event.results[0]).folder
    return (
        f"qlassify predict {run} FILE > predictions.jsonl",
        f"qlassify evaluate {run} FILE",
        f"qlassify export {run} DIRECTORY",
    )


def _columns(result: SeedResult) -> tuple[str, ...]:
    return MULTI_LABEL if "subset_accuracy" in result.values else SINGLE_LABEL


def _table(event: SeedsFinishedEvent) -> Table:
    results = event.results
    title = f"{results[0].evaluated_on}: {len(results)} seeds"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    shown = results if len(results) <= MAX_SHOWN_SEEDS else ()
    for name in (*(f"seed {one.seed}" for one in shown), "mean +- s.d.", "min", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in _columns(results[0]):
        spread = event.spreads.get(name)
        if spread is not None:
            own = (_number(one.values[name]) for one in shown)
            table.add_row(score_name(name), *own, _mean(spread), _number(spread.min), _number(spread.max))
    return table


def _mean(spread: Spread) -> str:
    return f"{spread.mean:.4f} +- {_number(spread.standard_deviation)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
