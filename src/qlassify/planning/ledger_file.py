"""The ledger's file: one reader and writer at a time, whole or not at all.

The lock is taken on a file beside the ledger that is never renamed or deleted. A lock on the ledger itself would be a
lock on an inode that the next rename takes out of the folder: whoever had waited for it would hold the lock of a file
that nobody else opens any more, and two processes would write.

A damaged ledger is put aside under a number and said. It is not taken for an empty one: promises that were made and
not yet taken up would be made again. The new one stays closed until every living owner has written itself back, which
each does at its next heartbeat; then it is whole. Nothing can damage it while it is only written here; an editor or a
full disk of a network folder can.

``flock`` is asked again and again instead of once for ever, so that a process that was stopped while it held the lock
ends in a sentence.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning.ledger_records import DamagedLedger, LedgerState, NewerLedger, from_json, to_json

LOCK_TIMEOUT_SECONDS = 30.0
CLOSED_SECONDS = 60.0
"""How long a ledger that replaces a damaged one promises nothing: two heartbeats of a reservation."""
_LOCK_INTERVAL_SECONDS = (0.001, 0.01)
"""First and longest pause between two tries. A try costs microseconds and the lock is held for milliseconds."""


class LedgerFile:
    """A ledger on disk.

    Args:
        path: the file; its lock is ``<path>.lock``.
        boot_id: of the present boot, for a ledger that begins.
        clock: seconds, the same for all processes of the machine.
        tell: takes a sentence for the user, such as that a damaged ledger was put aside.
        lock_timeout_seconds: how long to wait for other processes to finish with the file.
    """

    def __init__(
        self,
        path: Path,
        boot_id: str,
        *,
        clock: Callable[[], float],
        tell: Callable[[str], None],
        lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    ) -> None:
        self.path = path
        self._boot_id = boot_id
        self._clock = clock
        self._tell = tell
        self._lock_timeout_seconds = lock_timeout_seconds

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process and thread out of the ledger.

        Raises:
            ConfigError: the folder or the lock cannot be made.
            MemoryPlanError: another process has held the lock for too long.
        """
        import fcntl

        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Reading is enough for a lock, so that one ledger can serve several users under any umask.
            descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            deadline = time.monotonic() + self._lock_timeout_seconds
            pause, longest = _LOCK_INTERVAL_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise self._stuck(lock) from None
                except OSError as error:
                    raise self._unusable(error) from None
                time.sleep(pause)
                pause = min(2 * pause, longest)
            yield
        finally:
            # Said, not left to the closing: a child that another thread forks meanwhile has the descriptor as well, and
            # a lock that is only closed would be held for as long as that child lives.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def read(self) -> LedgerState:
        """The ledger as it stands; the lock must be held, since a damaged one is put aside.

        Raises:
            ConfigError: the file cannot be read, or was written by a newer version.
        """
        try:
            return from_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return LedgerState(self._boot_id)
        except NewerLedger as error:
            raise ConfigError(
                "the ledger was written by a newer version of qlassify",
                where=self.path,
                got=error,
                do="Use that version for every run on this machine, or set QLASSIFY_LEDGER to another file.",
            ) from None
        except (DamagedLedger, UnicodeDecodeError) as error:
            return self._put_aside(error)
        except OSError as error:
            raise self._unusable(error) from None

    def write(self, state: LedgerState) -> None:
        """Replace the ledger; the lock must be held.

        Raises:
            ConfigError: the file cannot be written.
        """
        prefix = f".{self.path.name}."
        try:
            # Only the holder of the lock writes, so what lies here was left by one that was killed.
            for left in self.path.parent.glob(f"{prefix}*.tmp"):
                with suppress(FileNotFoundError):
                    left.unlink()
            scratch = self.path.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(to_json(state))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
        except OSError as error:
            raise self._unusable(error) from None

    def _put_aside(self, reason: object) -> LedgerState:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        state = LedgerState(self._boot_id, closed_until=self._clock() + CLOSED_SECONDS)
        try:
            os.replace(self.path, aside)
        except OSError as error:
            raise self._unusable(error) from None
        self.write(state)
        self._tell(
            f"the memory ledger was damaged ({reason}) and is kept as {aside}. For {CLOSED_SECONDS:.0f} seconds "
            "nothing is promised, until running jobs have entered themselves again."
        )
        return state

    def _unusable(self, error: object) -> ConfigError:
        return ConfigError(
            "the memory ledger cannot be used",
            where=self.path,
            got=error,
            do="Set QLASSIFY_LEDGER to a file on a local disk that you can write, or to off.",
        )

    def _stuck(self, lock: Path) -> MemoryPlanError:
        return MemoryPlanError(
            f"another process has held the memory ledger's lock for {self._lock_timeout_seconds:g} seconds",
            where=lock,
            do=f"See which it is with: fuser {lock}",
        )
