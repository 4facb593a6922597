"""Telling a fact once: what reading the files noted, less what the audit says more closely.

Reading counts rejected rows and texts that stand in two parts, because these must be known where no audit is made. The
audit counts them again with reasons, examples and near duplicates. Whoever shows both leaves the shorter sentence out.
The sentences are matched by their words, not by a code that they would have to carry through every file of a run;
a test makes data that has each of these faults and looks for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qlassify.data.findings import named

_UNUSED = "rows of the {0} file are not used:"
_SHAPES = (
    # (what reading says, what the audit's finding about the same holds)
    (re.compile(r"of \d+ (\w+) texts also stand in the (\w+) rows;"), "{0} texts also stand in the {1} rows:"),
    (re.compile(r"of \d+ (\w+) rows were rejected:"), _UNUSED),
    (re.compile(r"^\d+ (\w+) rows have labels that the training rows do not have;"), _UNUSED),
    (re.compile(r"of \d+ (\w+) texts \([\d.]+ %\) (?:is|are) longer than"), "{0} texts are cut at"),
)


def untold(notes: Sequence[str], findings: Iterable[str]) -> tuple[str, ...]:
    """The notes whose fact stands in none of the findings, in their order."""
    told = "\n".join(findings)
    return tuple(note for note in notes if not _is_told(note, told))


def _is_told(note: str, told: str) -> bool:
    for shape, words in _SHAPES:
        match = shape.search(note)
        if match is not None:
            return words.format(*map(named, match.groups())) in told
    return False
