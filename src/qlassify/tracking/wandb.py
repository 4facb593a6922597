"""Weights & Biases: as its own variables say; its local files are in RUN/wandb.

Only the settings and the numbers of the run are sent. What the package would gather by itself, the command line, the
repository, the machine's load, the console, the installed packages, is switched off: who wants the environment on
record finds it in ``environment.json`` and can decide who sees it. The key is looked up by the package and not touched.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from qlassify.tracking.tracker import TrackedRun

DEFAULT_PROJECT = "qlassify"


class WandbTracker:
    """Records a run with ``wandb``."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        known = run.identity("wandb")
        identity = known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            dir=str(run.folder),
            project=os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=identity,
            # Offline it cannot know what there is, and says so.
            resume="allow" if known is not None and os.environ.get("WANDB_MODE") != "offline" else None,
            config=dict(run.settings),
            reinit="create_new",
            settings=settings,
        )
        run.remember("wandb", identity)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record numbers after a step; of a run that is resumed, steps that the server has are passed over there."""
        self._run.log(dict(scalars), step=step)

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the final scores in the run's summary."""
        self._run.summary.update({f"final/{name}": value for name, value in scores.items()})

    def close(self, *, finished: bool) -> None:
        """Send what is left and set the run's exit code."""
        self._run.finish(exit_code=0 if finished else 1)
