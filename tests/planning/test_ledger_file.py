"""The ledger's file: the lock, the mode, what is left of killed writers, and damage."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from ledger_worlds import FakeClock, make_reservation

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning.ledger_file import CLOSED_SECONDS, LedgerFile
from qlassify.planning.ledger_records import LedgerState


def make_file(path: Path, told: list[str] | None = None, lock_timeout_seconds: float = 30.0) -> LedgerFile:
    told = [] if told is None else told
    return LedgerFile(path, "boot", clock=FakeClock(), tell=told.append, lock_timeout_seconds=lock_timeout_seconds)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = make_file(tmp_path / "deep" / "ledger.json")
    state = LedgerState("boot", (make_reservation(5),))
    with file.locked():
        assert file.read() == LedgerState("boot")
        file.write(state)
        assert file.read() == state


def test_the_lock_is_on_a_file_that_stays(tmp_path: Path) -> None:
    """A lock on the ledger itself would be on another inode after each write."""
    file = make_file(tmp_path / "ledger.json")
    inodes, locks = set(), set()
    for number in (1, 2, 3):
        with file.locked():
            file.write(LedgerState("boot", (make_reservation(number),)))
            # Held until the end, so that the number of a replaced file is not given to the next.
            os.link(tmp_path / "ledger.json", tmp_path / f"held-{number}")
            inodes.add((tmp_path / "ledger.json").stat().st_ino)
            locks.add((tmp_path / "ledger.json.lock").stat().st_ino)
    assert len(inodes) == 3
    assert len(locks) == 1


def test_a_lock_that_nobody_gives_back_ends_in_a_sentence(tmp_path: Path) -> None:
    file = make_file(tmp_path / "ledger.json", lock_timeout_seconds=0.0)
    with (tmp_path / "ledger.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MemoryPlanError, match="has held the memory ledger's lock"), file.locked():
            pass
    with file.locked():
        pass


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_are_the_umasks(tmp_path: Path, mask: int, mode: int) -> None:
    file = make_file(tmp_path / "ledger.json")
    before = os.umask(mask)
    try:
        with file.locked():
            file.write(LedgerState("boot"))
    finally:
        os.umask(before)
    for path in (tmp_path / "ledger.json", tmp_path / "ledger.json.lock"):
        assert path.stat().st_mode & 0o777 == mode


def test_what_a_killed_writer_left_is_swept_up_and_strangers_files_are_not(tmp_path: Path) -> None:
    file = make_file(tmp_path / "ledger.json")
    (tmp_path / ".ledger.json.0123456789abcdef.tmp").write_text('{"vers')
    (tmp_path / ".other.json.0123456789abcdef.tmp").write_text("mine")
    with file.locked():
        file.write(LedgerState("boot"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "ledger.json",
        "ledger.json.lock",
        ".other.json.0123456789abcdef.tmp",
    }


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 1}'])
def test_a_damaged_ledger_is_put_aside_said_and_its_successor_stays_closed(tmp_path: Path, content: bytes) -> None:
    told: list[str] = []
    file = make_file(tmp_path / "ledger.json", told)
    (tmp_path / "ledger.json.damaged-1").write_text("an earlier one")
    (tmp_path / "ledger.json").write_bytes(content)
    with file.locked():
        state = file.read()
        assert state == LedgerState("boot", closed_until=1000.0 + CLOSED_SECONDS)
        # The successor is on disk, so the next process does not start from nothing.
        assert file.read() == state
    assert (tmp_path / "ledger.json.damaged-2").read_bytes() == content
    assert (tmp_path / "ledger.json.damaged-1").read_text() == "an earlier one"
    assert len(told) == 1
    assert "ledger.json.damaged-2" in told[0]


def test_a_newer_ledger_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('{"version": 2}')
    file = make_file(tmp_path / "ledger.json")
    with file.locked(), pytest.raises(ConfigError, match="newer version"):
        file.read()
    assert (tmp_path / "ledger.json").read_text() == '{"version": 2}'


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    file = make_file(tmp_path / "file" / "ledger.json")
    with pytest.raises(ConfigError, match="QLASSIFY_LEDGER"), file.locked():
        pass
    (tmp_path / "folder.json").mkdir()
    file = make_file(tmp_path / "folder.json")
    with file.locked(), pytest.raises(ConfigError, match="QLASSIFY_LEDGER"):
        file.read()
