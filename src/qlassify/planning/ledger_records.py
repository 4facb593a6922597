"""What stands in the ledger, as frozen records and as JSON.

    {"version": 1, "boot_id": "...", "closed_until": null,
     "reservations": [{"id": "...", "device": "cuda:GPU-...", "pool": "cuda:GPU-...", "owner": {...}, "task": "...",
                       "budget_bytes": 8000000000, "actual_bytes": null, "taken_at": 5021.7, "lease_seconds": 120.0,
                       "lease_until": 5141.7}],
     "waiting": [the same without actual_bytes]}

Moments are seconds of the monotonic clock, which on Linux counts from the machine's start, is one clock for all its
processes, and stands still while the machine sleeps. The wall clock jumps when it is set. The clock that also counts
sleep would let every lease of a sleeping laptop run out at once, though no process had a chance to renew its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlassify.planning.process_identity import ProcessIdentity

VERSION = 1


class DamagedLedger(ValueError):
    """The text is no ledger."""


class NewerLedger(ValueError):
    """The text is a ledger of a version that is not known here."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that a process has been promised.

    Attributes:
        id: random, so that a record is never taken for another.
        device: ``host`` or ``cuda:<uuid>``.
        pool: the memory that it comes out of (``Device.pool``).
        owner: the process.
        task: what for, for people.
        budget_bytes: the promise.
        actual_bytes: what of it was in use when that was last recorded; None before.
        taken_at: when it was made, in seconds of the monotonic clock.
        lease_seconds: how long it holds without being renewed.
        lease_until: when it ends unless it is renewed.
    """

    id: str
    device: str
    pool: str
    owner: ProcessIdentity
    task: str
    budget_bytes: int
    actual_bytes: int | None
    taken_at: float
    lease_seconds: float
    lease_until: float

    @property
    def claimed_bytes(self) -> int:
        """What it counts for: the budget, or what is in use if that is more.

        Use below the budget gives nothing back: the owner was promised the rest and may take it at its next step.
        """
        return max(self.budget_bytes, self.actual_bytes or 0)

    @property
    def unused_bytes(self) -> int:
        """What of the budget is still to be taken, as far as is known."""
        return max(0, self.budget_bytes - (self.actual_bytes or 0))


@dataclass(frozen=True, slots=True)
class Ticket:
    """A process that waits for memory; attributes as of ``Reservation``, ``taken_at`` being its place in the queue."""

    id: str
    device: str
    pool: str
    owner: ProcessIdentity
    task: str
    budget_bytes: int
    taken_at: float
    lease_seconds: float
    lease_until: float


@dataclass(frozen=True, slots=True)
class LedgerState:
    """The whole ledger.

    Attributes:
        boot_id: the boot of the machine whose processes and clock it speaks of.
        reservations: in the order in which they were made.
        waiting: in the order in which they came.
        closed_until: until then nothing new is promised, because a damaged ledger was put aside and its owners are
            still to write themselves back; None as a rule.
    """

    boot_id: str
    reservations: tuple[Reservation, ...] = ()
    waiting: tuple[Ticket, ...] = ()
    closed_until: float | None = None


def to_json(state: LedgerState) -> str:
    """The ledger as text."""
    record = {"version": VERSION, **asdict(state)}
    return json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def from_json(text: str) -> LedgerState:
    """Read what ``to_json`` wrote.

    Raises:
        DamagedLedger: it is something else, in any part of it.
        NewerLedger: its version is not this one.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedLedger(f"no JSON: {error}") from None
    version = _field(record, "version", int)
    if version != VERSION:
        raise NewerLedger(f"version {version}")
    closed = record.get("closed_until")
    return LedgerState(
        boot_id=_field(record, "boot_id", str),
        reservations=tuple(_reservation(one) for one in _field(record, "reservations", list)),
        waiting=tuple(Ticket(**_common(one)) for one in _field(record, "waiting", list)),
        closed_until=None if closed is None else _seconds(record, "closed_until"),
    )


def _reservation(record: Mapping[str, Any]) -> Reservation:
    common = _common(record)
    actual = None if record.get("actual_bytes") is None else _count(record, "actual_bytes")
    return Reservation(actual_bytes=actual, **common)


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    owner = _field(record, "owner", dict)
    return {
        **{name: _field(record, name, str) for name in ("id", "device", "pool", "task")},
        "owner": ProcessIdentity(
            pid=_count(owner, "pid"),
            start_ticks=_count(owner, "start_ticks"),
            boot_id=_field(owner, "boot_id", str),
            pid_namespace=_field(owner, "pid_namespace", str),
        ),
        "budget_bytes": _count(record, "budget_bytes"),
        **{name: _seconds(record, name) for name in ("taken_at", "lease_seconds", "lease_until")},
    }


def _field(record: Any, name: str, kind: type) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get(name), kind) or isinstance(record[name], bool):
        raise DamagedLedger(f"{name} is missing or no {kind.__name__}")
    return record[name]


def _count(record: Any, name: str) -> int:
    value: int = _field(record, name, int)
    if value < 0:
        raise DamagedLedger(f"{name} is negative")
    return value


def _seconds(record: Any, name: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DamagedLedger(f"{name} is no moment")
    return float(value)
