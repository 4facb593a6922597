"""The memory ledger between processes that really are several.

The devices are made up; files, locks, signals, deaths and the clock are the system's. Nothing is timed: where
something must wait, it waits for a word on a pipe, and the limits on how long are only there so that a failure ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_worlds import GPU, make_ledger, take

from qlassify.planning.ledger_records import LedgerState, Reservation, from_json, to_json
from qlassify.planning.process_identity import own_identity
from qlassify.planning.wait_queue import acquire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the ledger needs Linux")

CHILD = Path(__file__).with_name("ledger_child.py")
PATIENCE_SECONDS = 120


class Children:
    """Starts children and ends those that are left."""

    def __init__(self, ledger: Path, stack: ExitStack) -> None:
        self.ledger = ledger
        self._stack = stack

    def start(self, role: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(CHILD), role, str(self.ledger), *map(str, arguments)]
        pipe = subprocess.PIPE
        # A session of its own, so that what the child forks can be ended with it.
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        self._stack.callback(_end, child)
        return child

    def run(self, role: str, *arguments: object) -> list[str]:
        """Run a child to its end; its lines."""
        out, err = self.start(role, *arguments).communicate(timeout=PATIENCE_SECONDS)
        assert err == ""
        return out.split()


def _end(child: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin is not None and not child.stdin.closed:
        child.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


@pytest.fixture
def children(path: Path) -> Iterator[Children]:
    with ExitStack() as stack:
        yield Children(path, stack)


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()


def pause() -> None:
    """Leave the lock to others for a moment; who asks without a break can keep them out."""
    time.sleep(0.02)


def entries(path: Path) -> tuple[Reservation, ...]:
    return from_json(path.read_text()).reservations


def test_of_two_that_want_most_of_it_exactly_one_gets_it(children: Children) -> None:
    """VL-001, twenty times."""
    both = [children.start("rounds", 600_000) for _ in range(2)]
    assert [line(one) for one in both] == ["ready", "ready"]
    for _ in range(20):
        for one in both:
            tell(one, "take")
        assert sorted(line(one) for one in both) == ["granted", "refused"]
        for one in both:
            tell(one, "give back")
        # Giving back has no answer; asking for nothing that could be refused shows that both have read so far.
        while make_ledger(children.ledger).view().state.reservations:
            pause()


def test_no_reservation_is_lost_between_processes(children: Children, path: Path) -> None:
    """Each reads, adds one and writes. With a lock on the ledger's own inode, some would write over others."""
    child = children.start("keep", 4, 25)
    assert [line(child) for _ in range(4)] == ["25"] * 4
    assert len(entries(path)) == 100
    assert len({one.id for one in entries(path)}) == 100
    assert len({one.owner.pid for one in entries(path)}) == 4


def test_a_hundred_killed_writers_leave_it_whole(children: Children, path: Path) -> None:
    """VL-002. The child checks after each that the text is a ledger and that it can be written."""
    (whole,) = children.run("kill", 100)
    # The first may be killed before it has written; from then on the file is always there.
    assert int(whole) >= 99
    assert entries(path) == ()
    assert sorted(one.name for one in path.parent.iterdir()) == ["ledger.json", "ledger.json.lock"]


def test_a_stopped_process_loses_its_claim_after_the_lease_and_reports_back(children: Children, path: Path) -> None:
    """VL-003: a lease of one second that nobody renews ends; its owner, woken, says that it is still there."""
    child = children.start("hold", 600_000, 1.0)
    assert line(child) == "holding"
    ledger = make_ledger(path)
    child.send_signal(signal.SIGSTOP)
    mine = acquire(ledger, ledger.request(GPU.key, 600_000, task="mine"), wait_seconds=PATIENCE_SECONDS)
    assert entries(path) == (mine,)
    child.send_signal(signal.SIGCONT)
    while len(entries(path)) < 2:
        mine = ledger.renew(mine)
        pause()
    assert {one.owner.pid for one in entries(path)} == {child.pid, mine.owner.pid}
    assert take(ledger, 1) is None


def test_a_heartbeat_keeps_a_lease_that_is_shorter_than_the_work(children: Children, path: Path) -> None:
    child = children.start("hold", 600_000, 1.0)
    assert line(child) == "holding"
    (first,) = entries(path)
    while entries(path)[0].lease_until < first.lease_until + 1.5:
        assert take(make_ledger(path), 600_000) is None
        pause()
    out, _ = child.communicate(timeout=PATIENCE_SECONDS)
    assert out.strip() == "released"
    assert entries(path) == ()


def test_what_a_dead_process_held_is_free(children: Children, path: Path) -> None:
    """VL-004: killed, so it could not give anything back; the lease of an hour does not matter."""
    child = children.start("hold", 600_000, 3600.0)
    assert line(child) == "holding"
    ledger = make_ledger(path)
    assert take(ledger, 600_000) is None
    child.kill()
    child.wait()
    assert [one.owner.pid for one in entries(path)] == [child.pid]
    mine = take(ledger, 600_000)
    assert entries(path) == (mine,)


def test_a_number_that_another_process_has_now_does_not_keep_it(children: Children, path: Path) -> None:
    """VL-004 with the dead process's number in use again: by this very process, which is alive."""
    ledger = make_ledger(path)
    mine = take(ledger, 600_000, lease_seconds=3600.0)
    assert mine is not None
    own = own_identity()
    stale = replace(mine, owner=replace(own, start_ticks=own.start_ticks - 100))
    path.write_text(to_json(LedgerState(own.boot_id, (stale,))))
    assert take(ledger, 600_000) is not None
    # The counter-proof: with its own start, the same record holds.
    path.write_text(to_json(LedgerState(own.boot_id, (mine,))))
    assert take(ledger, 600_000) is None


def test_ten_processes_all_get_their_turn_within_the_capacity(children: Children, path: Path) -> None:
    """VL-006: three fit at once."""
    seen = [int(word) for word in children.run("turns", 10, 280_000)]
    assert len(seen) == 10
    assert all(280_000 <= claimed <= GPU.capacity_bytes for claimed in seen)
    state = from_json(path.read_text())
    assert (state.reservations, state.waiting) == ((), ())


@pytest.mark.parametrize(("handler", "code"), [("own", 130), ("python's", -signal.SIGINT)])
def test_an_interrupt_ends_the_waiting(children: Children, path: Path, handler: str, code: int) -> None:
    """WQ-006. With Python's own handler the process ends by the signal, which a shell shows as 130 too."""
    assert take(make_ledger(path), 850_000) is not None
    child = children.start("wait", 400_000, handler)
    assert line(child) == "waiting"
    assert len(from_json(path.read_text()).waiting) == 1
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=PATIENCE_SECONDS)
    assert child.returncode == code
    assert from_json(path.read_text()).waiting == ()


def test_a_waiting_process_that_dies_stands_in_nobodys_way(children: Children, path: Path) -> None:
    ledger = make_ledger(path)
    mine = take(ledger, 600_000)
    assert mine is not None
    child = children.start("wait", 850_000, "own")
    assert line(child) == "waiting"
    assert take(ledger, 100_000) is None
    child.kill()
    child.wait()
    assert take(ledger, 100_000) is not None


def test_a_forked_child_gives_nothing_back(children: Children) -> None:
    assert children.run("fork_inside") == ["1", "None", "0"]


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(children: Children) -> None:
    """Its copy of the descriptor would hold a lock that its parent only closed."""
    assert children.run("fork_while_locked") == ["granted"]
