"""How much memory is left here, by the system and by the limits of the control group that the process runs in."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int | None:
    """Bytes that can still be taken without swapping; None where the system does not say (it is not Linux)."""
    found = [value for value in (_system_bytes(), _group_bytes()) if value is not None]
    return min(found, default=None)


def _system_bytes() -> int | None:
    """The kernel's own estimate, which counts file caches as available."""
    try:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _group_bytes() -> int | None:
    """What the control group (version 2) of this process leaves; None without a limit."""
    try:
        own = (_PROC / "self" / "cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
        folder = _CGROUP / own.lstrip("/")
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used)
