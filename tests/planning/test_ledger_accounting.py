"""What may be promised: sums done by hand, the order of the queue, and what has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_worlds import GPU, HOST_MEMORY, OTHER_GPU, TOTAL, UNIFIED, make_reservation

from qlassify.planning.accounting import balance, in_front, prune
from qlassify.planning.devices import Device
from qlassify.planning.ledger_records import LedgerState, Reservation, Ticket
from qlassify.planning.process_identity import Liveness, ProcessIdentity, own_identity


@pytest.mark.parametrize(
    ("budgets_and_use", "free", "available"),
    [
        # Nothing reserved: the capacity, 85 % of a million.
        ([], TOTAL, 850_000),
        # A stranger holds 700,000 of it.
        ([], 300_000, 300_000),
        # Promised and not taken: the capacity less the promise.
        ([(400_000, None)], TOTAL, 450_000),
        # Half of the promise is taken, and nobody else is there: the capacity still decides.
        ([(400_000, 200_000)], 800_000, 450_000),
        # A stranger leaves 300,000, of which 200,000 are still to be taken by the owner of the promise.
        ([(400_000, 200_000)], 300_000, 100_000),
        # The whole promise is taken: what is free is free.
        ([(400_000, 400_000)], 300_000, 300_000),
        # The same, not recorded: it counts twice until it is.
        ([(400_000, None)], 600_000, 200_000),
        # Use beyond the budget counts.
        ([(400_000, 600_000)], 400_000, 250_000),
        # Use below it gives nothing back.
        ([(400_000, 1)], TOTAL - 1, 450_000),
        # More promised than there is: nothing, not less.
        ([(800_000, None), (400_000, None)], TOTAL, 0),
    ],
)
def test_available(budgets_and_use: list[tuple[int, int | None]], free: int, available: int) -> None:
    records = [make_reservation(*one) for one in budgets_and_use]
    assert balance(GPU, records, free).available_bytes == available


def test_devices_do_not_count_for_one_another() -> None:
    records = [make_reservation(400_000), make_reservation(300_000, device=OTHER_GPU)]
    assert balance(OTHER_GPU, records, TOTAL).available_bytes == 550_000


def test_a_gpu_without_memory_of_its_own_draws_on_the_hosts() -> None:
    records = [make_reservation(400_000, device=HOST_MEMORY), make_reservation(100_000, device=UNIFIED)]
    assert balance(UNIFIED, records, TOTAL).available_bytes == 100_000  # 60 % of a million, less both
    assert balance(HOST_MEMORY, records, TOTAL).available_bytes == 350_000


@given(
    st.lists(st.tuples(st.integers(1, TOTAL), st.one_of(st.none(), st.integers(0, TOTAL))), max_size=5),
    st.integers(0, TOTAL),
)
def test_what_is_available_breaks_neither_limit(pairs: list[tuple[int, int | None]], free: int) -> None:
    """Granting it keeps promises within the capacity, and serves every promise from what is free."""
    found = balance(GPU, [make_reservation(*pair) for pair in pairs], free)
    after = balance(GPU, [*(make_reservation(*pair) for pair in pairs), make_reservation(found.available_bytes)], free)
    if found.available_bytes:
        assert after.claimed_bytes <= GPU.capacity_bytes
        assert after.unused_bytes <= free


def waiter(number: int, device: Device = GPU) -> Ticket:
    return Ticket(str(number), device.key, device.pool, own_identity(), "test", 1, float(number), 10.0, 10.0)


def test_the_queue_is_in_the_order_of_arrival_and_each_pool_has_its_own() -> None:
    state = LedgerState("boot", waiting=(waiter(1), waiter(2, OTHER_GPU), waiter(3), waiter(4)))
    assert [one.id for one in in_front(state, GPU.pool, "3")] == ["1"]
    assert [one.id for one in in_front(state, GPU.pool, "4")] == ["1", "3"]
    assert [one.id for one in in_front(state, GPU.pool, None)] == ["1", "3", "4"]
    assert [one.id for one in in_front(state, GPU.pool, "unknown")] == ["1", "3", "4"]
    assert in_front(state, OTHER_GPU.pool, "2") == ()


def test_what_has_ended_is_dropped() -> None:
    alive, dead, hidden = (ProcessIdentity(pid, 1, "boot", "ns") for pid in (1, 2, 3))
    seen = {alive: Liveness.ALIVE, dead: Liveness.DEAD, hidden: Liveness.UNKNOWN}

    def record(owner: ProcessIdentity, until: float) -> Reservation:
        return replace(make_reservation(1), id=f"{owner.pid}-{until:g}", owner=owner, lease_until=until)

    records = tuple(record(owner, until) for owner in seen for until in (4.0, 5.0, 6.0))
    waiting = tuple(replace(waiter(one.pid), owner=one) for one in seen)
    state = LedgerState("boot", records, waiting, closed_until=5.5)
    kept = prune(state, 5.0, "boot", seen.__getitem__)
    assert [one.id for one in kept.reservations] == ["1-6", "3-6"]
    assert [one.id for one in kept.waiting] == ["1", "3"]
    assert kept.closed_until == 5.5
    assert prune(state, 5.5, "boot", seen.__getitem__).closed_until is None


def test_another_boot_leaves_nothing() -> None:
    state = LedgerState("earlier", (make_reservation(1),), (waiter(1),), closed_until=1e9)
    assert prune(state, 0.0, "now", lambda _: Liveness.ALIVE) == LedgerState("now")
