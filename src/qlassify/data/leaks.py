"""What one part of the data knows of another: rows to be scored that resemble rows to learn from.

A score is meant to say how a classifier does on new texts. A row of which the text, or nearly the text, or long
passages of it, also stand in the training rows is no new text. Each such row is counted once, by the strongest thing
that can be said of it:

    identical   the same text character for character
    same        the same but for letter case and the width of blanks
    near        a near duplicate (``near_duplicates``)
    passages    shared passages (``passages``): one article, thread or template

A leak is worse than it looks where the labels differ: such a row is scored against what training has taught about its
own text. The extreme is a corpus in which each source has a text in every class; split by row, a classifier there
scores below chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from qlassify.data.corpus import Corpus
from qlassify.data.counterparts import Counterparts, Partners, partners_of
from qlassify.data.findings import INFO, MAX_EXAMPLES, WARNING, Finding, counted, excerpt, named, share, verb
from qlassify.data.repeats import DistinctTexts, Labels, sorted_labels
from qlassify.data.similar import SimilarPairs, components
from qlassify.data.text_groups import RowGroups, value_numbers

KINDS = ("identical", "same", "near", "passages")
MAX_LEAK_SHARE = 0.01
"""Share of the scored rows from which a leak is worth a warning: it can then move a score by a point."""


@dataclass(frozen=True, slots=True)
class LeakCount:
    """Rows of one kind of leak.

    Attributes:
        rows: rows that are scored and have a counterpart.
        differing: those of them of which no counterpart has the same labels.
    """

    rows: int
    differing: int


@dataclass(frozen=True, slots=True)
class LeakExample:
    """A row and its nearest counterpart.

    Attributes:
        kind: one of ``KINDS``.
        row: number of the row in its file.
        known_row: number of the counterpart in its file.
        similarity: of the two, 1 for the same text.
        labels: of the row.
        known_labels: of the counterpart.
        excerpt: the beginning of the row's text.
    """

    kind: str
    row: int
    known_row: int
    similarity: float
    labels: Labels
    known_labels: Labels
    excerpt: str


@dataclass(frozen=True, slots=True)
class Leak:
    """What part ``known`` knows of part ``scored``.

    Attributes:
        known: the part that is learned from or chosen with.
        scored: the part that is to be new.
        num_rows: rows of ``scored``.
        counts: kind -> rows, each row counted once, at its strongest.
        examples: at most ``MAX_EXAMPLES``, the strongest first.
    """

    known: str
    scored: str
    num_rows: int
    counts: Mapping[str, LeakCount]
    examples: tuple[LeakExample, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about it."""
        return (*self._copies(), *self._sources())

    def _copies(self) -> list[Finding]:
        identical, same, near = (self.counts[kind] for kind in KINDS[:3])
        total = identical.rows + same.rows + near.rows
        if not total:
            return []
        severity = WARNING if total > MAX_LEAK_SHARE * self.num_rows else INFO
        example = next(example for example in self.examples if example.kind in KINDS[:3])
        differing = identical.differing + same.differing + near.differing
        what = (
            f"{share(total, self.num_rows)} {self.scored} texts also stand in the {named(self.known)} rows: "
            f"{identical.rows} character for character, {same.rows} but for letter case and blanks, {near.rows} "
            f"nearly; {differing} of them with other labels. For example row {example.row}, {example.excerpt!r}."
        )
        do = f"Remove them from the {named(self.known)} rows, or read the {self.scored} score as a little kind."
        return [Finding("leaks", severity, what, do)]

    def _sources(self) -> list[Finding]:
        passages = self.counts["passages"]
        if not passages.rows:
            return []
        severity = WARNING if passages.rows > MAX_LEAK_SHARE * self.num_rows else INFO
        example = next(example for example in self.examples if example.kind == "passages")
        what = (
            f"{share(passages.rows, self.num_rows)} {self.scored} texts share passages with {named(self.known)} texts, "
            f"{passages.differing} of them only with texts of other labels. For example row {example.row} "
            f"({' + '.join(example.labels) or 'no label'}) and {named(self.known)} row {example.known_row} "
            f"({' + '.join(example.known_labels) or 'no label'}): {100 * example.similarity:.0f} % of the shorter text."
        )
        do = (
            "If they come from one source (an article, a thread, a template), split by source and not by row: put "
            "all rows of a source into one file and pass the others with --eval and --test."
        )
        return [Finding("source leaks", severity, what, do)]


@dataclass(frozen=True, slots=True)
class SimilarGroups:
    """Groups of texts that are alike, over all parts.

    Attributes:
        kind: "near" or "passages"; the latter holds near duplicates as well.
        groups: groups of at least two different texts.
        rows: rows that have one of these texts.
        largest: rows of the largest group.
        mixed_groups: groups in which rows differ in their labels.
        mixed_rows: rows of these groups.
        examples: (part, row number) of the rows of the largest groups, at most ``MAX_EXAMPLES`` groups and rows each.
        num_compared: pairs of texts that were compared.
        capped_buckets: how often more texts had something in common than are compared with one another.
        complete: False if the search stopped at its limit of pairs.
        every: candidates were sought among every so-manieth run of characters; 1 means all.
    """

    kind: str
    groups: int
    rows: int
    largest: int
    mixed_groups: int
    mixed_rows: int
    examples: tuple[tuple[tuple[str, int], ...], ...]
    num_compared: int
    capped_buckets: int
    complete: bool
    every: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them."""
        if not self.groups:
            return ()
        nearly = self.kind == "near"
        are = "are near duplicates of" if nearly else "share passages with"
        what = (
            f"{counted(self.rows, 'row')} in {counted(self.groups, 'group')} {are} one another, at most {self.largest} "
            f"together; "
            f"in {counted(self.mixed_groups, 'group')} ({counted(self.mixed_rows, 'row')}) labels differ."
        )
        if not self.complete:
            what += f" The search stopped after {self.num_compared} pairs; there are more."
        elif self.capped_buckets:
            were = verb(self.capped_buckets, "was", "were")
            what += f" {counted(self.capped_buckets, 'large set')} of candidates {were} compared in part."
        if self.every > 1:
            what += (
                f" They were sought by one in {self.every} of the runs of characters that texts share; there are more."
            )
        do = "" if nearly else "Where groups are sources, keep each on one side of a split."
        if nearly and self.mixed_groups:
            do = "Look at the groups with different labels: either a small difference decides, or a label is wrong."
        return (Finding("near duplicates" if nearly else "sources", INFO, what, do),)


def find_leaks(
    parts: Mapping[str, Corpus], distinct: DistinctTexts, near: SimilarPairs, passages: SimilarPairs
) -> tuple[Leak, ...]:
    """Every pair of parts of which the later one is scored: training and the others, validation and test.

    Args:
        parts: name -> rows, in the order train, validation, test.
        distinct: their different texts.
        near: pairs of these that are near duplicates.
        passages: pairs of these that share passages.
    """
    names = list(parts)
    both = zip(KINDS[2:], (near, passages), strict=True)
    partners = {kind: partners_of(pairs, len(distinct.texts)) for kind, pairs in both}
    labels = {name: sorted_labels(corpus) for name, corpus in parts.items()}
    return tuple(
        _leak(known, scored, parts, distinct, partners, labels)
        for place, known in enumerate(names)
        for scored in names[place + 1 :]
    )


def _leak(
    known: str,
    scored: str,
    parts: Mapping[str, Corpus],
    distinct: DistinctTexts,
    partners: Mapping[str, Partners],
    labels: Mapping[str, Sequence[Labels]],
) -> Leak:
    finder = Counterparts(parts[known], labels[known], RowGroups.of(distinct.ids[known], len(distinct.texts)), partners)
    corpus = parts[scored]
    counts = {kind: [0, 0] for kind in KINDS}
    found: dict[str, list[LeakExample]] = {kind: [] for kind in KINDS}
    for position, text in enumerate(distinct.ids[scored].tolist()):
        match = finder.of(text)
        if match is None:
            continue
        exact = None
        if match.exact is not None:
            exact = match.exact.get((corpus.texts[position], None if corpus.pairs is None else corpus.pairs[position]))
        kind, rows = ("identical", exact) if exact is not None else (match.kind, match.rows)
        own = labels[scored][position]
        counts[kind][0] += 1
        counts[kind][1] += own not in rows.labels
        if len(found[kind]) < MAX_EXAMPLES:
            found[kind].append(
                LeakExample(
                    kind,
                    corpus.rows[position],
                    parts[known].rows[rows.first],
                    round(match.similarity, 3),
                    own,
                    labels[known][rows.first],
                    excerpt(corpus.texts[position]),
                )
            )
    each = MAX_EXAMPLES // len(KINDS)
    examples = tuple(example for kind in KINDS for example in found[kind][:each])
    return Leak(known, scored, len(corpus), {kind: LeakCount(*counts[kind]) for kind in KINDS}, examples)


def similar_groups(
    kind: str, parts: Mapping[str, Corpus], distinct: DistinctTexts, pairs: SimilarPairs, every: int = 1
) -> SimilarGroups:
    """The groups that ``pairs`` of the different texts make, counted in rows.

    Args:
        kind: "near" or "passages".
        parts: name -> rows.
        distinct: their different texts.
        pairs: pairs of these.
        every: candidates for them were sought among every so-manieth run of characters.
    """
    group_of = components(len(distinct.texts), pairs)
    several = np.bincount(group_of, minlength=len(distinct.texts)) > 1
    names, sizes = list(parts), [len(corpus) for corpus in parts.values()]
    group_of_row = group_of[np.concatenate([distinct.ids[name] for name in names])]
    chosen = np.flatnonzero(several[group_of_row])  # rows counted through all parts
    groups = RowGroups.of(np.unique(group_of_row[chosen], return_inverse=True)[1])
    label_ids = value_numbers(chain.from_iterable(sorted_labels(corpus) for corpus in parts.values()), sum(sizes))
    mixed = groups.differ(label_ids[chosen])
    starts = np.cumsum([0, *sizes])

    def place(row: int) -> tuple[str, int]:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return names[part], row - int(starts[part])

    firsts = chosen[groups.first()]
    by_name = np.argsort(np.argsort(names))[np.searchsorted(starts, firsts, side="right") - 1]
    largest = np.lexsort((firsts, by_name, -groups.sizes))[:MAX_EXAMPLES]
    examples = [
        tuple((part, parts[part].rows[row]) for part, row in map(place, chosen[groups.rows(group)[:MAX_EXAMPLES]]))
        for group in largest
    ]
    return SimilarGroups(
        kind,
        len(groups),
        len(chosen),
        int(groups.sizes.max(initial=0)),
        int(np.count_nonzero(mixed)),
        int(groups.sizes[mixed].sum()),
        tuple(examples),
        pairs.num_compared,
        pairs.capped_buckets,
        pairs.complete,
        every,
    )
