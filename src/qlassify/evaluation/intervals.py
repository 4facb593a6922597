"""How far a score could have come out differently on other rows of the same kind: 95 % intervals.

**A share of rows** (accuracy, subset accuracy) has Wilson's (1927) score interval. It needs two counts, stays inside
[0, 1] and holds its level where others fail: few rows, or all of them right.

**Every other score of decisions** has the percentile bootstrap (Efron 1979): the rows are drawn anew with replacement a
thousand times, and the middle 95 % of the scores are the interval. What a row adds to these scores is counts alone, so
counts are drawn and not rows. Single-label: a draw of rows is a multinomial draw of the cells of the confusion matrix
that are not empty, and a thousand of them are one array. Multi-label: how often each row is drawn, times what each row
adds, is a matrix product. Memory is bounded by doing some of the draws at a time. Resampling rows in a loop, the
alternative, computes the same a thousand times slower.

Two rules make the intervals say what they should. **A class that a draw happens to miss** (no true and no predicted
row) does not pull macro-F1 down: the mean runs over the classes that the draw has, times the share of the label map
that the real rows have. Counting it 0.0 would put the interval of 77 rare classes below their score. And **the score
itself is never outside**: the percentile interval of a biased score may miss it, and is then widened to it.

Where all draws give one value (one row; every row right) the bootstrap has seen nothing vary. An interval of no width
would claim certainty, so there is none. Scores of probabilities have none either: they would need the rows.

An interval is about the draw of the rows. It is silent about another seed, another annotator, texts of another origin,
and rows that are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qlassify.evaluation.class_scores import FloatArray, IntArray, safe_ratio
from qlassify.evaluation.ranking import BoolMatrix

CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 1000

# Array elements of the draws that are in memory at once: 32 MiB of 8 bytes, a few times over for what is made of them.
_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval of a score, both ends in the score's own unit."""

    low: float
    high: float


def share_interval(successes: int, rows: int) -> Interval:
    """The Wilson interval of a share of ``rows``, of which there is at least one."""
    from scipy.stats import binomtest

    interval = binomtest(successes, rows).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def single_label_intervals(
    confusion: IntArray, generator: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Interval]:
    """Intervals of the scores that follow from a confusion matrix.

    Args:
        confusion: counts (K, K), rows = true, columns = predicted; at least one row was counted.
        generator: where the draws come from.
        num_resamples: how many draws.

    Returns:
        ``accuracy`` (Wilson), and those of ``balanced_accuracy``, ``macro_f1``, ``weighted_f1``, ``mcc`` and
        ``cohens_kappa`` that vary.
    """
    true, predicted = np.nonzero(confusion)
    counts = confusion[true, predicted]
    num_rows, num_classes = int(counts.sum()), len(confusion)
    hit = true == predicted
    by_hit = _sums_of(np.flatnonzero(hit), true[hit], (len(counts), num_classes))
    by_true = _sums_of(np.arange(len(counts)), true, (len(counts), num_classes))
    by_predicted = _sums_of(np.arange(len(counts)), predicted, (len(counts), num_classes))

    share = len(np.union1d(true, predicted)) / num_classes

    def scores(cells: IntArray) -> dict[str, FloatArray]:
        return _decision_scores(by_hit(cells), by_true(cells), by_predicted(cells), share)

    def draws() -> Iterator[IntArray]:
        for size in _chunks(num_resamples, len(counts) + 6 * num_classes):
            yield generator.multinomial(num_rows, counts / num_rows, size=size)

    accuracy = share_interval(int(counts[hit].sum()), num_rows)
    return {"accuracy": accuracy, **_percentile_intervals(scores(counts[None]), (scores(cells) for cells in draws()))}


def multi_label_intervals(
    truth: BoolMatrix,
    predicted: BoolMatrix,
    known: BoolMatrix,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Interval]:
    """Intervals of the scores that follow from true and predicted labels.

    Args:
        truth: true labels (N, K).
        predicted: predicted labels (N, K).
        known: which cells of the truth are known (N, K); rows without any are left out.
        generator: where the draws come from.
        num_resamples: how many draws.

    Returns:
        ``subset_accuracy`` (Wilson), and those of ``micro_f1``, ``macro_f1``, ``samples_f1`` and ``hamming_loss`` that
        vary.
    """
    counted = known.any(axis=1)
    known = known[counted]
    truth, predicted = truth[counted] & known, predicted[counted] & known
    num_rows, num_labels = truth.shape
    hits = truth & predicted
    by_hit, by_true, by_predicted = (_label_sums(cells) for cells in (hits, truth, predicted))
    share_of_map = float((truth | predicted).any(axis=0).mean())
    per_row_f1 = safe_ratio(2 * hits.sum(axis=1), truth.sum(axis=1) + predicted.sum(axis=1))
    wrong, decisions = (truth != predicted).sum(axis=1), known.sum(axis=1)

    def scores(weights: IntArray) -> dict[str, FloatArray]:
        hit, true, taken = by_hit(weights), by_true(weights), by_predicted(weights)
        return {
            "micro_f1": safe_ratio(2 * hit.sum(axis=1), true.sum(axis=1) + taken.sum(axis=1)),
            "macro_f1": _macro_f1(hit, true, taken, share_of_map),
            "samples_f1": weights @ per_row_f1 / num_rows,
            "hamming_loss": safe_ratio(weights @ wrong, weights @ decisions),
        }

    def draws() -> Iterator[IntArray]:
        for size in _chunks(num_resamples, num_rows + 4 * num_labels):
            rows = generator.integers(0, num_rows, (size, num_rows)) + num_rows * np.arange(size)[:, None]
            yield np.bincount(rows.ravel(), minlength=size * num_rows).reshape(size, num_rows)

    subset = share_interval(int((truth == predicted).all(axis=1).sum()), num_rows)
    real = scores(np.ones((1, num_rows), np.int64))
    return {"subset_accuracy": subset, **_percentile_intervals(real, (scores(weights) for weights in draws()))}


def _sums_of(sources: IntArray, targets: IntArray, shape: tuple[int, int]) -> Callable[[IntArray], IntArray]:
    """A function from (B, sources) counts to (B, targets) counts: each source adds to the targets paired with it."""
    from scipy.sparse import csr_array

    matrix = csr_array((np.ones(len(sources), np.int64), (sources, targets)), shape=shape)

    def sums(counts: IntArray) -> IntArray:
        found: IntArray = counts @ matrix
        return found

    return sums


def _label_sums(cells: BoolMatrix) -> Callable[[IntArray], IntArray]:
    """From (B, N) counts of rows to (B, K) counts of labels: each row adds to the labels that ``cells`` (N, K) has."""
    rows, labels = np.nonzero(cells)
    num_rows, num_labels = cells.shape
    return _sums_of(rows, labels, (num_rows, num_labels))


def _chunks(num_resamples: int, elements_each: int) -> Iterator[int]:
    """Numbers of draws that add up to ``num_resamples``, each of which fits the memory that is allowed."""
    size = max(1, _CHUNK_ELEMENTS // elements_each)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _decision_scores(
    hits: IntArray, support: IntArray, predicted: IntArray, share_of_map: float
) -> dict[str, FloatArray]:
    """The single-label scores of B confusion matrices, each (B,), from their diagonals and margins, each (B, K)."""
    rows = support.sum(axis=1).astype(np.float64)
    right = hits.sum(axis=1)
    f1 = safe_ratio(2 * hits, support + predicted)
    by_chance = (support * predicted).sum(axis=1)
    true_spread, predicted_spread = (rows**2 - (margin**2).sum(axis=1) for margin in (support, predicted))
    beyond = rows**2 - by_chance
    # Undefined, as in ``single_label``, where chance alone agrees perfectly.
    kappa = np.where(beyond > 0, safe_ratio(right * rows - by_chance, beyond), np.nan)
    return {
        "balanced_accuracy": safe_ratio(safe_ratio(hits, support).sum(axis=1), (support > 0).sum(axis=1)),
        "macro_f1": _macro_f1(hits, support, predicted, share_of_map),
        "weighted_f1": (f1 * support).sum(axis=1) / rows,
        "cohens_kappa": kappa,
        "mcc": safe_ratio(right * rows - by_chance, np.sqrt(true_spread * predicted_spread)),
    }


def _macro_f1(hits: IntArray, support: IntArray, predicted: IntArray, share_of_map: float) -> FloatArray:
    """Macro-F1 of B draws, (B,), from counts (B, K).

    Args:
        hits: rows where a class is both true and predicted.
        support: rows where it is true.
        predicted: rows where it is predicted.
        share_of_map: the share of the K classes that the real rows have; see the module's docstring.
    """
    present = (support + predicted > 0).sum(axis=1)
    return share_of_map * safe_ratio(safe_ratio(2 * hits, support + predicted).sum(axis=1), present)


def _percentile_intervals(
    real: Mapping[str, FloatArray], draws: Iterable[Mapping[str, FloatArray]]
) -> dict[str, Interval]:
    """The middle 95 % of each score over all draws, widened to the real score; none where nothing varies.

    Args:
        real: scores of the real rows, each (1,).
        draws: the same of some of the draws at a time, each (B,); NaN where a draw leaves the score undefined.
    """
    parts = list(draws)
    tail = (1.0 - CONFIDENCE_LEVEL) / 2.0
    found = {}
    for name, score in real.items():
        drawn = np.concatenate([part[name] for part in parts])
        drawn = drawn[~np.isnan(drawn)]
        # Equal scores differ by rounding, a few units of 2e-16; scores of different counts by 1 / rows^2 or so, which
        # is 1e-12 for a million rows.
        if np.isnan(score[0]) or len(drawn) == 0 or np.ptp(drawn) < 1e-13:
            continue
        low, high = np.quantile(drawn, (tail, 1.0 - tail))
        found[name] = Interval(float(min(low, score[0])), float(max(high, score[0])))
    return found
