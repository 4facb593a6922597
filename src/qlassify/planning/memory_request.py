"""A request for memory, and the answer no."""

from __future__ import annotations

from dataclasses import dataclass

from qlassify.errors import MemoryPlanError
from qlassify.planning.accounting import Balance
from qlassify.planning.devices import Device
from qlassify.planning.ledger_records import Reservation, Ticket
from qlassify.planning.plan import human_bytes

LEASE_SECONDS = 120.0
"""How long a reservation holds without a sign of life. It matters where the owner cannot be looked up; elsewhere its
death is seen at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a process asks for.

    Attributes:
        device: where.
        budget_bytes: the most that it will hold at once.
        task: what for, for people.
        lease_seconds: how long a reservation holds without being renewed.
    """

    device: Device
    budget_bytes: int
    task: str
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not granted.

    Attributes:
        request: the request.
        balance: of its device.
        holders: the reservations of its pool.
        in_front: who waits for the same memory and came first.
        closed_seconds: for how long nothing is promised, after a damaged ledger; 0 as a rule.
    """

    request: Request
    balance: Balance
    holders: tuple[Reservation, ...]
    in_front: tuple[Ticket, ...]
    closed_seconds: float

    @property
    def is_final(self) -> bool:
        """Whether waiting cannot help: the device is too small."""
        return self.request.budget_bytes > self.balance.device.capacity_bytes

    def error(self, waited_seconds: float = 0.0) -> MemoryPlanError:
        """The refusal as an error, with who holds the memory and what to do."""
        device, asked = self.balance.device, human_bytes(self.request.budget_bytes)
        what = f"{self.request.task} needs {asked} of {device.name}, and so much is not available"
        if waited_seconds:
            what += f" after waiting {waited_seconds:.0f} s"
        total, capacity = human_bytes(device.total_bytes), human_bytes(device.capacity_bytes)
        got = f"{human_bytes(self.balance.available_bytes)} available of {total}, of which {capacity} may be promised"
        if self.balance.free_bytes is not None:
            got += f" and {human_bytes(self.balance.free_bytes)} are free now"
        for one in self.holders:
            got += f"; {human_bytes(one.claimed_bytes)} reserved for {one.task} (process {one.owner.pid})"
        for ticket in self.in_front:
            got += f"; in front waits {ticket.task} (process {ticket.owner.pid}) for {human_bytes(ticket.budget_bytes)}"
        if self.closed_seconds:
            got += f"; nothing is promised for {self.closed_seconds:.0f} s, because the ledger was damaged"
        if self.is_final:
            do = "Take a smaller model, fewer tokens at once, or weights in fewer bits."
        else:
            do = "Wait for them, make the job smaller, or see what is reserved with: qlassify ledger"
        return MemoryPlanError(what, where=device.key, got=got, wanted=asked, do=do)
