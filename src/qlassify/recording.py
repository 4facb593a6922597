"""A run's events on their way from the loop: into ``metrics.jsonl``, to trackers, and to whoever iterates.

Nothing here may end a training. A line that cannot be written waits in memory for the next one to be tried, so a disk
that was full for an hour leaves no gap; what is still waiting at the end is named among what is unwritten. A checkpoint
that failed and a token budget that was lowered are told on standard error at once, also where nothing else is shown.

The report of a run that was resumed has to say what happened before, and whoever saw it has gone. It is read back from
the log, which is kept up to the checkpoint, and held against the checkpoint and the steps that were due: a budget that
only one of the two knows of, and lines that were lost, are notes as well. A file of notes beside the log was the
alternative; it would be one more that a full disk refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qlassify import runs
from qlassify.errors import StorageError
from qlassify.runs import EventLog, RunFolder
from qlassify.tracking.trackers import Trackers
from qlassify.training.events import (
    CheckpointEvent,
    CheckpointFailedEvent,
    StepEvent,
    TokenBudgetEvent,
    TrainingEvent,
    as_record,
)
from qlassify.training.loop import TrainingLoop
from qlassify.training.probe import ProbeSolver
from qlassify.unwritten import ROOM, Unwritten


def write_facts(folder: RunFolder, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what is known before the first step, each into a file of its name.

    Raises:
        StorageError: one cannot be written. Nothing has been trained yet, so a run that has no room ends here.
    """
    for name, values in facts.items():
        path = folder.file(f"{name}.json")
        try:
            runs.write_json(path, values)
        except OSError as error:
            raise StorageError(
                "cannot write the run's files",
                where=path,
                got=error.strerror or error,
                do=f"Make room or fix the permissions, then begin with: qlassify train --resume {folder.path}",
            ) from None


class Recorder:
    """Writes and tells the events of one run.

    Args:
        folder: the run.
        trackers: are told, too.
        unwritten: is told of a log that is incomplete at the end.
        tell: is given a sentence for whoever reads standard error.

    Attributes:
        notes: a sentence for each thing that a reader of the report should know.
    """

    def __init__(
        self, folder: RunFolder, trackers: Trackers, unwritten: Unwritten, tell: Callable[[str], None]
    ) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._trackers = trackers
        self._unwritten = unwritten
        self._tell = tell
        self._failing = False  # whether the last checkpoint that was due could not be written

    def events(self, loop: TrainingLoop | ProbeSolver, *, resumed: bool) -> Iterator[TrainingEvent]:
        """The loop's events; of steps, only every ``log_interval`` is written.

        Raises:
            StorageError: not even the beginning can be written; nothing has been trained then.
        """
        path = self._folder.metrics
        try:
            log = EventLog(path, after_step=loop.progress.step if resumed else None)
        except OSError as error:
            raise StorageError(
                "cannot write the run's events",
                where=path,
                got=error.strerror or error,
                do=f"Make room or fix the permissions, then begin with: qlassify train --resume {self._folder.path}",
            ) from None
        if resumed and isinstance(loop, TrainingLoop):
            self._recall(list(runs.read_events(path)), loop)
        # A probe has a few fits and no steps: each of them is a point of its curve.
        interval = 1 if isinstance(loop, ProbeSolver) else loop.config.log_interval
        try:
            for event in loop.run():
                if not isinstance(event, StepEvent) or is_shown(event.step, event.total_steps, interval):
                    self._write(log, event)
                    self._trackers.event(event)
                sentence = self._trouble(event)
                if sentence is not None:
                    self._tell(sentence)
                    self._note(sentence)
                yield event
        finally:
            log.close()
            if log.waiting:
                self._unwritten.add(path.name, f"{log.waiting} events are missing: {log.problem}", remedy=ROOM)

    def _write(self, log: EventLog, event: TrainingEvent) -> None:
        known = log.problem
        log.write(as_record(event))
        if known is None and log.problem is not None:
            self._tell(f"{self._folder.metrics} cannot be written ({log.problem}); training goes on")

    def _trouble(self, event: TrainingEvent) -> str | None:
        """What to tell of an event; of checkpoints that fail one after another, of the first."""
        if isinstance(event, TokenBudgetEvent):
            return event.sentence
        failing, self._failing = self._failing, self._failing and not isinstance(event, CheckpointEvent)
        if not isinstance(event, CheckpointFailedEvent):
            return None
        self._failing = True
        return None if failing else event.sentence

    def _note(self, sentence: str) -> None:
        self.notes.append(f"{sentence[0].upper()}{sentence[1:]}.")

    def _recall(self, records: Sequence[Mapping[str, Any]], loop: TrainingLoop) -> None:
        """Note what a reader of the report should know of the steps before the checkpoint."""
        budget, known = loop.began.token_budget, None
        for record in records:
            event = _rebuilt(record)
            # The log may know of a budget that no checkpoint could be written with: it was forgotten.
            if isinstance(event, TokenBudgetEvent) and (budget is None or event.token_budget < budget):
                continue
            known = event.token_budget if isinstance(event, TokenBudgetEvent) else known
            sentence = None if event is None else self._trouble(event)
            if sentence is not None:
                self._note(sentence)
        self._failing = False  # a row of failures that goes on is told of by this process, too
        if budget is not None and known != budget:
            former = loop.config.token_budget
            self._note(f"memory ran out; training went on with training.token_budget {budget} in place of {former}")
        missing = num_missing(records, loop)
        if missing:
            path, step = self._folder.metrics, loop.progress.step
            gap = f"{missing} events up to step {step} are missing in {path.name}, which could not be written then"
            self._tell(gap)
            self._note(gap)


def is_shown(step: int, total_steps: int, interval: int) -> bool:
    """Whether a step is one of those that are written: every ``interval``, the first and the last."""
    return step % interval == 0 or step in (1, total_steps)


def num_missing(records: Sequence[Mapping[str, Any]], loop: TrainingLoop) -> int:
    """How many steps and evaluations before a checkpoint should be among the lines of its log and are not.

    Args:
        records: the lines, as ``runs.read_events`` gives them.
        loop: stands at the checkpoint.
    """
    taken = {record.get("step") for record in records if record.get("event") in ("step", "skipped_step")}
    scored = {record.get("step") for record in records if record.get("event") == "evaluation"}
    missing = 0
    for step in range(1, loop.progress.step + 1):
        missing += is_shown(step, loop.total_steps, loop.config.log_interval) and step not in taken
        missing += loop.scorer is not None and loop.is_scoring_step(step) and step not in scored
    return missing


def _rebuilt(record: Mapping[str, Any]) -> TokenBudgetEvent | CheckpointFailedEvent | CheckpointEvent | None:
    """The event of a line, if it is of a kind that a report speaks of and says everything."""
    kinds: dict[str, type[TokenBudgetEvent] | type[CheckpointFailedEvent] | type[CheckpointEvent]] = {
        "token_budget": TokenBudgetEvent,
        "checkpoint_failed": CheckpointFailedEvent,
        "checkpoint": CheckpointEvent,
    }
    kind = kinds.get(str(record.get("event")))
    if kind is None or not all(name in record for name in kind.__slots__):
        return None
    return kind(**{name: record[name] for name in kind.__slots__})
