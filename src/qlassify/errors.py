"""The exceptions a user can meet, and the exit code each one ends the command with.

    QlassifyError                 1   anything of ours that has no better place
    |-- ConfigError               2   an option, a configuration file, a combination that cannot work
    |-- DataError                 2   a file, a row, a label
    |-- ModelError                2   a base model, a tokeniser, a saved classifier
    |-- ContractError             3   a hyper-parameter contract refuses to go on
    |-- MemoryPlanError           4   the job does not fit into memory
    |-- CheckpointError           1   a run that cannot be resumed or restored
    |-- StorageError              1   a file cannot be written: no room, no permission
    |-- DivergenceError           1   the loss or the gradients stopped being finite
    `-- Interrupted         128 + n   signal n arrived

A message answers five questions, always in this order: what is wrong, where, what was got, what was wanted, and what
to do about it. They are separate arguments so that no call site forgets one by accident and so that a program can read
them (``error.as_dict()``) where a person reads the sentence. The alternative, a free-form string, ends in messages
that name the problem and leave the remedy to a search engine.

Passwords in addresses and tokens of the environment are taken out of every part (``masking``).

Mistakes of ours (a broken invariant) are ``assert``s, never one of these.
"""

from __future__ import annotations

import signal

from qlassify.masking import masked


class QlassifyError(Exception):
    """Base of every error that qlassify raises on purpose.

    Args:
        what: what is wrong, a sentence without its full stop.
        where: the file, row, option or tensor it is about.
        got: the value that was found.
        wanted: the values that would have been accepted.
        do: the next thing to try.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        got: object | None = None,
        wanted: object | None = None,
        do: str | None = None,
    ) -> None:
        self.what = masked(what)
        self.where = None if where is None else masked(str(where))
        self.got = None if got is None else masked(str(got))
        self.wanted = None if wanted is None else masked(str(wanted))
        self.do = None if do is None else masked(do)
        super().__init__(self._sentence())

    @property
    def problem(self) -> str:
        """What is wrong, where, what was got and wanted: the sentence without what to do about it."""
        parts = [self.what if self.where is None else f"{self.where}: {self.what}"]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.wanted is not None:
            parts.append(f"wanted {self.wanted}")
        return "; ".join(parts)

    def _sentence(self) -> str:
        return self.problem if self.do is None else f"{self.problem}. {self.do}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The same answer for a machine: the five parts, the class name and the exit code."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "wanted": self.wanted,
            "do": self.do,
            "exit_code": self.exit_code,
        }


class ConfigError(QlassifyError):
    """An option, a configuration file or a combination of both cannot work."""

    exit_code = 2


class DataError(QlassifyError):
    """A data file, a row or a label cannot be used."""

    exit_code = 2


class ModelError(QlassifyError):
    """A base model, a tokeniser or a saved classifier cannot be used."""

    exit_code = 2


class ContractError(QlassifyError):
    """A hyper-parameter contract of severity error refuses the run."""

    exit_code = 3


class MemoryPlanError(QlassifyError):
    """The job does not fit into the memory it was given."""

    exit_code = 4


class CheckpointError(QlassifyError):
    """A checkpoint is missing, damaged or belongs to another run."""


class StorageError(QlassifyError):
    """A file cannot be written: the disk is full, a quota is used up, or the folder is read-only."""


class DivergenceError(QlassifyError):
    """The loss or the gradients stayed non-finite for as many steps as the configuration allows."""


class QlassifyWarning(RuntimeWarning):
    """Something that a person should know of and that ends nothing; the command tells it as a sentence."""


class StopNow(BaseException):
    """A signal asked the command to end at once.

    Not an ``Exception``: libraries catch those, while they import or compile or draw, and would go on.

    Args:
        signal_number: the signal that arrived.
    """

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class Interrupted(QlassifyError):
    """A signal asked the command to stop, and it stopped.

    Args:
        signal_number: the signal that arrived; the exit code is 128 plus it (130 for SIGINT, 143 for SIGTERM).
        what: what was saved and where.
        do: how to go on.
    """

    def __init__(self, signal_number: int, what: str, *, do: str | None = None) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}: {what}", do=do)
