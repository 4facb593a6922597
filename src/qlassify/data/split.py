"""A held-out part that can be trusted: stratified, without leaks, the same for the same seed on every machine.

Rows with the same text (letter case and the width of blanks aside; for pairs, both texts) form a *group*, and a group
never leaves its side. Real corpora are full of repeated texts; a plain split tests the model on what it has
memorised, and nobody sees it.

Each group belongs to the stratum of its rarest label, which for one label a row is simply its class. Strata are
filled from the smallest to the largest. Each takes its share of the rows that are still to be held out; one of at least
two groups gives at least one of them and at most half of its rows. What the small ones take too much or too little by
rounding is thereby spread over the larger ones, where it does not matter, and the total stays within a few rows of the
wanted one. A last pass looks at every class and moves a group where a side lacks it, which can happen when groups carry
several labels; a class of a single group belongs into training. Whatever could not be had is said in ``notes``.

scikit-learn's ``StratifiedShuffleSplit`` knows no groups, its ``StratifiedGroupKFold`` no fractions, neither knows
several labels a row, and both refuse a class with a single row. Only ``Generator.random`` is drawn from, one number a
group: shuffling by sorting them depends on nothing but the bit stream, which NumPy does not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.text_groups import RowGroups, text_numbers
from qlassify.errors import ConfigError, DataError
from qlassify.seeding import numpy_generator


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions of the rows of each part, int64, ascending; together all rows, each once."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    notes: tuple[str, ...]
    """What the user should know: classes that are on one side only, repeated texts."""


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """G groups of rows, in the order of their first rows, as arrays: an object for each would be 600 bytes a row.

    Attributes:
        rows: the rows of each.
        holders: the groups that carry each of the K classes, ascending.
        labels: (L,) int64 the classes that groups carry, group by group; those of group g are
            ``labels[starts[g]:starts[g + 1]]``.
        starts: (G + 1,) int64.
        stratum: (G,) int64 its rarest class; K without any.
        draws: (G,) float64 what decides which groups of a stratum come first.
    """

    rows: RowGroups
    holders: RowGroups
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    stratum: NDArray[np.int64]
    draws: NDArray[np.float64]

    def carried(self, group: int) -> list[int]:
        """The classes of one group."""
        return list(self.labels[self.starts[group] : self.starts[group + 1]].tolist())


def stratified_split(
    targets: NDArray[Any],
    texts: Sequence[str],
    *,
    fraction: float,
    seed: int,
    multi_label: bool,
    pairs: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Split:
    """Holds out about ``fraction`` of the rows.

    Args:
        targets: class numbers (N,), or flags (N, K) if ``multi_label``.
        texts: N texts.
        fraction: of the rows, above 0 and at most 0.5.
        seed: of the run.
        multi_label: how to read ``targets``.
        pairs: N second texts.
        names: of the classes, for the notes; their numbers when None.

    Raises:
        ConfigError: a fraction outside (0, 0.5].
        DataError: fewer than two rows; or every text is the only one of some class, so that none can be held out.
    """
    if not 0.0 < fraction <= 0.5:
        raise ConfigError("the held-out fraction is out of range", got=fraction, wanted="above 0 and at most 0.5")
    if len(texts) < 2:
        raise DataError("too few rows to hold some out", got=len(texts), wanted="2 or more")
    groups = _groups(targets, texts, pairs, seed, multi_label)
    held_out = _fill(groups, fraction * len(texts))
    one_sided = _settle(groups, held_out)
    if not held_out.any():
        do = "Give a validation file, or more rows"
        raise DataError(
            "nothing can be held out for validation: every text is the only one of a class",
            where="the training rows",
            got=f"{len(texts)} rows",
            wanted="a class of two different texts or more",
            do=do,
        )
    out = np.empty(len(texts), bool)
    out[groups.rows.order] = np.repeat(held_out, groups.rows.sizes)
    train, kept_out = np.flatnonzero(~out), np.flatnonzero(out)
    named = [str(label) if names is None else repr(names[label]) for label in one_sided]
    return Split(train, kept_out, _notes(groups, named, len(kept_out), fraction * len(texts)))


def _groups(
    targets: NDArray[Any], texts: Sequence[str], pairs: Sequence[str] | None, seed: int, multi_label: bool
) -> _Groups:
    """The groups of the rows' texts and what they carry."""
    num_rows, num_classes = len(texts), targets.shape[1] if multi_label else int(targets.max()) + 1
    group_of_row = text_numbers(text_keys(texts, pairs), num_rows)
    rows = RowGroups.of(group_of_row)
    of_row, label = np.nonzero(targets > 0.5) if multi_label else (np.arange(num_rows), targets.astype(np.int64))
    counts = np.bincount(label, minlength=num_classes)
    # (group, class), each once, in ascending order: what groups carry.
    carried = np.unique(group_of_row[of_row] * num_classes + label)
    carriers, labels = np.divmod(carried, num_classes)
    starts = np.searchsorted(carriers, np.arange(len(rows) + 1))
    holders = RowGroups.of(labels, num_classes)
    # The rarest class first, and of two the one with the lower number; rows without any label have a stratum of their
    # own, after the last class.
    rarity = np.empty(num_classes, np.int64)
    by_count = np.lexsort((np.arange(num_classes), counts))
    rarity[by_count] = np.arange(num_classes)
    rarest = np.full(len(rows), num_classes)
    np.minimum.at(rarest, carriers, rarity[labels])
    stratum = np.append(by_count, num_classes)[rarest]
    draws = numpy_generator(seed, "split").random(len(rows))
    return _Groups(rows, RowGroups(carriers[holders.order], holders.starts), labels, starts, stratum, draws)


def text_keys(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[str]:
    """What makes two rows the same text, or pair of texts, for each row."""
    if pairs is None:
        return map(normalised_text, texts)
    return (f"{normalised_text(text)}\n{normalised_text(pair)}" for text, pair in zip(texts, pairs, strict=True))


def _fill(groups: _Groups, wanted: float) -> NDArray[np.bool_]:
    """(G,) which groups are held out, stratum by stratum, so that ``wanted`` rows are."""
    order = np.lexsort((groups.draws, groups.stratum))
    sizes_of_group = groups.rows.sizes
    strata, first = np.unique(groups.stratum[order], return_index=True)
    sizes = np.add.reduceat(sizes_of_group[order], first)
    bounds = np.append(first, len(order))
    held_out = np.zeros(len(order), bool)
    rows_left = int(sizes.sum())
    for place in np.lexsort((strata, sizes)):
        size = int(sizes[place])
        quota = max(wanted, 0.0) * size / rows_left
        members = order[bounds[place] : bounds[place + 1]]
        own_sizes = sizes_of_group[members].tolist()
        for taken in _take(own_sizes, quota):
            held_out[members[taken]] = True
            wanted -= own_sizes[taken]
        rows_left -= size
    return held_out


def _take(sizes: Sequence[int], quota: float) -> list[int]:
    """Places whose sizes sum to the quota, rounded, as nearly as first come, first served gets; at least one of two."""
    if len(sizes) < 2:
        return []
    # Never more than half: where another stratum gives nothing, this one must not be emptied in its stead.
    target = min(math.floor(quota + 0.5), sum(sizes) // 2)
    taken: list[int] = []
    total = 0
    for place, size in enumerate(sizes):
        if total + size <= target:
            taken.append(place)
            total += size
    return taken or [min(range(len(sizes)), key=lambda place: (sizes[place], place))]


def _settle(groups: _Groups, held_out: NDArray[np.bool_]) -> list[int]:
    """Moves groups until each class with two or more is on both sides, and one with a single group in training.

    Returns the classes that are on one side only: those of a single group, and those for which it failed.
    """
    num_holders = groups.holders.sizes
    out = np.add.reduceat(np.append(held_out[groups.holders.order], False).astype(np.int64), groups.holders.starts[:-1])
    out[num_holders == 0] = 0
    on_side = np.stack([num_holders - out, out], axis=1)
    sizes = groups.rows.sizes

    def can_leave(group: int) -> bool:
        # No class may lose its last group on a side, except that of a single group, which is to leave the held-out one.
        side = int(held_out[group])
        return all(on_side[label, side] > 1 or (side and num_holders[label] == 1) for label in groups.carried(group))

    for label in np.lexsort((np.arange(len(num_holders)), num_holders)):
        settled = on_side[label, 0] > 0 and (on_side[label, 1] > 0 or num_holders[label] == 1)
        movable = [] if settled else [group for group in groups.holders.rows(label).tolist() if can_leave(group)]
        if not movable:
            continue
        group = min(movable, key=lambda group: (sizes[group], groups.draws[group]))
        for carried in groups.carried(group):
            on_side[carried, int(held_out[group])] -= 1
            on_side[carried, 1 - int(held_out[group])] += 1
        held_out[group] = not held_out[group]
    return np.flatnonzero((num_holders > 0) & (on_side == 0).any(axis=1)).tolist()


def _notes(groups: _Groups, one_sided: Sequence[str], num_held_out: int, wanted: float) -> tuple[str, ...]:
    notes = []
    if one_sided:
        listed = ", ".join(one_sided[:20]) + (", ..." if len(one_sided) > 20 else "")
        notes.append(f"Classes with too few different texts to be on both sides: {len(one_sided)} ({listed}).")
    repeated = int(groups.rows.sizes[groups.rows.sizes > 1].sum())
    if repeated:
        notes.append(f"{repeated} rows share their text with another row; each such group is on one side.")
    if abs(num_held_out - wanted) > max(3.0, 0.05 * wanted):
        reason = "each class is to be on both sides and repeated texts on one"
        notes.append(f"{num_held_out} rows are held out instead of {wanted:.0f}: {reason}.")
    return tuple(notes)


def normalised_text(text: str) -> str:
    """``text`` without regard to letter case and the width of blanks: what makes two texts the same one."""
    return " ".join(text.casefold().split())
