"""One process at a time writes into a run folder.

The lock is an advisory one (``flock``) on ``.lock`` in the folder, held for as long as the process works there. The
system lets go of it when the process ends, however it ends, so that a killed run can be resumed at once; a file whose
mere existence is the lock would have to be judged and removed by whoever comes next, and the number of a process that
is gone may be another's by then. The number stands in the file for messages alone.

The file is held open for reading only, since one that is open for writing keeps a failing disk from being made
read-only; NFS wants it for writing and gets it so. It is removed at the end, by its owner and before the lock is let
go. Whoever opened it meanwhile finds that the name no longer leads to what was locked, and begins again.

To ask whether a folder is free (``require_free``) is to hold its lock for a moment, since the system has no other
question; so whoever wants it for itself tries for a few hundred milliseconds before it believes that it is taken.

Readers (predict, evaluate, compare, export) take no lock: what they read is written whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qlassify.durable import WRITING
from qlassify.errors import ConfigError

LOCK = ".lock"
"""File of the run folder that is locked, with its owner's process number."""


PATIENCE_SECONDS = 0.3
"""For how long a lock that somebody holds is tried again."""
PAUSE_SECONDS = 0.01
"""Between two tries."""


@contextmanager
def own_run(path: Path) -> Iterator[None]:
    """Keep every other process from writing into a run folder, which must be there.

    Raises:
        ConfigError: another process works there, by its number; or the lock cannot be made.
    """
    import fcntl

    lock = path / LOCK
    descriptor = _locked(lock, path)
    try:
        with suppress(OSError):  # on a full disk it is a lock all the same
            lock.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        # Said, not left to the closing: a child that was forked meanwhile has the descriptor as well.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def require_free(path: Path) -> None:
    """Refuse a folder in which another process is working; writes nothing.

    Raises:
        ConfigError: one is, by its number.
    """
    import fcntl

    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path, descriptor) from None
    except OSError:
        return
    finally:
        os.close(descriptor)


def clear_leavings(path: Path) -> None:
    """Remove what a killed process left in a run folder beside whole files; the lock must be held.

    Files and folders that were being written (``.*.tmp``, ``.qlassify-writing``) and checkpoints of which only a part
    is left.
    """
    checkpoints = path / "checkpoints"
    for folder in (path, checkpoints, path / "model", path / "evaluation"):
        for left in folder.glob(".*"):
            if left.name.endswith(".tmp") or left.name == WRITING or left.name.startswith(".rehearsal-"):
                _remove(left)
    for left in checkpoints.glob("step-*"):
        if not (left / "state.json").is_file():
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _locked(lock: Path, path: Path) -> int:
    """A descriptor of the lock's file with the lock held."""
    import fcntl

    deadline, access = time.monotonic() + PATIENCE_SECONDS, os.O_RDONLY
    while True:
        try:
            descriptor = os.open(lock, access | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                taken = _taken(path, descriptor)
                os.close(descriptor)
                raise taken from None
            time.sleep(PAUSE_SECONDS)
        except FileNotFoundError:
            pass  # its owner has removed it since
        except OSError as failure:
            if failure.errno != errno.EBADF or access == os.O_RDWR:
                os.close(descriptor)
                raise _unusable(path, failure) from None
            access = os.O_RDWR
        os.close(descriptor)


def _taken(path: Path, descriptor: int) -> ConfigError:
    number = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return ConfigError(
        "another process is working in this folder",
        where=path,
        got=f"process {number or 'that has not written its number yet'}",
        do="Wait until it has ended or stop it, or choose another folder.",
    )


def _unusable(path: Path, error: object) -> ConfigError:
    return ConfigError(
        "cannot lock the run folder",
        where=path,
        got=error,
        do="Use a folder that you can write, on a file system that has locks (flock).",
    )
