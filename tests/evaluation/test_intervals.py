"""Intervals: the same as a plain bootstrap of rows, at their level, and silent where nothing varies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from scipy.stats import binom

from qlassify.evaluation.intervals import (
    Interval,
    multi_label_intervals,
    share_interval,
    single_label_intervals,
)
from qlassify.evaluation.metrics import evaluate_predictions

SINGLE = ("balanced_accuracy", "macro_f1", "weighted_f1", "mcc", "cohens_kappa")
MULTI = ("micro_f1", "macro_f1", "samples_f1", "hamming_loss")


def confusion_of(truth: Any, predicted: Any, classes: int) -> Any:
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def single_world(seed: int, rows: int, classes: int) -> tuple[Any, Any]:
    """Classes of falling frequency, seven tenths of the rows right."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, classes + 1)
    truth = rng.choice(classes, rows, p=shares / shares.sum())
    return truth, np.where(rng.random(rows) < 0.7, truth, rng.integers(0, classes, rows))


def multi_world(seed: int, rows: int, labels: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, labels)) < 0.3
    predicted = np.where(rng.random((rows, labels)) < 0.8, truth, ~truth)
    return truth, predicted, rng.random((rows, labels)) < 0.9


def plain_bootstrap(score: Callable[[Any], float], rows: int, draws: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.quantile([score(rng.integers(0, rows, rows)) for _ in range(draws)], (0.025, 0.975))


def close(found: Interval, wanted: Any) -> bool:
    """An end of a 95 % interval from n draws has a standard error of sqrt(0.025 * 0.975 / n) / density: for a bell
    curve 0.021 of the interval's width with 1,000 draws and 0.034 with 400. The difference of two such ends has 0.04
    of it; five of those are 0.2.
    """
    width = wanted[1] - wanted[0]
    return abs(found.low - wanted[0]) < 0.2 * width and abs(found.high - wanted[1]) < 0.2 * width


@pytest.mark.parametrize("name", SINGLE)
def test_single_label_agrees_with_drawing_rows(name: str) -> None:
    truth, predicted = single_world(0, 150, 4)

    def score(rows: Any) -> float:
        t, p = truth[rows], predicted[rows]
        return float(
            {
                "balanced_accuracy": lambda: judge.recall_score(t, p, labels=np.unique(t), average="macro"),
                # The classes that the draw has, of all that the rows have: here all four of the map.
                "macro_f1": lambda: judge.f1_score(t, p, labels=np.union1d(t, p), average="macro"),
                "weighted_f1": lambda: judge.f1_score(t, p, average="weighted", zero_division=0),
                "mcc": lambda: judge.matthews_corrcoef(t, p),
                "cohens_kappa": lambda: judge.cohen_kappa_score(t, p),
            }[name]()
        )

    found = single_label_intervals(confusion_of(truth, predicted, 4), np.random.default_rng(1))
    assert close(found[name], plain_bootstrap(score, 150, 400, seed=2))


@pytest.mark.parametrize("name", MULTI)
def test_multi_label_agrees_with_drawing_rows(name: str) -> None:
    truth, predicted, known = multi_world(0, 120, 5)
    targets = np.where(known, truth, -1)

    def score(rows: Any) -> float:
        drawn = evaluate_predictions(targets[rows], predicted[rows].astype(float), list("abcde"), multi_label=True)
        value = drawn.values[name]
        assert value is not None
        return value

    found = multi_label_intervals(truth, predicted, known, np.random.default_rng(1))
    assert close(found[name], plain_bootstrap(score, 120, 400, seed=2))


@pytest.mark.parametrize("seed", range(6))
def test_scores_lie_inside_their_intervals_and_are_those_of_the_metrics(seed: int) -> None:
    """Also where classes are so rare that draws miss them: 12 rows of 9 classes."""
    truth, predicted = single_world(seed, 12, 9)
    names = [str(k) for k in range(9)]
    values = evaluate_predictions(truth, np.eye(9)[predicted], names, multi_label=False).values
    found = single_label_intervals(confusion_of(truth, predicted, 9), np.random.default_rng(seed))
    assert set(found) == {"accuracy", *SINGLE}
    for name, interval in found.items():
        value = values[name]
        assert value is not None
        # The score is computed twice, by different sums of quotients.
        assert interval.low - 1e-12 <= value <= interval.high + 1e-12
        assert interval.low < interval.high
    labels, taken, known = multi_world(seed, 12, 9)
    values = evaluate_predictions(np.where(known, labels, -1), taken.astype(float), names, multi_label=True).values
    for name, interval in multi_label_intervals(labels, taken, known, np.random.default_rng(seed)).items():
        value = values[name]
        assert value is not None
        assert interval.low - 1e-12 <= value <= interval.high + 1e-12


def test_a_class_that_a_draw_misses_does_not_pull_macro_f1_down() -> None:
    """Forty classes of one row, one wrong: a draw has about 25 of them. Zeros for the others would end below 0.8."""
    confusion = np.eye(40, dtype=np.int64)
    confusion[0, 0], confusion[0, 1] = 0, 1
    interval = single_label_intervals(confusion, np.random.default_rng(0))["macro_f1"]
    assert interval.low > 0.85
    assert interval.high == 1.0


def test_classes_without_rows_keep_their_place_in_macro_f1() -> None:
    truth, predicted = single_world(1, 100, 3)
    three = single_label_intervals(confusion_of(truth, predicted, 3), np.random.default_rng(0))["macro_f1"]
    six = single_label_intervals(confusion_of(truth, predicted, 6), np.random.default_rng(0))["macro_f1"]
    # One multiplication by a half, and sums in another order.
    assert (six.low, six.high) == pytest.approx((three.low / 2, three.high / 2), rel=1e-12)


@pytest.mark.parametrize(
    "confusion",
    [
        pytest.param([[1, 0], [0, 0]], id="one row"),
        pytest.param([[0, 1], [0, 0]], id="one wrong row"),
        pytest.param([[7, 0], [0, 0]], id="one class, all right"),
    ],
)
def test_where_nothing_varies_there_is_only_the_share(confusion: Any) -> None:
    found = single_label_intervals(np.array(confusion), np.random.default_rng(0))
    assert set(found) == {"accuracy"}
    assert found["accuracy"].low < found["accuracy"].high


def test_all_right_is_no_certainty() -> None:
    """Thirty of thirty rows right: Wilson's lower end is 1 / (1 + z^2 / n) in closed form."""
    found = single_label_intervals(np.diag([10, 20]), np.random.default_rng(0))
    assert set(found) == {"accuracy"}
    assert found["accuracy"].low == pytest.approx(1.0 / (1.0 + 1.959963984540054**2 / 30))
    assert found["accuracy"].high == 1.0
    known = np.ones((8, 2), bool)
    found = multi_label_intervals(known, known, known, np.random.default_rng(0))
    assert set(found) == {"subset_accuracy"}


def test_rows_of_unknown_labels_are_no_rows() -> None:
    truth, predicted, known = multi_world(3, 50, 4)
    known[10:20] = False
    rest = known.any(axis=1)
    assert multi_label_intervals(truth, predicted, known, np.random.default_rng(0)) == multi_label_intervals(
        truth[rest], predicted[rest], known[rest], np.random.default_rng(0)
    )


def test_the_same_generator_gives_the_same_and_chunks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted, known = multi_world(5, 60, 4)
    confusion = confusion_of(*single_world(5, 60, 4), 4)
    whole = multi_label_intervals(truth, predicted, known, np.random.default_rng(3))
    cells = single_label_intervals(confusion, np.random.default_rng(3))
    monkeypatch.setattr("qlassify.evaluation.intervals._CHUNK_ELEMENTS", 1000)
    assert multi_label_intervals(truth, predicted, known, np.random.default_rng(3)) == whole
    assert single_label_intervals(confusion, np.random.default_rng(3)) == cells


def test_wilson_holds_its_level() -> None:
    """The coverage over all counts that can be drawn, summed exactly; it swings about 95 % since counts are whole."""
    rows, shares = 40, np.linspace(0.05, 0.95, 19)
    intervals = [share_interval(right, rows) for right in range(rows + 1)]
    coverage = [
        sum(
            binom.pmf(right, rows, share)
            for right in range(rows + 1)
            if intervals[right].low <= share <= intervals[right].high
        )
        for share in shares
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.90


def test_bootstrap_intervals_hold_the_true_score_about_as_often_as_they_say() -> None:
    """120 test sets of 200 rows from one known confusion. Of 95 % intervals, 114 hold the true score; the standard
    error is 2.4, and percentile intervals of 200 rows are a little narrow, so 104 and more will do.
    """
    shares = np.array([[0.40, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.10]])
    large = np.rint(shares * 1_000_000).astype(np.int64)
    support, predicted = large.sum(axis=1), large.sum(axis=0)
    true_score = float(np.mean(2 * np.diag(large) / (support + predicted)))
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(120):
        drawn = rng.multinomial(200, shares.ravel()).reshape(3, 3)
        interval = single_label_intervals(drawn, rng, 400)["macro_f1"]
        held += interval.low <= true_score <= interval.high
    assert held >= 104
