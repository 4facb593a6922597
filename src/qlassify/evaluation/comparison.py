"""Whether one classifier is better than another on the same rows, or whether chance explains the difference.

Two questions, answered on the two sets of predictions alone. *Are the classifiers right equally often?* Only the rows
on which exactly one of them is right can tell. If they were equally good, each such row would be a toss of a fair coin;
McNemar (1947) made that a test, and its exact binomial form needs no large counts. *By how much do their scores
differ?* Rows are drawn again with replacement, both classifiers are scored on each draw, and the middle 95 % of the
differences are the interval (Efron 1979; the percentile interval). Drawing rows keeps the pairing: an easy row is easy
for both, and the interval of a difference is narrower than two separate intervals make believe.

A score depends on how often each pattern (true labels, labels from A, labels from B) occurs and on nothing else. So
patterns are drawn, with one multinomial draw a resample, and not rows: the distribution is the same, and the cost
follows from the number of different patterns. Single labels are the special case of one flag per row.

Both answers take the classifiers as they are. Whether training again would give the same winner is a question about
seeds (Dietterich 1998, section 3, tells the two questions apart), and a t-test over cross-validation folds, the
alternative, answers neither: its folds share their training rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qlassify.errors import DataError
from qlassify.evaluation.class_scores import FloatArray, IntArray, safe_ratio

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RESAMPLES = 5000
"""Draws of the bootstrap. A 95 % interval begins at the quantile 0.025, which so many draws find to within 0.002."""

CONFIDENCE_LEVEL = 0.95
SIGNIFICANCE = 0.05
"""The p-value below which a difference is called larger than chance explains."""

_CHUNK_NUMBERS = 4_000_000
"""Counts in memory at once while resampling: 32 MB."""


@dataclass(frozen=True, slots=True)
class McNemarTest:
    """McNemar's exact test: on which rows each classifier is right (multi-label: has every label right)."""

    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    p_value: float
    """Probability of so uneven a split of the rows on which one is right, or a more uneven one, by a fair coin."""


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """One score of both classifiers, and B's minus A's with its 95 % interval."""

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of no difference."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two classifiers on the same rows."""

    num_rows: int
    multi_label: bool
    test: McNemarTest
    scores: tuple[ScoreDifference, ...]
    """Single-label: accuracy, macro_f1. Multi-label: subset_accuracy, micro_f1, macro_f1."""

    def score(self, name: str) -> ScoreDifference:
        """A score by its name.

        Raises:
            KeyError: there is none of that name.
        """
        return {one.name: one for one in self.scores}[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain mappings and numbers, ready for JSON."""
        return {
            "num_rows": self.num_rows,
            "multi_label": self.multi_label,
            "mcnemar": asdict(self.test),
            "scores": {
                one.name: {key: value for key, value in asdict(one).items() if key != "name"} for one in self.scores
            },
        }


def compare_predictions(
    truth: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    *,
    num_classes: int,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare the predictions of two classifiers.

    Args:
        truth: single-label: true classes, integers (N,) in [0, K). Multi-label: true labels as 0 and 1, (N, K).
        a: predictions of A, of the same shape.
        b: predictions of B, of the same shape.
        num_classes: K.
        generator: draws the resamples.
        resamples: how many.

    Raises:
        DataError: no rows, shapes that differ, or a class outside [0, K).
    """
    cells = _Cells.of(*_checked(truth, a, b, num_classes))
    multi_label = np.ndim(truth) == 2
    right_a, right_b = cells.right(cells.a), cells.right(cells.b)
    observed = cells.scores(cells.counts[None, :], multi_label=multi_label)
    draws = cells.resample(generator, resamples, multi_label=multi_label)
    tail = (1.0 - CONFIDENCE_LEVEL) / 2.0
    scores = []
    for name, (of_a, of_b) in observed.items():
        drawn_a, drawn_b = draws[name]
        low, high = np.quantile(drawn_b - drawn_a, [tail, 1.0 - tail])
        values = float(of_a[0]), float(of_b[0])
        scores.append(ScoreDifference(name, *values, values[1] - values[0], float(low), float(high)))
    return Comparison(
        num_rows=int(cells.counts.sum()),
        multi_label=multi_label,
        test=mcnemar_test(np.repeat(right_a, cells.counts), np.repeat(right_b, cells.counts)),
        scores=tuple(scores),
    )


def mcnemar_test(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> McNemarTest:
    """The exact two-sided test on two parallel arrays (N,) of whether a row is right; p = 1 without discordant rows."""
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    discordant = only_a + only_b
    return McNemarTest(
        both_right=int((right_a & right_b).sum()),
        only_a_right=only_a,
        only_b_right=only_b,
        both_wrong=int((~right_a & ~right_b).sum()),
        p_value=float(binomtest(min(only_a, only_b), discordant, 0.5).pvalue) if discordant else 1.0,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The M different patterns of (true, A, B) and how many rows have each.

    They stand in the order of the rows in which they first occur. That order does not change when A and B are swapped,
    so the same draws score both ways round, and swapping mirrors every interval.
    """

    counts: IntArray
    """(M,)"""
    truth: csr_array
    """(M, K), 1.0 where a pattern has the label; so are the next two."""
    a: csr_array
    b: csr_array

    @classmethod
    def of(cls, truth: NDArray[Any], a: NDArray[Any], b: NDArray[Any], num_classes: int) -> _Cells:
        """The patterns of class numbers (N,) or flags (N, K)."""
        from scipy.sparse import csr_array

        if truth.ndim == 1:
            key = (truth * num_classes + a) * num_classes + b
            _, first, counts = np.unique(key, return_index=True, return_counts=True)
        else:
            packed = np.packbits(np.concatenate([truth, a, b], axis=1), axis=1)
            _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
        order = np.argsort(first)
        first, counts = first[order], counts[order]

        def flags(labels: NDArray[Any]) -> csr_array:
            if labels.ndim == 2:
                return csr_array(labels[first].astype(np.float64))
            ones, size = np.ones(len(first)), len(first)
            return csr_array((ones, (np.arange(size), labels[first])), shape=(size, num_classes))

        return cls(counts.astype(np.int64), flags(truth), flags(a), flags(b))

    def right(self, predicted: csr_array) -> NDArray[np.bool_]:
        """Of which patterns (M,) every label is right."""
        wrong: NDArray[np.bool_] = abs(self.truth - predicted).sum(axis=1) > 0
        return ~wrong

    def resample(
        self, generator: np.random.Generator, resamples: int, *, multi_label: bool
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Scores of A and of B, each (resamples,), on rows drawn with replacement."""
        num_rows, num_cells = int(self.counts.sum()), len(self.counts)
        shares = self.counts / num_rows
        step = max(1, _CHUNK_NUMBERS // max(num_cells, 4 * self.truth.shape[1]))
        chunks = [
            self.scores(
                generator.multinomial(num_rows, shares, size=min(step, resamples - start)), multi_label=multi_label
            )
            for start in range(0, resamples, step)
        ]
        return {
            name: (
                np.concatenate([chunk[name][0] for chunk in chunks]),
                np.concatenate([chunk[name][1] for chunk in chunks]),
            )
            for name in chunks[0]
        }

    def scores(self, counts_RM: IntArray, *, multi_label: bool) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Scores of A and of B, each (R,), for R rows of counts of the patterns."""
        of_a, of_b = (self._scores_of(predicted, counts_RM, multi_label) for predicted in (self.a, self.b))
        return {name: (of_a[name], of_b[name]) for name in of_a}

    def _scores_of(self, predicted: csr_array, counts_RM: IntArray, multi_label: bool) -> dict[str, FloatArray]:
        """F1 of a class is 2 hits / (support + predicted), as in ``class_scores``; all are sums over the patterns."""
        weights_MR = np.ascontiguousarray(counts_RM.T, dtype=np.float64)
        hits_KR = (self.truth * predicted).T @ weights_MR
        sums_KR = (self.truth + predicted).T @ weights_MR
        share_right = self.right(predicted).astype(np.float64) @ weights_MR / counts_RM.sum(axis=1)
        macro_f1 = safe_ratio(2.0 * hits_KR, sums_KR).mean(axis=0)
        if not multi_label:
            return {"accuracy": share_right, "macro_f1": macro_f1}
        micro_f1 = safe_ratio(2.0 * hits_KR.sum(axis=0), sums_KR.sum(axis=0))
        return {"subset_accuracy": share_right, "micro_f1": micro_f1, "macro_f1": macro_f1}


def _checked(
    truth: NDArray[Any], a: NDArray[Any], b: NDArray[Any], num_classes: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """The arrays as int64 class numbers or booleans, or a DataError."""
    arrays = [np.asarray(one) for one in (truth, a, b)]
    shapes = {one.shape for one in arrays}
    if len(shapes) > 1 or arrays[0].ndim not in (1, 2):
        raise DataError("truth and predictions are not of one shape", got=", ".join(str(one.shape) for one in arrays))
    if len(arrays[0]) == 0:
        raise DataError("there are no rows to compare", got=0, wanted="at least one row")
    if arrays[0].ndim == 2:
        if arrays[0].shape[1] != num_classes:
            raise DataError("one column per label is needed", got=arrays[0].shape[1], wanted=num_classes)
        return arrays[0] > 0.5, arrays[1] > 0.5, arrays[2] > 0.5, num_classes
    if any((one < 0).any() or (one >= num_classes).any() for one in arrays):
        raise DataError("a class is outside the label map", wanted=f"0 to {num_classes - 1}")
    return arrays[0].astype(np.int64), arrays[1].astype(np.int64), arrays[2].astype(np.int64), num_classes


def verdict_words(comparison: Comparison) -> str:
    """What the comparison comes to, in two or three sentences, for A and B by these names."""
    test = comparison.test
    if test.only_a_right == test.only_b_right == 0:
        first = "A and B are right on the same rows: there is nothing to tell them apart."
    else:
        finding = (
            "the difference is larger than chance explains"
            if test.p_value < SIGNIFICANCE
            else "the difference can be chance"
        )
        first = (
            f"B is right on {_rows(test.only_b_right)} where A is wrong, A on {test.only_a_right} where B is wrong: "
            f"{p_words(test.p_value)}, {finding}."
        )
    macro = comparison.score("macro_f1")
    end = "." if macro.excludes_zero else ", which contains zero."
    second = f"Macro-F1 {macro.difference:+.3f}, 95 % interval {macro.low:+.3f} to {macro.high:+.3f}{end}"
    if macro.excludes_zero == (test.p_value < SIGNIFICANCE):
        return f"{first} {second}"
    return f"{first} {second} The test counts rows; macro-F1 counts every class the same."


def p_words(p_value: float) -> str:
    """``p = 0.0052``, ``p = 2.1e-09``; below what a float64 holds, ``p < 1e-300``."""
    return f"p = {p_value:.2g}" if p_value > 1e-300 else "p < 1e-300"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
