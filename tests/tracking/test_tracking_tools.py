"""Each tool with its real package: what a run that broke off and was resumed left there, read back by the tool itself.

The recording and the reading are processes of their own (``tracking_child``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("tracking_child.py")
KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "a-secret-of-the-environment"
STEPS = list(range(1, 13))
LOSSES = [[step, 1 / 2**step] for step in STEPS]


def installed(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if (spec := find_spec(name)) is None or spec.origin is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def child(tool: str, part: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "WANDB_"))}
    environment = {**kept, "QLASSIFY_TEST_SECRET": SECRET, **variables}
    return subprocess.run(
        [sys.executable, str(CHILD), tool, part, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def both_parts(tool: str, folder: Path, **variables: str) -> dict[str, Any]:
    """What is there after a run that died after step 10 and was resumed after step 6."""
    folder.mkdir()
    first = child(tool, "first", folder, **variables)
    assert first.returncode == 9, first.stderr
    second = child(tool, "second", folder, **variables)
    assert second.returncode == 0, second.stderr
    read = child(tool, "read", folder, **variables)
    assert read.returncode == 0, read.stderr
    found: dict[str, Any] = json.loads(read.stdout)
    return found


def require_no_secrets(folder: Path) -> None:
    """Neither the key nor anything else of the environment is in a file of the run."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert SECRET.encode() not in content, path


@installed("tensorboard")
def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    found = both_parts("tensorboard", tmp_path / "run", WANDB_API_KEY=KEY)
    points = found["points"]
    assert points["train/loss"] == LOSSES, "the losses are exact in fp32"
    assert points["evaluation/macro_f1"] == [[6, 0.375], [12, 0.75]]
    assert points["evaluation/macro_f1 of 'c++'"] == [[6, 0.25], [12, 0.25]]
    assert points["final/accuracy"] == [[12, 0.75]]
    assert "evaluation/undefined" not in points
    assert "    training.class_weights: [1.0, 3.0]\n" in found["settings"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"tensorboard"}
    require_no_secrets(tmp_path / "run")


@installed("mlflow", "sqlalchemy", "alembic")
def test_mlflow_has_each_step_once_in_the_run_folder(tmp_path: Path) -> None:
    found = both_parts("mlflow", tmp_path / "run")
    assert found["points"]["train/loss"] == LOSSES
    assert found["points"]["evaluation/macro_f1"] == [[6, 0.375], [12, 0.75]]
    assert found["points"]["evaluation/macro_f1 of _c___"] == [[6, 0.25], [12, 0.25]]
    assert found["points"]["final/accuracy"] == [[12, 0.75]]
    assert (found["status"], found["name"]) == ("FINISHED", "run")
    assert found["settings"]["training.class_weights"] == "[1.0, 3.0]"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"mlflow.db", "tracking.json"}
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == {"mlflow": found["id"]}
    require_no_secrets(tmp_path / "run")


@installed("mlflow", "sqlalchemy", "alembic")
def test_mlflow_goes_where_its_own_settings_say(tmp_path: Path) -> None:
    database = tmp_path / "elsewhere.db"
    found = both_parts("mlflow", tmp_path / "run", MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    assert found["points"]["train/loss"] == LOSSES
    assert database.is_file()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"tracking.json"}


@installed("wandb")
def test_wandb_offline_has_one_run_in_two_parts(tmp_path: Path) -> None:
    """Offline the package cannot know what the first part wrote: both files have the steps in between."""
    found = both_parts("wandb", tmp_path / "run", WANDB_MODE="offline", WANDB_API_KEY=KEY)
    assert found["points"]["train/loss"] == [*LOSSES[:10], *LOSSES[6:]]
    assert found["points"]["evaluation/macro_f1"] == [[6, 0.375], [12, 0.75]]
    assert found["summary"]["final/accuracy"] == 0.75
    identity = json.loads((tmp_path / "run" / "tracking.json").read_text())["wandb"]
    assert [(one["id"], one["name"]) for one in found["runs"]] == [(identity, "run")] * 2
    assert found["runs"][0]["settings"]["training"] == {"epochs": 2, "class_weights": [1.0, 3.0]}
    assert found["codes"] == [1, 0], "stopped before its end, then finished"
    assert not {"output", "output_raw", "stats"} & set(found["kinds"]), "no console, no load of the machine"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"wandb", "tracking.json"}
    require_no_secrets(tmp_path / "run")


@installed("mlflow")
def test_a_server_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    """Nothing listens on port 9; the run goes on, and the address's password is not repeated."""
    (tmp_path / "run").mkdir()
    done = child(
        "mlflow",
        "first",
        tmp_path / "run",
        MLFLOW_TRACKING_URI=f"http://name:{SECRET}@127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT="5",
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.count("mlflow is switched off, the run goes on without it") == 1
    assert SECRET not in told
