"""Labels that nobody judged count in no score: held to scikit-learn on the cells that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.errors import DataError
from qlassify.evaluation.metrics import Metrics, evaluate_predictions


def world(seed: int, rows: int, labels: int, share_unknown: float) -> tuple[Any, Any, Any]:
    """(truth, probabilities in steps of a tenth, known); at least one cell is known to be false."""
    rng = np.random.default_rng(seed)
    truth, known = rng.random((rows, labels)) < 0.4, rng.random((rows, labels)) >= share_unknown
    truth[0, 0], known[0, 0] = False, True
    return truth, (rng.random((rows, labels)) * 10).round() / 10, known


def scored(truth: Any, probabilities: Any, known: Any) -> Metrics:
    names = [f"label {k}" for k in range(truth.shape[1])]
    return evaluate_predictions(np.where(known, truth, -1), probabilities, names, multi_label=True)


CASES = st.tuples(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 6), st.sampled_from([0.0, 0.2, 0.6, 0.95]))


@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_each_label_equals_scikit_learn_on_the_rows_where_it_is_known(case: tuple[int, int, int, float]) -> None:
    truth, probabilities, known = world(*case)
    metrics = scored(truth, probabilities, known)
    for k, one in enumerate(metrics.classes):
        true, stated = truth[known[:, k], k], probabilities[known[:, k], k]
        predicted = stated >= 0.5
        assert (one.support, one.predicted) == (true.sum(), predicted.sum())
        if len(true) == 0:
            assert (one.precision, one.recall, one.f1) == (0.0, 0.0, 0.0)
            assert one.average_precision is None
            continue
        wanted = judge.precision_recall_fscore_support(
            true, predicted, average="binary", pos_label=True, zero_division=0
        )
        assert (one.precision, one.recall, one.f1) == pytest.approx(wanted[:3], abs=1e-12)
        if true.any():
            assert one.average_precision == pytest.approx(judge.average_precision_score(true, stated), abs=1e-12)
        if 0 < true.sum() < len(true):
            assert one.roc_auc == pytest.approx(judge.roc_auc_score(true, stated), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_pooled_scores_equal_scikit_learn_on_the_known_cells(case: tuple[int, int, int, float]) -> None:
    truth, probabilities, known = world(*case)
    metrics = scored(truth, probabilities, known)
    true, stated = truth[known], probabilities[known]
    predicted = stated >= 0.5
    two_columns = np.stack([1 - stated, stated], axis=1)
    expected = {
        "micro_precision": judge.precision_score(true, predicted, zero_division=0),
        "micro_recall": judge.recall_score(true, predicted, zero_division=0),
        "micro_f1": judge.f1_score(true, predicted, zero_division=0),
        "hamming_loss": judge.hamming_loss(true, predicted),
        "log_loss": judge.log_loss(true, two_columns, labels=[False, True]),
        "brier": np.mean((stated - true) ** 2),
        "macro_f1": np.mean([one.f1 for one in metrics.classes]),
    }
    assert {key: metrics.values[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert sum(one.count for one in metrics.reliability) == known.sum()


@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_scores_by_row_equal_scikit_learn_on_the_known_labels_of_each_row(case: tuple[int, int, int, float]) -> None:
    truth, probabilities, known = world(*case)
    metrics = scored(truth, probabilities, known)
    exact, f1, lrap, cardinality = [], [], [], []
    for row in range(len(truth)):
        true, stated = truth[row, known[row]], probabilities[row, known[row]]
        if len(true) == 0:
            continue
        predicted = stated >= 0.5
        exact.append((true == predicted).all())
        f1.append(judge.f1_score(true, predicted, zero_division=0))
        # A matrix of one column is no label ranking to scikit-learn; ours is then 1, true or not.
        ranked = judge.label_ranking_average_precision_score(true[None], stated[None]) if len(true) > 1 else 1.0
        lrap.append(ranked)
        cardinality.append(true.sum())
    expected = {
        "subset_accuracy": np.mean(exact),
        "samples_f1": np.mean(f1),
        "lrap": np.mean(lrap),
        "label_cardinality_true": np.mean(cardinality),
    }
    assert {key: metrics.values[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert metrics.num_rows == len(exact)


def test_nan_and_minus_one_say_the_same() -> None:
    truth, probabilities, known = world(3, 20, 4, 0.3)
    with_nan = np.where(known, truth.astype(float), np.nan)
    names = list("abcd")
    assert evaluate_predictions(with_nan, probabilities, names, multi_label=True) == evaluate_predictions(
        np.where(known, truth, -1), probabilities, names, multi_label=True
    )


def test_a_row_of_unknown_labels_counts_in_no_score() -> None:
    truth, probabilities, known = world(4, 20, 4, 0.2)
    nothing = np.zeros((1, 4), bool)
    more = scored(
        np.vstack([truth, ~nothing]), np.vstack([probabilities, np.ones((1, 4))]), np.vstack([known, nothing])
    )
    assert more == scored(truth, probabilities, known)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param([[-1, -1], [-1, -1]], "no label is known", id="nothing known"),
        pytest.param([[1, -1], [-1, 1]], "If -1 means that a row does not have the label, pass 0", id="minus for no"),
        pytest.param([[1, 0], [-2, 1]], "row 1.*0 or 1 per label, -1 or NaN", id="another number"),
    ],
)
def test_refused(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_predictions(np.array(targets), np.full((2, 2), 0.5), ["a", "b"], multi_label=True)


def test_single_label_knows_no_unknown_class() -> None:
    with pytest.raises(DataError, match=r"row 1.*got -1"):
        evaluate_predictions(np.array([0, -1]), np.full((2, 2), 0.5), ["a", "b"], multi_label=False)
