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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.errors import ConfigError, DataError
from qlassify.seeding import numpy_generator


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions of the rows of each part, int64, ascending; together all rows, each once."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    notes: tuple[str, ...]
    """What the user should know: classes that are on one side only, repeated texts."""


@dataclass(frozen=True, slots=True)
class _Group:
    rows: list[int]
    labels: frozenset[int]
    stratum: int
    draw: float


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
    groups, num_classes = _groups(targets, texts, pairs, seed, multi_label)
    held_out = _fill(groups, fraction * len(texts))
    one_sided = _settle(groups, held_out, num_classes)
    if not any(held_out):
        do = "Give a validation file, or more rows"
        raise DataError(
            "nothing can be held out: every text is the only one of a class", got=f"{len(texts)} rows", do=do
        )
    on_side: tuple[list[int], list[int]] = ([], [])
    for group, out in zip(groups, held_out, strict=True):
        on_side[out].extend(group.rows)
    train, kept_out = (np.array(sorted(rows), dtype=np.int64) for rows in on_side)
    named = [str(label) if names is None else repr(names[label]) for label in one_sided]
    return Split(train, kept_out, _notes(groups, named, len(kept_out), fraction * len(texts)))


def _groups(
    targets: NDArray[Any], texts: Sequence[str], pairs: Sequence[str] | None, seed: int, multi_label: bool
) -> tuple[list[_Group], int]:
    """The groups in the order of their first rows, and the number of classes."""
    members: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        key = normalised_text(text) if pairs is None else f"{normalised_text(text)}\n{normalised_text(pairs[row])}"
        members.setdefault(key, []).append(row)
    labels = [np.flatnonzero(row > 0.5).tolist() for row in targets] if multi_label else [[int(t)] for t in targets]
    num_classes = targets.shape[1] if multi_label else int(targets.max()) + 1
    counts = np.bincount([label for row in labels for label in row], minlength=num_classes)
    draws = numpy_generator(seed, "split").random(len(members)).tolist()
    groups = []
    for rows, draw in zip(members.values(), draws, strict=True):
        carried = frozenset(label for row in rows for label in labels[row])
        # Rows without any label have a stratum of their own, after the last class.
        stratum = min(carried, key=lambda label: (counts[label], label), default=num_classes)
        groups.append(_Group(rows, carried, stratum, draw))
    return groups, num_classes


def _fill(groups: Sequence[_Group], wanted: float) -> list[bool]:
    """Which groups are held out, stratum by stratum, so that ``wanted`` rows are."""
    strata: dict[int, list[int]] = {}
    for index in sorted(range(len(groups)), key=lambda index: groups[index].draw):
        strata.setdefault(groups[index].stratum, []).append(index)
    sizes = {stratum: sum(len(groups[index].rows) for index in members) for stratum, members in strata.items()}
    held_out = [False] * len(groups)
    rows_left = sum(sizes.values())
    for stratum in sorted(strata, key=lambda stratum: (sizes[stratum], stratum)):
        quota = max(wanted, 0.0) * sizes[stratum] / rows_left
        taken = _take([len(groups[index].rows) for index in strata[stratum]], quota)
        for place in taken:
            held_out[strata[stratum][place]] = True
            wanted -= len(groups[strata[stratum][place]].rows)
        rows_left -= sizes[stratum]
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


def _settle(groups: Sequence[_Group], held_out: list[bool], num_classes: int) -> list[int]:
    """Moves groups until each class with two or more is on both sides, and one with a single group in training.

    Returns the classes that are on one side only: those of a single group, and those for which it failed.
    """
    holders: list[list[int]] = [[] for _ in range(num_classes)]
    on_side = [[0, 0] for _ in range(num_classes)]
    for index, group in enumerate(groups):
        for label in group.labels:
            holders[label].append(index)
            on_side[label][held_out[index]] += 1

    def can_leave(index: int) -> bool:
        # No class may lose its last group on a side, except that of a single group, which is to leave the held-out one.
        side = held_out[index]
        return all(on_side[label][side] > 1 or (side and len(holders[label]) == 1) for label in groups[index].labels)

    for label in sorted(range(num_classes), key=lambda label: (len(holders[label]), label)):
        settled = on_side[label][0] > 0 and (on_side[label][1] > 0 or len(holders[label]) == 1)
        movable = [] if settled else [index for index in holders[label] if can_leave(index)]
        if not movable:
            continue
        index = min(movable, key=lambda index: (len(groups[index].rows), groups[index].draw))
        for carried in groups[index].labels:
            on_side[carried][held_out[index]] -= 1
            on_side[carried][not held_out[index]] += 1
        held_out[index] = not held_out[index]
    return [label for label in range(num_classes) if holders[label] and not all(on_side[label])]


def _notes(groups: Sequence[_Group], one_sided: Sequence[str], num_held_out: int, wanted: float) -> tuple[str, ...]:
    notes = []
    if one_sided:
        listed = ", ".join(one_sided[:20]) + (", ..." if len(one_sided) > 20 else "")
        notes.append(f"Classes with too few different texts to be on both sides: {len(one_sided)} ({listed}).")
    repeated = sum(len(group.rows) for group in groups if len(group.rows) > 1)
    if repeated:
        notes.append(f"{repeated} rows share their text with another row; each such group is on one side.")
    if abs(num_held_out - wanted) > max(3.0, 0.05 * wanted):
        reason = "each class is to be on both sides and repeated texts on one"
        notes.append(f"{num_held_out} rows are held out instead of {wanted:.0f}: {reason}.")
    return tuple(notes)


def normalised_text(text: str) -> str:
    """``text`` without regard to letter case and the width of blanks: what makes two texts the same one."""
    return " ".join(text.casefold().split())
