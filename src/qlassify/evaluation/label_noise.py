"""Labels that may be wrong: where a bag of words, trained on the other rows, is sure of another label.

Training rows are dealt into four folds; TF-IDF and logistic regression (``baselines``) is fitted on three and judges
the fourth. Rows of one group stay in one fold, so that no row is judged by what it, or its double, has taught. A row is
a candidate if another label than its own is more probable than not, by 0.2 or more above its own, and at least as
probable as that label is, on average, where it is given. That is the rule of confident learning (Northcutt, Jiang and
Chuang 2021, arXiv:1911.00068, section 3.1), with a margin, because a bag of words is often unsure. Where a row may have
several labels, they do not compete: there, a label is a candidate that the row lacks, and what stands against it is
that it is rightly missing. A word count that does not see why a label was given says little, and is not asked.

Candidates are ranked by how much more probable the other label is. They are rows to look at and not errors: a good
part of them are texts that need more than their words. A transformer in the place of the bag of words would find more,
and cost four trainings.

Where words say next to nothing about the label (is one sentence a paraphrase of the other?), their contradiction says
nothing either. ``skill`` is the share of the gap between always answering the most frequent label and always being
right that the bag of words closes; below ``MIN_SKILL`` there are no candidates.

Work is bounded: each fold's model learns from at most so many rows, fewer where texts are long or a row may have many
labels (a regression each), drawn at random. Every row is judged all the same, unless that would be more text than
``MAX_CHARS`` or more rows times labels than ``MAX_PROBABILITIES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, Finding, counted, excerpt, share
from qlassify.evaluation.baselines import TfidfBaseline
from qlassify.seeding import derive_seed, numpy_generator

NUM_FOLDS = 4
MARGIN = 0.2
"""Least difference between the probability of the other label and that of what the row says."""
MIN_SKILL = 0.1
"""Least skill of a bag of words whose contradiction means something."""
MAX_CANDIDATES = 100
"""Candidates that are kept, the most doubtful ones."""
MAX_FIT_ROWS = 20_000
"""Rows from which one fold's model learns."""
MAX_PROBABILITIES = 20_000_000
"""Rows times labels of which probabilities are held, 8 bytes each; beyond, a sample of the rows is judged."""
MAX_CHARS = 20_000_000
"""Characters of the rows that are judged; beyond, a sample of the rows is."""
MAX_FIT_CHARS = 2_000_000
"""Characters from which one fold's model learns."""
MAX_FIT_DECISIONS = 150_000
"""Rows times labels from which one fold's model learns, where rows have several labels."""


@dataclass(frozen=True, slots=True)
class NoiseCandidate:
    """A row of which the label may be wrong.

    Attributes:
        row: its number in the file.
        given: its labels.
        suggested: the label that its words speak for.
        probability: of that label.
        given_probability: of what the row says: its own label, or that it rightly lacks the suggested one where rows
            may have several labels.
        excerpt: the beginning of the text.
    """

    row: int
    given: tuple[str, ...]
    suggested: str
    probability: float
    given_probability: float
    excerpt: str


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Candidates among the training rows.

    Attributes:
        candidates: the most doubtful first, at most ``MAX_CANDIDATES``.
        num_candidates: how many there are.
        num_rows: rows that were judged: all training rows but in the largest corpora, none if there are too few.
        skill: of the bag of words, from 0 (no better than the most frequent label) to 1.
        num_fit_rows: rows from which each fold's model learned, at most.
        num_folds: folds.
        total_rows: training rows.
    """

    candidates: tuple[NoiseCandidate, ...]
    num_candidates: int
    num_rows: int
    skill: float
    num_fit_rows: int
    num_folds: int
    total_rows: int

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them."""
        if not self.candidates:
            return ()
        first = self.candidates[0]
        judged = "" if self.num_rows == self.total_rows else f"In a sample of the {self.total_rows} training rows, "
        what = (
            f"{judged}{share(self.num_candidates, self.num_rows)} training rows have a label that a bag of words, "
            f"fitted on {counted(self.num_fit_rows, 'other row')}, contradicts; first of all row {first.row}, "
            f"{first.excerpt!r}: given {' + '.join(map(repr, first.given)) or 'no label'}, the words speak for "
            f"{first.suggested!r} ({100 * first.probability:.0f} %)."
        )
        do = f"Look at the {len(self.candidates)} rows that are listed; some labels will be wrong, some texts hard."
        return (Finding("label noise", INFO, what, do),)


def find_label_noise(
    corpus: Corpus, targets: NDArray[Any], names: Sequence[str], groups: NDArray[np.int64], *, seed: int
) -> LabelNoise:
    """Judge every row of ``corpus`` by a bag of words of the others.

    Args:
        corpus: N training rows.
        targets: classes (N,) or flags (N, C).
        names: the C labels.
        groups: (N,) equal for rows that must not judge one another: those of one text, or of one source.
        seed: of the folds and the fits.
    """
    if len(np.unique(groups)) < 2 * NUM_FOLDS:
        return LabelNoise((), 0, 0, 0.0, 0, NUM_FOLDS, len(corpus))
    total_rows = len(corpus)
    limit = max(1, min(MAX_PROBABILITIES // len(names), int(MAX_CHARS / _mean_chars(corpus))))
    if len(corpus) > limit:
        draw = numpy_generator(seed, "label-noise-rows").random(len(corpus))
        chosen = np.sort(np.argsort(draw, kind="stable")[:limit])
        corpus, targets, groups = corpus.select(chosen), targets[chosen], groups[chosen]
    probabilities, num_fit_rows = _out_of_fold(corpus, targets, len(names), groups, seed)
    given = targets > 0.5 if targets.ndim == 2 else targets[:, None] == np.arange(len(names))
    skill = _skill(probabilities, given)
    doubtful, suggested, own = _contradicted(probabilities, given, multi_label=targets.ndim == 2)
    rows = np.flatnonzero(doubtful) if skill >= MIN_SKILL else np.zeros(0, np.int64)
    probability = probabilities[np.arange(len(corpus)), suggested]
    ranked = rows[np.lexsort((rows, (own - probability)[rows]))]
    candidates = tuple(
        NoiseCandidate(
            corpus.rows[row],
            corpus.labels[row],
            names[suggested[row]],
            round(float(probability[row]), 4),
            round(float(own[row]), 4),
            excerpt(corpus.texts[row]),
        )
        for row in ranked[:MAX_CANDIDATES].tolist()
    )
    return LabelNoise(candidates, len(rows), len(corpus), round(skill, 4), num_fit_rows, NUM_FOLDS, total_rows)


def _mean_chars(corpus: Corpus) -> float:
    """Characters of a row, on average; at least 1."""
    second = 0 if corpus.pairs is None else sum(map(len, corpus.pairs))
    return max(1.0, (sum(map(len, corpus.texts)) + second) / len(corpus))


def _skill(probabilities: NDArray[np.float64], given: NDArray[np.bool_]) -> float:
    """How far the most probable label is a given one more often than the most frequent label is."""
    right = float(given[np.arange(len(given)), probabilities.argmax(axis=1)].mean())
    most_frequent = float(given.mean(axis=0).max())
    return max(0.0, (right - most_frequent) / max(1e-12, 1.0 - most_frequent))


def _contradicted(
    probabilities: NDArray[np.float64], given: NDArray[np.bool_], *, multi_label: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """(N,) each: whether the row is a candidate, the likeliest label that it lacks, the probability of what it says."""
    totals = given.sum(axis=0)
    # Mean probability of a label where it is given; a label that no row has is never suggested.
    usual = np.where(totals > 0, (probabilities * given).sum(axis=0) / np.maximum(1, totals), np.inf)
    other = np.where(given, -1.0, probabilities)
    suggested = other.argmax(axis=1)
    probability = other.max(axis=1)
    own = 1.0 - probability if multi_label else np.where(given, probabilities, 0.0).max(axis=1)
    doubtful = (probability - own >= MARGIN) & (probability >= usual[suggested]) & (probability > 0.5)
    return doubtful, suggested, own


def _out_of_fold(
    corpus: Corpus, targets: NDArray[Any], num_classes: int, groups: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], int]:
    """(N, C) probabilities, each row's from a model that has not seen its group; and the most rows that one learned."""
    multi_label = targets.ndim == 2
    limit = min(MAX_FIT_ROWS, int(MAX_FIT_CHARS / _mean_chars(corpus)))
    if multi_label:
        limit = min(limit, max(1_000, MAX_FIT_DECISIONS // num_classes))
    limit = max(1, limit)
    generator = numpy_generator(seed, "label-noise")
    different, group_of_row = np.unique(groups, return_inverse=True)
    order = np.argsort(generator.random(len(different)), kind="stable")
    fold_of_group = np.empty(len(different), np.int64)
    fold_of_group[order] = np.arange(len(different)) % NUM_FOLDS
    fold_of_row = fold_of_group[group_of_row]
    draw = generator.random(len(corpus))
    probabilities = np.zeros((len(corpus), num_classes))
    most = 0
    for fold in range(NUM_FOLDS):
        others = np.flatnonzero(fold_of_row != fold)
        chosen = np.sort(others[np.argsort(draw[others], kind="stable")[:limit]])
        most = max(most, len(chosen))
        baseline = TfidfBaseline.fit(
            [corpus.texts[row] for row in chosen],
            targets[chosen],
            multi_label=multi_label,
            num_classes=num_classes,
            pairs=None if corpus.pairs is None else [corpus.pairs[row] for row in chosen],
            seed=derive_seed(seed, "label-noise", fold),
        )
        judged = np.flatnonzero(fold_of_row == fold)
        probabilities[judged] = baseline.probabilities(
            [corpus.texts[row] for row in judged],
            None if corpus.pairs is None else [corpus.pairs[row] for row in judged],
        )
    return probabilities, most
