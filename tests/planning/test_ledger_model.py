"""The ledger against a model that knows no files: a dictionary of promises and a clock."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_worlds import GPU, TOTAL, FakeClock, FakeDevices, make_ledger

from qlassify.planning.ledger_records import Reservation, from_json


@dataclass
class Promise:
    """What the model remembers of a reservation."""

    record: Reservation
    budget: int
    used: int
    until: float


class LedgerMachine(RuleBasedStateMachine):
    """Reserve, give back, record use, renew, let time pass, let strangers come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.json"
        self.clock, self.devices = FakeClock(), FakeDevices()
        self.ledger = make_ledger(self.path, clock=self.clock, devices=self.devices)
        self.promises: dict[str, Promise] = {}
        self.strangers = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    def living(self) -> list[Promise]:
        return [one for one in self.promises.values() if one.until > self.clock.now]

    @rule(budget=st.integers(1, TOTAL), lease=st.sampled_from([1.0, 5.0, 100.0]))
    def reserve(self, budget: int, lease: float) -> None:
        living = self.living()
        # Free is what neither strangers nor any owner holds, owners of lapsed leases included.
        free = TOTAL - self.strangers - sum(one.used for one in self.promises.values())
        self.devices.free[GPU.key] = free
        fits = budget + sum(max(one.budget, one.used) for one in living) <= 850_000
        served = budget + sum(max(0, one.budget - one.used) for one in living) <= free
        answer = self.ledger.try_reserve(self.ledger.request(GPU.key, budget, task="t", lease_seconds=lease))
        assert isinstance(answer, Reservation) == (fits and served)
        if isinstance(answer, Reservation):
            self.promises[answer.id] = Promise(answer, budget, 0, self.clock.now + lease)

    @precondition(lambda self: self.promises)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.promises)))
        self.ledger.release(self.promises.pop(chosen).record)

    @precondition(lambda self: self.promises)
    @rule(data=st.data(), used=st.integers(0, TOTAL // 2))
    def renew(self, data: Any, used: int) -> None:
        one = self.promises[data.draw(st.sampled_from(sorted(self.promises)))]
        one.record = self.ledger.renew(replace(one.record, actual_bytes=used))
        one.used, one.until = used, self.clock.now + one.record.lease_seconds

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(held=st.integers(0, TOTAL))
    def strangers_come_and_go(self, held: int) -> None:
        self.strangers = held

    @invariant()
    def the_view_is_the_model(self) -> None:
        current = {one.id: one.claimed_bytes for one in self.ledger.view().current.reservations}
        assert current == {one.record.id: max(one.budget, one.used) for one in self.living()}

    @invariant()
    def the_file_is_whole(self) -> None:
        if self.path.exists():
            from_json(self.path.read_text())


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
