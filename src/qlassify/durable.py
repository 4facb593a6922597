"""Files and folders that a process which dies leaves whole or not there.

Three cases, from the smallest:

    one file                     written beside its place, flushed, renamed            ``write_text``, ``whole_file``
    a folder that is new         written beside its place, flushed, renamed;           ``whole_folder``
                                 into a mount point as the last case
    several files of a folder    written into ``.qlassify-writing``, flushed,          ``replace_files``
    that belong together         renamed to ``.qlassify-new``, then moved to their
                                 places one by one

The last is a log of what is to be done, as databases keep it. The rename to ``.qlassify-new`` decides: before it the
old files hold, after it the new ones, wherever each of them lies by then. Whoever comes next carries out what was
decided (``finish_replacement``), as often as need be and several at once, since moving a file that has been moved does
nothing. The names are ones that nobody else gives: a folder that is carried out is written over its neighbours.
Swapping whole folders was the alternative: two renames, between which there is no folder at all, and whatever else
somebody keeps in it would be lost. Exchanging them in one call exists on Linux alone and not on every file system.

A flush (fsync) is for power cuts. A killed process alone loses nothing that it has written.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".qlassify-writing"
"""Folder in which ``replace_files`` writes; nothing in it counts."""
DECIDED = ".qlassify-new"
"""Folder with files that hold in place of those of the same names beside it."""


def flush(path: Path) -> None:
    """fsync a file or a folder.

    Raises:
        OSError: the system could not write it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """fsync everything in a folder, and the folder."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; it becomes ``path`` at the end, unless there was an error.

    The folder is made if need be.

    Raises:
        OSError: it cannot be written; a former file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        yield scratch
        flush(scratch)
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say which file it was full for
        raise
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of ``target`` at the end, or is gone if anything was wrong.

    ``target`` must not be there, or be an empty folder, or lead to either as a link does; what a link leads to is
    replaced, not the link. The folder is written beside ``target``. An empty folder that cannot be replaced (a mount
    point, a folder within one that may not be written) is found out at the beginning by replacing it, and written into
    (``replace_files``).

    What killed processes have left beside it is removed: a process holds a lock on its scratch folder for as long as it
    lives.

    Raises:
        OSError: it cannot be written, or something is there.
    """
    target = Path(os.path.realpath(target))
    if not is_free(target):
        number = errno.ENOTEMPTY if target.is_dir() else errno.EEXIST
        raise OSError(number, os.strerror(number), str(target))
    if target.is_dir() and not _gives_way(target):
        with replace_files(target) as inside:
            yield inside
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp\Z")
    for left in target.parent.iterdir():
        if ours.match(left.name) and left.is_dir():
            with _locked(left, wait=False) as mine:
                if mine:
                    shutil.rmtree(left, ignore_errors=True)
    scratch = _beside(target)
    scratch.mkdir()  # not tempfile's, whose folders are private
    try:
        with _locked(scratch, wait=False):
            yield scratch
            flush_tree(scratch)
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    flush(target.parent)


def require_place(target: Path) -> None:
    """Refuse a ``target`` that ``whole_folder`` could not write, before the work that is to be written; leaves nothing.

    Raises:
        OSError: no folder can be made there.
    """
    target = Path(os.path.realpath(target))
    if target.is_dir() and not _gives_way(target):
        trial = target / WRITING
        trial.mkdir(exist_ok=True)
    else:
        there = next(one for one in target.parents if one.exists())
        trial = _beside(there / target.name)
        trial.mkdir()
    trial.rmdir()


def is_free(target: Path) -> bool:
    """Whether ``whole_folder`` may take this place: nothing is there, or a folder with nothing that counts in it.

    Raises:
        OSError: the folder cannot be looked into.
    """
    return not target.exists() or (target.is_dir() and all(one.name == WRITING for one in target.iterdir()))


def _gives_way(target: Path) -> bool:
    """Whether an empty folder can be replaced, by replacing it with another one."""
    trial = _beside(target)
    try:
        trial.mkdir()
        os.replace(trial, target)
    except OSError:
        with suppress(OSError):
            trial.rmdir()
        return False
    return True


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def replace_files(folder: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files take their places in ``folder``, all of them or none.

    ``folder`` is made if need be; files of other names in it stay. Two processes come one after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, wait=True):
        finish_replacement(folder)
        scratch = folder / WRITING
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            flush_tree(scratch)
            scratch.rename(folder / DECIDED)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        flush(folder)
        finish_replacement(folder)


def finish_replacement(folder: Path) -> None:
    """Move files whose replacement was decided to their places; nothing where there are none.

    Raises:
        OSError: a file cannot be moved.
    """
    decided = folder / DECIDED
    try:
        names = os.listdir(decided)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(names):
        with suppress(FileNotFoundError):  # another process has moved it
            os.replace(decided / name, folder / name)
    flush(folder)
    with suppress(OSError):
        decided.rmdir()


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder; False where another process has it. File systems without locks give True."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError:
            yield True
        else:
            yield True
    finally:
        os.close(descriptor)
