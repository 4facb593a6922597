"""What one part of the data has of a text: the rows with the same text, else with the likest ones.

A text that stands in many rows of the known part is looked up once and its answer kept. Looking at all its rows for
each row that asks would cost the product of the two, and in real corpora a thank-you or an empty template stands in a
hundred thousand rows of either part. An answer holds what is counted, not the rows: the first, and all labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.repeats import Labels
from qlassify.data.similar import SimilarPairs
from qlassify.data.text_groups import RowGroups

KEPT_COUNTERPARTS = 8
"""Counterparts of a text from which the answer is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Partners:
    """Pairs of similar texts in both directions, by text.

    Attributes:
        starts: (D + 1,) int64; the partners of text i are ``others[starts[i]:starts[i + 1]]``, the likest first.
        others: (2 P,) int64 texts.
        similarity: (2 P,) float64, of each pair.
    """

    starts: NDArray[np.int64]
    others: NDArray[np.int64]
    similarity: NDArray[np.float64]


def partners_of(pairs: SimilarPairs, num_texts: int) -> Partners:
    """The same pairs by text, of ``num_texts`` texts."""
    ones = np.concatenate([pairs.first, pairs.second])
    others = np.concatenate([pairs.second, pairs.first])
    similarity = np.concatenate([pairs.similarity, pairs.similarity])
    order = np.lexsort((others, -similarity, ones))
    starts = np.searchsorted(ones[order], np.arange(num_texts + 1))
    return Partners(starts, others[order], similarity[order])


@dataclass(slots=True)
class KnownRows:
    """Some rows of the known part.

    Attributes:
        first: position of the first of them.
        labels: all their labels.
    """

    first: int
    labels: set[Labels]


@dataclass(frozen=True, slots=True)
class Match:
    """The counterparts of a text.

    Attributes:
        kind: "same", or the kind of the pairs that led to them.
        similarity: of the likest one, 1 for the same text.
        rows: the rows that have them.
        exact: of the same text, the rows by (text, second text) as they stand in the file.
    """

    kind: str
    similarity: float
    rows: KnownRows
    exact: Mapping[tuple[str, str | None], KnownRows] | None = None


class Counterparts:
    """Finds what the known part has of a text.

    Args:
        corpus: the known part.
        labels: the sorted labels of its rows.
        rows_of_text: its rows by text, of all D texts.
        partners: kind -> pairs of texts, the strongest kind first.
    """

    def __init__(
        self, corpus: Corpus, labels: Sequence[Labels], rows_of_text: RowGroups, partners: Mapping[str, Partners]
    ) -> None:
        self._corpus, self._labels = corpus, labels
        self._rows_of_text, self._partners = rows_of_text, partners
        self._is_known = rows_of_text.sizes > 0
        self._kept: dict[int, Match] = {}

    def of(self, text: int) -> Match | None:
        """The strongest kind of leak of a text."""
        if text in self._kept:
            return self._kept[text]
        if self._is_known[text]:
            rows = self._rows_of_text.rows(text).tolist()
            match = Match("same", 1.0, self._known(rows), self._by_text(rows))
        else:
            similar = self._similar(text)
            if similar is None:
                return None
            kind, similarity, rows = similar
            match = Match(kind, similarity, self._known(rows))
        if len(rows) > KEPT_COUNTERPARTS:
            self._kept[text] = match
        return match

    def _similar(self, text: int) -> tuple[str, float, list[int]] | None:
        """Kind, similarity and positions of counterparts that are not the same, the likest first."""
        for kind, pairs in self._partners.items():
            here = slice(pairs.starts[text], pairs.starts[text + 1])
            chosen = self._is_known[pairs.others[here]]
            if chosen.any():
                others = pairs.others[here][chosen].tolist()
                rows = [row for other in others for row in self._rows_of_text.rows(other).tolist()]
                return kind, float(pairs.similarity[here][chosen][0]), rows
        return None

    def _known(self, rows: Sequence[int]) -> KnownRows:
        return KnownRows(rows[0], {self._labels[row] for row in rows})

    def _by_text(self, rows: Sequence[int]) -> dict[tuple[str, str | None], KnownRows]:
        texts, pairs = self._corpus.texts, self._corpus.pairs
        found: dict[tuple[str, str | None], KnownRows] = {}
        for row in rows:
            known = found.setdefault((texts[row], None if pairs is None else pairs[row]), KnownRows(row, set()))
            known.labels.add(self._labels[row])
        return found
