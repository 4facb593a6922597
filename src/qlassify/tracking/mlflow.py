"""MLflow: wherever its own settings say, else an SQLite file in the run folder.

``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and the rest of its variables are MLflow's business and are read by
MLflow. The default is a database and not a folder ``mlruns``, because MLflow no longer opens such folders unless a
variable allows it. The client is used and not the fluent functions: those keep the active run in global state, and
would end a run that a notebook has open.

A metric of MLflow is a list that is only added to. A resumed run takes the steps after its checkpoint again, with the
same numbers; those that are on the list already are not added a second time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from qlassify.tracking.tracker import TrackedRun

DEFAULT_EXPERIMENT = "qlassify"
PARAMETERS_AT_ONCE = 100
"""Most parameters that MLflow takes in one call."""


def needed_packages() -> tuple[str, ...]:
    """What has to be installed: the database's packages only where nothing else is configured."""
    return ("mlflow",) if os.environ.get("MLFLOW_TRACKING_URI") else ("mlflow", "sqlalchemy", "alembic")


class MlflowTracker:
    """Records a run with MLflow's client."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        uri = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            uri = f"sqlite:///{(run.folder / 'mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=uri)
        known = run.identity("mlflow")
        self._resumed = known is not None
        self._recorded: dict[str, set[int]] = {}
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        artifacts = None if uri is None else (run.folder / "mlflow").resolve().as_uri()
        created = self._client.create_run(self._experiment(artifacts), run_name=run.name)
        self._id = str(created.info.run_id)
        run.remember("mlflow", self._id)
        self._log_settings(run)

    def _experiment(self, artifacts: str | None) -> str:
        """The experiment's id; it is made if need be."""
        if identity := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def _log_settings(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, value) for name, value in run.flat_settings().items()]
        for first in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=parameters[first : first + PARAMETERS_AT_ONCE])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record numbers after a step, those that are not there yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {_metric_name(name): value for name, value in scalars.items()}
        metrics = [Metric(name, value, now, step) for name, value in named.items() if step not in self._steps(name)]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def end(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the final scores."""
        self.log(step, {f"final/{name}": value for name, value in scores.items()})

    def close(self, *, finished: bool) -> None:
        """Set the run's status: finished, or killed."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")

    def _steps(self, name: str) -> set[int]:
        """The steps of a metric that were recorded before this process."""
        if not self._resumed:
            return set()
        if name not in self._recorded:
            self._recorded[name] = {int(one.step) for one in self._client.get_metric_history(self._id, name)}
        return self._recorded[name]


def _metric_name(name: str) -> str:
    """A name that MLflow takes on every system; labels in names of scores may have any character."""
    return re.sub(r"[^/\w.\- ]", "_", name)
