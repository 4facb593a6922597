"""Which memory is promised, and whether more may be: arithmetic on the ledger's records, with nothing else in it.

    claimed    sum over the pool's reservations of max(budget, use)
    unused     sum over them of max(0, budget - use)
    available  min(capacity - claimed, free - unused)

Two limits, for two kinds of neighbours. ``capacity - claimed`` is for those who keep the ledger: together they are
never promised more than the capacity, whatever is free at the moment, because promised memory may be taken later.
``free - unused`` is for those who do not: what the driver or the system says is free already lacks what anybody
holds, other users included, and of it the promises that have not been taken up are still to be served. A use that
nobody recorded counts as none, so memory can be counted twice for a while, never promised twice.

What other people hold may use up the share of the device that is kept unpromised; that is what it is kept for.

Queues are first come, first served: a request must fit beside those of everyone who waits in front of it. A small
request therefore passes a large one only if the large one could be served too. Letting small ones through would use
the device better and could keep a large one waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qlassify.planning.devices import Device
from qlassify.planning.ledger_records import LedgerState, Reservation, Ticket
from qlassify.planning.process_identity import Liveness, ProcessIdentity


@dataclass(frozen=True, slots=True)
class Balance:
    """A device and what is promised of it, all in bytes.

    Attributes:
        device: the device.
        claimed_bytes: promised, or in use beyond the promise.
        unused_bytes: promised and not yet taken.
        free_bytes: what nobody holds now; None where it was not asked, because the ledger alone said no.
    """

    device: Device
    claimed_bytes: int
    unused_bytes: int
    free_bytes: int | None

    @property
    def unpromised_bytes(self) -> int:
        """What is left of the capacity, by the ledger alone."""
        return self.device.capacity_bytes - self.claimed_bytes

    @property
    def available_bytes(self) -> int:
        """What could be promised now."""
        left = self.unpromised_bytes
        return max(0, left if self.free_bytes is None else min(left, self.free_bytes - self.unused_bytes))


def balance(device: Device, reservations: Sequence[Reservation], free_bytes: int | None) -> Balance:
    """Add up what is promised of a device's pool."""
    own = [one for one in reservations if one.pool == device.pool]
    return Balance(
        device=device,
        claimed_bytes=sum(one.claimed_bytes for one in own),
        unused_bytes=sum(one.unused_bytes for one in own),
        free_bytes=free_bytes,
    )


def in_front(state: LedgerState, pool: str, ticket_id: str | None) -> tuple[Ticket, ...]:
    """Those who wait for the same memory and came before the ticket; everyone who waits, if there is no ticket."""
    queue = [ticket for ticket in state.waiting if ticket.pool == pool]
    places = [place for place, ticket in enumerate(queue) if ticket.id == ticket_id]
    return tuple(queue[: places[0]] if places else queue)


def prune(state: LedgerState, now: float, boot_id: str, is_alive: Callable[[ProcessIdentity], Liveness]) -> LedgerState:
    """The ledger without what has ended: owners that died, leases that ran out, everything of another boot.

    Args:
        state: the ledger.
        now: seconds of the monotonic clock.
        boot_id: the present boot.
        is_alive: what can be seen of a process.
    """
    if state.boot_id != boot_id:
        return LedgerState(boot_id)

    def holds(one: Reservation | Ticket) -> bool:
        return one.lease_until > now and is_alive(one.owner) is not Liveness.DEAD

    closed = state.closed_until if state.closed_until is not None and state.closed_until > now else None
    return replace(
        state,
        reservations=tuple(filter(holds, state.reservations)),
        waiting=tuple(filter(holds, state.waiting)),
        closed_until=closed,
    )
