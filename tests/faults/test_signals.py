"""SIGTERM and SIGINT: whenever they come, the command ends with 143 or 130, says how to go on, and nothing is lost.

Moments that matter are met exactly: at a named operation on a file, or when a named library is about to be imported.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_tally import Tally
from fork_server import ForkServer
from run_results import disturbed_settings, require_same, result_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

BOTH = (signal.SIGTERM, signal.SIGINT)


class World:
    """A server, the settings of a run, and the same run undisturbed."""

    def __init__(self, server: ForkServer, base: Path, data: Path, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self._server = server
        self.yaml = folder / "settings.yaml"
        self.yaml.write_text(yaml.safe_dump(disturbed_settings(base, data)))
        done = self.train("reference")
        assert done["code"] == 0, done["output"]
        self.operations: list[str] = done["operations"]
        self.seconds: float = done["seconds"]
        self.result = result_of(self.root / "reference")

    def server(self, *arguments: object, **how: Any) -> dict[str, Any]:
        """Run the command."""
        return self._server.run(self.root, *arguments, **how)

    def train(self, name: str, **how: Any) -> dict[str, Any]:
        """Begin a run, or go on with it."""
        folder = self.root / name
        if (folder / "run.yaml").is_file():
            return self.server("train", "--resume", folder, "--quiet", **how)
        return self.server("train", "--config", self.yaml, "--out", folder, "--quiet", **how)

    def when(self, operation: str) -> int:
        """The number of the last operation of the undisturbed run that ends so."""
        return max(number for number, one in enumerate(self.operations) if one.endswith(operation))

    def require_told(self, done: dict[str, Any], folder: Path, number: int) -> None:
        """The exit code of a signal, and a sentence that says how to go on."""
        name = signal.Signals(number).name
        assert done["code"] == 128 + number, done
        assert "Traceback" not in done["output"]
        assert f"qlassify: stopped by {name}: " in done["output"]
        if (folder / "evaluation" / "metrics.json").is_file():
            assert done["output"].endswith(f"the run in {folder} was finished\n")
        elif (folder / "run.yaml").is_file():
            assert f"Continue with: qlassify train --resume {folder}\n" in done["output"], done["output"]

    def require_resumed(self, name: str) -> None:
        """The rest of the run, and that it is the undisturbed one."""
        done = self.train(name)
        assert done["code"] == 0, done["output"]
        found = result_of(self.root / name)
        # A checkpoint that a signal asked for may be among the newest two.
        kept = {key: value for key, value in found["checkpoints"].items() if key in self.result["checkpoints"]}
        files = [one for one in found["files"] if not one.startswith("checkpoints/")]
        wanted = [one for one in self.result["files"] if not one.startswith("checkpoints/")]
        assert files == wanted
        assert kept
        same = {**self.result, "checkpoints": {key: self.result["checkpoints"][key] for key in kept}}
        require_same({**found, "checkpoints": kept, "files": self.result["files"]}, same, name)


@pytest.fixture(scope="module")
def world(
    fork_server: ForkServer,
    tiny_base: Path,
    train_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
    one_thread: None,
) -> World:
    """The undisturbed run and what starts others."""
    return World(fork_server, tiny_base, train_csv, tmp_path_factory.mktemp("signals"))


MOMENTS = {
    "the folder is made": ("/.run.yaml.tmp", 1),
    "the folder is made, twice": ("/.run.yaml.tmp", 2),
    "a checkpoint is written": ("/.step-000020.tmp/state.json", 1),
    "a checkpoint is written, twice": ("/.step-000020.tmp/state.json", 2),
    "the classifier is written": ("/model/.qlassify-writing/classifier.json", 1),
    "the report is written": ("/evaluation/.report.html.tmp", 1),
}


@pytest.mark.parametrize("number", BOTH, ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_command_and_the_run_goes_on_to_the_same_end(
    world: World, moment: str, number: int, full_faults: bool, tally: Tally
) -> None:
    if not full_faults and number == signal.SIGINT and moment != "a checkpoint is written, twice":
        pytest.skip("in the full form only: the same for SIGINT")
    operation, times = MOMENTS[moment]
    name = f"{moment} {number}".replace(" ", "-").replace(",", "")
    done = world.train(name, kill_at=world.when(operation), signals=[number] * times)
    world.require_told(done, world.root / name, number)
    if moment == "a checkpoint is written":
        # The request is met after the checkpoint that was being written; it is of the same step and stands for both.
        assert (world.root / name / "checkpoints" / "step-000020").is_dir()
        assert f"checkpoint written to {world.root / name / 'checkpoints' / 'step-000020'}" in done["output"]
    world.require_resumed(name)
    tally("signals at named moments of a run", 1)


def test_a_signal_after_the_last_file_says_that_the_run_is_finished(world: World) -> None:
    done = world.train("late", kill_at=world.when("os.remove /reference/.lock"), signals=[signal.SIGTERM])
    world.require_told(done, world.root / "late", signal.SIGTERM)
    assert result_of(world.root / "late")["scores"] == world.result["scores"]


def test_a_signal_after_the_last_of_several_seeds_says_that_they_are_finished(world: World) -> None:
    def train(name: str, **how: Any) -> dict[str, Any]:
        options = ("--out", world.root / name, "--seeds", 2, "--set", "training.epochs=1", "--quiet")
        return world.server("train", "--config", world.yaml, *options, **how)

    whole = train("seeds")
    assert whole["code"] == 0, whole["output"]
    ends = [number for number, one in enumerate(whole["operations"]) if one == "os.remove /seeds/.lock"]
    done = train("late-seeds", kill_at=ends[-1], signals=[signal.SIGTERM])
    assert done["code"] == 128 + signal.SIGTERM, done
    assert done["output"].endswith(f"the runs in {world.root / 'late-seeds'} were finished\n"), done["output"]


def test_signals_at_random_moments_again_and_again(world: World, full_faults: bool, tally: Tally) -> None:
    draws = random.Random(20240301)
    wanted, sent, round_number = 30 if full_faults else 4, 0, 0
    while sent < wanted:
        name, round_number = f"random-{round_number}", round_number + 1
        for _ in range(6):
            number = draws.choice(BOTH)
            # Not in the first moments of the process, when it is not our command yet.
            moment = draws.uniform(0.2, max(0.4, world.seconds))
            done = world.train(name, kill_after=moment, signals=[number] * draws.choice((1, 1, 2)))
            if done["code"] == 0:
                world.seconds = min(world.seconds, done["seconds"])
                break
            if done["code"] == -number and (world.root / name / "evaluation" / "metrics.json").is_file():
                break  # after the command's own last line
            world.require_told(done, world.root / name, number)
            sent += 1
            if (world.root / name / "evaluation" / "metrics.json").is_file():
                break
        else:
            assert world.train(name)["code"] == 0
        if world.train(name)["code"] == 0:
            raise AssertionError("a finished run went on")
        found = result_of(world.root / name)
        assert (found["model"], found["events"]) == (world.result["model"], world.result["events"])
        assert (found["scores"], found["predictions"]) == (world.result["scores"], world.result["predictions"])
    tally("signals at random moments of a run", sent)


COMMAND = ("train", "--config", "settings.yaml", "--out", "run", "--quiet")
AT_IMPORT = """
import os, sys

class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            os.kill(os.getpid(), {number})
        return None

sys.meta_path.insert(0, Signal())
from qlassify.cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("library", "number"),
    [
        ("torch.nn", signal.SIGTERM),
        # transformers imports it on first use, and turns every Exception that it meets there into one of its own.
        ("transformers.models.bert.modeling_bert", signal.SIGINT),
    ],
)
def test_a_signal_while_libraries_are_loaded_ends_at_once(
    tiny_base: Path, train_csv: Path, tmp_path: Path, library: str, number: int, tally: Tally
) -> None:
    """In a fresh interpreter, as the real command is, whose imports take most of the time before the first step."""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(disturbed_settings(tiny_base, train_csv)))
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT.format(library=library, number=int(number)), *COMMAND],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stdout) == (128 + number, ""), done.stderr
    assert done.stderr == f"qlassify: stopped by {signal.Signals(number).name}: nothing more was written\n"
    assert not (tmp_path / "run").exists()
    tally("signals while libraries are loaded", 1)


def test_other_commands_end_in_a_sentence_too(world: World, train_csv: Path, tally: Tally) -> None:
    """An export that is stopped leaves nothing."""
    reference, target = world.root / "reference", world.root / "exported"
    whole = world.server("export", reference, target, "--format", "peft", "--quiet")
    assert whole["code"] == 0, whole["output"]
    other = world.root / "stopped"
    done = world.server("export", reference, other, "--format", "peft", kill_at=2, signals=[signal.SIGTERM])
    assert done["code"] == 143, done["output"]
    assert done["output"].endswith("qlassify: stopped by SIGTERM: nothing more was written\n")
    assert [path.name for path in world.root.iterdir() if "stopped" in path.name] == []
    tally("signals to other commands", 1)
