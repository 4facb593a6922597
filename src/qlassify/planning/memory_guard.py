"""A reservation for as long as a block of code runs.

    with reserve("cuda", budget_bytes, task="train tickets.csv", wait_seconds=600) as guard:
        ...
        guard.record_usage(torch.cuda.memory_reserved())

While the block runs, a thread renews the lease four times in its length and, if it was given a way to measure, records
the use. Leases are short and renewed rather than long: one of a day keeps memory from others for a day after its
owner's machine was restored from a snapshot, and leaves a job of three days without its claim.

Death needs no help: the entry of a process that is gone is dropped by the next one that asks. A forked child shares
the guard's object and not the reservation; in it, the guard does nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from qlassify.errors import ConfigError, QlassifyError
from qlassify.planning.ledger import Ledger
from qlassify.planning.ledger_location import ledger_path, off_reason
from qlassify.planning.ledger_records import Reservation
from qlassify.planning.memory_request import LEASE_SECONDS, Refusal
from qlassify.planning.plan import human_bytes
from qlassify.planning.wait_queue import acquire

OVERSHOOT = 1.2
"""Use above this share of the budget is said: the plan was wrong, and the ledger promised others what is not there."""
_BEATS_PER_LEASE = 4


class MemoryGuard:
    """A reservation that is being kept alive, or the lack of one where the ledger is off.

    Args:
        ledger: where the reservation stands; None where the ledger is off.
        reservation: as it was taken; None likewise.
        tell: takes a sentence for the user.
        off: why there is no ledger.

    Attributes:
        off: why nothing is reserved, as a sentence for the user; None as a rule.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        reservation: Reservation | None,
        *,
        tell: Callable[[str], None],
        off: str | None = None,
    ) -> None:
        self.off = off
        self._ledger = ledger
        self._reservation = reservation
        self._tell = tell
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._released = False
        self._overshoot_told = False

    @property
    def reservation(self) -> Reservation | None:
        """The reservation as it stands in the ledger; None where the ledger is off."""
        return self._reservation

    @property
    def overshoot(self) -> float | None:
        """Recorded use as a share of the budget; None before a use was recorded."""
        own = self._reservation
        return None if own is None or own.actual_bytes is None else own.actual_bytes / own.budget_bytes

    def record_usage(self, used_bytes: int) -> None:
        """Record what is in use now, of the budget or beyond it.

        Others are promised more once it is known how much of what is not free belongs to this reservation. Above 120 %
        of the budget it is said, once.
        """
        self._update(lambda own: replace(own, actual_bytes=used_bytes))
        share = self.overshoot
        if share is not None and share > OVERSHOOT and not self._overshoot_told and self._reservation is not None:
            self._overshoot_told = True
            self._tell(
                f"{self._reservation.task} holds {human_bytes(used_bytes)} of {self._reservation.device}, "
                f"{100 * share:.0f} % of the {human_bytes(self._reservation.budget_bytes)} that were planned."
            )

    def lower_budget(self, budget_bytes: int) -> None:
        """Give back what turned out not to be needed.

        Raises:
            ConfigError: it is more than was promised, which only a new reservation could grant.
        """
        own = self._reservation
        if own is not None and not 0 < budget_bytes <= own.budget_bytes:
            wanted = f"1 to {own.budget_bytes} bytes"
            raise ConfigError("a budget can only be lowered", where="budget_bytes", got=budget_bytes, wanted=wanted)
        self._update(lambda own: replace(own, budget_bytes=budget_bytes))

    def renew(self) -> None:
        """Begin the lease anew."""
        self._update(lambda own: own)

    def release(self) -> None:
        """Give the memory back, once; in a forked child, nothing."""
        if self._is_idle():
            return
        with self._lock:
            assert self._ledger is not None
            assert self._reservation is not None
            if not self._released:
                self._released = True
                self._ledger.release(self._reservation)

    def _update(self, change: Callable[[Reservation], Reservation]) -> None:
        if self._is_idle():
            return
        # The lock keeps a late heartbeat from entering again what has just been released.
        with self._lock:
            assert self._ledger is not None
            assert self._reservation is not None
            if not self._released:
                self._reservation = self._ledger.renew(change(self._reservation))

    def _is_idle(self) -> bool:
        """Whether there is nothing to do: no ledger, or a forked child, in which the lock may stay locked for ever."""
        return self._ledger is None or self._reservation is None or os.getpid() != self._pid


@contextmanager
def reserve(
    device: str,
    budget_bytes: int,
    *,
    task: str,
    wait_seconds: float = 0.0,
    lease_seconds: float = LEASE_SECONDS,
    measure: Callable[[], int | None] | None = None,
    on_wait: Callable[[Refusal], None] | None = None,
    tell: Callable[[str], None] = warnings.warn,
    ledger: Ledger | None = None,
) -> Iterator[MemoryGuard]:
    """Reserve memory before any of it is taken, and give it back when the block ends, however it ends.

    Args:
        device: ``host`` (or ``cpu``), ``cuda``, ``cuda:<number>`` or ``cuda:<uuid>``.
        budget_bytes: the most that this process will hold there at once; on a GPU with the context's
            ``CUDA_CONTEXT_BYTES``, on the host with the interpreter and its libraries.
        task: what for, as others will read it.
        wait_seconds: how long to wait for it at most; 0 asks once.
        lease_seconds: how long it holds if this process gives no sign of life.
        measure: gives the bytes in use now; asked by the heartbeat's thread. None if they cannot be known.
        on_wait: told of the refusal before the waiting begins.
        tell: takes a sentence for the user: an overshoot, a damaged ledger, a heartbeat that failed.
        ledger: the ledger; the machine's by default, or none where that is off (``guard.off`` says why).

    Raises:
        MemoryPlanError: it does not fit, or not in time.
        ConfigError: there is no such device, or the ledger cannot be used.
    """
    off = off_reason() if ledger is None else None
    if off is not None:
        yield MemoryGuard(None, None, tell=tell, off=off)
        return
    ledger = Ledger(ledger_path(), tell=tell) if ledger is None else ledger
    request = ledger.request(device, budget_bytes, task=task, lease_seconds=lease_seconds)
    guard = MemoryGuard(ledger, acquire(ledger, request, wait_seconds=wait_seconds, on_wait=on_wait), tell=tell)
    try:
        with _heartbeat(guard, lease_seconds / _BEATS_PER_LEASE, measure, tell):
            yield guard
    finally:
        try:
            guard.release()
        except QlassifyError as error:
            # The work is done or has its own error; the entry goes when this process ends.
            with contextlib.suppress(OSError):
                tell(f"the memory reservation of this process could not be given back: {error}")


@contextmanager
def _heartbeat(
    guard: MemoryGuard, interval_seconds: float, measure: Callable[[], int | None] | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """A thread that renews the guard's lease until the block ends."""
    done = threading.Event()

    def beat() -> None:
        told = False
        while not done.wait(interval_seconds):
            try:
                used = None if measure is None else measure()
                guard.renew() if used is None else guard.record_usage(used)
            except Exception as error:
                # Any: the measure is the caller's. A job of hours does not end because a lease could not be renewed,
                # and a thread that ended would renew no more; the next beat tries again.
                if not told:
                    with contextlib.suppress(Exception):  # so is the telling; it may be what has just failed
                        tell(f"the memory reservation of this process could not be renewed: {error}")
                told = True

    thread = threading.Thread(target=beat, name="qlassify-memory-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
