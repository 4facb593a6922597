"""One process at a time writes into a run folder; the second is told the number of the first. Readers go on."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fork_server import ForkServer
from run_results import disturbed_settings, require_same, result_of

from qlassify import job, run_lock
from qlassify.errors import ConfigError
from qlassify.repeating import train_seeds
from qlassify.run_lock import LOCK, clear_leavings, own_run, require_free
from qlassify.runs import create_run_folder, require_new
from qlassify.training.events import StepEvent

pytestmark = pytest.mark.usefixtures("one_thread")


# The lock alone


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    with own_run(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(ConfigError, match=f"got process {os.getpid()}"), own_run(tmp_path):
            pass
        with pytest.raises(ConfigError, match=f"got process {os.getpid()}"):
            require_free(tmp_path)
    require_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with own_run(tmp_path):
        pass


def test_a_question_whether_it_is_free_is_not_taken_for_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask is to hold the lock for a moment. The number in the file is that of an owner who was killed."""
    (tmp_path / LOCK).write_text("1\n")
    asking = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    waits = []

    def answered(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.close(asking)

    monkeypatch.setattr(run_lock.time, "sleep", answered)
    # However slow the machine: only the number of tries counts here.
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 60.0)
    with own_run(tmp_path):
        assert len(waits) == 3
        with pytest.raises(ConfigError, match=f"got process {os.getpid()}"):
            require_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_lets_go_of_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), own_run(tmp_path):
        raise ValueError("mine")
    with own_run(tmp_path):
        pass


def test_a_file_that_nobody_has_locked_says_nothing(tmp_path: Path) -> None:
    """Its owner was killed, and its number may be another process's by now: here it is this one's."""
    (tmp_path / LOCK).write_text(f"{os.getpid()}\n")
    require_free(tmp_path)
    with own_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot lock the run folder"), own_run(tmp_path / "nowhere"):
        pass
    require_free(tmp_path / "nowhere")


def test_a_file_in_the_place_of_a_run_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for start in (require_new, lambda path: create_run_folder(path).__enter__()):
        with pytest.raises(ConfigError, match="not a place for a run folder"):
            start(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


CONTENDER = """
import os, sys, time
from pathlib import Path
from typing import Any
from qlassify.errors import ConfigError
from qlassify.run_lock import own_run

folder, inside = Path(sys.argv[1]), Path(sys.argv[2])
got = 0
while got < 50:
    try:
        with own_run(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)
            got += 1
    except ConfigError:
        time.sleep(0.0002)
"""


def test_processes_that_contend_are_never_in_at_once(tmp_path: Path) -> None:
    """The lock's file is removed by each owner, so what a waiter has opened may be a file without a name by then."""
    (tmp_path / "run").mkdir()
    arguments = [sys.executable, "-c", CONTENDER, str(tmp_path / "run"), str(tmp_path / "inside")]
    contenders = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(one.communicate(timeout=120)[1], one.returncode) for one in contenders]
    assert ends == [("", 0)] * 3
    assert list((tmp_path / "run").iterdir()) == []


def test_leavings_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [
        "run.yaml",
        "checkpoints/step-000010/state.json",
        "model/classifier.json",
        ".mine",
        "model/.qlassify-new/a.json",
    ]
    gone = [
        ".plan.json.tmp",
        "checkpoints/.step-000020.tmp/state.safetensors",
        "checkpoints/step-000005/state.safetensors",
        "checkpoints/.rehearsal-ab/x",
        "model/.qlassify-writing/head.safetensors",
        "evaluation/.metrics.json.tmp",
    ]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    clear_leavings(tmp_path)
    assert sorted(one.relative_to(tmp_path).as_posix() for one in tmp_path.rglob("*") if one.is_file()) == sorted(kept)


# The command


class Server:
    """Runs the command in processes of their own, in a folder of these tests."""

    def __init__(self, server: ForkServer, root: Path) -> None:
        self.root = root
        self._server = server

    def __call__(self, *arguments: object, **how: Any) -> dict[str, Any]:
        return self._server.run(self.root, *arguments, **how)


@pytest.fixture(scope="module")
def server(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Server:
    """What starts commands."""
    return Server(fork_server, tmp_path_factory.mktemp("locks"))


@pytest.fixture(scope="module")
def finished(server: Server, tiny_base: Path, train_csv: Path) -> Path:
    """A finished run."""
    folder = server.root / "finished"
    list(job.train(disturbed_settings(tiny_base, train_csv), folder))
    return folder


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_is_not_disturbed(
    server: Server, finished: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder, settings = server.root / "run", disturbed_settings(tiny_base, train_csv)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    events = job.train(settings, folder)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 9)
    for arguments in (
        ("train", "--config", tmp_path / "settings.yaml", "--out", folder),
        ("train", "--config", tmp_path / "settings.yaml", "--out", folder, "--seeds", 2),
        ("train", "--resume", folder),
        ("calibrate", folder),
    ):
        done = server(*arguments)
        assert done["code"] == 2, done["output"]
        assert f"{folder}: another process is working in this folder; got process {os.getpid()}" in done["output"]
    list(events)
    require_same(result_of(folder), result_of(finished), "the first process's run")


@pytest.mark.slow
def test_readers_are_not_kept_out(server: Server, finished: Path, train_csv: Path) -> None:
    with own_run(finished):
        for arguments in (
            ("predict", finished, "--text", "a dog"),
            ("compare", finished, finished),
            ("evaluate", finished, train_csv, "--out", server.root / "scores"),
            ("export", finished, server.root / "exported", "--format", "peft"),
        ):
            done = server(*arguments)
            assert done["code"] == 0, done["output"]


@pytest.mark.slow
def test_a_run_whose_process_was_killed_is_resumed_at_once(
    server: Server, finished: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(disturbed_settings(tiny_base, train_csv)))
    folder = server.root / "killed"
    done = server("train", "--config", tmp_path / "settings.yaml", "--out", folder, kill_at=60)
    assert done["code"] == -signal.SIGKILL
    assert (folder / LOCK).is_file()
    # As if the number had been given to a process that lives.
    (folder / LOCK).write_text("1\n")
    done = server("train", "--resume", folder)
    assert done["code"] == 0, done["output"]
    require_same(result_of(folder), result_of(finished), "resumed")


@pytest.mark.slow
def test_the_runs_of_several_seeds_have_one_process(server: Server, tiny_base: Path, train_csv: Path) -> None:
    """Also between two seeds, when no inner run is at work."""
    folder = server.root / "seeds"
    events = train_seeds(disturbed_settings(tiny_base, train_csv, epochs=1), folder, count=2)
    for _ in range(2):
        next(event for event in events if isinstance(event, job.DatasetEvent))
        if (folder / "seeds.json").is_file():
            done = server("train", "--resume", folder)
            assert done["code"] == 2
            assert f"got process {os.getpid()}" in done["output"]
    events.close()  # type: ignore[attr-defined]
    done = server("train", "--resume", folder, "--quiet")
    assert done["code"] == 0, done["output"]
    shutil.rmtree(folder)


def test_a_file_system_that_locks_only_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS answers EBADF to an exclusive lock of a file that is open for reading."""
    locked = []

    def flock(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        locked.append(operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with own_run(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert locked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN]
