"""Sentences that cannot be told: standard error goes where nothing can be written, and nothing else changes by that."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from pathlib import Path

import pytest
import typer
from fault_tally import Tally
from limited_command import World, make_world, run_command

from qlassify import job, repeating
from qlassify.cli.train import follow, follow_seeds
from qlassify.errors import CheckpointError, Interrupted
from qlassify.planning.memory_guard import MemoryGuard, _heartbeat
from qlassify.terminal import tell
from qlassify.training.checkpoint import Checkpoint, CheckpointStore
from qlassify.training.events import StepEvent
from qlassify.training.loop import StopRequest

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = "/dev/full"


class FullDisk(io.StringIO):
    """A stream that refuses every line."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model and rows."""
    return make_world(tmp_path_factory.mktemp("world"))


def full_device() -> str:
    """Where every write fails for want of room; skips where there is none."""
    if not Path(FULL).exists():
        pytest.skip("there is no /dev/full here")
    return FULL


def test_a_sentence_is_made_visible_and_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a file \x1b[2J")
    assert capsys.readouterr() == ("", "qlassify: a file \\x1b[2J\n")


def test_a_sentence_that_cannot_be_told_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    tell("nobody reads this")


def test_without_a_standard_error_nothing_gets_into_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python has no stream at all there when a command is started with 2>&-."""
    monkeypatch.setattr(sys, "stderr", None)
    tell("nobody reads this")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_training_whose_every_word_is_refused_is_finished(world: World, tmp_path: Path, tally: Tally) -> None:
    """``qlassify train ... > log 2>&1`` with the log on a full disk."""
    run, device = tmp_path / "run", full_device()
    ended = run_command("train", "--config", world.file, "--out", run, stdout=device, stderr=device)
    assert ended.code == 1
    assert (run / "evaluation" / "metrics.json").is_file()
    tally("faults injected", 1)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_an_error_that_cannot_be_told_keeps_its_code_and_its_one_document(
    tmp_path: Path, option: str, tally: Tally
) -> None:
    ended = run_command("inspect", tmp_path / "missing", option, stderr=full_device())
    assert ended.code == 2
    documents = [json.loads(line) for line in ended.out.splitlines()]
    assert [document["exit_code"] for document in documents] == ([2] if option == "--json" else [])
    tally("faults injected", 1)


def test_a_heartbeat_goes_on_when_its_trouble_cannot_be_told() -> None:
    beats, enough = [0], threading.Event()

    def measure() -> int:
        beats[0] += 1
        if beats[0] == 3:
            enough.set()
        raise RuntimeError("no figures")

    def refuse(sentence: str) -> None:
        raise OSError(28, "No space left on device")

    with _heartbeat(MemoryGuard(None, None, tell=refuse), 0.001, measure, refuse):
        assert enough.wait(30), "the thread ended at the first beat"


class FullStore(CheckpointStore):
    """Writes checkpoints up to a step and finds no room for later ones."""

    last = 0

    def save(self, checkpoint: Checkpoint) -> Path:
        if checkpoint.progress.step > self.last:
            raise CheckpointError("cannot write a checkpoint", got="[Errno 28] No space left on device")
        return super().save(checkpoint)


@pytest.mark.parametrize("last", [0, 4])
def test_a_signal_on_a_full_disk_is_still_a_signal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, tally: Tally
) -> None:
    monkeypatch.setattr(FullStore, "last", last)
    monkeypatch.setattr(job, "CheckpointStore", FullStore)
    stop, run = StopRequest(), tmp_path / "run"
    events = job.train(world.settings, run, stop=stop)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 6)
    stop(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"no checkpoint could be written \(.*No space left on device\)") as caught:
        list(events)
    assert caught.value.exit_code == 143
    assert ("step 4" in caught.value.what) == (last == 4)
    assert ("beginning" in caught.value.what) == (last == 0)
    assert f"--resume {run}" in (caught.value.do or "")
    tally("faults injected", 1)


class Refusing:
    """A view whose output cannot be written."""

    def __init__(self, **options: bool) -> None:
        pass

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: object) -> None:
        """Find no room."""
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("several", [False, True], ids=["run", "seeds"])
def test_output_without_room_ends_neither_a_run_nor_those_of_several_seeds(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
    several: bool,
) -> None:
    monkeypatch.setattr("qlassify.cli.show.TrainView", Refusing)
    monkeypatch.setattr("qlassify.cli.show_seeds.SeedsView", Refusing)
    monkeypatch.setattr("qlassify.cli.trouble.silence_output", lambda: None)  # the tests' own output stays
    out, stop = tmp_path / "out", StopRequest()

    def train() -> None:
        if several:
            runs = repeating.train_seeds({**world.settings, "seed": 3}, out, count=2, stop=stop)
            follow_seeds(runs, stop, as_json=False, quiet=True)
        else:
            follow(job.train(world.settings, out, stop=stop), stop, as_json=False, quiet=True)

    with pytest.raises(typer.Exit) as ended:
        train()
    assert ended.value.exit_code == 1
    folders = [out / "seed-3", out / "seed-4"] if several else [out]
    assert all((folder / "evaluation" / "metrics.json").is_file() for folder in folders)
    assert capsys.readouterr().err.count("training goes on") == 1, "once, and not for each event"
    tally("faults injected", 1)
