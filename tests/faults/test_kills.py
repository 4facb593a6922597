"""SIGKILL, at every kind of moment: what is on the disk then is enough to go on, and nothing half done is believed.

A process that is killed can leave nothing but what it has done to files so far. So the moments that differ are those
between two operations on files: each is killed at once before it, in a child that has really been forked and really
gets the signal. Moments drawn at random over a run's duration come on top, for what is not an operation.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fault_tally import Tally
from fork_server import ForkServer
from run_results import disturbed_settings, require_same, result_of

from qlassify import ClassifyPipeline
from qlassify.errors import ModelError, QlassifyError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TEXTS = ["the dog is near", "a plum and a fig", "some hammer", "not quite"]
KILLED = -signal.SIGKILL
FULL_MOMENTS = 60
"""Operations of a run that are killed before in the full form, of some 150 that are the first or last of a kind."""


class World:
    """A server, the settings of a run, and the same run undisturbed."""

    def __init__(self, server: ForkServer, base: Path, data: Path, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self._server = server
        self.base = base
        settings = disturbed_settings(base, data)
        self.yaml = folder / "settings.yaml"
        self.yaml.write_text(yaml.safe_dump(settings))
        done = self.train("reference")
        assert done["code"] == 0, done["output"]
        self.operations: list[str] = done["operations"]
        self.seconds: float = done["seconds"]
        self.reference = self.root / "reference"
        self.result = result_of(self.reference)
        self.logits = ClassifyPipeline.load(self.reference).predict_proba(TEXTS)

    def server(self, *arguments: object, **how: Any) -> dict[str, Any]:
        """Run the command."""
        return self._server.run(self.root, *arguments, **how)

    def train(self, name: str, *options: object, **how: Any) -> dict[str, Any]:
        """Begin a run, or go on with it where there is something to go on with; its tokens are made anew."""
        folder = self.root / name
        if (folder / "run.yaml").is_file() or (folder / "seeds.json").is_file():
            return self.server("train", "--resume", folder, "--quiet", **how)
        tokens = f"data.token_cache={self.root / name}-tokens"
        options = ("--set", tokens, *options)
        return self.server("train", "--config", self.yaml, "--out", folder, "--quiet", *options, **how)

    def require_nothing_false(self, folder: Path, where: object) -> None:
        """The classifier of a killed run is the whole one or none."""
        try:
            found = ClassifyPipeline.load(folder).predict_proba(TEXTS)
        except ModelError as error:
            found, refusal = None, error
        if found is not None:
            assert np.array_equal(found, self.logits), where
            return
        assert refusal.what == "no saved classifier here", (where, refusal)
        if (folder / "run.yaml").is_file():
            assert f"qlassify train --resume {folder}" in (refusal.do or ""), where


@pytest.fixture(scope="module")
def world(
    fork_server: ForkServer,
    tiny_base: Path,
    train_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
    one_thread: None,
) -> World:
    """The undisturbed run and what starts others."""
    return World(fork_server, tiny_base, train_csv, tmp_path_factory.mktemp("kills"))


def kind_of(operation: str) -> str:
    """An operation without the numbers, random names and run folders that differ each time."""
    event, _, path = operation.partition(" ")
    path = re.sub(r"^/[^/]+", "", path)
    return f"{event} {re.sub(r'[0-9a-f]{8,}|[0-9]+|unfinished-[^/]+', '*', path)}"


def moments(operations: list[str], wanted: int) -> list[int]:
    """Numbers of operations to be killed before: an even sample of the first and the last of each kind.

    Args:
        operations: of an undisturbed run.
        wanted: how many at most.
    """
    firsts: dict[str, int] = {}
    lasts: dict[str, int] = {}
    for number, operation in enumerate(operations):
        firsts.setdefault(kind_of(operation), number)
        lasts[kind_of(operation)] = number
    chosen = sorted({*firsts.values(), *lasts.values()})
    return [chosen[int(place)] for place in np.linspace(0, len(chosen) - 1, min(wanted, len(chosen)))]


def test_every_kind_of_moment_is_there(world: World) -> None:
    """The sweep below is worth what it sweeps over: all that a run writes is among its operations."""
    kinds = {kind_of(operation) for operation in world.operations}
    for file in ("run.yaml", "environment.json", "data.json", "plan.json", "metrics.jsonl"):
        assert f"os.rename /.{file}.tmp" in kinds
    for part in ("/checkpoints/.step-*.tmp", "/model/.qlassify-writing", "/evaluation/.metrics.json.tmp"):
        assert f"os.rename {part}" in kinds
        assert any(one.startswith("fsync ") and part in one for one in kinds), part
    assert any(
        one.startswith("os.rename") and "unfinished" not in one and "/model/.qlassify-new/" in one for one in kinds
    )
    assert any(one.startswith("open ") and "token_ids.bin" in one for one in kinds), "tokens on disk"
    assert len(moments(world.operations, FULL_MOMENTS)) == FULL_MOMENTS


@pytest.mark.parametrize("half", [0, 1])
def test_killed_before_any_operation_a_run_is_resumed_to_the_same_end(
    world: World, half: int, full_faults: bool, tally: Tally
) -> None:
    chosen = moments(world.operations, FULL_MOMENTS if full_faults else 8)[half::2]
    for number in chosen:
        where = (number, world.operations[number])
        folder = world.root / f"killed-{number}"
        assert world.train(folder.name, kill_at=number)["code"] == KILLED, where
        world.require_nothing_false(folder, where)
        if (folder / "evaluation" / "metrics.json").is_file():
            # All was done but letting go of the lock.
            (folder / ".lock").unlink()
        else:
            done = world.train(folder.name)
            assert done["code"] == 0, (where, done["output"])
        require_same(result_of(folder), world.result, where)
    tally("kills before an operation of a run", len(chosen))


def test_killed_at_random_again_and_again_it_still_ends_the_same(world: World, full_faults: bool, tally: Tally) -> None:
    draws = random.Random(20240229)
    wanted, kills, round_number = 40 if full_faults else 6, 0, 0
    while kills < wanted:
        name, round_number = f"random-{round_number}", round_number + 1
        # Mostly shorter than a run, so that one run is killed several times; at most so often that it must go on.
        for _ in range(8):
            fresh = not (world.root / name).exists()
            done = world.train(name, kill_after=draws.uniform(0.02, world.seconds))
            if fresh and done["code"] == 0:
                world.seconds = min(world.seconds, done["seconds"])  # the first run also waited for its libraries
            assert done["code"] in (0, KILLED), done["output"]
            kills += done["code"] == KILLED
            world.require_nothing_false(world.root / name, (name, kills))
            if (world.root / name / "evaluation" / "metrics.json").is_file():
                (world.root / name / ".lock").unlink(missing_ok=True)
                break
        else:
            done = world.train(name)
            assert done["code"] == 0, done["output"]
        require_same(result_of(world.root / name), world.result, name)
    tally("kills at random moments of a run", kills)


def test_the_runs_of_several_seeds_are_killed_and_finished(world: World, full_faults: bool, tally: Tally) -> None:
    options = ("--seeds", 2, "--set", "training.epochs=1")
    done = world.train("seeds", *options)
    assert done["code"] == 0, done["output"]
    wanted = {seed: result_of(world.root / "seeds" / f"seed-{seed}") for seed in (3, 4)}
    outer = [number for number, one in enumerate(done["operations"]) if re.match(r"\S+ /seeds/[^/]*$", one)]
    between = [number for number in outer if "os.rename" in done["operations"][number]]
    chosen = sorted({*between, *moments(done["operations"], 8)}) if full_faults else between[1:2]
    for number in chosen:
        where, name = (number, done["operations"][number]), f"seeds-{number}"
        assert world.train(name, *options, kill_at=number)["code"] == KILLED, where
        record = world.root / name / "seeds.json"
        if record.is_file() and json.loads(record.read_text())["finished"]:
            (world.root / name / ".lock").unlink()  # all was done but letting go of the lock
        else:
            again = world.train(name, *options)
            assert again["code"] == 0, (where, again["output"])
        for seed, result in wanted.items():
            require_same(result_of(world.root / name / f"seed-{seed}"), result, where)
        listed = sorted(path.name for path in (world.root / name).iterdir())
        assert listed == ["seed-3", "seed-4", "seeds.json"], where
    tally("kills of runs of several seeds", len(chosen))


def test_killed_while_calibrating_the_classifier_is_the_old_or_the_new_one(
    world: World, train_csv: Path, full_faults: bool, tally: Tally
) -> None:

    def calibrate(name: str, **how: Any) -> dict[str, Any]:
        return world.server("calibrate", world.root / name, train_csv, "--quiet", **how)

    def copy(name: str) -> Path:
        shutil.copytree(world.reference, world.root / name)
        return world.root / name

    folder = copy("calibrated")
    (folder / "model" / "mine.txt").write_text("kept")
    done = calibrate("calibrated")
    assert done["code"] == 0, done["output"]
    assert (folder / "model" / "mine.txt").read_text() == "kept"
    (folder / "model" / "mine.txt").unlink()
    new = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    for name in ("head.safetensors", "classifier.json"):
        assert new[name] != world.result["model"][name], "the test needs a calibration that changes both"
    logits = ClassifyPipeline.load(folder).predict_proba(TEXTS)
    count = len(done["operations"])
    chosen = range(count) if full_faults else sorted({*range(0, count, 6), count - 3})
    seen = set()
    for number in chosen:
        where, folder = (number, done["operations"][number]), copy(f"calibrated-{number}")
        assert calibrate(folder.name, kill_at=number)["code"] == KILLED, where
        found = ClassifyPipeline.load(folder).predict_proba(TEXTS)
        state = "new" if np.array_equal(found, logits) else "old"
        seen.add(state)
        assert state == "new" or np.array_equal(found, world.logits), where
        if state == "old":
            assert calibrate(folder.name)["code"] == 0, where
        assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == new, where
        (folder / ".lock").unlink(missing_ok=True)
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            path.name for path in world.reference.iterdir()
        ), where
    assert seen == {"old", "new"}, "both sides of the decision were met"
    tally("kills while calibrating", len(chosen))


WRITERS = {
    "export": lambda world, target: ("export", world.reference, target, "--format", "peft", "--quiet"),
    "quantize": lambda world, target: ("quantize", world.base, target, "--quiet"),
    "convert": lambda world, target: ("convert", world.base, target.with_suffix(".apr")),
    "convert back": lambda world, target: ("convert", world.root / "base.apr", target),
}


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder, or a file, by their names."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in (found or {"": folder}).items()}


@pytest.mark.parametrize("command", WRITERS)
def test_killed_while_writing_a_model_nothing_half_written_is_there(
    world: World, command: str, full_faults: bool, tally: Tally
) -> None:
    """The target is whole or not there, and the same command does it again."""
    if command == "convert back":
        world.server("convert", world.base, world.root / "base.apr")
    arguments, slug = WRITERS[command], command.replace(" ", "-")

    def target_of(name: str) -> Path:
        target = world.root / name / "made"
        target.parent.mkdir()
        return target

    def at(target: Path) -> Path:
        return target.with_suffix(".apr") if command == "convert" else target

    target = target_of(slug)
    done = world.server(*arguments(world, target))
    assert done["code"] == 0, done["output"]
    # The README of an export names the folder.
    wanted = {name: data for name, data in tree(at(target)).items() if name != "README.md"}
    listed = len(list(target.parent.iterdir()))
    chosen = moments(done["operations"], 8 if full_faults else 2)
    for number in chosen:
        where, target = (number, done["operations"][number]), target_of(f"{slug}-{number}")
        assert world.server(*arguments(world, target), kill_at=number)["code"] == KILLED, where
        if at(target).exists():
            found = tree(at(target))
            assert {name: data for name, data in found.items() if name != "README.md"} == wanted, where
            continue
        for left in target.parent.glob("made.tokenizer*"):
            left.unlink()  # the file itself is not there; what lies beside its place is refused by its name
        again = world.server(*arguments(world, target))
        assert again["code"] == 0, (where, again["output"])
        found = {name: data for name, data in tree(at(target)).items() if name != "README.md"}
        assert found == wanted, where
        assert len(list(target.parent.iterdir())) == listed, (where, list(target.parent.iterdir()))
    tally(f"kills while writing a model ({command})", len(chosen))


def test_an_unfinished_run_is_no_classifier_to_any_command(world: World) -> None:
    """Killed when all but the classifier was there: every reader says how to go on."""
    number = next(
        n for n, one in enumerate(world.operations) if one.startswith("os.rename /reference/model/.qlassify-writing")
    )
    assert world.train("half", kill_at=number)["code"] == KILLED
    folder = world.root / "half"
    for arguments in (
        ("predict", folder, "--text", "a dog"),
        ("evaluate", folder, world.root / "nothing.csv"),
        ("export", folder, world.root / "exported"),
        ("calibrate", folder),
        ("compare", folder, world.reference, "--quiet"),
    ):
        done = world.server(*arguments)
        assert done["code"] == 2, (arguments, done["output"])
        assert "Traceback" not in done["output"]
        assert f"qlassify train --resume {folder}" in done["output"], done["output"]


def test_a_run_that_died_before_its_settings_is_begun_again_in_the_same_folder(world: World) -> None:
    number = next(n for n, one in enumerate(world.operations) if one == "os.rename /reference/.run.yaml.tmp")
    assert world.train("early", kill_at=number)["code"] == KILLED
    folder = world.root / "early"
    assert {path.name for path in folder.iterdir()} == {".lock", ".run.yaml.tmp"}
    done = world.server("train", "--resume", folder)
    assert (done["code"], "not a run folder" in done["output"]) == (2, True)
    assert world.train("early")["code"] == 0
    require_same(result_of(folder), world.result, "early")


def test_a_file_that_belongs_to_another_classifier_is_refused(world: World) -> None:
    """As a copy that was cut short would leave it: the new head beside the old record."""
    folder = world.root / "mixed"
    shutil.copytree(world.reference / "model", folder)
    head = folder / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1  # the last bit of the last number: still a head of the right shape
    head.write_bytes(data)
    with pytest.raises(QlassifyError, match=r"head\.safetensors: a file of the saved classifier is damaged"):
        ClassifyPipeline.load(folder)
