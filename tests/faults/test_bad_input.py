"""Every bad input ends in one sentence, its exit code, and nothing that could be taken for a result.

The inputs are in the tables of ``bad_inputs``. Each is tried by calling ``main`` in this process, as the command does,
with ``--json`` where the verb has it, so that one call answers for both forms; a few are tried as real processes, all
of those that are marked in the full form. The clock here only ends a case that hangs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from bad_command_inputs import COMMANDS
from bad_data_inputs import DATA
from bad_inputs import BadInput, World
from bad_model_inputs import MODELS
from bad_run_inputs import RUNS
from bad_setting_inputs import SETTINGS

from qlassify import job
from qlassify.cli.app import main
from tiny_jobs import job_settings, make_rows, save_tiny_base, write_table

ALL = (*DATA, *SETTINGS, *COMMANDS, *MODELS, *RUNS)
SECONDS = 60
"""After which a case has hung; each takes less than one."""
PARTS = {"error", "what", "where", "got", "wanted", "do", "exit_code"}

Tally = Callable[[str, int], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model, a file of rows and a finished run, which every case has to leave as they are."""
    root = tmp_path_factory.mktemp("good")
    base = save_tiny_base(root / "base")
    data = write_table(root / "train.csv", ("text", "label"), make_rows(120, seed=2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(job.train(job_settings(base, data, epochs=1), root / "run"))
    torch.set_num_threads(threads)
    return World(root, base, data, root / "run")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is nowhere here is not looked for at the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")


@contextlib.contextmanager
def ended_after(seconds: int) -> Iterator[None]:
    """Fails what hangs."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer after {seconds} s")

    former = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``main``."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    monkeypatch.setattr(sys, "argv", ["qlassify", *arguments])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


def listing(folder: Path) -> dict[str, str]:
    """Every file with its hash, every other thing with its kind; pipes and devices are not opened."""
    found = {}
    for path in sorted(folder.rglob("*")):
        whole = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        found[str(path.relative_to(folder))] = whole
    return found


def world_of(good: World, tmp_path: Path, case: BadInput) -> World:
    """The case's own folder, with what is bad in it."""
    world = World(tmp_path, good.base, good.data, good.run)
    case.make(world)
    return world


def check(case: BadInput, world: World, code: int, out: str, err: str) -> None:
    """The sentence, the exit code, and under ``--json`` the parts."""
    assert "Traceback" not in err, err
    assert code == case.code, f"{code}: {err or out}"
    for words in case.says:
        assert _placed(words, world) in err, f"{words!r} is not in: {err}"
    sentences = err.strip().split("\n")
    assert len(sentences) == 1, err
    assert sentences[0].startswith("qlassify: "), err
    if not case.plain:
        record = json.loads(out)
        assert set(record) == PARTS
        assert record["exit_code"] == code
        assert record["what"] in err


def _placed(words: str, world: World) -> str:
    """What the sentence has to contain, places filled in; braces of JSON stay."""
    for name in ("tmp", "base", "data", "run"):
        words = words.replace("{" + name + "}", str(getattr(world, name)))
    return words


def test_ids_tell_cases_apart() -> None:
    assert len({case.id for case in ALL}) == len(ALL)
    assert len(ALL) >= 250
    assert all(case.says for case in ALL)


def test_every_verb_meets_bad_input() -> None:
    verbs = {case.line.split()[0] for case in ALL}
    from qlassify.cli.app import app

    assert {command.name for command in app.registered_commands} <= verbs


@pytest.mark.usefixtures("no_network", "one_thread")
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_bad_input_is_refused(
    case: BadInput, good: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    world = world_of(good, tmp_path, case)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path), listing(good.tmp)
    with ended_after(SECONDS):
        code, out, err = call(world.fill(case.line) + ([] if case.plain else ["--json"]), monkeypatch)
    check(case, world, code, out, err)
    assert (listing(tmp_path), listing(good.tmp)) == before, "something was written"
    tally("bad inputs refused", 1)


PROCESSES = [case for case in ALL if case.process]


@pytest.mark.slow
@pytest.mark.parametrize("case", PROCESSES, ids=lambda case: case.id)
def test_bad_input_is_refused_by_a_process(
    case: BadInput, good: World, tmp_path: Path, tally: Tally, full_faults: bool
) -> None:
    if not full_faults and case is not PROCESSES[0]:
        pytest.skip("one process in the short form; a start takes seconds")
    world = world_of(good, tmp_path, case)
    before = listing(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "from qlassify.cli.app import main; main()", *world.fill(case.line), "--json"],
        capture_output=True,
        text=True,
        timeout=10 * SECONDS,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    check(case, world, done.returncode, done.stdout, done.stderr)
    assert listing(tmp_path) == before
    tally("bad inputs refused by processes", 1)
