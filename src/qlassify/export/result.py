"""What an export came to: files, how to load them, and how far the logits have moved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """The written classifier beside the one that it came from, on the same texts.

    Attributes:
        library: what loaded the written one.
        rows: texts compared.
        part: what they are: ``validation rows``, or ``made-up token sequences`` when the data is not at hand.
        max_abs_delta: largest change of a logit.
        max_abs_logit: largest logit, for comparison.
        changed: texts whose label or set of labels is another one.
        metric: the score that chose the weights, or None without labelled rows.
        before: that score of the classifier, in the precision of the export.
        after: the same of the written one.
        note: why there are no labelled rows, if there are none.
    """

    library: str
    rows: int
    part: str
    max_abs_delta: float
    max_abs_logit: float
    changed: int
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export came to.

    Attributes:
        directory: where it lies.
        format: ``merged``, ``peft`` or ``onnx``.
        loads_with: the call that loads it.
        files: name -> bytes.
        snippet: a program that loads it and predicts.
        notes: what a user of it has to know.
        check: the comparison; None when the library is not installed here.
    """

    directory: Path
    format: str
    loads_with: str
    files: dict[str, int]
    snippet: str
    notes: tuple[str, ...]
    check: Check | None

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, for JSON."""
        return {**asdict(self), "directory": str(self.directory), "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class Written:
    """What a format's writer says of the files that it wrote.

    Attributes:
        loads_with: the call that loads them.
        snippet: a program that loads them and predicts; ``{directory}`` stands for the final place.
        notes: what a user has to know.
    """

    loads_with: str
    snippet: str
    notes: tuple[str, ...] = ()
