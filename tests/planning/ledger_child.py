"""Processes for tests of the memory ledger: ``python ledger_child.py ROLE LEDGER ...``.

A role that needs many processes forks them, which costs a fresh interpreter only once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ledger_worlds import GPU, make_ledger, take

from qlassify.errors import Interrupted, QlassifyError
from qlassify.planning.accounting import balance
from qlassify.planning.ledger_records import Reservation, from_json
from qlassify.planning.memory_guard import reserve
from qlassify.planning.wait_queue import acquire


def say(word: object) -> None:
    print(word, flush=True)


def forked(work: Callable[[], None]) -> int:
    """Start a process that does ``work``; its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def rounds(path: Path, budget: str) -> None:
    """For every line of input: reserve, say what came of it, and give it back at the next line."""
    ledger = make_ledger(path)
    say("ready")
    reservation = None
    for line in sys.stdin:
        if line.strip() == "take":
            reservation = take(ledger, int(budget))
            say("granted" if reservation else "refused")
        elif reservation is not None:
            ledger.release(reservation)


def hold(path: Path, budget: str, lease_seconds: str) -> None:
    """Hold a reservation, renewed by its heartbeat, until the input ends."""
    with reserve(GPU.key, int(budget), task="hold", lease_seconds=float(lease_seconds), ledger=make_ledger(path)):
        say("holding")
        sys.stdin.read()
    say("released")


def keep(path: Path, processes: str, each: str) -> None:
    """Several processes at once, each of which makes many small reservations; then all wait for the input's end."""

    def work() -> None:
        ledger = make_ledger(path)
        try:
            granted = sum(take(ledger, 1) is not None for _ in range(int(each)))
            os.write(1, f"{granted}\n".encode())
        except BaseException:
            os.write(1, b"failed\n")
        signal.pause()

    pids = [forked(work) for _ in range(int(processes))]
    sys.stdin.read()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill(path: Path, times: str) -> None:
    """Kill writers at random moments; after each, the ledger must be whole and its lock free."""
    moments = random.Random(20240229)
    ledger = make_ledger(path)

    def work() -> None:
        while True:
            reservation = take(ledger, 1000)
            assert reservation is not None
            ledger.release(reservation)

    whole = 0
    for _ in range(int(times)):
        pid = forked(work)
        time.sleep(moments.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if path.exists():
            from_json(path.read_text())
            whole += 1
        own = take(ledger, 850_000)
        assert own is not None, "a killed process still counts"
        ledger.release(own)
    say(whole)


def turns(path: Path, processes: str, budget: str) -> None:
    """Several processes wait for their turn; each notes what it saw promised while it held its own."""

    def work() -> None:
        ledger = make_ledger(path)
        request = ledger.request(GPU.key, int(budget), task="turn")
        reservation = acquire(ledger, request, wait_seconds=120.0)
        os.write(1, f"{balance(GPU, ledger.view().state.reservations, None).claimed_bytes}\n".encode())
        time.sleep(0.02)
        ledger.release(reservation)

    pids = [forked(work) for _ in range(int(processes))]
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    assert codes == [0] * len(pids), codes


def wait(path: Path, budget: str, handler: str) -> None:
    """Wait for memory until a signal comes, as a command does: an error of ours ends in its exit code."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number, "nothing was begun")

    if handler == "own":
        signal.signal(signal.SIGINT, stop)
    try:
        ledger = make_ledger(path)
        request = ledger.request(GPU.key, int(budget), task="wait")
        acquire(ledger, request, wait_seconds=300.0, on_wait=lambda _: say("waiting"))
    except QlassifyError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def fork_inside(path: Path) -> None:
    """A child that leaves its parent's block gives nothing back."""
    ledger = make_ledger(path)

    def count() -> int:
        return len(ledger.view().current.reservations)

    pid = -1
    try:
        with reserve(GPU.key, 1000, task="parent", ledger=ledger) as guard:
            pid = os.fork()
            if pid == 0:
                guard.record_usage(999)
                raise SystemExit
            assert os.waitpid(pid, 0)[1] == 0
            say(count())
            (entry,) = ledger.view().current.reservations
            assert isinstance(entry, Reservation)
            say(entry.actual_bytes)
    finally:
        if pid == 0:
            os._exit(0)
    say(count())


def fork_while_locked(path: Path) -> None:
    """A child that is forked while the lock is held, as another thread may do, and lives on."""
    ledger = make_ledger(path)
    with ledger.file.locked():
        pid = forked(signal.pause)
    try:
        say("granted" if take(ledger, 1000) else "refused")
    finally:
        os.kill(pid, signal.SIGKILL)


ROLES = {role.__name__: role for role in (rounds, hold, keep, kill, turns, wait, fork_inside, fork_while_locked)}

if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
