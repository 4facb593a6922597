"""The memories of this machine that reservations are made on: the host's and each GPU's.

A device is named by what stays the same: ``host``, or ``cuda:`` and the GPU's UUID. Numbers such as ``cuda:0`` mean
another GPU in each process that sets ``CUDA_VISIBLE_DEVICES``, so they are translated on the way in and never kept.

Not all of a memory is promised. A GPU of its own memory is promised to 85 %, which leaves room for what nobody plans:
the driver, fragments, a screen. A GPU that shares the host's memory is promised to 60 %, because the rest of the
machine lives there too; its reservations and the host's come out of one pool. Both factors are rules of thumb.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning.gpus import Gpu, read_gpus, visible_gpus
from qlassify.planning.memory import available_memory_bytes, total_memory_bytes

HOST = "host"
DISCRETE_FACTOR = 0.85
UNIFIED_FACTOR = 0.60
CUDA_CONTEXT_BYTES = 500 * 2**20
"""What a process takes of a GPU before its first tensor: 300 to 500 MiB, by driver and GPU. No tensor library counts
it, so a budget on a GPU should have it added."""


@dataclass(frozen=True, slots=True)
class Device:
    """One memory of this machine.

    Attributes:
        key: ``host`` or ``cuda:<uuid>``.
        name: for people.
        total_bytes: its size.
        factor: share of it that may be promised.
        pool: the memory that its reservations come out of; ``host`` for a GPU without its own, else ``key``.
    """

    key: str
    name: str
    total_bytes: int
    factor: float
    pool: str

    @property
    def capacity_bytes(self) -> int:
        """The most that may be promised at once."""
        return int(self.total_bytes * self.factor)


class DeviceReader(Protocol):
    """Where sizes come from: the system, or a test."""

    def find(self, name: str) -> Device:
        """The device of a user's name for it."""

    def free_bytes(self, device: Device) -> int:
        """What of it nobody holds at this moment, whoever they are."""

    def every_device(self) -> tuple[list[Device], str | None]:
        """All that can be named, for the table of the command, and a sentence on those that cannot be listed."""


class SystemDevices:
    """The devices of this machine. Sizes are read once, what is free each time.

    Args:
        environment: where ``CUDA_VISIBLE_DEVICES`` is looked up.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._found: dict[str, Device] = {}

    def find(self, name: str) -> Device:
        """The device called ``host`` (or ``cpu``), ``cuda``, ``cuda:<number>`` or ``cuda:<uuid>``.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self._found:
            self._found[name] = _host() if name in (HOST, "cpu") else self._gpu(name)
        return self._found[name]

    def free_bytes(self, device: Device) -> int:
        """What the system or the driver says is free now.

        Raises:
            MemoryPlanError: they do not say.
        """
        free = available_memory_bytes() if device.pool == HOST else None
        if device.key != HOST:
            gpu = next((gpu for gpu in read_gpus() if f"cuda:{gpu.uuid}" == device.key), None)
            found = [value for value in (free, gpu.free_bytes if gpu else None) if value is not None]
            free = min(found, default=None)
        if free is None:
            raise MemoryPlanError("the system does not say how much memory is free", where=device.key)
        return free

    def every_device(self) -> tuple[list[Device], str | None]:
        """The host and every GPU of the machine; if GPUs cannot be listed, the host alone and the reason."""
        try:
            return [_host(), *(_device(gpu) for gpu in read_gpus())], None
        except ConfigError as error:
            return [_host()], f"no GPU: {error.got}"

    def _gpu(self, name: str) -> Device:
        kind, _, which = name.partition(":")
        if kind != "cuda" or not (which == "" or which.isdecimal() or which.startswith("GPU-")):
            raise ConfigError("no such device", where="device", got=name, wanted="host, cuda, cuda:0, cuda:GPU-...")
        every = read_gpus()
        if which.startswith("GPU-"):
            found = [gpu for gpu in every if gpu.uuid == which]
        else:
            found = visible_gpus(every, self._environment)[int(which or 0) :][:1]
        if not found:
            raise ConfigError(
                "no such GPU",
                where="device",
                got=f"{name}, CUDA_VISIBLE_DEVICES={self._environment.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
                wanted=f"one of {len(every)} GPUs: {', '.join(gpu.uuid for gpu in every)}",
            )
        return _device(found[0])


def _host() -> Device:
    total = total_memory_bytes()
    if total is None:
        raise MemoryPlanError("the system does not say how much memory there is", where=HOST)
    return Device(HOST, "host memory", total, DISCRETE_FACTOR, HOST)


def _device(gpu: Gpu) -> Device:
    key = f"cuda:{gpu.uuid}"
    if not gpu.has_unified_memory:
        assert gpu.total_bytes is not None
        return Device(key, gpu.name, gpu.total_bytes, DISCRETE_FACTOR, key)
    sizes = [size for size in (gpu.total_bytes, total_memory_bytes()) if size is not None]
    if not sizes:
        raise MemoryPlanError("the system does not say how much memory the GPU shares", where=key)
    return Device(key, gpu.name, min(sizes), UNIFIED_FACTOR, HOST)
