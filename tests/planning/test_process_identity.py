"""Whether a process is the one that was meant, and whether it lives; psutil, where it is, is asked as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlassify.planning import process_identity
from qlassify.planning.process_identity import Liveness, ProcessIdentity, liveness, own_identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its input ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def identity_of(pid: int) -> ProcessIdentity:
    """Another process of this container, seen from here."""
    start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return replace(own_identity(), pid=pid, start_ticks=start)


def test_this_process_lives() -> None:
    own = own_identity()
    assert own.pid == os.getpid()
    assert liveness(own, own) is Liveness.ALIVE


def test_the_start_is_the_systems(child: subprocess.Popen[bytes]) -> None:
    psutil = pytest.importorskip("psutil")
    boot = psutil.boot_time()
    ticks = os.sysconf("SC_CLK_TCK")
    own, other = own_identity(), identity_of(child.pid)
    for process in (own, other):
        # psutil derives the moment from the same field and the boot time, which it knows to a second or so.
        expected = psutil.Process(process.pid).create_time() - boot
        assert process.start_ticks / ticks == pytest.approx(expected, abs=2)
    assert other.start_ticks >= own.start_ticks


def test_a_dead_process_is_dead_also_before_its_parent_looks(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child.pid)
    assert liveness(identity, own_identity()) is Liveness.ALIVE
    child.kill()
    # Dead and not waited for: a zombie, whose number is still taken and which holds no memory.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert liveness(identity, own_identity()) is Liveness.DEAD
    child.wait()
    assert liveness(identity, own_identity()) is Liveness.DEAD


def test_a_number_that_was_given_again_is_another_process() -> None:
    own = own_identity()
    assert liveness(replace(own, start_ticks=own.start_ticks - 1), own) is Liveness.DEAD


def test_another_boot_is_over_and_another_namespace_is_unknown() -> None:
    own = own_identity()
    assert liveness(replace(own, boot_id="earlier"), own) is Liveness.DEAD
    assert liveness(replace(own, pid_namespace="pid:[1]"), own) is Liveness.UNKNOWN


@pytest.mark.parametrize("name", ["plain", "a b", "a) R 1 (b", ")))"])
def test_names_of_processes_do_not_confuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Field 2 holds the name as it is, brackets and spaces included."""
    fields = ["S", *(str(number) for number in range(4, 53))]
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "stat").write_text(f"77 ({name}) {' '.join(fields)}\n")
    own = own_identity()
    monkeypatch.setattr(process_identity, "_PROC", tmp_path)
    assert liveness(replace(own, pid=77, start_ticks=22), own) is Liveness.ALIVE
    assert liveness(replace(own, pid=77, start_ticks=21), own) is Liveness.DEAD


def test_a_process_that_proc_hides_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[bytes]
) -> None:
    own, other = own_identity(), identity_of(child.pid)
    monkeypatch.setattr(process_identity, "_PROC", tmp_path)
    assert liveness(other, own) is Liveness.UNKNOWN
    child.kill()
    child.wait()
    assert liveness(other, own) is Liveness.DEAD
