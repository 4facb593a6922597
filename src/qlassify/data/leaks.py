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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, MAX_EXAMPLES, WARNING, Finding, counted, excerpt, named, share, verb
from qlassify.data.repeats import DistinctTexts, Labels, sorted_labels
from qlassify.data.similar import SimilarPairs, components

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
    partners = (_partners(near, len(distinct.texts)), _partners(passages, len(distinct.texts)))
    labels = {name: sorted_labels(corpus) for name, corpus in parts.items()}
    return tuple(
        _leak(known, scored, parts, distinct, partners, labels)
        for place, known in enumerate(names)
        for scored in names[place + 1 :]
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Partners:
    """The pairs in both directions, by text: those of text i are ``others[starts[i]:starts[i + 1]]``, likest first."""

    starts: NDArray[np.int64]
    others: NDArray[np.int64]
    similarity: NDArray[np.float64]


def _partners(pairs: SimilarPairs, num_texts: int) -> _Partners:
    ones = np.concatenate([pairs.first, pairs.second])
    others = np.concatenate([pairs.second, pairs.first])
    similarity = np.concatenate([pairs.similarity, pairs.similarity])
    order = np.lexsort((others, -similarity, ones))
    starts = np.searchsorted(ones[order], np.arange(num_texts + 1))
    return _Partners(starts, others[order], similarity[order])


def _leak(
    known: str,
    scored: str,
    parts: Mapping[str, Corpus],
    distinct: DistinctTexts,
    partners: Sequence[_Partners],
    labels: Mapping[str, Sequence[Labels]],
) -> Leak:
    known_rows: dict[int, list[int]] = {}
    for position, text in enumerate(distinct.ids[known].tolist()):
        known_rows.setdefault(text, []).append(position)
    is_known = np.zeros(len(distinct.texts), bool)
    is_known[distinct.ids[known]] = True
    counts = {kind: [0, 0] for kind in KINDS}
    found: dict[str, list[LeakExample]] = {kind: [] for kind in KINDS}
    for position, text in enumerate(distinct.ids[scored].tolist()):
        match = _match(text, known_rows, is_known, partners)
        if match is None:
            continue
        kind, similarity, counterparts = match
        if kind == "same":
            equal = _identical(parts[known], counterparts, parts[scored], position)
            kind, counterparts = ("identical", equal) if equal else (kind, counterparts)
        own = labels[scored][position]
        counts[kind][0] += 1
        counts[kind][1] += all(labels[known][other] != own for other in counterparts)
        if len(found[kind]) < MAX_EXAMPLES:
            found[kind].append(
                LeakExample(
                    kind,
                    parts[scored].rows[position],
                    parts[known].rows[counterparts[0]],
                    round(similarity, 3),
                    own,
                    labels[known][counterparts[0]],
                    excerpt(parts[scored].texts[position]),
                )
            )
    each = MAX_EXAMPLES // len(KINDS)
    examples = tuple(example for kind in KINDS for example in found[kind][:each])
    return Leak(known, scored, len(parts[scored]), {kind: LeakCount(*counts[kind]) for kind in KINDS}, examples)


def _match(
    text: int, known_rows: Mapping[int, list[int]], is_known: NDArray[np.bool_], partners: Sequence[_Partners]
) -> tuple[str, float, list[int]] | None:
    """The strongest kind of leak of a text, the similarity, and positions of its counterparts, the likest first."""
    if text in known_rows:
        return "same", 1.0, known_rows[text]
    for kind, pairs in zip(KINDS[2:], partners, strict=True):
        here = slice(pairs.starts[text], pairs.starts[text + 1])
        chosen = is_known[pairs.others[here]]
        if chosen.any():
            rows = [row for other in pairs.others[here][chosen].tolist() for row in known_rows[other]]
            return kind, float(pairs.similarity[here][chosen][0]), rows
    return None


def _identical(known: Corpus, counterparts: Sequence[int], scored: Corpus, position: int) -> list[int]:
    """The counterparts whose texts are equal to the row's character for character."""
    text = scored.texts[position], None if scored.pairs is None else scored.pairs[position]
    return [other for other in counterparts if text == (known.texts[other], known.pairs and known.pairs[other])]


def similar_groups(
    kind: str, parts: Mapping[str, Corpus], distinct: DistinctTexts, pairs: SimilarPairs
) -> SimilarGroups:
    """The groups that ``pairs`` of the different texts make, counted in rows."""
    group_of = components(len(distinct.texts), pairs)
    several = np.bincount(group_of, minlength=len(distinct.texts)) > 1
    rows: dict[int, list[tuple[str, int]]] = {}
    for part in parts:
        for position, group in enumerate(group_of[distinct.ids[part]].tolist()):
            if several[group]:
                rows.setdefault(group, []).append((part, position))
    labels = {part: sorted_labels(corpus) for part, corpus in parts.items()}
    mixed = [members for members in rows.values() if len({labels[part][place] for part, place in members}) > 1]
    largest = sorted(rows.values(), key=lambda members: (-len(members), members[0]))[:MAX_EXAMPLES]
    return SimilarGroups(
        kind,
        len(rows),
        sum(map(len, rows.values())),
        max(map(len, rows.values()), default=0),
        len(mixed),
        sum(map(len, mixed)),
        tuple(tuple((part, parts[part].rows[place]) for part, place in members[:MAX_EXAMPLES]) for members in largest),
        pairs.num_compared,
        pairs.capped_buckets,
        pairs.complete,
    )
