"""The real command in a process of its own, under limits, and small disks to fill."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import qlassify
from tiny_jobs import job_settings, make_rows, save_tiny_base, write_table

MAIN = "from qlassify.cli.app import main; main()"
SECONDS = 300
"""After which a command counts as hanging; it takes five on an idle core."""


@dataclass(frozen=True)
class Ended:
    """What a command in a process of its own came to; a code below zero is the signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """What the command itself said on standard error."""
        return [line for line in self.err.splitlines() if line.startswith("qlassify: ")]


def run_command(
    *arguments: object,
    limits: Mapping[int, int] | None = None,
    stdout: str | None = None,
    stderr: str | None = None,
    before: str = "",
) -> Ended:
    """Start ``qlassify`` with arguments and wait for its end.

    Args:
        arguments: of the command.
        limits: ``resource.RLIMIT_...`` -> limit, set before the interpreter starts.
        stdout: a file that standard output goes to; read back when None.
        stderr: the same for standard error.
        before: Python that runs in the process before the command.
    """

    def restrict() -> None:
        for kind, limit in (limits or {}).items():
            resource.setrlimit(kind, (limit, limit))

    source = str(Path(qlassify.__file__).parents[1])
    # One thread and one arena: what threads reserve is no matter of these tests.
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with contextlib.ExitStack() as stack:
        output, errors = (
            subprocess.PIPE if path is None else stack.enter_context(Path(path).open("wb")) for path in (stdout, stderr)
        )
        done = subprocess.run(
            [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)],
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=restrict,
            timeout=SECONDS,
            check=False,
        )
    return Ended(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


@dataclass(frozen=True)
class World:
    """A base model, rows, and the settings of a run of a second.

    Attributes:
        settings: for ``job.train``.
        file: the same, for ``--config``.
        data: the training rows.
    """

    settings: dict[str, object]
    file: Path
    data: Path


def make_world(folder: Path) -> World:
    """Write everything that a tiny run is made of."""
    base = save_tiny_base(folder / "base")
    data = write_table(folder / "train.csv", ("text", "label"), make_rows(120, seed=2))
    settings = job_settings(base, data, epochs=2, checkpoint_every_steps=4, log_interval=1)
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    return World(settings, file, data)


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Callable[..., None]]:
    """A file system of ``size_bytes`` in memory at ``folder``; skips where none may be mounted.

    Yields:
        Mounts it again with other options (``remount("ro")``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "qlassify-test", folder)
    if made.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {made.stderr.decode().strip()}")

    def remount(options: str) -> None:
        again = _mount("-o", f"remount,{options}", folder)
        assert again.returncode == 0, again.stderr.decode()

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")


def fill(folder: Path) -> Path:
    """Take all the room that is left on a small disk; removing the file gives it back."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
