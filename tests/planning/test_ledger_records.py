"""The ledger as JSON: there and back, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_worlds import make_reservation

from qlassify.planning.ledger_records import (
    DamagedLedger,
    LedgerState,
    NewerLedger,
    Reservation,
    Ticket,
    from_json,
    to_json,
)
from qlassify.planning.process_identity import ProcessIdentity

TEXT = st.text(max_size=8)
COUNT = st.integers(0, 2**60)
SECONDS = st.floats(0, 1e9, allow_nan=False)
OWNER = st.builds(ProcessIdentity, COUNT, COUNT, TEXT, TEXT)
COMMON: dict[str, Any] = {
    "id": TEXT,
    "device": TEXT,
    "pool": TEXT,
    "owner": OWNER,
    "task": TEXT,
    "budget_bytes": COUNT,
    "taken_at": SECONDS,
    "lease_seconds": SECONDS,
    "lease_until": SECONDS,
}
STATE = st.builds(
    LedgerState,
    boot_id=TEXT,
    reservations=st.lists(st.builds(Reservation, actual_bytes=st.none() | COUNT, **COMMON), max_size=3).map(tuple),
    waiting=st.lists(st.builds(Ticket, **COMMON), max_size=3).map(tuple),
    closed_until=st.none() | SECONDS,
)


@given(STATE)
def test_there_and_back(state: LedgerState) -> None:
    text = to_json(state)
    assert text.isascii()
    assert from_json(text) == state


GOOD = json.loads(to_json(LedgerState("boot", (make_reservation(5, 3),))))


def changed(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def with_record(**fields: Any) -> dict[str, Any]:
    return changed(reservations=[{**GOOD["reservations"][0], **fields}])


@pytest.mark.parametrize(
    "record",
    [
        [],
        "text",
        None,
        changed(version="1"),
        changed(version=True),
        changed(boot_id=None),
        changed(reservations=None),
        changed(reservations=[1]),
        changed(waiting=[{}]),
        changed(closed_until="soon"),
        with_record(id=1),
        with_record(budget_bytes=-1),
        with_record(budget_bytes=1.5),
        with_record(budget_bytes=True),
        with_record(actual_bytes="none"),
        with_record(owner=None),
        with_record(owner={"pid": 1}),
        with_record(lease_until=float("nan")),
        with_record(lease_until=None),
    ],
)
def test_anything_else_is_damaged(record: Any) -> None:
    with pytest.raises(DamagedLedger):
        from_json(json.dumps(record))


@pytest.mark.parametrize("length", [0, 1, 20, 100, len(to_json(LedgerState("boot", (make_reservation(5),)))) - 3])
def test_the_beginning_of_a_ledger_is_damaged(length: int) -> None:
    with pytest.raises(DamagedLedger):
        from_json(to_json(LedgerState("boot", (make_reservation(5),)))[:length])


def test_a_newer_version_is_not_called_damaged() -> None:
    with pytest.raises(NewerLedger):
        from_json(json.dumps({"version": 2, "something": "else"}))
