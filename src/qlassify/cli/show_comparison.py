"""What a person sees of a comparison: scores with intervals, a verdict, rows that differ, settings, costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from qlassify.cli.console import make_console
from qlassify.cli.printing import say_json
from qlassify.comparing import RunComparison
from qlassify.comparing import as_json as comparison_as_json
from qlassify.differences import Difference
from qlassify.evaluation.comparison import verdict_words
from qlassify.evaluation.wording import number, score_name, shorten
from qlassify.planning.plan import human_bytes, human_count, human_seconds

MAX_SHOWN_ROWS = 10
"""Rows that differ, in the terminal; ``--out`` writes all of them."""

TEXT_CHARACTERS = 60
SETTING_CHARACTERS = 40


def show_comparison(found: RunComparison, written_to: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Print a comparison; quiet, the scores and the verdict only."""
    if as_json:
        _print_json(found, written_to)
        return
    # In a file or a pipe there is no width to keep to, and a table cut at 80 columns says little.
    width = None if sys.stdout.isatty() else 160
    console = make_console(soft_wrap=True, width=width)
    console.print(f"A  {visible(str(found.a))}\nB  {visible(str(found.b))}\n")
    console.print(_scores(found))
    console.print(verdict_words(found.result))
    if quiet:
        return
    for note in found.notes:
        console.print(f"note   {visible(note)}")
    if found.differences:
        console.print()
        console.print(_rows(found))
    hidden = len(found.differences) - MAX_SHOWN_ROWS
    if written_to is not None:
        console.print(f"all {len(found.differences)} rows are in {written_to}")
    elif hidden > 0:
        console.print(f"... and {hidden} more; --out FILE writes all of them")
    console.print()
    console.print(_settings(found))
    console.print(_costs(found))


def _print_json(found: RunComparison, written_to: Path | None) -> None:
    record = {**comparison_as_json(found), "written_to": None if written_to is None else str(written_to)}
    say_json(record)


def visible(text: str) -> str:
    """``text`` in one line, with everything that a terminal would obey and not show written as an escape."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in " ".join(text.split())
    )


def _table(title: str, *columns: str, right: bool = False) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(columns):
        table.add_column(name, justify="right" if right and position else "left", overflow="fold")
    return table


def _scores(found: RunComparison) -> Table:
    result = found.result
    title = f"{visible(found.compared_on)}: {result.num_rows} rows"
    table = _table(title, "", "A", "B", "B - A", "95 % interval", right=True)
    for one in result.scores:
        table.add_row(
            score_name(one.name),
            f"{one.a:.4f}",
            f"{one.b:.4f}",
            f"{one.difference:+.4f}",
            f"{one.low:+.4f} to {one.high:+.4f}",
        )
    return table


def _rows(found: RunComparison) -> Table:
    """The first rows on which the predictions differ; what is right is bold."""
    table = _table(f"{len(found.differences)} rows with different predictions", "row", "text", "true", "A", "B")

    def labels(names: tuple[str, ...], *, right: bool = False) -> Text:
        return Text(", ".join(map(visible, names)) or "(none)", style="bold" if right else "")

    for one in found.differences[:MAX_SHOWN_ROWS]:
        table.add_row(
            str(one.row),
            Text(_excerpt(one)),
            labels(one.true),
            labels(one.a, right=one.right == "a"),
            labels(one.b, right=one.right == "b"),
        )
    return table


def _excerpt(one: Difference) -> str:
    text = one.text if one.text_pair is None else f"{one.text} | {one.text_pair}"
    return visible(shorten(" ".join(text.split()), TEXT_CHARACTERS))


def _settings(found: RunComparison) -> Table | str:
    if found.settings is None:
        return "Settings are not compared: a model folder does not say how it was trained."
    if not found.settings:
        return "The settings of both runs are the same."
    table = _table("settings that differ", "", "A", "B")
    for one in found.settings:
        table.add_row(one.name, *(Text(visible(_ending(number(value)))) for value in (one.a, one.b)))
    return table


def _ending(text: str) -> str:
    """The text, or its end: of two long paths the ends tell more than the beginnings."""
    return text if len(text) <= SETTING_CHARACTERS else f"...{text[-(SETTING_CHARACTERS - 3) :]}"


def _costs(found: RunComparison) -> Table:
    table = _table("cost", "", "A", "B", right=True)
    lines: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("trained parameters", "trainable_parameters", human_count),
        ("training time", "training_seconds", human_seconds),
        ("peak memory of training", "training_peak_memory_bytes", human_bytes),
        ("saved weights", "saved_bytes", human_bytes),
    )
    for words, field, shown in lines:
        values = (getattr(cost, field) for cost in found.costs)
        table.add_row(words, *("-" if value is None else shown(value) for value in values))
    return table
