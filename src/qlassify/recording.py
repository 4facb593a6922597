"""A run's events on their way from the loop: into ``metrics.jsonl``, to trackers, and to whoever iterates.

Nothing here may end a training. A line that cannot be written waits in memory for the next one to be tried, so a disk
that was full for an hour leaves no gap; what is still waiting at the end is named among what is unwritten. A checkpoint
that failed and a token budget that was lowered are told on standard error at once, also where nothing else is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from qlassify.unwritten import Unwritten


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
        self._failing = False

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
        # A probe has a few fits and no steps: each of them is a point of its curve.
        interval = 1 if isinstance(loop, ProbeSolver) else loop.config.log_interval
        try:
            for event in loop.run():
                if (
                    not isinstance(event, StepEvent)
                    or event.step % interval == 0
                    or event.step in (1, event.total_steps)
                ):
                    self._write(log, event)
                    self._trackers.event(event)
                self._tell_trouble(event)
                yield event
        finally:
            log.close()
            if log.waiting:
                self._unwritten.add(path.name, f"{log.waiting} events are missing: {log.problem}")

    def _write(self, log: EventLog, event: TrainingEvent) -> None:
        known = log.problem
        log.write(as_record(event))
        if known is None and log.problem is not None:
            self._tell(f"{self._folder.metrics} cannot be written ({log.problem}); training goes on")

    def _tell_trouble(self, event: TrainingEvent) -> None:
        """Of checkpoints that fail one after another, the first is told."""
        if isinstance(event, CheckpointEvent):
            self._failing = False
        elif isinstance(event, TokenBudgetEvent) or (isinstance(event, CheckpointFailedEvent) and not self._failing):
            self._failing = self._failing or isinstance(event, CheckpointFailedEvent)
            self._tell(event.sentence)
            self.notes.append(f"{event.sentence[0].upper()}{event.sentence[1:]}.")


def _is_shown(event: StepEvent, interval: int) -> bool:
    """Whether a step is one of those that are written: every ``interval``, the first and the last."""
    return event.step % interval == 0 or event.step in (1, event.total_steps)
