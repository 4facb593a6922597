"""Comparisons against closed forms, scikit-learn's scores, and a bootstrap that draws rows one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.errors import DataError
from qlassify.evaluation import comparison
from qlassify.evaluation.comparison import Comparison, compare_predictions, mcnemar_test, p_words, verdict_words


def random_classes(seed: int, num_rows: int, num_classes: int) -> tuple[Any, Any, Any]:
    """Truth and two predictions that agree with it, and with each other, more often than chance."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, num_rows)
    a = np.where(rng.random(num_rows) < 0.7, truth, rng.integers(0, num_classes, num_rows))
    b = np.where(rng.random(num_rows) < 0.5, a, rng.integers(0, num_classes, num_rows))
    return truth, a, b


def random_flags(seed: int, num_rows: int, num_labels: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    truth = rng.random((num_rows, num_labels)) < 0.4
    a = truth ^ (rng.random(truth.shape) < 0.2)
    b = a ^ (rng.random(truth.shape) < 0.2)
    return truth.astype(int), a.astype(int), b.astype(int)


def compare(truth: Any, a: Any, b: Any, num_classes: int, *, seed: int = 0, resamples: int = 400) -> Comparison:
    return compare_predictions(
        truth, a, b, num_classes=num_classes, generator=np.random.default_rng(seed), resamples=resamples
    )


def right_arrays(only_a: int, only_b: int, both: int = 3, neither: int = 2) -> tuple[Any, Any]:
    right_a = np.array([True] * only_a + [False] * only_b + [True] * both + [False] * neither)
    right_b = np.array([False] * only_a + [True] * only_b + [True] * both + [False] * neither)
    return right_a, right_b


# McNemar


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 6), (3, 3), (12, 31), (40, 9), (100, 101)])
def test_the_p_value_is_the_binomial_sum(only_a: int, only_b: int) -> None:
    """Two-sided: twice the tail of a fair coin, at most 1, in exact integers."""
    test = mcnemar_test(*right_arrays(only_a, only_b))
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    wanted = min(1.0, 2 * sum(math.comb(discordant, k) for k in range(fewer + 1)) / 2**discordant)
    assert (test.only_a_right, test.only_b_right, test.both_right, test.both_wrong) == (only_a, only_b, 3, 2)
    assert test.p_value == pytest.approx(wanted, rel=1e-9)  # an incomplete beta function in float64


# Scores


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), num_rows=st.integers(1, 60), num_classes=st.integers(2, 6))
def test_single_label_scores_are_those_of_scikit_learn(seed: int, num_rows: int, num_classes: int) -> None:
    truth, a, b = random_classes(seed, num_rows, num_classes)
    found = compare(truth, a, b, num_classes, resamples=10)
    assert [one.name for one in found.scores] == ["accuracy", "macro_f1"]
    for of, predicted in (("a", a), ("b", b)):
        labels = range(num_classes)
        f1 = judge.f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)
        # The same ratios of the same integers; only the order of a sum may differ.
        assert getattr(found.score("macro_f1"), of) == pytest.approx(f1, abs=1e-12)
        assert getattr(found.score("accuracy"), of) == pytest.approx((truth == predicted).mean(), abs=1e-12)
    assert (found.test.both_right, found.test.both_wrong) == (
        ((a == truth) & (b == truth)).sum(),
        ((a != truth) & (b != truth)).sum(),
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), num_rows=st.integers(1, 60), num_labels=st.integers(2, 6))
def test_multi_label_scores_are_those_of_scikit_learn(seed: int, num_rows: int, num_labels: int) -> None:
    truth, a, b = random_flags(seed, num_rows, num_labels)
    found = compare(truth, a, b, num_labels, resamples=10)
    assert [one.name for one in found.scores] == ["subset_accuracy", "micro_f1", "macro_f1"]
    for of, predicted in (("a", a), ("b", b)):
        for average in ("micro", "macro"):
            wanted = judge.f1_score(truth, predicted, average=average, zero_division=0)
            assert getattr(found.score(f"{average}_f1"), of) == pytest.approx(wanted, abs=1e-12)
        right = (truth == predicted).all(axis=1)
        assert getattr(found.score("subset_accuracy"), of) == pytest.approx(right.mean(), abs=1e-12)
    assert found.test.only_b_right == ((truth == b).all(axis=1) & ~(truth == a).all(axis=1)).sum()


# Intervals


def macro_f1(truth: Any, predicted: Any, num_classes: int) -> float:
    return float(
        judge.f1_score(truth, predicted, labels=range(num_classes), average="macro", zero_division=0)
        if truth.ndim == 1
        else judge.f1_score(truth, predicted, average="macro", zero_division=0)
    )


@pytest.mark.parametrize("make", [random_classes, random_flags])
def test_the_interval_is_that_of_drawing_rows(make: Any) -> None:
    """Two bootstraps of one distribution, each with noise of its own in its quantiles."""
    truth, a, b = make(5, 150, 3)
    found = compare(truth, a, b, 3, resamples=4000).score("macro_f1")
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(1500):
        rows = rng.integers(0, 150, 150)
        drawn.append(macro_f1(truth[rows], b[rows], 3) - macro_f1(truth[rows], a[rows], 3))
    low, high = np.quantile(drawn, [0.025, 0.975])
    # A quantile of R draws of a normal has the deviation sqrt(q (1 - q) / R) / density: here sigma * 0.069 for 1500
    # draws and 0.042 for 4000, together 0.081 sigma; five of those are 0.4 sigma.
    tolerance = 0.4 * float(np.std(drawn))
    assert found.low == pytest.approx(low, abs=tolerance)
    assert found.high == pytest.approx(high, abs=tolerance)
    assert high - low > 4 * tolerance, "the tolerance is small beside what is compared"


def test_the_interval_of_accuracy_is_the_paired_normal_one() -> None:
    """With many rows: difference +- 1.96 sqrt((p01 + p10 - (p01 - p10)^2) / n), McNemar's own variance."""
    truth, a, b = random_classes(2, 4000, 4)
    found = compare(truth, a, b, 4, resamples=4000)
    test, score = found.test, found.score("accuracy")
    p01, p10 = test.only_b_right / 4000, test.only_a_right / 4000
    sigma = math.sqrt((p01 + p10 - (p01 - p10) ** 2) / 4000)
    # As above: the quantile's own deviation is 0.042 sigma, five of them 0.21; accuracy moves in steps of 1 / 4000.
    tolerance = 0.21 * sigma + 1 / 4000
    assert score.low == pytest.approx(score.difference - 1.96 * sigma, abs=tolerance)
    assert score.high == pytest.approx(score.difference + 1.96 * sigma, abs=tolerance)


def test_memory_that_is_bounded_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, a, b = random_classes(3, 80, 4)
    whole = compare(truth, a, b, 4, resamples=50)
    monkeypatch.setattr(comparison, "_CHUNK_NUMBERS", 1)
    assert compare(truth, a, b, 4, resamples=50) == whole


# Properties


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), num_rows=st.integers(1, 40), make=st.sampled_from([random_classes, random_flags]))
def test_swapping_mirrors_everything(seed: int, num_rows: int, make: Any) -> None:
    truth, a, b = make(seed, num_rows, 4)
    one, other = compare(truth, a, b, 4, resamples=60), compare(truth, b, a, 4, resamples=60)
    assert one.test.p_value == other.test.p_value
    assert (one.test.only_a_right, one.test.only_b_right) == (other.test.only_b_right, other.test.only_a_right)
    for first, second in zip(one.scores, other.scores, strict=True):
        assert (first.a, first.b, first.difference) == (second.b, second.a, -second.difference)
        # The same draws; a quantile between two of them is interpolated from its other side.
        assert (first.low, first.high) == pytest.approx((-second.high, -second.low), abs=1e-12)


@pytest.mark.parametrize("make", [random_classes, random_flags])
def test_a_classifier_is_no_better_than_itself(make: Any) -> None:
    truth, a, _ = make(7, 50, 3)
    found = compare(truth, a, a.copy(), 3)
    assert found.test.p_value == 1.0
    assert all((one.difference, one.low, one.high) == (0.0, 0.0, 0.0) for one in found.scores)
    assert "right on the same rows" in verdict_words(found)


def test_the_order_of_the_rows_changes_no_answer_but_the_draws() -> None:
    truth, a, b = random_classes(9, 200, 3)
    order = np.random.default_rng(0).permutation(200)
    one, other = compare(truth, a, b, 3), compare(truth[order], a[order], b[order], 3)
    assert one.test == other.test
    for first, second in zip(one.scores, other.scores, strict=True):
        assert (first.a, first.b) == pytest.approx((second.a, second.b), abs=1e-12)


def test_the_same_generator_gives_the_same_interval() -> None:
    truth, a, b = random_classes(9, 200, 3)
    assert compare(truth, a, b, 3, seed=4) == compare(truth, a, b, 3, seed=4)
    assert compare(truth, a, b, 3, seed=4) != compare(truth, a, b, 3, seed=5)


# Words


def test_the_verdict_counts_and_judges() -> None:
    truth = np.zeros(400, dtype=int)
    truth[200:] = 1
    a, b = truth.copy(), truth.copy()
    a[:31] = 1
    b[100:112] = 1
    words = verdict_words(compare(truth, a, b, 2))
    assert words.startswith("B is right on 31 rows where A is wrong, A on 12 where B is wrong: p = 0.0054, ")
    assert "larger than chance explains" in words
    assert "Macro-F1 +0.0" in words
    assert "contains zero" not in words
    a[12:31] = 0
    words = verdict_words(compare(truth, a, b, 2))
    assert "12 rows where A is wrong, A on 12 where B is wrong: p = 1, the difference can be chance" in words
    assert "which contains zero" in words


def test_the_verdict_says_when_rows_and_classes_disagree() -> None:
    """A rare class wins all of its few rows, and a few more rows of the common class are lost: macro-F1 only."""
    truth = np.array([0] * 300 + [1] * 12)
    a, b = truth.copy(), truth.copy()
    a[300:310] = 0
    b[:7] = 1
    found = compare(truth, a, b, 2)
    assert found.test.p_value > 0.05
    assert found.score("macro_f1").excludes_zero
    assert "The test counts rows" in verdict_words(found)


def test_p_values_are_never_zero_in_words() -> None:
    assert [p_words(value) for value in (1.0, 0.00523, 2.13e-9, 0.0)] == [
        "p = 1",
        "p = 0.0052",
        "p = 2.1e-09",
        "p < 1e-300",
    ]


# Mistakes


@pytest.mark.parametrize(
    ("truth", "a", "b", "words"),
    [
        ([], [], [], "no rows"),
        ([0, 1], [0, 1], [0], "not of one shape"),
        ([0, 1], [0, 2], [0, 1], "outside the label map"),
        ([0, 1], [0, -1], [0, 1], "outside the label map"),
        ([[0, 1, 1]], [[0, 1, 1]], [[0, 1, 1]], "one column per label"),
    ],
)
def test_what_does_not_fit_is_refused(truth: Any, a: Any, b: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare(np.array(truth, dtype=int), np.array(a, dtype=int), np.array(b, dtype=int), 2)
