"""How many rows each label has in each part, and labels that look like two spellings of one.

``imbalance_ratio`` is that of the training rows: rows of the most frequent label over rows of the rarest. Labels are
spelled alike if they are equal after letter case, blanks, hyphens and underscores are folded. Blanks and line ends
around a label never get as far as this; they are stripped when the file is read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlassify.data.dataset import Dataset
from qlassify.data.findings import INFO, WARNING, Finding, counted, listed, named, verb
from qlassify.data.labels import label_counts
from qlassify.data.split import normalised_text

MIN_ROWS = 2
"""Rows that a label needs for one of them to be held out."""
FEW_ROWS = 5
"""A label with fewer rows than this is learned, and scored, from single examples."""
MAX_IMBALANCE = 20.0
"""An imbalance ratio from which it is worth a warning: a guess that never says the rarest label is hardly wrong."""


@dataclass(frozen=True, slots=True)
class LabelBalance:
    """Rows of each label.

    Attributes:
        counts: part -> label -> rows.
        imbalance_ratio: of the training rows; a label without rows counts as one.
        alone: labels with fewer than ``MIN_ROWS`` training rows.
        few: labels with fewer than ``FEW_ROWS`` training rows, those in ``alone`` left out.
        missing: part -> labels without a row there, for the parts that are scored.
        spelled_alike: labels of the training rows that are spelled alike.
        unknown_alike: part -> (label that training does not know, known label spelled alike, rows).
        without_labels: part -> rows that have no label at all (multi-label).
    """

    counts: Mapping[str, Mapping[str, int]]
    imbalance_ratio: float
    alone: tuple[str, ...]
    few: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]
    spelled_alike: tuple[tuple[str, ...], ...]
    unknown_alike: Mapping[str, tuple[tuple[str, str, int], ...]]
    without_labels: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return {
            "counts": {part: dict(counts) for part, counts in self.counts.items()},
            "imbalance_ratio": round(self.imbalance_ratio, 3),
            "fewer_than_2_rows": list(self.alone),
            "fewer_than_5_rows": list(self.few),
            "missing": {part: list(names) for part, names in self.missing.items()},
            "spelled_alike": [list(names) for names in self.spelled_alike],
            "unknown_alike": {part: [list(entry) for entry in found] for part, found in self.unknown_alike.items()},
            "without_labels": dict(self.without_labels),
        }

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them."""
        return (*self._spelling(), *self._numbers(), *self._absences())

    def _spelling(self) -> list[Finding]:
        found = []
        train = self.counts["train"]
        for names in self.spelled_alike:
            each = ", ".join(f"{_spelled(name)} ({counted(train[name], 'row')})" for name in names)
            what = f"{len(names)} labels differ only in letter case, blanks, hyphens or Unicode form: {each}."
            found.append(Finding("labels", WARNING, what, "If they mean the same, give them one name."))
        for part, entries in self.unknown_alike.items():
            for unknown, known, rows in entries:
                what = (
                    f"{counted(rows, f'{named(part)} row')} with the label {_spelled(unknown)} "
                    f"{verb(rows, 'was', 'were')} left out; training has {_spelled(known)}, which differs only in "
                    "letter case, blanks, hyphens or Unicode form."
                )
                found.append(Finding("labels", WARNING, what, "Give them one name."))
        return found

    def _numbers(self) -> list[Finding]:
        found = []
        train = self.counts["train"]
        if self.imbalance_ratio >= MAX_IMBALANCE:
            most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
            what = (
                f"The most frequent label, {most!r}, has {counted(train[most], 'training row')}; the rarest, "
                f"{least!r}, has {train[least]} ({self.imbalance_ratio:.0f} to 1)."
            )
            do = "Judge by macro-F1 and not by accuracy; class weights and more rows of the rare labels help."
            found.append(Finding("labels", WARNING, what, do))
        if self.alone:
            names = listed([repr(name) for name in self.alone])
            what = f"{counted(len(self.alone), 'label')} with fewer than {MIN_ROWS} training rows: {names}."
            do = "They can be trained on or scored, not both: add rows, or merge them with another label."
            found.append(Finding("labels", WARNING, what, do))
        if self.few:
            names = listed([f"{name!r} ({train[name]})" for name in self.few])
            what = f"{counted(len(self.few), 'label')} with {MIN_ROWS} to {FEW_ROWS - 1} training rows: {names}."
            found.append(Finding("labels", WARNING, what, "Add rows, or merge them with another label."))
        return found

    def _absences(self) -> list[Finding]:
        found = []
        for part, names in self.missing.items():
            if names:
                what = (
                    f"{counted(len(names), 'label')} of {len(self.counts['train'])} {verb(len(names), 'has', 'have')} "
                    f"no {part} row: "
                    f"{listed([repr(name) for name in names])}."
                )
                do = f"The {part} score says nothing about them."
                found.append(Finding("labels", WARNING, what, do))
        for part, rows in self.without_labels.items():
            if rows:
                what = f"{counted(rows, f'{named(part)} row')} {verb(rows, 'has', 'have')} no label at all."
                found.append(Finding("labels", INFO, what, "They teach that no label fits. Is that what is meant?"))
        return found


def label_balance(dataset: Dataset) -> LabelBalance:
    """Count the labels of every part of ``dataset``."""
    names = dataset.labels.names
    counts = {
        part: dict(zip(names, label_counts(rows.targets, len(names)).tolist(), strict=True))
        for part, rows in dataset.parts().items()
    }
    train = counts["train"]
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_folded(name), []).append(name)
    return LabelBalance(
        counts,
        max(train.values()) / max(1, min(train.values())),
        tuple(name for name in names if train[name] < MIN_ROWS),
        tuple(name for name in names if MIN_ROWS <= train[name] < FEW_ROWS),
        {
            part: tuple(name for name in names if counts[part][name] == 0 and train[name] > 0)
            for part in counts
            if part != "train"
        },
        tuple(tuple(alike) for alike in spellings.values() if len(alike) > 1),
        _unknown_alike(dataset, {folded: alike[0] for folded, alike in spellings.items()}),
        {part: sum(not labels for labels in rows.corpus.labels) for part, rows in dataset.parts().items()},
    )


def _unknown_alike(dataset: Dataset, known: Mapping[str, str]) -> dict[str, tuple[tuple[str, str, int], ...]]:
    """Labels of the files of other parts that training does not know, but for their spelling."""
    names = set(dataset.labels.names)
    found: dict[str, tuple[tuple[str, str, int], ...]] = {}
    for part, corpus in dataset.files():
        rows: dict[str, int] = {}
        for labels in corpus.labels:
            for name in labels:
                if name not in names and _folded(name) in known:
                    rows[name] = rows.get(name, 0) + 1
        if rows:
            found[part] = tuple((name, known[_folded(name)], count) for name, count in rows.items())
    return found


def _folded(name: str) -> str:
    """What two spellings of one name have in common; characters without a shape count for nothing."""
    compatible = unicodedata.normalize("NFKC", name)
    shaped = "".join(one for one in compatible if unicodedata.category(one) != "Cf")
    return normalised_text(shaped.replace("_", " ").replace("-", " "))


def _spelled(name: str) -> str:
    """A name in quotes; one that is written like others and is another is spelled by its characters' numbers."""
    return repr(name) if unicodedata.normalize("NFC", name) == name and name.isprintable() else ascii(name)
