"""What a person sees of a job: a few lines per stage, a progress bar on a terminal, a table at the end.

Off a terminal the bar becomes a plain line per evaluation. With ``--json`` only one JSON document is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qlassify.cli.console import make_console
from qlassify.cli.printing import say_json
from qlassify.config.method import ProbeConfig
from qlassify.contracts.rule import Severity
from qlassify.evaluation.decision_words import decision_lines
from qlassify.evaluation.minority import minority_notes
from qlassify.evaluation.wording import kappa_words, main_score
from qlassify.job import (
    DatasetEvent,
    FinishedEvent,
    JobEvent,
    ModelEvent,
    NotesEvent,
    PlanEvent,
    ResumeEvent,
    SavedEvent,
)
from qlassify.planning.plan import human_bytes, human_count
from qlassify.training.events import EvaluationEvent, SkippedStepEvent, StepEvent, TrainingEndEvent

if TYPE_CHECKING:
    from qlassify.assessment import Assessment
    from qlassify.evaluation.intervals import Interval
    from qlassify.evaluation.metrics import Metrics
    from qlassify.scoring import Evaluation

MAX_SHOWN_CLASSES = 12
"""Classes in the terminal's per-class table; the report has all of them."""

MAX_SHOWN_SLICES = 12
"""Slices in the terminal's table; metrics.json has all of them."""


class TrainView:
    """Renders the events of a training job.

    Args:
        as_json: print one JSON document at the end and nothing else.
        quiet: print the result only.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.silent = as_json or quiet
        self.console = make_console(soft_wrap=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._loss = 0.0
        self._unit = "epoch"
        self._rate = _Rate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_progress()

    def show(self, event: JobEvent) -> None:
        """Render one event."""
        if isinstance(event, FinishedEvent):
            self._finished(event)
        elif not self.silent:
            handlers: dict[type, Callable[[Any], None]] = {
                DatasetEvent: self._dataset,
                ModelEvent: self._model,
                PlanEvent: self._plan,
                NotesEvent: self._notes,
                ResumeEvent: self._resumed,
                StepEvent: self._step,
                SkippedStepEvent: self._skipped,
                EvaluationEvent: self._evaluation,
                TrainingEndEvent: self._trained,
                SavedEvent: self._saved,
            }
            # Checkpoints are no news; what went wrong with one, or with memory, is told on standard error.
            if type(event) in handlers:
                handlers[type(event)](event)

    def _line(self, head: str, body: str) -> None:
        text = Text(f"{head:<10}", style="bold")
        text.append(body, style="not bold")
        (self._progress.console if self._progress else self.console).print(text)

    def _dataset(self, event: DatasetEvent) -> None:
        dataset = event.dataset
        rows = ", ".join(f"{len(part)} {name}" for name, part in dataset.parts().items())
        kind = "multi-label" if dataset.labels.multi_label else "single-label"
        columns = dataset.train.corpus.columns
        pair = f" + {columns.text_pair}" if columns.text_pair else ""
        names = dataset.labels.names
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        self._line("data", f"{rows} rows; {columns.text}{pair} -> {columns.label}, {kind}")
        self._line("labels", f"{len(names)}: {listed}")

    def _model(self, event: ModelEvent) -> None:
        training, method = event.run.training, event.run.method
        self._line("model", f"{event.summary} ({event.reason})")
        if isinstance(method, ProbeConfig):
            self._unit = "fit"
            self._line("training", f"logistic regression on frozen vectors, up to {len(method.penalties)} penalties")
            return
        self._line(
            "training",
            f"{training.epochs} epochs of batches of {training.batch_size * training.accumulation_steps}, "
            f"learning rate {training.learning_rate:g} {training.schedule} after {training.warmup_fraction:.0%} "
            f"warm-up, seed {event.run.seed}",
        )

    def _plan(self, event: PlanEvent) -> None:
        preparation = event.preparation
        plan, stats = preparation.plan, preparation.stats
        memory = plan.memory
        state = memory.trained_bytes + memory.gradient_bytes + memory.optimizer_bytes + memory.best_bytes
        weights = memory.dense_bytes + memory.low_bit_bytes + memory.buffer_bytes
        self._line(
            "plan",
            f"{plan.steps} steps, {human_count(plan.tokens)} tokens (mean {stats['mean']:.0f}, longest "
            f"{stats['max']:.0f} a text); memory about {human_bytes(plan.total_bytes)}: libraries "
            f"{human_bytes(memory.runtime_bytes)}, weights {human_bytes(weights)}, training state "
            f"{human_bytes(state)}, activations {human_bytes(memory.activation_bytes + memory.allocator_bytes)}",
        )
        for finding in preparation.warnings:
            self._line("data", finding.what)
        for item in preparation.contracts.items:
            if item.severity > Severity.INFO:
                self._line("settings", str(item))

    def _notes(self, event: NotesEvent) -> None:
        for note in event.notes:
            self._line("note", note)

    def _resumed(self, event: ResumeEvent) -> None:
        for problem in event.problems:
            self._line("warning", f"passed over: {problem}")
        self._line("resume", f"after step {event.step}" if event.step else "no checkpoint yet: from the beginning")

    def _step(self, event: StepEvent) -> None:
        alone = event.step == 1 or self._unit == "fit"
        self._loss = event.loss if alone else 0.9 * self._loss + 0.1 * event.loss
        self._rate.add(event)
        if not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]train    "),
                BarColumn(bar_width=30),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task("train", total=event.total_steps, state="")
            self._progress.start()
        state = f"loss {self._loss:.3f}  {self._rate.rows_per_second:.0f} rows/s"
        self._progress.update(self._task, completed=event.step, state=state)

    def _skipped(self, event: SkippedStepEvent) -> None:
        rows = ", ".join(str(row) for row in event.row_numbers[:8])
        self._line(
            "warning", f"step {event.step} skipped: loss {event.loss} or its gradient is not finite; rows {rows}"
        )

    def _evaluation(self, event: EvaluationEvent) -> None:
        score = event.scores.get(event.metric)
        shown = "undefined" if score is None else f"{score:.4f}"
        mark = "  best so far" if event.improved else ""
        speed = "" if self._unit == "fit" else f" ({self._rate.rows_per_second:.0f} rows/s)"
        self._line(
            self._unit,
            f"{event.epoch:.4g}: train loss {self._loss:.3f}, validation {event.metric} {shown}{mark}{speed}",
        )

    def _trained(self, event: TrainingEndEvent) -> None:
        self._stop_progress()
        early = ", stopped early" if event.stopped_early else ""
        skipped = f", {event.skipped_steps} steps skipped" if event.skipped_steps else ""
        self._line("trained", f"{event.step} steps{early}{skipped}; weights of step {event.best_step} kept")

    def _saved(self, event: SavedEvent) -> None:
        self._line("saved", str(event.path))

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _finished(self, event: FinishedEvent) -> None:
        from qlassify.assessment import as_json
        from qlassify.reporting import next_commands
        from qlassify.runs import read_json

        commands = next_commands(event.folder, read_json(event.folder.file("data.json")))
        if self.as_json:
            record = {
                "run": str(event.folder.path),
                "seconds": round(event.seconds, 3),
                "measured": dict(event.measured),
                "unwritten": dict(event.unwritten),
                **as_json(event.assessment),
                "next": list(commands),
            }
            say_json(record)
            return
        print_assessment(self.console, event.assessment)
        for note in minority_notes(event.assessment.metrics):  # the other notes were told before training
            self._line("note", note)
        self.console.print(
            f"{event.measured['training_seconds']:.0f} s of training, {event.seconds:.0f} s in all, "
            f"peak memory {human_bytes(event.measured['peak_memory_bytes'])}"
        )
        self.console.print(f"run    {event.folder.path}")
        from qlassify.reporting import REPORT

        if REPORT not in event.unwritten:
            self.console.print(f"report {event.folder.evaluation / REPORT}")
        self.console.print("\nnext:")
        for command in commands:
            self.console.print(f"  {command}")


class _Rate:
    """Rows per second over the steps since the last second began, so that a slow start is forgotten."""

    def __init__(self) -> None:
        self.rows_per_second = 0.0
        self._rows = 0
        self._seconds = 0.0
        self._began = time.monotonic()

    def add(self, event: StepEvent) -> None:
        """Count a step."""
        self._rows += event.rows
        self._seconds += event.seconds
        if self.rows_per_second == 0 or time.monotonic() - self._began > 1:
            self.rows_per_second = self._rows / max(self._seconds, 1e-9)
            self._rows, self._seconds, self._began = 0, 0.0, time.monotonic()


def show_evaluation(evaluation: Evaluation, *, as_json: bool, quiet: bool) -> None:
    """Print scores of a trained classifier, and where they were written."""
    from qlassify.assessment import METRICS
    from qlassify.assessment import as_json as to_json

    assessment, directory = evaluation.assessment, evaluation.directory
    if as_json:
        written_to = None if directory is None else str(directory)
        say_json({**to_json(assessment), "written_to": written_to, "unwritten": dict(evaluation.unwritten)})
        return
    console = make_console(soft_wrap=True)
    print_assessment(console, assessment)
    if not quiet:
        for note in assessment.notes:
            console.print(f"note   {note}")
        if evaluation.report is not None:
            console.print(f"report {evaluation.report}")
        elif directory is not None and METRICS not in evaluation.unwritten:
            console.print(f"scores {directory}")


def print_assessment(console: Console, assessment: Assessment) -> None:
    """The score table beside the baselines, the classes, weakest first, and the slices, worst first."""
    metrics = assessment.metrics
    multi_label = metrics.task == "multi_label"
    columns = (
        ("macro_f1", "micro_f1", "subset_accuracy", "lrap", "log_loss")
        if multi_label
        else ("accuracy", "macro_f1", "mcc", "log_loss")
    )
    table = Table(title=f"{assessment.part}: {metrics.num_rows} rows", title_justify="left", title_style="bold")
    table.add_column("")
    main = main_score(metrics)[0]
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
        if name == main:
            table.add_column("95 % interval", justify="right")

    def cells(scored: Metrics, interval: str) -> Iterator[str]:
        for name in columns:
            yield _number(scored.values.get(name))
            if name == main:
                yield interval

    table.add_row(Text("this model", style="bold"), *cells(metrics, _interval(assessment.intervals.get(main))))
    for baseline in assessment.baselines:
        table.add_row(baseline.name, *cells(baseline.metrics, ""))
    console.print()
    console.print(table)
    agreement = kappa_words(metrics.values.get("cohens_kappa"))
    if agreement is not None:
        kappa = _number(metrics.values["cohens_kappa"])
        console.print(f"agreement beyond chance: {agreement} (Cohen's kappa {kappa}; Landis and Koch 1977)")
    classes = sorted(metrics.classes, key=lambda one: one.f1)
    table = Table(title="classes, weakest first", title_justify="left", title_style="bold")
    for name in ("label", "precision", "recall", "f1", "rows"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for one in classes[:MAX_SHOWN_CLASSES]:
        table.add_row(Text(one.name), _number(one.precision), _number(one.recall), _number(one.f1), str(one.support))
    console.print(table)
    if len(classes) > MAX_SHOWN_CLASSES:
        console.print(f"... and {len(classes) - MAX_SHOWN_CLASSES} more, all in the report")
    _print_slices(console, assessment)
    for head, words in decision_lines(assessment.rule, assessment.decisions, metrics):
        console.print(f"{head:<12} {words}")


def _print_slices(console: Console, assessment: Assessment) -> None:
    """The slices, worst first, with their distance from all rows."""
    if not assessment.slices:
        return
    share = "every label right" if assessment.labels.multi_label else "accuracy"
    table = Table(title="slices, worst first", title_justify="left", title_style="bold")
    for name in ("column", "value", "rows", share, "95 % interval", "gap", "macro f1"):
        table.add_column(name, justify="left" if name in ("column", "value") else "right")
    ranked = sorted(assessment.slices, key=lambda one: one.gap)
    for one in ranked[:MAX_SHOWN_SLICES]:
        rows = f"{one.num_rows} (few)" if one.few_rows else str(one.num_rows)
        scores = (_number(one.accuracy), _interval(one.interval), f"{one.gap:+.4f}", _number(one.macro_f1))
        table.add_row(Text(one.column), Text(one.value), rows, *scores)
    console.print(table)
    if len(ranked) > MAX_SHOWN_SLICES:
        console.print(f"... and {len(ranked) - MAX_SHOWN_SLICES} more, all in metrics.json")


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
