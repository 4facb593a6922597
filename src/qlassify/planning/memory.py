"""How much memory there is and how much is left, by the system, the control groups and the limits of the process.

A control group's limit is read in both versions of the interface, at every level from the process's own group up to
the root of the mount: any of them can be the tightest. File caches that the kernel would drop on demand
(``inactive_file``) count as free, as they do in the kernel's own estimate for the whole system; a group that has read
large files would otherwise look full.

A process can have limits of its own, which ``ulimit`` sets: ``RLIMIT_AS`` of its address space (``ulimit -v``) and
``RLIMIT_DATA`` of its private writable memory (``ulimit -d``). Beyond them an allocation fails, whatever is free. They
count what is reserved and not what is used. A library that is loaded maps more than it touches, and every new thread
reserves a stack of 8 MiB and, in glibc's allocator, an arena of 64 MiB. What the process has reserved when it is asked
is known exactly (``VmSize``, ``VmData``); what it will still reserve for libraries and threads is an allowance, which
is left out of what is free (``_RESERVED_LATER``). ``RLIMIT_RSS`` has no effect on Linux.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Interface:
    """Names of the files of one version of the interface."""

    limit: str
    used: str
    cached: str


_VERSION_1 = _Interface("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Interface("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What a process still reserves between planning and its end, beside what the plan counts.

    Attributes:
        libraries: bytes of libraries that are imported or compiled later.
        thread: bytes of each thread that is started later.
    """

    libraries: int
    thread: int


_RESERVED_LATER = {
    "VmSize": _Allowance(512 * 2**20, 72 * 2**20),
    "VmData": _Allowance(160 * 2**20, 8 * 2**20),
}
"""Measured from the plan to the last event of a training run with its baselines and reports, on two cores: VmSize grew
by 1.05 to 1.2 GiB more than the plan counts, VmData by 0.16 to 0.21 GiB, and 11 to 13 threads were started, most of
them by polars and BLAS. With more cores there are more threads; how many was not measured."""
_THREADS = (5, 3)
"""Threads that are started later: so many, and so many more for each core."""


def available_memory_bytes() -> int | None:
    """Bytes that can still be taken without swapping or being refused; None where nothing says."""
    # MemAvailable is the kernel's own estimate, which counts file caches as available.
    found = [_system_bytes("MemAvailable"), *(max(0, limit - used) for limit, used in (*_groups(), *_own_limits()))]
    return min((value for value in found if value is not None), default=None)


def total_memory_bytes() -> int | None:
    """Bytes that this process could have at most: all of the machine's, or its control group's limit."""
    found = [_system_bytes("MemTotal"), *(limit for limit, _ in _groups())]
    return min((value for value in found if value is not None), default=None)


def resident_memory_bytes() -> int | None:
    """Bytes that this process holds now (resident set size); None where the system does not say."""
    return _own_bytes("VmRSS")


def _own_bytes(name: str) -> int | None:
    """A size of this process, by the name that the system's status file gives it."""
    try:
        lines = (_PROC / "self" / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return _kilobytes(lines, name)


def limit_in_force(free_bytes: int) -> str | None:
    """What to tell of a limit of this process that leaves no more than ``free_bytes``; None if there is none."""
    for name, words in (("VmSize", "RLIMIT_AS (ulimit -v)"), ("VmData", "RLIMIT_DATA (ulimit -d)")):
        found = _own_limit(name)
        if found is not None and found[0] - found[1] <= free_bytes:
            limit, taken = (round(size / 2**20) for size in found)
            return (
                f"{words} allows this process {limit} MiB, of which {taken} go to libraries, threads and their stacks"
            )
    return None


def _own_limits() -> Iterator[tuple[int, int]]:
    """(limit, what is reserved or will be for other things than the plan counts) of the limits of this process."""
    return (found for found in map(_own_limit, _RESERVED_LATER) if found is not None)


def _own_limit(name: str) -> tuple[int, int] | None:
    """The same of one size; None if it has no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS if name == "VmSize" else resource.RLIMIT_DATA)
    reserved = _own_bytes(name)
    if limit == resource.RLIM_INFINITY or reserved is None:
        return None
    later = _RESERVED_LATER[name]
    fixed, each = _THREADS
    return limit, reserved + later.libraries + later.thread * (fixed + each * _cores())


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _system_bytes(name: str) -> int | None:
    try:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return _kilobytes(lines, name)


def _kilobytes(lines: list[str], name: str) -> int | None:
    """Bytes of the line ``NAME:  NUMBER kB``."""
    for line in lines:
        found, _, value = line.partition(":")
        if found == name:
            return int(value.split()[0]) * 1024
    return None


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, use without droppable caches) in bytes of every control group above this process that has a limit."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _levels(_CGROUP, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _levels(_CGROUP / "memory", path, _VERSION_1)


def _levels(root: Path, path: str, interface: _Interface) -> Iterator[tuple[int, int]]:
    """The limits from one group up to the root, which in a container is the container's own group."""
    own = root / path.lstrip("/")
    for folder in (own, *own.parents):
        found = _limit(folder, interface)
        if found is not None:
            yield found
        if folder == root:
            return


def _limit(folder: Path, interface: _Interface) -> tuple[int, int] | None:
    try:
        limit = (folder / interface.limit).read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((folder / interface.used).read_text(encoding="ascii"))
        return int(limit), max(0, used - _cached_bytes(folder, interface))
    except (OSError, ValueError):
        return None


def _cached_bytes(folder: Path, interface: _Interface) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == [interface.cached])
