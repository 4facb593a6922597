"""Texts that stand in more than one row, and rows of one text that contradict each other.

Two counts are given of everything. *Identical* texts are equal character for character, blanks at their ends aside;
texts that are the *same* are equal after letter case and the width of blanks are folded (``normalised_text``), which is
also what keeps them on one side of a split. Other people's counts of a corpus usually are of the first kind; a model
hardly sees the difference. A pair of texts counts as one text.

Rows contradict each other when one text has different labels, or different sets of labels. No model can get all of
them right, and the score that is lost says nothing about the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, MAX_EXAMPLES, WARNING, Finding, counted, excerpt, listed, named, verb
from qlassify.data.split import normalised_text
from qlassify.data.text_groups import RowGroups, text_numbers, value_numbers

Labels = tuple[str, ...]
"""The labels of a row, sorted."""


@dataclass(frozen=True, slots=True, eq=False)
class DistinctTexts:
    """The different texts of several corpora.

    Attributes:
        texts: D normalised texts, in the order in which they are met; the two texts of a pair with a line end between.
            Each is made from its row when it is asked for: a second copy of all texts would be the largest thing in
            an audit.
        ids: part -> (N,) int64, which of them each row has.
    """

    texts: Sequence[str]
    ids: Mapping[str, NDArray[np.int64]]


class _TextsOfRows(Sequence[str]):
    """The normalised texts of some rows of several corpora.

    Args:
        corpora: the corpora.
        rows: (D,) rows, counted through all corpora.
    """

    def __init__(self, corpora: Sequence[Corpus], rows: NDArray[np.int64]) -> None:
        ends = np.cumsum([len(corpus) for corpus in corpora], dtype=np.int64)
        self._corpora = corpora
        self._place = np.searchsorted(ends, rows, side="right").astype(np.int8)
        self._row = rows - np.concatenate([np.zeros(1, np.int64), ends])[self._place]

    def __len__(self) -> int:
        return len(self._row)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return row_key(self._corpora[self._place[index]], int(self._row[index]))

    def __iter__(self) -> Iterator[str]:
        for place, row in zip(self._place, self._row, strict=True):
            yield row_key(self._corpora[place], row)


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


def row_key(corpus: Corpus, row: int, *, folded: bool = True) -> str:
    """What makes a row the same text as another: normalised, or as it stands if not ``folded``."""
    text, pair = corpus.texts[row], None if corpus.pairs is None else corpus.pairs[row]
    if folded:
        return normalised_text(text) if pair is None else f"{normalised_text(text)}\n{normalised_text(pair)}"
    return text if pair is None else f"{text}\n{pair}"


def row_keys(corpus: Corpus, *, folded: bool = True) -> Iterator[str]:
    """``row_key`` of each row."""
    return (row_key(corpus, row, folded=folded) for row in range(len(corpus)))


def distinct_texts(parts: Mapping[str, Corpus]) -> DistinctTexts:
    """The different normalised texts of all parts."""
    corpora = list(parts.values())
    sizes = [len(corpus) for corpus in corpora]
    numbers = text_numbers(chain.from_iterable(map(row_keys, corpora)), sum(sizes))
    ids = np.split(numbers, np.cumsum(sizes)[:-1])
    return DistinctTexts(_TextsOfRows(corpora, RowGroups.of(numbers).first()), dict(zip(parts, ids, strict=True)))


def sorted_labels(corpus: Corpus) -> list[Labels]:
    """The labels of each row, sorted, so that equal sets are equal tuples; rows with equal ones share the tuple."""
    known: dict[Labels, Labels] = {}
    in_order = (labels if len(labels) < 2 else tuple(sorted(labels)) for labels in corpus.labels)
    return [known.setdefault(labels, labels) for labels in in_order]


def find_duplicates(part: str, corpus: Corpus) -> Duplicates:
    """Count and list the repeated texts of one part."""
    labels = sorted_labels(corpus)
    label_ids = value_numbers(labels, len(labels))
    identical = RowGroups.of(text_numbers(row_keys(corpus, folded=False), len(corpus)))
    same = RowGroups.of(text_numbers(row_keys(corpus), len(corpus)))
    repeated = np.flatnonzero(same.sizes > 1)
    most = repeated[np.argsort(-same.sizes[repeated], kind="stable")][:MAX_EXAMPLES]
    conflicting = np.flatnonzero(same.differ(label_ids))[:MAX_EXAMPLES]
    return Duplicates(
        part,
        len(corpus),
        _counts(identical, label_ids),
        _counts(same, label_ids),
        tuple(_repeated_text(corpus, same.rows(group).tolist(), labels) for group in most),
        tuple(_repeated_text(corpus, same.rows(group).tolist(), labels) for group in conflicting),
    )


def _counts(groups: RowGroups, label_ids: NDArray[np.int64]) -> RepeatCounts:
    repeated, conflicting = groups.sizes > 1, groups.differ(label_ids)
    texts, rows = int(np.count_nonzero(repeated)), int(groups.sizes[repeated].sum())
    return RepeatCounts(
        texts, rows, rows - texts, int(np.count_nonzero(conflicting)), int(groups.sizes[conflicting].sum())
    )


def _repeated_text(corpus: Corpus, positions: Sequence[int], labels: Sequence[Labels]) -> RepeatedText:
    shown = positions[:MAX_EXAMPLES]
    return RepeatedText(
        excerpt(corpus.texts[positions[0]]),
        tuple(corpus.rows[position] for position in positions),
        tuple(labels[position] for position in shown),
    )
