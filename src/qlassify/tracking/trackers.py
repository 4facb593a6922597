"""The trackers of one run: looked for before it, fed while it trains, and never a reason for it to end.

A package that is not installed is a mistake that can be told before anything is spent. A tool that fails later, because
its server is gone or its disk full, must not take hours of training with it: that is told once, and the run goes on
without the tool. Everything that it would have been told is in ``metrics.jsonl``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from qlassify.config.run import TrackingTool
from qlassify.errors import ConfigError
from qlassify.masking import masked
from qlassify.tracking.mlflow import MlflowTracker, needed_packages
from qlassify.tracking.tensorboard import TensorBoardTracker
from qlassify.tracking.tracker import TrackedRun, Tracker, finite, scalars_of
from qlassify.tracking.wandb import WandbTracker
from qlassify.training.events import TrainingEvent

TRACKERS: Mapping[TrackingTool, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
"""Tool -> what starts recording a run with it."""


def require_trackers(tools: Iterable[TrackingTool]) -> None:
    """Look for the packages of tools, without importing them.

    Raises:
        ConfigError: one is not installed; names the command that installs it.
    """
    for tool in dict.fromkeys(tools):
        missing = [name for name in (needed_packages() if tool == "mlflow" else (tool,)) if not _installed(name)]
        if missing:
            raise ConfigError(
                f"tracking with {tool} needs packages that are not installed",
                where="tracking",
                got=f"no {', '.join(missing)}",
                do=f"Install them: pip install 'qlassify[{tool}]'",
            )


def _installed(name: str) -> bool:
    """Whether a package can be imported; a folder that merely has its name (wandb's own output) is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


class Trackers:
    """Feeds every tool of a run; as a context it closes them.

    Args:
        tools: which.
        run: what is recorded.
        tell: is given a sentence when a tool is switched off.
    """

    def __init__(self, tools: Iterable[TrackingTool], run: TrackedRun, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._running: dict[TrackingTool, Tracker] = {}
        for tool in dict.fromkeys(tools):
            try:
                self._running[tool] = TRACKERS[tool](run)
            except Exception as error:
                self._tell_failure(tool, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._each(lambda tracker: tracker.close(finished=kind is None))

    def event(self, event: TrainingEvent) -> None:
        """Tell what an event has of curves."""
        scalars = scalars_of(event)
        if scalars:
            self._each(lambda tracker: tracker.log(event.step, scalars))

    def end(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Tell the scores of the finished classifier."""
        self._each(lambda tracker: tracker.end(step, finite(scores)))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tool, tracker in list(self._running.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._running[tool]
                self._tell_failure(tool, error)

    def _tell_failure(self, tool: TrackingTool, error: Exception) -> None:
        said = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        # Addresses of servers may hold a name and a password.
        said = masked(said)
        self._tell(f"{tool} is switched off, the run goes on without it: {type(error).__name__}: {said[:300]}")
