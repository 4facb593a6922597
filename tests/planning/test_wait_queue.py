"""Waiting for memory, on a clock that moves only while something sleeps. Nothing here waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledger_worlds import GPU, FakeClock, FakeDevices, make_ledger, take

from qlassify.errors import MemoryPlanError
from qlassify.planning.ledger import Ledger
from qlassify.planning.ledger_records import from_json
from qlassify.planning.memory_request import Refusal
from qlassify.planning.wait_queue import FIRST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS, acquire


class Counting(FakeDevices):
    """Devices that count questions by letting the ledger always agree: strangers hold everything."""

    def __init__(self) -> None:
        super().__init__({GPU.key: 0})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


def wait(ledger: Ledger, clock: FakeClock, seconds: float, **options: object) -> object:
    request = ledger.request(GPU.key, 400_000, task="waits")
    return acquire(ledger, request, wait_seconds=seconds, sleep=clock.sleep, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.01, 0.05, 5.0, 61.3])
def test_it_returns_when_the_time_is_up(path: Path, clock: FakeClock, seconds: float) -> None:
    ledger = make_ledger(path, clock=clock, devices=Counting())
    with pytest.raises(MemoryPlanError, match=rf"after waiting {seconds:.0f} s") as caught:
        wait(ledger, clock, seconds)
    assert caught.value.exit_code == 4
    # The contract allows one interval more; the last pause is cut to what is left. Sums of decimals round.
    assert clock.now - 1000.0 == pytest.approx(seconds, abs=1e-9)
    assert from_json(path.read_text()).waiting == ()


def test_it_does_not_ask_all_the_time(path: Path, clock: FakeClock) -> None:
    devices = Counting()
    with pytest.raises(MemoryPlanError):
        wait(make_ledger(path, clock=clock, devices=devices), clock, 100.0)
    # 0.05, 0.1, 0.2, 0.4, 0.8 s, then 1 s each: 5 pauses of 1.55 s in all, and 99 for the rest.
    assert clock.slept[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert len(clock.slept) == 104
    assert devices.asked == 105
    assert min(clock.slept[:-1]) >= FIRST_INTERVAL_SECONDS
    assert max(clock.slept) <= LONGEST_INTERVAL_SECONDS


def test_it_gets_what_becomes_free(path: Path, clock: FakeClock) -> None:
    ledger = make_ledger(path, clock=clock)
    assert take(ledger, 600_000, lease_seconds=7.0) is not None
    told: list[Refusal] = []
    reservation = wait(ledger, clock, 60.0, on_wait=told.append)
    state = from_json(path.read_text())
    assert state.reservations == (reservation,)
    assert state.waiting == ()
    assert len(told) == 1
    assert 7.0 <= clock.now - 1000.0 <= 7.0 + LONGEST_INTERVAL_SECONDS


def test_without_waiting_it_asks_once(path: Path, clock: FakeClock) -> None:
    devices = Counting()
    with pytest.raises(MemoryPlanError) as caught:
        wait(make_ledger(path, clock=clock, devices=devices), clock, 0.0)
    assert (devices.asked, clock.slept) == (1, [])
    assert "waiting" not in caught.value.what


def test_a_device_that_is_too_small_is_not_waited_for(path: Path, clock: FakeClock) -> None:
    ledger = make_ledger(path, clock=clock)
    request = ledger.request(GPU.key, 850_001, task="too large")
    with pytest.raises(MemoryPlanError, match="smaller model"):
        acquire(ledger, request, wait_seconds=60.0, sleep=clock.sleep)
    assert clock.slept == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_whatever_ends_the_waiting_gives_up_the_place(path: Path, clock: FakeClock, kind: type[BaseException]) -> None:
    ledger = make_ledger(path, clock=clock, devices=Counting())
    request = ledger.request(GPU.key, 1, task="waits")

    def interrupted(_: float) -> None:
        assert len(from_json(path.read_text()).waiting) == 1
        raise kind

    with pytest.raises(kind):
        acquire(ledger, request, wait_seconds=60.0, sleep=interrupted)
    assert from_json(path.read_text()).waiting == ()
