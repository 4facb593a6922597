"""TensorBoard: event files in RUN/tensorboard.

A resumed run writes a file of its own that begins with a mark for its step; TensorBoard then forgets what earlier files
say of that step and later ones, which are taken again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlassify.tracking.tracker import TrackedRun


class TensorBoardTracker:
    """Records a run with ``torch.utils.tensorboard``."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = None if run.after_step is None else run.after_step + 1
        directory = run.folder / "tensorboard"
        is_new = not directory.exists()
        make: Any = SummaryWriter  # torch leaves it without types
        self._writer = make(str(directory), purge_step=purged)
        if is_new:
            lines = [f"    {name}: {value}" for name, value in run.flat_settings().items()]  # Markdown's code block
            self._writer.add_text("settings", "\n".join(lines), 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record numbers after a step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the final scores."""
        self.log(step, {f"final/{name}": value for name, value in scores.items()})

    def close(self, *, finished: bool) -> None:
        """Close the file; TensorBoard knows no status."""
        self._writer.close()
