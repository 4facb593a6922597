"""Texts that stand in more than one row, and rows of one text that contradict each other.

Two counts are given of everything. *Identical* texts are equal character for character, blanks at their ends aside;
texts that are the *same* are equal after letter case and the width of blanks are folded (``normalised_text``), which is
also what keeps them on one side of a split. Other people's counts of a corpus usually are of the first kind; a model
hardly sees the difference. A pair of texts counts as one text.

Rows contradict each other when one text has different labels, or different sets of labels. No model can get all of
them right, and the score that is lost says nothing about the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, MAX_EXAMPLES, WARNING, Finding, counted, excerpt, listed, named, verb
from qlassify.data.split import normalised_text

Labels = tuple[str, ...]
"""The labels of a row, sorted."""


@dataclass(frozen=True, slots=True, eq=False)
class DistinctTexts:
    """The different texts of several corpora.

    Attributes:
        texts: D normalised texts, in the order in which they are met; the two texts of a pair with a line end between.
        ids: part -> (N,) int64, which of them each row has.
    """

    texts: tuple[str, ...]
    ids: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class RepeatCounts:
    """How much is repeated within one part.

    Attributes:
        texts: different texts that stand in more than one row.
        rows: the rows that have them.
        surplus: rows that repeat an earlier row: ``rows`` without ``texts``.
        conflicting_texts: those of the texts of which the rows differ in their labels.
        conflicting_rows: the rows that have these.
    """

    texts: int
    rows: int
    surplus: int
    conflicting_texts: int
    conflicting_rows: int


@dataclass(frozen=True, slots=True)
class RepeatedText:
    """One text of several rows.

    Attributes:
        excerpt: its beginning.
        rows: row numbers in the file.
        labels: the labels of these rows, in their order.
    """

    excerpt: str
    rows: tuple[int, ...]
    labels: tuple[Labels, ...]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Repeated texts within one part of the data.

    Attributes:
        part: which.
        num_rows: rows of the part.
        identical: counts of texts equal character for character.
        same: counts of texts equal after folding.
        repeated: the texts in most rows, at most ``MAX_EXAMPLES``.
        conflicting: texts with different labels, at most ``MAX_EXAMPLES``.
    """

    part: str
    num_rows: int
    identical: RepeatCounts
    same: RepeatCounts
    repeated: tuple[RepeatedText, ...]
    conflicting: tuple[RepeatedText, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them."""
        found = []
        if self.same.texts:
            most = self.repeated[0]
            texts = counted(self.same.texts, f"{named(self.part)} text")
            what = (
                f"{texts} {verb(self.same.texts, 'stands', 'stand')} in "
                f"more than one row, {self.same.rows} rows in all ({self.same.surplus} repeat an earlier one, "
                f"{self.identical.surplus} of them character for character); most often {most.excerpt!r}, "
                f"{len(most.rows)} times."
            )
            do = "Repeated rows weigh more in training. Remove those that are there by mistake."
            found.append(Finding("duplicates", INFO, what, do))
        if self.same.conflicting_texts:
            first = self.conflicting[0]
            texts = counted(self.same.conflicting_texts, f"{named(self.part)} text")
            what = (
                f"{texts} {verb(self.same.conflicting_texts, 'has', 'have')} different labels in different rows, "
                f"{self.same.conflicting_rows} rows in all; for example {first.excerpt!r} in rows "
                f"{listed(first.rows)}: {listed([' + '.join(labels) or 'none' for labels in first.labels])}."
            )
            do = "No classifier can get them all right: decide on one label, or add what tells them apart to the text."
            found.append(Finding("conflicting duplicates", WARNING, what, do))
        return tuple(found)


def row_keys(corpus: Corpus, *, folded: bool = True) -> list[str]:
    """What makes two rows the same text, for each row: normalised, or as it stands if not ``folded``."""
    change = normalised_text if folded else str
    if corpus.pairs is None:
        return [change(text) for text in corpus.texts]
    return [f"{change(text)}\n{change(pair)}" for text, pair in zip(corpus.texts, corpus.pairs, strict=True)]


def distinct_texts(parts: Mapping[str, Corpus]) -> DistinctTexts:
    """The different normalised texts of all parts."""
    numbers: dict[str, int] = {}
    ids = {
        name: np.array([numbers.setdefault(key, len(numbers)) for key in row_keys(corpus)], dtype=np.int64)
        for name, corpus in parts.items()
    }
    return DistinctTexts(tuple(numbers), ids)


def sorted_labels(corpus: Corpus) -> list[Labels]:
    """The labels of each row, sorted, so that equal sets are equal tuples."""
    return [labels if len(labels) < 2 else tuple(sorted(labels)) for labels in corpus.labels]


def find_duplicates(part: str, corpus: Corpus) -> Duplicates:
    """Count and list the repeated texts of one part."""
    labels = sorted_labels(corpus)
    same = _groups(row_keys(corpus))
    conflicting = _conflicting(same, labels)
    most = sorted(same, key=lambda positions: (-len(positions), positions[0]))[:MAX_EXAMPLES]
    return Duplicates(
        part,
        len(corpus),
        _counts(_groups(row_keys(corpus, folded=False)), labels),
        _counts(same, labels),
        tuple(_repeated_text(corpus, positions, labels) for positions in most),
        tuple(_repeated_text(corpus, positions, labels) for positions in conflicting[:MAX_EXAMPLES]),
    )


def _groups(keys: Iterable[str]) -> list[list[int]]:
    """Positions of the rows of each key that has more than one, by the first."""
    members: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        members.setdefault(key, []).append(position)
    return [positions for positions in members.values() if len(positions) > 1]


def _conflicting(groups: Sequence[list[int]], labels: Sequence[Labels]) -> list[list[int]]:
    return [positions for positions in groups if len({labels[position] for position in positions}) > 1]


def _counts(groups: Sequence[list[int]], labels: Sequence[Labels]) -> RepeatCounts:
    conflicting = _conflicting(groups, labels)
    rows = sum(map(len, groups))
    return RepeatCounts(len(groups), rows, rows - len(groups), len(conflicting), sum(map(len, conflicting)))


def _repeated_text(corpus: Corpus, positions: Sequence[int], labels: Sequence[Labels]) -> RepeatedText:
    shown = positions[:MAX_EXAMPLES]
    return RepeatedText(
        excerpt(corpus.texts[positions[0]]),
        tuple(corpus.rows[position] for position in positions),
        tuple(labels[position] for position in shown),
    )
