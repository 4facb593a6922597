"""What a person sees of a plan: the data, a line per method, what is doubtful, and the verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from qlassify.cli.console import make_console
from qlassify.cli.printing import say_json
from qlassify.contracts.rule import Severity
from qlassify.data.dataset import Dataset
from qlassify.errors import QlassifyError
from qlassify.planning.plan import MEMORY_TERMS, human_bytes, human_count, human_seconds
from qlassify.preparation import Preparation
from qlassify.prospects import Prospect


class PlanView:
    """Shows prospects.

    Args:
        dataset: the rows they are for.
        as_json: print one JSON document at the end and nothing else.
        quiet: print the verdict only.
    """

    def __init__(self, dataset: Dataset, *, as_json: bool, quiet: bool) -> None:
        self.dataset = dataset
        self.as_json = as_json
        self.quiet = quiet
        # In a file or a pipe there is no width to keep to, and a table cut at 80 columns says little.
        width = None if sys.stdout.isatty() else 120
        self.console = make_console(soft_wrap=True, width=width)
        self.errors = make_console(stderr=True, soft_wrap=True)

    def progress(self, prospect: Prospect) -> None:
        """Say that a method is done, while others are still being planned."""
        if not self.as_json and not self.quiet and self.errors.is_terminal:
            self.errors.print(f"planned {prospect.method}")

    def finished(self, found: Sequence[Prospect], refusal: QlassifyError | None) -> None:
        """Show everything.

        Args:
            found: a prospect for each method.
            refusal: why nothing of it could start.
        """
        if self.as_json:
            preparation = next((one.preparation for one in found if one.preparation is not None), None)
            audit = None if preparation is None else preparation.audit
            record = {
                "rows": {name: len(part) for name, part in self.dataset.parts().items()},
                "labels": list(self.dataset.labels.names),
                "token_lengths": None if preparation is None else dict(preparation.stats),
                "notes": list(self.dataset.notes),
                "audit": None if audit is None else audit.as_dict(),
                "methods": [one.as_dict() for one in found],
                "refusal": None if refusal is None else refusal.as_dict(),
            }
            say_json(record)
            return
        able = [one for one in found if one.preparation is not None]
        if not self.quiet and able:
            assert able[0].preparation is not None
            self._data(able[0].preparation)
        if len(found) == 1 and able and not self.quiet:
            self._terms(able[0])
        self._methods(found)
        self._doubts(found)
        if refusal is not None:
            self.errors.print(f"qlassify: {refusal}")

    def _data(self, preparation: Preparation) -> None:
        rows = ", ".join(f"{len(part)} {name}" for name, part in self.dataset.parts().items())
        stats = preparation.stats
        self._line("data", f"{rows} rows, {len(self.dataset.labels)} labels")
        self._line(
            "tokens",
            f"mean {stats['mean']:.0f}, median {stats['p50']:.0f}, 90 % {stats['p90']:.0f}, 99 % {stats['p99']:.0f}, "
            f"longest {stats['max']:.0f} a text",
        )
        for note in (*preparation.reading_notes, *preparation.store_notes, *preparation.plan_notes):
            self._line("note", note)
        for finding in () if preparation.audit is None else preparation.audit.findings():
            self._line(finding.severity, f"{finding.what} {finding.do}".strip())

    def _terms(self, prospect: Prospect) -> None:
        preparation = prospect.preparation
        assert preparation is not None
        self._line("model", preparation.pipeline.summary())
        table = Table(title="memory at the peak", title_justify="left", title_style="bold", show_header=False)
        for name, count in preparation.plan.memory.as_dict().items():
            if name in MEMORY_TERMS and count:
                table.add_row(MEMORY_TERMS[name], Text(human_bytes(count), justify="right"))
        table.add_row(Text("together", style="bold"), Text(human_bytes(preparation.plan.total_bytes), justify="right"))
        self.console.print(table)

    def _methods(self, found: Sequence[Prospect]) -> None:
        table = Table(title="plan", title_justify="left", title_style="bold")
        for name in ("method", "trained", "memory", "steps", "per epoch", "in all", "rate", "verdict"):
            table.add_column(name, justify="left" if name in ("method", "verdict") else "right", no_wrap=True)
        for one in found:
            if one.preparation is None:
                table.add_row(one.method, *["-"] * 6, "cannot")
                continue
            plan, training = one.preparation.plan, one.preparation.pipeline.run.training
            seconds = one.seconds
            table.add_row(
                one.method,
                human_count(plan.trainable_parameters),
                human_bytes(plan.total_bytes),
                str(plan.steps),
                "-" if seconds is None else human_seconds(seconds / plan.epochs),
                "-" if seconds is None else human_seconds(seconds),
                "-" if one.method == "probe" else f"{training.learning_rate:g}",
                one.preparation.verdict if one.preparation.fits else "Blocked: memory",
            )
        self.console.print(table)

    def _doubts(self, found: Sequence[Prospect]) -> None:
        able = [one for one in found if one.preparation is not None]
        for one in found:
            if one.preparation is None:
                self._line(one.method, str(one.problem))
                continue
            for item in one.preparation.contracts.items:
                if item.severity > Severity.INFO or (len(able) == 1 and not self.quiet):
                    self._line(one.method, str(item))
            if one.would_fit is not None:
                settings = " ".join(f"--set {name}={value}" for name, value in one.would_fit.items())
                self._line(one.method, f"would fit with {settings}")

    def _line(self, head: str, body: str) -> None:
        text = Text(f"{head:<10}", style="bold")
        text.append(body, style="not bold")
        self.console.print(text)
