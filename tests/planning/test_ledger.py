"""Reserving, renewing and giving back, on made-up devices and a clock that a test moves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_worlds import GPU, OTHER_GPU, TOTAL, FakeClock, FakeDevices, make_ledger, take

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning import ledger_location
from qlassify.planning.ledger_file import CLOSED_SECONDS
from qlassify.planning.ledger_location import ledger_path, off_reason
from qlassify.planning.ledger_records import LedgerState, from_json
from qlassify.planning.memory_request import Refusal
from qlassify.planning.process_identity import boot_id


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


def stored(path: Path) -> LedgerState:
    return from_json(path.read_text())


@pytest.mark.parametrize(("share", "granted"), [(0.60, True), (0.85, True), (0.8501, False), (0.90, False)])
def test_the_capacity_is_85_percent(path: Path, share: float, granted: bool) -> None:
    assert (take(make_ledger(path), int(share * TOTAL)) is not None) == granted


def test_what_is_reserved_is_not_promised_again(path: Path) -> None:
    ledger = make_ledger(path)
    first = take(ledger, 600_000)
    assert first is not None
    assert take(ledger, 250_001) is None
    assert take(ledger, 250_000) is not None
    assert take(ledger, 850_000, OTHER_GPU) is not None
    ledger.release(first)
    assert take(ledger, 600_000) is not None


def test_giving_back_twice_takes_nothing_from_others(path: Path) -> None:
    ledger = make_ledger(path)
    first = take(ledger, 100)
    assert first is not None
    ledger.release(first)
    other = take(ledger, 100)
    assert other is not None
    ledger.release(first)
    assert stored(path).reservations == (other,)


def test_memory_of_strangers_is_not_promised(path: Path) -> None:
    devices = FakeDevices({GPU.key: 300_000})
    ledger = make_ledger(path, devices=devices)
    assert take(ledger, 300_001) is None
    assert take(ledger, 300_000) is not None
    assert take(ledger, 1) is None


def test_the_driver_is_asked_only_if_the_ledger_agrees(path: Path) -> None:
    devices = FakeDevices()
    ledger = make_ledger(path, devices=devices)
    assert take(ledger, 850_000) is not None
    assert devices.asked == 1
    assert take(ledger, 1) is None
    assert devices.asked == 1


def test_a_lease_ends(path: Path) -> None:
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    assert take(ledger, 800_000, lease_seconds=1.0) is not None
    clock.now += 0.999
    assert take(ledger, 800_000) is None
    clock.now += 0.001
    assert take(ledger, 800_000) is not None
    assert len(stored(path).reservations) == 1


def test_renewing_keeps_it_and_changes_what_is_recorded(path: Path) -> None:
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    first = take(ledger, 600_000, lease_seconds=10.0)
    assert first is not None
    for _ in range(5):
        clock.now += 9
        first = ledger.renew(replace(first, actual_bytes=700_000))
    assert stored(path).reservations == (first,)
    assert first.lease_until == clock.now + 10
    assert take(ledger, 150_001) is None
    assert take(ledger, 150_000) is not None


def test_a_reservation_that_lapsed_is_entered_again_though_the_memory_was_promised(path: Path) -> None:
    """Its memory is in use. A ledger beyond its capacity is true; one without the entry would promise more."""
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    first = take(ledger, 600_000, lease_seconds=1.0)
    assert first is not None
    clock.now += 5
    second = take(ledger, 600_000)
    assert second is not None
    first = ledger.renew(first)
    assert stored(path).reservations == (second, first)
    assert take(ledger, 1) is None


def test_after_damage_nothing_is_promised_until_owners_are_back(path: Path) -> None:
    clock, told = FakeClock(), []
    ledger = make_ledger(path, clock=clock, told=told)
    first = take(ledger, 600_000, lease_seconds=1000.0)
    assert first is not None
    path.write_text("{")
    request = ledger.request(GPU.key, 600_000, task="second")
    refusal = ledger.try_reserve(request)
    assert isinstance(refusal, Refusal)
    assert "the ledger was damaged" in str(refusal.error())
    assert len(told) == 1
    clock.now += CLOSED_SECONDS - 1
    first = ledger.renew(first)
    assert take(ledger, 1) is None
    clock.now += 2
    # Open again, and as full as it was.
    assert take(ledger, 600_000) is None
    assert take(ledger, 250_000) is not None


def test_a_refusal_says_who_has_it_and_what_to_do(path: Path) -> None:
    ledger = make_ledger(path)
    assert isinstance(ledger.try_reserve(ledger.request(GPU.key, 600_000, task="train first.csv")), object)
    refusal = ledger.try_reserve(ledger.request(GPU.key, 400_000, task="train second.csv"))
    assert isinstance(refusal, Refusal)
    error = refusal.error(waited_seconds=12.0)
    assert isinstance(error, MemoryPlanError)
    assert error.exit_code == 4
    assert error.where == GPU.key
    assert "train second.csv" in error.what
    assert "12 s" in error.what
    for part in ("250.0 kB available of 1.0 MB", "850.0 kB may be promised", "600.0 kB reserved for train first.csv"):
        assert part in str(error)
    assert f"process {os.getpid()}" in str(error)
    assert "qlassify ledger" in str(error)
    assert not refusal.is_final


def test_whoever_waits_goes_first(path: Path) -> None:
    ledger = make_ledger(path)
    first = take(ledger, 600_000)
    assert first is not None
    large = ledger.request(GPU.key, 700_000, task="large")
    small = ledger.request(GPU.key, 200_000, task="small")
    assert isinstance(ledger.try_reserve(large, ticket_id="large"), Refusal)
    refusal = ledger.try_reserve(small, ticket_id="small")
    assert isinstance(refusal, Refusal)
    assert "in front waits large" in str(refusal.error())
    assert take(ledger, 200_000) is None
    # Another device's queue is another queue.
    assert take(ledger, 200_000, OTHER_GPU) is not None
    ledger.release(first)
    assert isinstance(ledger.try_reserve(small, ticket_id="small"), Refusal), "large and small do not fit together"
    assert not isinstance(ledger.try_reserve(large, ticket_id="large"), Refusal)
    assert [one.id for one in stored(path).waiting] == ["small"]
    ledger.withdraw("small")
    assert stored(path).waiting == ()


def test_a_ticket_lapses_unless_its_owner_asks(path: Path) -> None:
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    assert take(ledger, 850_000, lease_seconds=1e6) is not None
    request = ledger.request(GPU.key, 1, task="waits")
    for _ in range(100):
        ledger.try_reserve(request, ticket_id="asks")
        clock.now += 1
    assert [one.id for one in stored(path).waiting] == ["asks"]
    clock.now += 31
    assert ledger.view().current.waiting == ()


def test_what_cannot_be_asked_for(path: Path) -> None:
    ledger = make_ledger(path)
    for budget, lease in ((0, 1.0), (-5, 1.0), (5, 0.0)):
        with pytest.raises(ConfigError):
            ledger.request(GPU.key, budget, task="test", lease_seconds=lease)
    with pytest.raises(ConfigError):
        ledger.request("cuda:9", 1, task="test")
    assert not path.exists()


def test_looking_changes_nothing_and_pruning_removes_what_ended(path: Path) -> None:
    clock = FakeClock()
    ledger = make_ledger(path, clock=clock)
    assert ledger.view().state == LedgerState(boot_id())
    assert list(path.parent.iterdir()) == []
    take(ledger, 100, lease_seconds=1.0)
    kept = take(ledger, 200)
    clock.now += 2
    before = path.read_text()
    view = ledger.view()
    assert (len(view.state.reservations), view.current.reservations) == (2, (kept,))
    assert path.read_text() == before
    assert ledger.prune() == view
    assert stored(path).reservations == (kept,)


def test_where_the_ledger_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = f"qlassify/ledger-{boot_id()}.json"
    assert ledger_path({}) == tmp_path / ".cache" / name
    assert ledger_path({"XDG_CACHE_HOME": "/c"}) == Path("/c") / name
    assert ledger_path({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / name
    assert ledger_path({"QLASSIFY_LEDGER": "~/mine.json", "XDG_CACHE_HOME": "/c"}) == tmp_path / "mine.json"
    assert ledger_path({"QLASSIFY_LEDGER": "here.json"}) == Path.cwd() / "here.json"


def test_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert off_reason({}) is None
    assert off_reason({"QLASSIFY_LEDGER": "/l.json"}) is None
    for word in ("off", "OFF", "0"):
        assert f"QLASSIFY_LEDGER={word}" in (off_reason({"QLASSIFY_LEDGER": word}) or "")
    monkeypatch.setattr(ledger_location, "find_spec", lambda _: None)
    assert "needs Linux" in (off_reason({}) or "")
    monkeypatch.undo()
    monkeypatch.setattr(ledger_location.process_identity, "has_proc", lambda: False)
    assert "needs Linux" in (off_reason({}) or "")
