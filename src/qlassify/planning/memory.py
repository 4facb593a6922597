"""How much memory there is and how much is left, by the system and by the control groups that the process runs in.

A control group's limit is read in both versions of the interface, at every level from the process's own group up to
the root of the mount: any of them can be the tightest. File caches that the kernel would drop on demand
(``inactive_file``) count as free, as they do in the kernel's own estimate for the whole system; a group that has read
large files would otherwise look full.
"""

from __future__ import annotations

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


def available_memory_bytes() -> int | None:
    """Bytes that can still be taken without swapping; None where the system does not say (it is not Linux)."""
    # MemAvailable is the kernel's own estimate, which counts file caches as available.
    found = [_system_bytes("MemAvailable"), *(max(0, limit - used) for limit, used in _groups())]
    return min((value for value in found if value is not None), default=None)


def total_memory_bytes() -> int | None:
    """Bytes that this process could have at most: all of the machine's, or its control group's limit."""
    found = [_system_bytes("MemTotal"), *(limit for limit, _ in _groups())]
    return min((value for value in found if value is not None), default=None)


def resident_memory_bytes() -> int | None:
    """Bytes that this process holds now (resident set size); None where the system does not say."""
    try:
        lines = (_PROC / "self" / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return _kilobytes(lines, "VmRSS")


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
