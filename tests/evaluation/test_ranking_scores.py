"""ROC areas, average precision and LRAP against scikit-learn, and where there is nothing to rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.evaluation.metrics import Metrics, evaluate_predictions


def softmax_rows(rng: np.random.Generator, rows: int, classes: int) -> Any:
    """Probabilities in steps of 1/20, so that ties occur; rows sum to one up to rounding."""
    draws = rng.multinomial(20, np.full(classes, 1 / classes), size=rows)
    return draws / 20.0


def single(targets: Any, probabilities: Any) -> Metrics:
    names = [f"class {k}" for k in range(probabilities.shape[1])]
    return evaluate_predictions(np.asarray(targets), probabilities, names, multi_label=False)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), classes=st.integers(2, 6))
def test_each_class_against_the_others_equals_scikit_learn(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    targets, probabilities = rng.integers(0, classes, rows), softmax_rows(rng, rows, classes)
    metrics = single(targets, probabilities)
    areas, precisions = [], []
    for k, one in enumerate(metrics.classes):
        positive = targets == k
        if not positive.any():
            assert one.average_precision is None
            assert one.roc_auc is None
            continue
        precisions.append(judge.average_precision_score(positive, probabilities[:, k]))
        # Both sum at most forty quotients of small integers, in another order.
        assert one.average_precision == pytest.approx(precisions[-1], abs=1e-12)
        if positive.all():
            assert one.roc_auc is None
            continue
        areas.append(judge.roc_auc_score(positive, probabilities[:, k]))
        assert one.roc_auc == pytest.approx(areas[-1], abs=1e-12)
    wanted = None if not areas else areas[-1] if classes == 2 else np.mean(areas)
    assert metrics.values["roc_auc"] == (None if wanted is None else pytest.approx(wanted, abs=1e-12))
    assert metrics.values["macro_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-12)


def test_with_all_classes_present_the_area_is_scikit_learns_one_versus_rest() -> None:
    rng = np.random.default_rng(0)
    targets, probabilities = np.arange(60) % 4, softmax_rows(rng, 60, 4)
    wanted = judge.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert single(targets, probabilities).values["roc_auc"] == pytest.approx(wanted, abs=1e-12)


def test_two_classes_have_one_number_that_of_the_second() -> None:
    rng = np.random.default_rng(1)
    targets, second = rng.integers(0, 2, 50), rng.random(50).round(2)
    metrics = single(targets, np.stack([1.0 - second, second], axis=1))
    wanted = judge.roc_auc_score(targets, second)
    assert metrics.values["roc_auc"] == pytest.approx(wanted, abs=1e-12)
    assert metrics.classes[0].roc_auc == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "probabilities", "area", "precision"),
    [
        pytest.param([1], [[0.2, 0.8]], None, 1.0, id="one row"),
        pytest.param([0, 0, 0], [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], None, 1.0, id="one class in the truth"),
        pytest.param([0, 1, 1], [[0.4, 0.6]] * 3, 0.5, (1 / 3 + 2 / 3) / 2, id="all predicted the same"),
        pytest.param([0, 1], [[0.9, 0.1], [0.1, 0.9]], 1.0, 1.0, id="perfect order"),
        pytest.param([1, 0], [[0.9, 0.1], [0.1, 0.9]], 0.0, 0.5, id="reversed order"),
    ],
)
def test_by_hand(targets: list[int], probabilities: Any, area: float | None, precision: float) -> None:
    values = single(targets, np.array(probabilities)).values
    assert values["roc_auc"] == area
    assert values["macro_average_precision"] == pytest.approx(precision)


def test_a_class_that_is_absent_is_left_out_of_both_means() -> None:
    rng = np.random.default_rng(2)
    targets, probabilities = rng.integers(0, 3, 80), softmax_rows(rng, 80, 3)
    three = single(targets, probabilities)
    four = single(targets, np.hstack([probabilities, np.zeros((80, 1))]))
    assert four.classes[3].support == 0
    for name in ("roc_auc", "macro_average_precision"):
        assert four.values[name] == three.values[name]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), labels=st.integers(1, 6))
def test_labels_equal_scikit_learn(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    targets, probabilities = rng.random((rows, labels)) < 0.3, rng.random((rows, labels)).round(1)
    names = [f"label {k}" for k in range(labels)]
    metrics = evaluate_predictions(targets, probabilities, names, multi_label=True)
    areas = []
    for k, one in enumerate(metrics.classes):
        if 0 < targets[:, k].sum() < rows:
            areas.append(judge.roc_auc_score(targets[:, k], probabilities[:, k]))
            assert one.roc_auc == pytest.approx(areas[-1], abs=1e-12)
        else:
            assert one.roc_auc is None
    assert metrics.values["roc_auc"] == (pytest.approx(np.mean(areas), abs=1e-12) if areas else None)
