"""``Finding``: one thing that an audit of labelled text has to say, and the few phrases that all of them share.

A finding is a sentence with its numbers, how much it matters, and what one could do. It changes nothing: which rows
are used is decided where they are read and split, and a doubtful row may be the most valuable one. Severity has two
steps. A *warning* says that a score may mislead or that rows work against one another; *info* is worth knowing. A
third step, an error, would be a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

INFO = "info"
WARNING = "warning"

MAX_EXAMPLES = 20
"""Examples that a check keeps of each kind of finding; counts are always of all."""
EXCERPT_CHARS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        check: which check it comes from, such as "leaks".
        severity: ``INFO`` or ``WARNING``.
        what: a sentence with its numbers.
        do: what one could do about it; empty where there is nothing to do.
    """

    check: str
    severity: str
    what: str
    do: str = ""

    def as_dict(self) -> dict[str, str]:
        """The same for ``data.json``."""
        return {"check": self.check, "severity": self.severity, "what": self.what, "do": self.do}


class Check(Protocol):
    """The result of one check of an audit."""

    def findings(self) -> tuple[Finding, ...]:
        """What there is to say about it."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, for ``data.json``."""


def named(part: str) -> str:
    """What the rows of a part are called in a sentence."""
    return "training" if part == "train" else part


def excerpt(text: str, limit: int = EXCERPT_CHARS) -> str:
    """The beginning of ``text`` on one line."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 3] + "..."


def counted(number: int, one: str, more: str | None = None) -> str:
    """``1 row``, ``2 rows``; ``more`` is the plural where it is not made with an s."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def verb(number: int, one: str, more: str) -> str:
    """The form of a word that goes with so many."""
    return one if number == 1 else more


def listed(items: Sequence[object], limit: int = 5, total: int | None = None) -> str:
    """The first few items with commas, and how many more there are, of ``total`` if the items are not all."""
    shown = items[:limit]
    more = (len(items) if total is None else total) - len(shown)
    return ", ".join(map(str, shown)) + (f" and {more} more" if more else "")


def share(part: int, whole: int) -> str:
    """``1 of 3 (33.3 %)``."""
    return f"{part} of {whole} ({100 * part / max(1, whole):.1f} %)"
