"""What could not be written of a run, for its end: a report that finds no room must not cost the training it is about.

Two kinds of files are told apart. The classifier is what the run was for: where it cannot be written the run ends with
an error, and its checkpoints are there to go on from. Everything else is *about* the run: curves, measurements,
predictions, report, model card. Where one of these cannot be written that is kept here, the others are tried all the
same, and the job ends in exit code 1 and one sentence that names them. ``metrics.json`` is then left out on purpose:
where it is, a run is finished, and without it ``--resume`` makes what is missing from the last checkpoint, in seconds.

The alternatives were to end at the first failure, as any exception would, and to warn and end well. The first loses
hours for a megabyte, the second lets a script believe in files that are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qlassify.errors import Interrupted, QlassifyError, StorageError

ROOM = "Make room or fix the permissions."
"""What to do where the system refused to write."""
MEND = "Mend what is named."
"""What to do about an error that does not say so itself."""


class Unwritten:
    """Files that could not be written, each with the reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._remedies: dict[str, None] = {}  # in the order of the files

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def attempt(self, name: str, write: Callable[[], object]) -> None:
        """Write a file, or keep why it could not be.

        Args:
            name: of the file, as it is told.
            write: writes it.

        Raises:
            Interrupted: a signal arrived meanwhile.
        """
        try:
            write()
        except Interrupted:
            raise  # whoever sends a signal means the job and not the file
        except (OSError, StorageError) as error:
            self.add(name, error.problem if isinstance(error, StorageError) else str(error), remedy=ROOM)
        except QlassifyError as error:
            self.add(name, error.problem, remedy=error.do or MEND)

    def add(self, name: str, reason: str, *, remedy: str | None = None) -> None:
        """Keep that a file is missing or incomplete.

        Args:
            name: of the file.
            reason: why.
            remedy: a sentence on what to do about it; None where it follows from another file's.
        """
        self._reasons[name] = reason
        if remedy is not None:
            self._remedies[remedy] = None

    @property
    def remedy(self) -> str:
        """What to do, in a sentence for each cause."""
        return " ".join(self._remedies)

    def as_dict(self) -> dict[str, str]:
        """Name -> reason."""
        return dict(self._reasons)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each file."""
        return tuple(f"{name} could not be written: {reason}." for name, reason in self._reasons.items())


def unwritten_error(unwritten: dict[str, str], where: Path, do: str) -> StorageError:
    """What to tell when everything is done but some files.

    Args:
        unwritten: name -> reason.
        where: the folder that they are missing from.
        do: how to make them.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in unwritten.items():
        reasons.setdefault(reason, []).append(name)
    got = "; ".join(f"no {', '.join(names)} ({reason})" for reason, names in reasons.items())
    return StorageError("not everything could be written", where=where, got=got, do=do)
