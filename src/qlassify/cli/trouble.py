"""What the machine says when it has no more room: a sentence and an exit code in place of a traceback.

An ``OSError`` or a ``MemoryError`` that nobody expected where it came up is no mistake of the user's and none of ours,
and may come up anywhere: a quota, a read-only mount, a memory limit. Catching each where it could happen would be a
handler around every line, so the command's entry asks here. What can be told better nearer to its place is.
"""

from __future__ import annotations

import errno
import os
import sys

from qlassify.errors import MemoryPlanError, QlassifyError, StorageError
from qlassify.planning.out_of_memory import first_line, is_out_of_memory

ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk is full, the quota is used up, the file would be larger than is allowed."""
PERMISSION = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def trouble(error: Exception) -> QlassifyError | None:
    """The error to tell in place of one that the system raised; None if that is somebody's mistake."""
    if is_out_of_memory(error):
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
        "a file could not be read or written",
        where=error.filename,
        got=error.strerror or str(error),
        do=do,
    )


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
