"""What the machine says when it has no more room: a sentence and an exit code in place of a traceback.

An ``OSError`` or a ``MemoryError`` that nobody expected where it came up is no mistake of the user's and none of ours,
and may come up anywhere: a quota, a read-only mount, a memory limit. Catching each where it could happen would be a
handler around every line, so the command's entry asks here. What can be told better nearer to its place is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

from qlassify.errors import MemoryPlanError, QlassifyError, StorageError
from qlassify.planning.out_of_memory import first_line, is_out_of_memory

ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk is full, the quota is used up, the file would be larger than is allowed."""
LIBRARY_BYTES = 1024 * 2**20
"""Address space below which torch and its companions cannot be loaded; they map 780 MiB (torch 2.13 for the CPU)."""
LIBRARY_DATA_BYTES = 448 * 2**20
"""The same of private writable memory. torch and its companions take 210 MiB; with 400, LLVM ended the process while it
loaded a compiled loop, and no run has been planned with less than 680."""
NO_LIBRARY = "failed to map segment from shared object"
"""The end of what the dynamic linker says when the address space is too small for a library; of a mount without
permission to execute it says more."""
PERMISSION = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def trouble(error: Exception) -> QlassifyError | None:
    """The error to tell in place of one that the system raised; None if that is somebody's mistake."""
    if any(is_out_of_memory(one) or str(one).endswith(NO_LIBRARY) for one in _chain(error)):
        return MemoryPlanError(
            "memory ran out",
            got=first_line(error),
            do="Free memory, raise the limit, or lower training.token_budget or model.max_length; what was written "
            "before is whole, and a run goes on with: qlassify train --resume RUN",
        )
    if not isinstance(error, OSError):
        return None
    do = "Make room and try again." if error.errno in ROOM else None
    if error.errno in PERMISSION:
        do = "Fix the permissions, or name another place."
    return StorageError(
        "the system refused an operation" if error.errno is None else "a file could not be read or written",
        where=error.filename,
        got=error.strerror or str(error),
        do=do,
    )


def require_room_for_libraries() -> None:
    """Refuse to begin where the limits of this process leave no room for the libraries.

    They would not end in an error that could be told, but in ``abort`` on the way.

    Raises:
        MemoryPlanError: names the limit.
    """
    import resource

    for kind, (words, needed) in {
        resource.RLIMIT_AS: ("RLIMIT_AS (ulimit -v)", LIBRARY_BYTES),
        resource.RLIMIT_DATA: ("RLIMIT_DATA (ulimit -d)", LIBRARY_DATA_BYTES),
    }.items():
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise MemoryPlanError(
                "the libraries alone do not fit into memory",
                where=words,
                got=f"{limit // 2**20} MiB",
                wanted=f"{needed // 2**20} MiB or more",
                do="Raise the limit.",
            )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def silence_output() -> None:
    """Send what is printed from now on nowhere, with what is still waiting to be printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def flush_output() -> None:
    """Print what waits; if that cannot be, nothing is printed any more, so that the interpreter's end does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        silence_output()
