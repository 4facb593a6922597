"""Label names to numbers, and numbers to class weights.

A ``LabelMap`` is made once, from the training corpus, and saved with the classifier; every other file is encoded with
it. Names that are integers are numbered in numeric order ("10" after "9"), all others in the order of their code
points, so the numbering does not depend on the order of rows. A row with a name that the map does not know is
rejected and counted; giving it the next free number, or shifting the others, is the silent error that this file exists
to rule out.

Class weights (n = count of a class but at least 1, N = sum of n, K = number of classes):

    uniform             1
    inverse             N / (K n)
    sqrt_inverse        sqrt(N / (K n))
    effective_number    (1 - beta) / (1 - beta ** n), beta = 0.9999    (Cui et al., CVPR 2019, arXiv:1901.05555, eq. 2)

each divided by its mean, so that the weights of the K classes sum to K and the loss keeps its size.
"""

from __future__ import annotations

import difflib
import math
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.records import Rejection
from qlassify.errors import ConfigError, DataError

EFFECTIVE_NUMBER_BETA = 0.9999

_INTEGER = re.compile(r"-?[0-9]+")
_ID_LIKE_ROWS = 20
"""A file of more rows than this, half of them with a label of their own, has no labels there but ids or texts."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedLabels:
    """Targets of the rows of a corpus that have known labels."""

    targets: NDArray[np.int64] | NDArray[np.float32]
    """Class numbers, int64 (N,); or flags 0 and 1, float32 (N, K), if the map is multi-label."""
    kept: NDArray[np.int64]
    """Positions of those rows in the corpus, (N,), ascending."""
    rejections: tuple[Rejection, ...]
    """The other rows."""


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The classes of a classifier in the order of its logits.

    Raises:
        DataError: a name occurs twice.
    """

    names: tuple[str, ...]
    multi_label: bool
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.names)}
        if len(numbers) < len(self.names):
            raise DataError("a label name occurs twice", got=", ".join(map(repr, self.names)))
        object.__setattr__(self, "_numbers", numbers)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The number of a class.

        Raises:
            DataError: there is no such class.
        """
        if name not in self._numbers:
            near = difflib.get_close_matches(name, self.names, n=1)
            do = f"Did you mean {near[0]!r}?" if near else None
            raise DataError("unknown label", got=repr(name), wanted=_listing(self.names), do=do)
        return self._numbers[name]

    def encode(self, corpus: Corpus) -> EncodedLabels:
        """The targets of a corpus; rows with a label that is not in the map are rejected.

        A row of a multi-label corpus is encoded for a single-label classifier if it has exactly one label.

        Raises:
            DataError: the corpus has rows, and none of them has known labels.
        """
        kept, numbers, counts = array("q"), array("q"), array("q")  # eight bytes a row where lists take a hundred
        rejections: list[Rejection] = []
        for position, names in enumerate(corpus.labels):
            unknown = next((name for name in names if name not in self._numbers), None)
            if unknown is not None:
                reason = f"label not seen in training: {unknown!r}"
            elif not self.multi_label and len(names) != 1:
                reason = f"{len(names)} labels, wanted 1"
            else:
                kept.append(position)
                numbers.extend(self._numbers[name] for name in names)
                counts.append(len(names))
                continue
            rejections.append(Rejection(corpus.rows[position], reason))
        if rejections and not kept:
            found = sorted({name for names in corpus.labels for name in names})
            what = "no row has labels that the classifier knows"
            raise DataError(what, where=corpus.path, got=_listing(found), wanted=_listing(self.names))
        targets: NDArray[np.int64] | NDArray[np.float32] = np.array(numbers, dtype=np.int64)
        if self.multi_label:
            targets = np.zeros((len(kept), len(self.names)), dtype=np.float32)
            row_of_label = np.repeat(np.arange(len(kept)), np.array(counts, dtype=np.int64))
            targets[row_of_label, np.array(numbers, dtype=np.int64)] = 1.0
        return EncodedLabels(targets, np.array(kept, dtype=np.int64), tuple(rejections))


def build_label_map(corpus: Corpus) -> LabelMap:
    """The classes of a training corpus: the labels of its rows and those that its file declares.

    Raises:
        DataError: fewer than two labels; or so many that the column cannot be a label.
    """
    seen = {name for names in corpus.labels for name in names}
    names = _in_order(seen | set(corpus.declared_labels))
    where = f"{corpus.path}, column {corpus.columns.label!r}"
    if len(names) < 2:
        do = "A classifier needs examples of at least two classes"
        raise DataError("fewer than two labels", where=where, got=_listing(names), wanted="2 or more", do=do)
    if not corpus.multi_label and len(corpus) > _ID_LIKE_ROWS and len(names) > len(corpus) / 2:
        raise DataError(
            "almost every row has a label of its own",
            where=where,
            got=f"{len(names)} labels in {len(corpus)} rows: {_listing(names, 3)}",
            wanted="labels that repeat",
            do="This looks like ids or texts: pass --label with the column of the labels",
        )
    return LabelMap(tuple(names), corpus.multi_label)


def reconcile(given: LabelMap, corpus: Corpus, *, named: bool) -> LabelMap:
    """The classes that were given beforehand, held against those of a corpus.

    Args:
        given: the classes that were given.
        corpus: labelled rows.
        named: whether their names were given, too; if not, the corpus names them.

    Raises:
        ConfigError: the corpus has labels that were not given, another number of classes, or several per row.
    """
    if corpus.multi_label and not given.multi_label:
        raise ConfigError(
            "the data has several labels per text and the configuration one",
            where=corpus.path,
            do="Use ClassifyConfig(multi_label=True).",
        )
    found = build_label_map(corpus)
    if set(found.names) <= set(given.names):
        return given
    if not named and len(found) == len(given):
        return LabelMap(found.names, given.multi_label)
    raise ConfigError(
        "the data has other labels than the configuration",
        where=corpus.path,
        got=f"{len(found)} labels: {', '.join(found.names[:10])}",
        wanted=f"{len(given)} labels" + (f": {', '.join(given.names[:10])}" if named else ""),
    )


def label_counts(targets: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """How many rows have each class: (num_classes,), from class numbers (N,) or flags (N, num_classes)."""
    if targets.ndim == 2:
        return np.asarray((targets > 0.5).sum(axis=0), dtype=np.int64)
    return np.bincount(targets.astype(np.int64), minlength=num_classes).astype(np.int64)


def _uniform(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(counts)


def _inverse(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(counts.sum() / (len(counts) * counts))


def _sqrt_inverse(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(_inverse(counts))


def _effective_number(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    # 1 - beta ** n as -expm1(n log beta): the difference of two numbers near 1 would lose half of the digits.
    return (1.0 - EFFECTIVE_NUMBER_BETA) / -np.expm1(counts * math.log(EFFECTIVE_NUMBER_BETA))


_STRATEGIES = {
    "uniform": _uniform,
    "inverse": _inverse,
    "sqrt_inverse": _sqrt_inverse,
    "effective_number": _effective_number,
}
CLASS_WEIGHT_STRATEGIES = tuple(_STRATEGIES)


def class_weights(counts: NDArray[Any], strategy: str) -> NDArray[np.float64]:
    """A weight for each class, summing to the number of classes; formulas in the module's docstring.

    Args:
        counts: rows of each class, (K,); a class without rows counts as one row.
        strategy: one of ``CLASS_WEIGHT_STRATEGIES``.

    Raises:
        ConfigError: another strategy.
    """
    if strategy not in _STRATEGIES:
        known = ", ".join(CLASS_WEIGHT_STRATEGIES)
        raise ConfigError("unknown class weight strategy", got=repr(strategy), wanted=f"one of {known}")
    raw = _STRATEGIES[strategy](np.maximum(np.asarray(counts, dtype=np.float64), 1.0))
    return np.asarray(raw / raw.mean())


def _in_order(names: set[str]) -> list[str]:
    if all(_INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _listing(names: Iterable[str], limit: int = 10) -> str:
    every = list(names)
    shown = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in every[:limit])
    return shown + (f" and {len(every) - limit} more" if len(every) > limit else "") if every else "none"
