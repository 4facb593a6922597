"""Waiting for memory, in the order of arrival, without keeping the machine busy.

A waiting process asks, sleeps, and asks again, at first after 0.05 s, then after twice as long each time, at most
after 1 s. A place in the queue is a ticket in the ledger, so a process that dies while it waits stands in nobody's
way for longer than the next question of another. The alternative, a message from whoever releases memory, would need
a process that is sure to be alive to send it, and nobody could send one for memory that a stranger gave back.

Waiting ends with the reservation, after the given time with one last question, at once if the device is too small for
the request, and at once when a signal's handler raises: Python's own for Ctrl-C does, and so does the one of
``qlassify train`` before training begins. Whichever it is, the ticket is given up.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from qlassify.planning.ledger import Ledger
from qlassify.planning.ledger_records import Reservation
from qlassify.planning.memory_request import Refusal, Request

FIRST_INTERVAL_SECONDS = 0.05
LONGEST_INTERVAL_SECONDS = 1.0


def acquire(
    ledger: Ledger,
    request: Request,
    *,
    wait_seconds: float = 0.0,
    on_wait: Callable[[Refusal], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Reservation:
    """Reserve, and wait for it if need be.

    Args:
        ledger: where; its clock measures the waiting.
        request: what.
        wait_seconds: how long to wait at most; 0 asks once.
        on_wait: told of the first refusal, before the waiting begins.
        sleep: pauses for so many seconds.

    Raises:
        MemoryPlanError: it does not fit, or not in time.
    """
    if wait_seconds <= 0:
        answer = ledger.try_reserve(request)
        if isinstance(answer, Refusal):
            raise answer.error()
        return answer
    ticket_id = secrets.token_hex(8)
    granted = False
    try:
        reservation = _asked_until_granted(ledger, request, ticket_id, wait_seconds, on_wait, sleep)
        granted = True
    finally:
        if not granted:
            ledger.withdraw(ticket_id)
    return reservation


def _asked_until_granted(
    ledger: Ledger,
    request: Request,
    ticket_id: str,
    wait_seconds: float,
    on_wait: Callable[[Refusal], None] | None,
    sleep: Callable[[float], None],
) -> Reservation:
    began = ledger.clock()
    interval, is_last, told = FIRST_INTERVAL_SECONDS, False, False
    while True:
        answer = ledger.try_reserve(request, ticket_id=ticket_id)
        if isinstance(answer, Reservation):
            return answer
        waited = ledger.clock() - began
        if is_last or waited >= wait_seconds or answer.is_final:
            raise answer.error(0.0 if answer.is_final else waited)
        if on_wait is not None and not told:
            on_wait(answer)
            told = True
        # Whether the next question is the last is settled here, so that rounded sums of pauses cannot add another.
        is_last = interval >= wait_seconds - waited
        sleep(min(interval, wait_seconds - waited))
        interval = min(2 * interval, LONGEST_INTERVAL_SECONDS)
