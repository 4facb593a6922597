"""Scores by group of rows: short texts and long ones, one channel and another.

A score over all rows hides where a classifier fails. Each slice here has its rows, its share of right rows with the
Wilson interval, its macro-F1 and its distance from all rows. The lengths of the texts are always looked at, since they
are always known; any column of the scored file can be.

**Macro-F1 of a slice** is the mean over the classes that have rows in the slice, unlike that of all rows, which is over
the label map: a slice of fifty rows cannot have seventy classes, and would be blamed for it. The two are therefore not
to be compared with one another.

**Groups.** A column of numbers with more than 20 different values is cut at its quartiles; equal values stay together,
so there may be fewer than four groups, of unequal size. A column of words with more than 20 is its 20 most frequent
ones and "other values". Missing values are a group of their own. Cutting at quartiles and not at round numbers makes
the groups large enough to be scored, whatever the column holds.

A slice of fewer than 30 rows is kept and marked. Among many slices one is bad by chance: with 20 slices, one interval
leaves out the score of all rows even where nothing differs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qlassify.evaluation.class_scores import IntArray, safe_ratio
from qlassify.evaluation.intervals import Interval, share_interval
from qlassify.evaluation.metrics import known_labels
from qlassify.evaluation.ranking import BoolMatrix

MAX_VALUES = 20
"""Different values of a column that become groups of their own."""
FEW_ROWS = 30
"""A slice with fewer rows is marked."""
MISSING = "(missing)"
OTHER = "other values"
TOKENS = "tokens"
"""What the slices by length are called in the place of a column."""


class Group(NamedTuple):
    """Rows that have something in common."""

    column: str
    value: str
    rows: IntArray
    """Their positions, ascending."""


@dataclass(frozen=True, slots=True)
class SliceScores:
    """The scores of a group of rows."""

    column: str
    """The column, or ``tokens`` for the lengths of the texts."""
    value: str
    """What the rows have there: a value, the bounds of a quartile ("12 to 18"), "other values", "(missing)"."""
    num_rows: int
    accuracy: float
    """Share of right rows: the class, or all (known) labels at once."""
    macro_f1: float | None
    """Over the classes that have rows in the slice; None where no row has a label."""
    interval: Interval
    """Of ``accuracy``."""
    gap: float
    """``accuracy`` minus that of all rows; negative where the slice is worse."""
    few_rows: bool
    """Fewer than 30 rows."""

    def as_dict(self) -> dict[str, Any]:
        """The same as mappings and numbers; the interval as a pair."""
        return {**asdict(self), "interval": [self.interval.low, self.interval.high]}


def slice_scores(
    targets: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    groups: Iterable[Group],
    *,
    multi_label: bool,
    num_classes: int,
) -> tuple[SliceScores, ...]:
    """The scores of each group, in the order given.

    Args:
        targets: as for ``evaluate_predictions``: classes (N,), or labels (N, K) with -1 or NaN where unknown.
        predicted: predicted classes (N,), or predicted labels (N, K), booleans.
        groups: rows by their positions; a group without a row that counts is left out.
        multi_label: which of the two it is.
        num_classes: K.
    """
    truth: BoolMatrix
    taken: BoolMatrix
    if multi_label:
        truth, known = known_labels(targets, (len(targets), num_classes))
        taken = predicted.astype(np.bool_) & known
        counted = np.asarray(known.any(axis=1))
    else:
        truth, taken = (np.equal.outer(classes, np.arange(num_classes)) for classes in (targets, predicted))
        counted = np.ones(len(targets), np.bool_)
    right = np.asarray((truth == taken).all(axis=1))
    share_of_all = float(right[counted].mean()) if counted.any() else 0.0
    chosen = ((group, group.rows[counted[group.rows]]) for group in groups)
    return tuple(
        _scores_of(group, right[rows], truth[rows], taken[rows], share_of_all) for group, rows in chosen if len(rows)
    )


def _scores_of(
    group: Group, right: npt.NDArray[np.bool_], truth: BoolMatrix, taken: BoolMatrix, share_of_all: float
) -> SliceScores:
    support = truth.sum(axis=0)
    f1 = safe_ratio(2 * (truth & taken).sum(axis=0), support + taken.sum(axis=0))
    accuracy = float(right.mean())
    return SliceScores(
        column=group.column,
        value=group.value,
        num_rows=len(right),
        accuracy=accuracy,
        macro_f1=float(f1[support > 0].mean()) if support.any() else None,
        interval=share_interval(int(right.sum()), len(right)),
        gap=accuracy - share_of_all,
        few_rows=len(right) < FEW_ROWS,
    )


def row_groups(
    whole_lengths: npt.NDArray[np.integer[Any]],
    lost_tokens: npt.NDArray[np.integer[Any]],
    columns: Mapping[str, Sequence[str | None]],
) -> tuple[Group, ...]:
    """The groups that a report looks at: by length, truncated rows if there are any, and by each column.

    Args:
        whole_lengths: tokens of each row before anything is cut and none counted twice, (N,).
        lost_tokens: tokens of it that the model does not read, (N,).
        columns: name -> the value of each row, None where it is missing.
    """
    whole = whole_lengths.astype(np.float64)
    groups = [*_quartiles(TOKENS, whole, np.arange(len(whole)))]
    cut = np.flatnonzero(lost_tokens)
    if len(cut):
        groups.append(Group(TOKENS, "truncated", cut))
    for name, values in columns.items():
        groups += column_groups(name, values)
    return tuple(groups)


def column_groups(name: str, values: Sequence[str | None]) -> tuple[Group, ...]:
    """The groups of a column: in the order of its numbers or words, then other values, then missing ones."""
    present = np.array([index for index, value in enumerate(values) if value is not None], np.int64)
    missing = np.setdiff1d(np.arange(len(values)), present)
    words = [value for value in values if value is not None]
    counts = Counter(words)
    numbers = _numbers(counts)
    if numbers is not None and len(counts) > MAX_VALUES:
        found = [*_quartiles(name, np.array([numbers[word] for word in words]), present)]
    else:
        # Equals in frequency go by the word, so that the choice does not hang on the order of the rows.
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_VALUES]
        shown = sorted(frequent, key=lambda word: (numbers[word], word) if numbers else (0.0, word))
        place = {word: index for index, word in enumerate(shown)}
        of_row = np.array([place.get(word, len(shown)) for word in words], np.int64)
        named = [*shown, OTHER] if len(counts) > len(shown) else shown
        found = [Group(name, value, present[of_row == index]) for index, value in enumerate(named)]
    return (*found, Group(name, MISSING, missing)) if len(missing) else tuple(found)


def _numbers(words: Iterable[str]) -> dict[str, float] | None:
    """Each word's number, or None if one of them is no finite number."""
    found = {}
    for word in words:
        try:
            found[word] = float(word)
        except ValueError:
            return None
        if not math.isfinite(found[word]):
            return None
    return found


def _quartiles(name: str, numbers: npt.NDArray[np.float64], positions: IntArray) -> Iterator[Group]:
    """Rows at these positions in up to four groups by their number, each named by its smallest and largest."""
    if len(numbers) == 0:
        return
    # Quartiles that are numbers of the column: a bound is then a value that somebody can look up.
    edges = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75), method="lower"))
    group_of = np.searchsorted(edges, numbers, side="left")
    for group in np.unique(group_of):
        inside = group_of == group
        low, high = (f"{bound:.6g}" for bound in (numbers[inside].min(), numbers[inside].max()))
        yield Group(name, low if low == high else f"{low} to {high}", positions[inside])
