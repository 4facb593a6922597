"""Devices of made-up sizes, a clock that stands still, and records, for tests of the memory ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qlassify.errors import ConfigError
from qlassify.planning.devices import DISCRETE_FACTOR, UNIFIED_FACTOR, Device
from qlassify.planning.ledger import Ledger
from qlassify.planning.ledger_records import Reservation
from qlassify.planning.process_identity import own_identity

TOTAL = 1_000_000
GPU = Device("cuda:GPU-a", "Tester 1000", TOTAL, DISCRETE_FACTOR, "cuda:GPU-a")
OTHER_GPU = Device("cuda:GPU-b", "Tester 1000", TOTAL, DISCRETE_FACTOR, "cuda:GPU-b")
HOST_MEMORY = Device("host", "host memory", TOTAL, DISCRETE_FACTOR, "host")
UNIFIED = Device("cuda:GPU-u", "Tester Orin", TOTAL, UNIFIED_FACTOR, "host")


@dataclass
class FakeDevices:
    """Four devices of one million bytes each; ``free`` says what is free of each, all of it unless it is set."""

    free: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    """How often it was asked what is free."""

    def find(self, name: str) -> Device:
        for device in (GPU, OTHER_GPU, HOST_MEMORY, UNIFIED):
            if device.key == name:
                return device
        raise ConfigError("no such device", where="device", got=name)

    def free_bytes(self, device: Device) -> int:
        self.asked += 1
        return self.free.get(device.key, device.total_bytes)

    def every_device(self) -> tuple[list[Device], str | None]:
        return [HOST_MEMORY, GPU, OTHER_GPU, UNIFIED], None


@dataclass
class FakeClock:
    """Seconds that pass only when they are told to, or when something sleeps."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def make_ledger(
    path: Path,
    *,
    devices: FakeDevices | None = None,
    clock: Callable[[], float] | None = None,
    told: list[str] | None = None,
) -> Ledger:
    """A ledger on made-up devices; what it tells goes into ``told``, and is an error without."""
    tell = _refuse if told is None else told.append
    devices = FakeDevices() if devices is None else devices
    return (
        Ledger(path, devices=devices, tell=tell)
        if clock is None
        else Ledger(path, devices=devices, clock=clock, tell=tell)
    )


def _refuse(sentence: str) -> None:
    raise AssertionError(sentence)


def take(ledger: Ledger, budget_bytes: int, device: Device = GPU, **options: object) -> Reservation | None:
    """Try to reserve; None if it was refused."""
    request = ledger.request(device.key, budget_bytes, task="test", **options)  # type: ignore[arg-type]
    answer = ledger.try_reserve(request)
    return answer if isinstance(answer, Reservation) else None


def make_reservation(budget_bytes: int, actual_bytes: int | None = None, device: Device = GPU) -> Reservation:
    """A record of this process."""
    return Reservation(
        id=f"{budget_bytes}-{actual_bytes}",
        device=device.key,
        pool=device.pool,
        owner=own_identity(),
        task="test",
        budget_bytes=budget_bytes,
        actual_bytes=actual_bytes,
        taken_at=0.0,
        lease_seconds=10.0,
        lease_until=10.0,
    )
