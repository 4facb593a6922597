"""Who a process is, so that another process can tell whether it still lives.

A process number alone does not say: numbers are used again. A process is named by its number, by the moment at which
it started (field 22 of ``/proc/PID/stat``, in clock ticks since the machine started; proc(5)), by the machine's boot
id, and by its namespace of process numbers. Two processes that agree in all four are one.

The number means nothing in another namespace, so the processes of another container cannot be looked up. Nor can the
start of another user's process be read where ``/proc`` is mounted with ``hidepid``. In both cases the answer is
``UNKNOWN``, never a guess: what such a process holds ends with its lease.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


class Liveness(enum.Enum):
    """Whether a process is there."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot of one machine.

    Attributes:
        pid: its number, in its own namespace.
        start_ticks: when it started, in clock ticks since boot.
        boot_id: the kernel's random name of this boot.
        pid_namespace: the kernel's name of its namespace of process numbers, as in ``pid:[4026531836]``.
    """

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str


def has_proc() -> bool:
    """Whether this system has what an identity is read from."""
    return (_PROC / "self" / "stat").is_file() and (_PROC / "sys" / "kernel" / "random" / "boot_id").is_file()


def boot_id() -> str:
    """The kernel's random name of this boot of the machine."""
    return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()


def own_identity() -> ProcessIdentity:
    """The identity of this process; read anew each time, because a fork makes another process of it."""
    pid = os.getpid()
    start_ticks = _start_ticks(pid)
    assert start_ticks is not None, "a process sees itself in /proc"
    return ProcessIdentity(pid, start_ticks, boot_id(), _pid_namespace())


def liveness(process: ProcessIdentity, observer: ProcessIdentity) -> Liveness:
    """Whether ``process`` lives, as far as ``observer``, the process that asks, can see."""
    if process.boot_id != observer.boot_id:
        return Liveness.DEAD
    if process.pid_namespace != observer.pid_namespace:
        return Liveness.UNKNOWN
    start_ticks = _start_ticks(process.pid)
    if start_ticks is not None:
        return Liveness.ALIVE if start_ticks == process.start_ticks else Liveness.DEAD
    return Liveness.UNKNOWN if _is_hidden(process.pid) else Liveness.DEAD


def _start_ticks(pid: int) -> int | None:
    """Field 22 of the process's ``stat``; None if there is no such process, or only a zombie, which holds nothing."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in field 2 can hold spaces and brackets; nothing after its last bracket can.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether a process exists that ``/proc`` does not show; signal 0 asks and sends nothing."""
    if (_PROC / str(pid)).is_dir():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _pid_namespace() -> str:
    return os.readlink(_PROC / "self" / "ns" / "pid")
