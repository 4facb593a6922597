"""What a tracker is, and what it is told of a run.

A tracker is given numbers with names and steps; it never sees events, models or files of ours. Everything that could
differ between tools, which events are told and under which names, is decided once (``scalars_of``), so that the curves
of two tools are the same curves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qlassify.durable import write_text
from qlassify.training.events import EvaluationEvent, SkippedStepEvent, StepEvent, TrainingEvent

IDENTITIES = "tracking.json"
"""File of the run folder with the run's name in each tool that gives names, so that a resumed run goes on there."""


class Tracker(Protocol):
    """A tool that records a run."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record finite numbers after optimiser step ``step``."""

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the scores of the finished classifier, which has seen ``step`` steps."""

    def close(self, *, finished: bool) -> None:
        """Write what is left and let go; ``finished`` is False for a run that stopped before its end."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, as trackers know it.

    Attributes:
        folder: its run folder; its name is the run's name.
        settings: the settled settings, nested, JSON-ready.
        after_step: where a resumed run goes on; None for a new one.
    """

    folder: Path
    settings: Mapping[str, Any]
    after_step: int | None = None

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.folder.resolve().name

    def flat_settings(self) -> dict[str, str]:
        """Dotted setting -> value as text; lists as JSON."""
        return dict(_flat(self.settings, ""))

    def identity(self, tool: str) -> str | None:
        """The run's name in a tool, from an earlier part of it; None when it is new or has none."""
        if self.after_step is None:
            return None
        found = self._identities().get(tool)
        return found if isinstance(found, str) else None

    def remember(self, tool: str, identity: str) -> None:
        """Keep the run's name in a tool for when it is resumed; names only, never an address or a key."""
        text = json.dumps({**self._identities(), tool: identity}, indent=2) + "\n"
        write_text(self.folder / IDENTITIES, text)

    def _identities(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / IDENTITIES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not name):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def scalars_of(event: TrainingEvent) -> dict[str, float]:
    """What of an event is drawn as curves: ``train/...`` of steps, ``evaluation/...`` of evaluations, else nothing.

    A number that is not finite has no place on a curve and is left out; ``metrics.jsonl`` has it.
    """
    if isinstance(event, StepEvent):
        found: dict[str, float | None] = {
            f"train/{name}": getattr(event, name)
            for name in ("epoch", "loss", "accuracy", "learning_rate", "grad_norm", "tokens", "seconds")
        }
    elif isinstance(event, EvaluationEvent):
        found = {f"evaluation/{name}": value for name, value in event.scores.items()}
    elif isinstance(event, SkippedStepEvent):
        found = {"train/skipped_in_a_row": event.in_a_row}
    else:
        return {}
    return finite(found)


def finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """The numbers that are defined and finite, as floats."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
