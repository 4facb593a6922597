"""The block of code that holds a reservation."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ledger_worlds import GPU, FakeClock, make_ledger, take

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning.ledger_records import Reservation, from_json
from qlassify.planning.memory_guard import reserve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


def entries(path: Path) -> tuple[Reservation, ...]:
    return from_json(path.read_text()).reservations


def test_it_is_there_inside_and_gone_afterwards(path: Path) -> None:
    with reserve(GPU.key, 600_000, task="train a.csv", ledger=make_ledger(path)) as guard:
        assert entries(path) == (guard.reservation,)
        assert (entries(path)[0].task, entries(path)[0].owner.pid) == ("train a.csv", os.getpid())
        assert guard.off is None
    assert entries(path) == ()


def test_it_is_gone_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), reserve(GPU.key, 1, task="fails", ledger=make_ledger(path)):
        raise ZeroDivisionError
    assert entries(path) == ()


def test_what_does_not_fit_does_not_begin(path: Path) -> None:
    ledger = make_ledger(path)
    with (
        reserve(GPU.key, 600_000, task="first", ledger=ledger),
        pytest.raises(MemoryPlanError, match="reserved for first"),
        reserve(GPU.key, 600_000, task="second", ledger=ledger),
    ):
        raise AssertionError("the block must not run")


def test_use_is_recorded_and_an_overshoot_is_said_once(path: Path) -> None:
    told: list[str] = []
    ledger = make_ledger(path)
    with reserve(GPU.key, 100_000, task="train a.csv", ledger=ledger, tell=told.append) as guard:
        assert guard.overshoot is None
        guard.record_usage(50_000)
        assert entries(path)[0].actual_bytes == 50_000
        guard.record_usage(120_000)
        assert guard.overshoot == 1.2
        assert told == []
        guard.record_usage(120_001)
        guard.record_usage(150_000)
        assert len(told) == 1
        assert "train a.csv holds 120.0 kB" in told[0]
        assert "120 % of the 100.0 kB" in told[0]
        # What is in use counts from now on, not the plan.
        assert take(ledger, 700_001) is None
        assert take(ledger, 700_000) is not None


def test_a_budget_can_be_lowered_and_not_raised(path: Path) -> None:
    ledger = make_ledger(path)
    with reserve(GPU.key, 800_000, task="test", ledger=ledger) as guard:
        assert take(ledger, 100_000) is None
        guard.lower_budget(300_000)
        assert take(ledger, 550_000) is not None
        for size in (300_001, 0):
            with pytest.raises(ConfigError, match="only be lowered"):
                guard.lower_budget(size)
        assert entries(path)[0].budget_bytes == 300_000


def test_the_heartbeat_measures_and_renews(path: Path) -> None:
    """The measure is called by the heartbeat alone; the second call comes after the first was recorded."""
    calls, twice = [], threading.Event()

    def measure() -> int:
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            twice.set()
        return 77

    with reserve(GPU.key, 1000, task="test", lease_seconds=0.2, measure=measure, ledger=make_ledger(path)) as guard:
        first = guard.reservation
        assert first is not None
        assert twice.wait(60)
        (entry,) = entries(path)
        assert entry.actual_bytes == 77
        assert entry.lease_until > first.lease_until
        assert entry.taken_at == first.taken_at
    assert set(calls) == {"qlassify-memory-heartbeat"}
    assert not any(one.name == "qlassify-memory-heartbeat" for one in threading.enumerate())


def test_a_heartbeat_that_fails_is_said_once_and_ends_nothing(path: Path) -> None:
    told: list[str] = []
    beats, enough = [], threading.Event()

    def measure() -> int | None:
        beats.append(1)
        if len(beats) == 3:
            enough.set()
        return None

    ledger = make_ledger(path)
    with reserve(
        GPU.key, 1000, task="test", lease_seconds=0.2, measure=measure, ledger=ledger, tell=told.append
    ) as guard:
        path.unlink()
        path.mkdir()
        assert enough.wait(60)
        path.rmdir()
        guard.renew()
        assert entries(path) == (guard.reservation,)
    assert len([sentence for sentence in told if "could not be renewed" in sentence]) == 1


def test_a_release_that_fails_does_not_hide_what_happened_inside(path: Path) -> None:
    told: list[str] = []

    def damage() -> None:
        path.unlink()
        path.mkdir()
        raise ZeroDivisionError

    block = reserve(GPU.key, 1000, task="test", ledger=make_ledger(path), tell=told.append)
    with pytest.raises(ZeroDivisionError), block:
        damage()
    assert len(told) == 1
    assert "could not be given back" in told[0]


def test_after_release_nothing_is_entered_again(path: Path) -> None:
    with reserve(GPU.key, 1000, task="test", ledger=make_ledger(path)) as guard:
        guard.release()
        guard.renew()
        guard.record_usage(5)
        assert entries(path) == ()


def test_where_the_ledger_is_off_the_block_runs_and_the_reason_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLASSIFY_LEDGER", "off")
    with reserve("cuda:99", 10**18, task="test") as guard:
        assert "QLASSIFY_LEDGER=off" in (guard.off or "")
        guard.record_usage(10**19)
        guard.lower_budget(5)
        guard.renew()
        assert (guard.reservation, guard.overshoot) == (None, None)
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the ledger needs Linux")
def test_the_machines_own_ledger_is_the_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of the host's memory, by the system's own figures."""
    monkeypatch.setenv("QLASSIFY_LEDGER", str(path))
    with reserve("host", 1, task="test"):
        assert [one.device for one in entries(path)] == ["host"]
    assert entries(path) == ()


def test_waiting_is_passed_on(path: Path) -> None:
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    with (
        reserve(GPU.key, 850_000, task="first", ledger=ledger),
        pytest.raises(MemoryPlanError, match="after waiting"),
        reserve(
            GPU.key, 1, task="second", ledger=ledger, wait_seconds=3, on_wait=lambda _: setattr(clock, "now", 1050.0)
        ),
    ):
        raise AssertionError("the block must not run")


def test_without_file_locks_everything_can_be_imported_and_nothing_is_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a system other than Linux: a fresh interpreter in which there is no ``fcntl``."""
    monkeypatch.delenv("QLASSIFY_LEDGER", raising=False)
    script = (
        "import sys\n"
        "sys.modules['fcntl'] = None\n"
        "from qlassify.planning.memory_guard import reserve\n"
        "with reserve('cuda', 10**15, task='test') as guard:\n"
        "    print(guard.off)\n"
        "sys.argv = ['qlassify', 'ledger']\n"
        "from qlassify.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines()
        == ["The memory ledger is off: it needs Linux (/proc and file locks). Nothing is reserved."] * 2
    )
