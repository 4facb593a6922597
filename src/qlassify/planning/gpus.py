"""The GPUs of this machine as the driver's own tool lists them, and which of them a process may see.

``nvidia-smi`` is asked rather than torch, because a plan is made before torch starts: a process that opens a GPU to
ask how full it is takes some hundred megabytes of it. The tool counts memory in MiB and GPUs in the order of their
bus, and takes no notice of ``CUDA_VISIBLE_DEVICES``; what a process calls ``cuda:0`` is worked out here, by the rules
that CUDA's programming guide gives for that variable (a list of numbers, or of UUIDs and beginnings of UUIDs; it ends
at the first entry that names no GPU; a repeated entry leaves none).
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlassify.errors import ConfigError

_FIELDS = ("uuid", "memory.total", "memory.free", "name")
_COMMAND = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
_TIMEOUT_SECONDS = 20.0
"""A GPU that is being woken can take several seconds to answer."""

_UNIFIED_NAMES = ("jetson", "orin", "tegra", "gb10", "digits")
"""Parts of the names of GPUs that have no memory of their own."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of the tool's table.

    Attributes:
        uuid: ``GPU-`` and the driver's name of this very GPU.
        name: the model.
        total_bytes: its memory; None where the tool does not say, as for a GPU that shares the host's.
        free_bytes: what of it nobody holds at this moment; None likewise.
    """

    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None

    @property
    def has_unified_memory(self) -> bool:
        """Whether its memory is the host's."""
        return self.total_bytes is None or any(part in self.name.lower() for part in _UNIFIED_NAMES)


def read_gpus() -> list[Gpu]:
    """Ask the driver's tool for every GPU, in the order of their bus.

    Raises:
        ConfigError: the tool is not there, fails, or says something else than a table.
    """
    if shutil.which(_COMMAND[0]) is None:
        raise _no_gpu("nvidia-smi, which comes with the driver, is not on the path")
    try:
        done = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_gpu(error) from None
    if done.returncode != 0:
        raise _no_gpu((done.stderr or done.stdout).strip() or f"exit code {done.returncode}")
    return parse_gpus(done.stdout)


def parse_gpus(table: str) -> list[Gpu]:
    """Read the tool's table: ``uuid, total MiB, free MiB, name`` a line.

    Raises:
        ConfigError: a line is none.
    """
    gpus = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) < len(_FIELDS) or not row[0].startswith("GPU-"):
            raise _no_gpu(f"nvidia-smi says {', '.join(row)!r}")
        uuid, total, free, *name = (cell.strip() for cell in row)
        gpus.append(Gpu(uuid, ", ".join(name), _bytes(total), _bytes(free)))
    return gpus


def _bytes(cell: str) -> int | None:
    """MiB as bytes; None for ``[N/A]`` and its like."""
    if cell.startswith("["):
        return None
    try:
        return int(cell) * 2**20
    except ValueError:
        raise _no_gpu(f"nvidia-smi says {cell!r} where MiB were expected") from None


def _no_gpu(got: object) -> ConfigError:
    return ConfigError(
        "the GPUs of this machine cannot be listed",
        where="device",
        got=got,
        do="Train on the CPU with --device cpu, or switch the ledger off with QLASSIFY_LEDGER=off.",
    )


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA shows to a process, in the order in which it numbers them.

    Args:
        gpus: all of them, in the order of their bus.
        environment: where ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are looked up.

    Raises:
        ConfigError: CUDA's numbers cannot be known, or the variable names parts of GPUs.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    named = value is not None and value.startswith("GPU-")
    if value is not None and value.startswith("MIG-"):
        raise ConfigError(
            "parts of a GPU are not kept in the ledger",
            where="CUDA_VISIBLE_DEVICES",
            got=value,
            do="Name a whole GPU, or switch the ledger off with QLASSIFY_LEDGER=off.",
        )
    if value == "":
        return []
    if not named and not by_bus and len({gpu.name for gpu in gpus}) > 1:
        raise ConfigError(
            "GPUs of several models: CUDA numbers the fastest first, and which that is it does not say beforehand",
            where="CUDA_DEVICE_ORDER",
            wanted="PCI_BUS_ID",
            do="Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID (nvidia-smi -L).",
        )
    return list(gpus) if value is None else _chosen(gpus, value, named=named)


def _chosen(gpus: Sequence[Gpu], value: str, *, named: bool) -> list[Gpu]:
    chosen: list[Gpu] = []
    for entry in value.split(","):
        found = _by_uuid(gpus, entry) if named else _by_number(gpus, entry)
        if found is None:
            break
        if found in chosen:
            return []
        chosen.append(found)
    return chosen


def _by_uuid(gpus: Sequence[Gpu], beginning: str) -> Gpu | None:
    found = [gpu for gpu in gpus if beginning.startswith("GPU-") and gpu.uuid.startswith(beginning)]
    return found[0] if len(found) == 1 else None


def _by_number(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    text = entry.strip()
    number = int(text) if text.isdecimal() else -1
    return gpus[number] if 0 <= number < len(gpus) else None
