"""The memory ledger: processes of one machine reserve memory before they take it, and none is promised twice.

Each act is one transaction: take the lock, read, drop what has ended, decide, write. What is free is asked while the
lock is held and after the ledger was read: asked before, the answer could be older than a use that has been recorded
since, and the same bytes would count as free and as taken up. It is asked only if the ledger alone would agree,
because the driver's tool can take a second and everyone else waits for the lock.

The alternative, trying to allocate and seeing whether it fails, cannot work between processes: a training run takes
its memory over its first steps, so two runs both begin and one of them dies an hour later.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qlassify.errors import ConfigError
from qlassify.planning import process_identity
from qlassify.planning.accounting import balance, in_front, prune
from qlassify.planning.devices import DeviceReader, SystemDevices
from qlassify.planning.ledger_file import LedgerFile
from qlassify.planning.ledger_records import LedgerState, Reservation, Ticket
from qlassify.planning.memory_request import LEASE_SECONDS, Refusal, Request
from qlassify.planning.process_identity import Liveness, ProcessIdentity, liveness, own_identity

TICKET_LEASE_SECONDS = 30.0
"""How long a place in the queue holds without a sign of life; it is renewed while its process asks."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The ledger at one moment.

    Attributes:
        state: as it stands in the file, with what has ended.
        current: without it.
        now: the moment, in seconds of the monotonic clock.
    """

    state: LedgerState
    current: LedgerState
    now: float


class Ledger:
    """Reservations of this machine's memory, shared through one file.

    Args:
        path: the file.
        devices: where sizes come from; the system's by default.
        clock: seconds, the same for all processes of the machine.
        tell: takes a sentence for the user.
    """

    def __init__(
        self,
        path: Path,
        *,
        devices: DeviceReader | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.devices = SystemDevices() if devices is None else devices
        self.clock = clock
        self.tell = tell
        self.file = LedgerFile(path, process_identity.boot_id(), clock=clock, tell=tell)

    def request(self, device: str, budget_bytes: int, *, task: str, lease_seconds: float = LEASE_SECONDS) -> Request:
        """A request, checked.

        Raises:
            ConfigError: there is no such device, or the numbers cannot be.
        """
        if budget_bytes <= 0:
            raise ConfigError("a reservation needs a size", where="budget_bytes", got=budget_bytes, wanted="1 or more")
        if lease_seconds <= 0:
            raise ConfigError("a lease needs a length", where="lease_seconds", got=lease_seconds, wanted="above 0")
        return Request(self.devices.find(device), budget_bytes, task, lease_seconds)

    def try_reserve(self, request: Request, *, ticket_id: str | None = None) -> Reservation | Refusal:
        """Reserve, or say why not.

        Args:
            request: what is asked for.
            ticket_id: a place in the queue; it is taken or kept if the request is refused, and given up if it is
                granted. Without one, whoever waits goes first.
        """
        with self.file.locked():
            before, state, now = self._read()
            refusal = self._judge(state, request, ticket_id, now)
            owner = own_identity()
            if refusal is None:
                reservation = Reservation(
                    id=secrets.token_hex(8),
                    owner=owner,
                    actual_bytes=None,
                    lease_until=now + request.lease_seconds,
                    **_terms(request, now),
                )
                waiting = tuple(ticket for ticket in state.waiting if ticket.id != ticket_id)
                self.file.write(replace(state, reservations=(*state.reservations, reservation), waiting=waiting))
                return reservation
            if ticket_id is not None and not refusal.is_final:
                state = _queued(state, request, ticket_id, owner, now)
            if state != before:
                self.file.write(state)
            return refusal

    def withdraw(self, ticket_id: str) -> None:
        """Give up a place in the queue; nothing happens if there is none."""
        self._change(lambda state, now: replace(state, waiting=_without(state.waiting, ticket_id)))

    def release(self, reservation: Reservation) -> None:
        """Give the memory back; nothing happens if that was done."""
        self._change(lambda state, now: replace(state, reservations=_without(state.reservations, reservation.id)))

    def renew(self, reservation: Reservation) -> Reservation:
        """Begin the lease anew, with the reservation as it is here; returns it with its new end.

        If it is no longer in the ledger, because the lease ran out while the process was stopped or because the
        ledger was damaged, it is entered again without being judged: its memory is in use, and a ledger that does not
        say so promises it to others.
        """
        renewed = reservation

        def change(state: LedgerState, now: float) -> LedgerState:
            nonlocal renewed
            renewed = replace(reservation, lease_until=now + reservation.lease_seconds)
            known = any(one.id == renewed.id for one in state.reservations)
            kept = tuple(renewed if one.id == renewed.id else one for one in state.reservations)
            return replace(state, reservations=kept if known else (*kept, renewed))

        self._change(change)
        return renewed

    def prune(self) -> LedgerView:
        """Drop from the file what has ended; the view before that."""
        view = self.view()
        self._change(lambda state, now: state)
        return view

    def view(self) -> LedgerView:
        """Look, and change nothing."""
        now, boot_id = self.clock(), process_identity.boot_id()
        if not self.file.path.exists():
            state = LedgerState(boot_id)
        else:
            with self.file.locked():
                state = self.file.read()
        return LedgerView(state, prune(state, now, boot_id, self.liveness), now)

    def liveness(self, process: ProcessIdentity) -> Liveness:
        """Whether a process lives, as far as this one can see."""
        return liveness(process, own_identity())

    def _read(self) -> tuple[LedgerState, LedgerState, float]:
        """The ledger as it stands, the same without what has ended, and the moment."""
        before, now = self.file.read(), self.clock()
        return before, prune(before, now, process_identity.boot_id(), self.liveness), now

    def _change(self, change: Callable[[LedgerState, float], LedgerState]) -> None:
        with self.file.locked():
            before, state, now = self._read()
            after = change(state, now)
            if after != before:
                self.file.write(after)

    def _judge(self, state: LedgerState, request: Request, ticket_id: str | None, now: float) -> Refusal | None:
        first = in_front(state, request.device.pool, ticket_id)
        needed = request.budget_bytes + sum(ticket.budget_bytes for ticket in first)
        closed = max(0.0, (state.closed_until or 0.0) - now)
        found = balance(request.device, state.reservations, None)
        if not closed and needed <= found.available_bytes:
            found = balance(request.device, state.reservations, self.devices.free_bytes(request.device))
            if needed <= found.available_bytes:
                return None
        holders = tuple(one for one in state.reservations if one.pool == request.device.pool)
        return Refusal(request, found, holders, first, closed)


def _queued(state: LedgerState, request: Request, ticket_id: str, owner: ProcessIdentity, now: float) -> LedgerState:
    """The ledger with the ticket in it; its lease is begun anew when a third of it has passed."""
    lease_until = now + TICKET_LEASE_SECONDS
    ticket = next((one for one in state.waiting if one.id == ticket_id), None)
    if ticket is None:
        terms = {**_terms(request, now), "lease_seconds": TICKET_LEASE_SECONDS}
        new = Ticket(id=ticket_id, owner=owner, lease_until=lease_until, **terms)
        return replace(state, waiting=(*state.waiting, new))
    if lease_until - ticket.lease_until < TICKET_LEASE_SECONDS / 3:
        return state
    renewed = replace(ticket, lease_until=lease_until)
    return replace(state, waiting=tuple(renewed if one.id == ticket_id else one for one in state.waiting))


def _terms(request: Request, now: float) -> dict[str, Any]:
    """What a reservation and a ticket take over from the request."""
    return {
        "device": request.device.key,
        "pool": request.device.pool,
        "task": request.task,
        "budget_bytes": request.budget_bytes,
        "taken_at": now,
        "lease_seconds": request.lease_seconds,
    }


_Record = TypeVar("_Record", Reservation, Ticket)


def _without(records: tuple[_Record, ...], record_id: str) -> tuple[_Record, ...]:
    return tuple(one for one in records if one.id != record_id)
