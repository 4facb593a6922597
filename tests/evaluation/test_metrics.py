"""Every score against scikit-learn, or a closed form, on random and on degenerate predictions."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as judge
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.errors import DataError
from qlassify.evaluation.metrics import Metrics, evaluate_predictions


def random_single(seed: int, num_rows: int, num_classes: int, used: int | None = None) -> tuple[Any, Any, list[str]]:
    """Targets from the first ``used`` classes, and tie-free probabilities that lean towards them."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, used or num_classes, num_rows)
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), targets] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return targets, probabilities, [f"class {k}" for k in range(num_classes)]


def random_multi(seed: int, num_rows: int, num_labels: int, density: float) -> tuple[Any, Any, list[str]]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_labels)) < density).astype(float)
    probabilities = 1.0 / (1.0 + np.exp(-rng.normal(size=targets.shape) - 2.0 * targets + 1.0))
    # Coarse values, so that ties occur in the rankings.
    return targets, probabilities.round(2), [f"label {k}" for k in range(num_labels)]


def matthews(targets: Any, predicted: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "a single label was found", which is what is being tested
        return float(judge.matthews_corrcoef(targets, predicted))


single_cases = st.tuples(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 7), st.integers(1, 7))


def evaluate_single(case: tuple[int, int, int, int]) -> tuple[Any, Any, Metrics]:
    seed, num_rows, num_classes, used = case
    targets, probabilities, names = random_single(seed, num_rows, num_classes, min(used, num_classes))
    return targets, probabilities, evaluate_predictions(targets, probabilities, names, multi_label=False)


class TestSingleLabel:
    @settings(max_examples=60, deadline=None)
    @given(case=single_cases)
    def test_decisions_equal_scikit_learn(self, case: tuple[int, int, int, int]) -> None:
        targets, probabilities, metrics = evaluate_single(case)
        labels = np.arange(probabilities.shape[1])
        predicted = probabilities.argmax(axis=1)

        def prf(average: str | None) -> Any:
            return judge.precision_recall_fscore_support(
                targets, predicted, labels=labels, average=average, zero_division=0.0
            )

        macro = prf("macro")
        expected = {
            "accuracy": judge.accuracy_score(targets, predicted),
            "balanced_accuracy": np.mean(
                judge.recall_score(targets, predicted, labels=np.unique(targets), average=None, zero_division=0.0)
            ),
            "macro_precision": macro[0],
            "macro_recall": macro[1],
            "macro_f1": macro[2],
            "micro_f1": prf("micro")[2],
            "weighted_f1": prf("weighted")[2],
            "mcc": matthews(targets, predicted),
        }
        assert {key: metrics.values[key] for key in expected} == pytest.approx(expected, abs=1e-12)
        per_class = np.array([[c.precision, c.recall, c.f1, c.support] for c in metrics.classes])
        np.testing.assert_allclose(per_class, np.array(prf(None)).T, atol=1e-12)
        assert metrics.confusion is not None
        np.testing.assert_array_equal(
            np.array(metrics.confusion), judge.confusion_matrix(targets, predicted, labels=labels)
        )
        assert [c.predicted for c in metrics.classes] == np.bincount(predicted, minlength=len(labels)).tolist()

    @settings(max_examples=60, deadline=None)
    @given(case=single_cases)
    def test_probabilities_equal_scikit_learn(self, case: tuple[int, int, int, int]) -> None:
        targets, probabilities, metrics = evaluate_single(case)
        labels = np.arange(probabilities.shape[1])
        assert metrics.values["log_loss"] == pytest.approx(judge.log_loss(targets, probabilities, labels=labels))
        # scikit-learn takes a vector of scores where there are two classes; the second of two is then no news.
        expected = 1.0 if len(labels) == 2 else judge.top_k_accuracy_score(targets, probabilities, k=2, labels=labels)
        assert metrics.values["top2_accuracy"] == pytest.approx(expected)

    @settings(max_examples=40, deadline=None)
    @given(case=single_cases)
    def test_brier_and_ece_equal_a_plain_python_twin(self, case: tuple[int, int, int, int]) -> None:
        targets, probabilities, metrics = evaluate_single(case)
        rows = [[float(p) for p in row] for row in probabilities]
        brier = 0.0
        bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
        for truth, row in zip(targets, rows, strict=True):
            brier += sum((p - (k == truth)) ** 2 for k, p in enumerate(row)) / len(rows)
            top = max(row)
            bins[math.ceil(top * 10) - 1].append((top, row.index(top) == truth))
        ece = sum(abs(sum(right for _, right in b) - sum(top for top, _ in b)) for b in bins) / len(rows)
        assert metrics.values["brier"] == pytest.approx(brier)
        assert metrics.values["ece"] == pytest.approx(ece, abs=1e-12)
        assert [b.count for b in metrics.reliability] == [len(b) for b in bins]

    @pytest.mark.parametrize("seed", range(5))
    def test_kappa_equals_scikit_learn(self, seed: int) -> None:
        targets, probabilities, names = random_single(seed, 50, 4)
        metrics = evaluate_predictions(targets, probabilities, names, multi_label=False)
        expected = judge.cohen_kappa_score(targets, probabilities.argmax(axis=1))
        assert metrics.values["cohens_kappa"] == pytest.approx(expected)

    def test_kappa_is_none_only_where_chance_agrees_perfectly(self) -> None:
        sure = np.array([[0.9, 0.1], [0.8, 0.2]])
        all_right = evaluate_predictions(np.array([0, 0]), sure, ["a", "b"], multi_label=False)
        all_wrong = evaluate_predictions(np.array([1, 1]), sure, ["a", "b"], multi_label=False)
        assert all_right.values["cohens_kappa"] is None
        assert all_right.values["mcc"] == 0.0
        assert all_wrong.values["cohens_kappa"] == 0.0

    def test_confidences_by_hand(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        values = evaluate_predictions(np.array([0, 1, 1]), probabilities, ["a", "b"], multi_label=False).values
        assert values["mean_confidence"] == pytest.approx((0.9 + 0.6 + 0.8) / 3)
        assert values["confidence_correct"] == pytest.approx(0.85)
        assert values["confidence_wrong"] == pytest.approx(0.6)
        assert values["majority_share"] == pytest.approx(2 / 3)
        assert values["random_accuracy"] == 0.5

    def test_one_row(self) -> None:
        metrics = evaluate_predictions(np.array([2]), np.array([[0.1, 0.1, 0.8]]), list("abc"), multi_label=False)
        assert metrics.values["accuracy"] == 1.0
        assert metrics.values["macro_f1"] == pytest.approx(1 / 3)
        assert metrics.values["confidence_wrong"] is None
        assert [c.support for c in metrics.classes] == [0, 0, 1]

    def test_a_single_class_has_nothing_to_confuse(self) -> None:
        metrics = evaluate_predictions(np.array([0, 0]), np.ones((2, 1)), ["only"], multi_label=False)
        assert metrics.values["accuracy"] == metrics.values["top2_accuracy"] == metrics.values["random_accuracy"] == 1.0
        assert metrics.top_confusions == ()

    def test_absent_class_counts_as_zero_in_macro_f1(self) -> None:
        targets, probabilities, names = random_single(3, 200, 3)
        padded = np.hstack([probabilities, np.zeros((200, 1))])
        three = evaluate_predictions(targets, probabilities, names, multi_label=False).values
        four = evaluate_predictions(targets, padded, [*names, "absent"], multi_label=False).values
        assert three["macro_f1"] is not None
        assert four["macro_f1"] == pytest.approx(three["macro_f1"] * 3 / 4)
        assert four["balanced_accuracy"] == three["balanced_accuracy"]

    def test_impossible_truth_costs_a_finite_log_loss(self) -> None:
        metrics = evaluate_predictions(np.array([1]), np.array([[1.0, 0.0]]), ["a", "b"], multi_label=False)
        assert metrics.values["log_loss"] == pytest.approx(-math.log(np.finfo(np.float64).eps))

    def test_ties_rank_classes_in_their_order(self) -> None:
        uniform = np.full((3, 3), 1 / 3)
        values = evaluate_predictions(np.array([0, 1, 2]), uniform, list("abc"), multi_label=False).values
        assert values["accuracy"] == pytest.approx(1 / 3)
        assert values["top2_accuracy"] == pytest.approx(2 / 3)

    def test_top_confusions_are_the_largest_cells_off_the_diagonal(self) -> None:
        targets, probabilities, names = random_single(5, 400, 6)
        metrics = evaluate_predictions(targets, probabilities, names, multi_label=False)
        assert metrics.confusion is not None
        cells = [
            (names[t], names[p], n) for t, row in enumerate(metrics.confusion) for p, n in enumerate(row) if t != p
        ]
        assert list(metrics.top_confusions) == sorted(cells, key=lambda cell: -cell[2])[:5]


class TestMultiLabel:
    @settings(max_examples=60, deadline=None)
    @given(
        case=st.tuples(
            st.integers(0, 2**31), st.integers(1, 50), st.integers(2, 6), st.sampled_from([0.0, 0.1, 0.5, 1.0])
        )
    )
    def test_equals_scikit_learn(self, case: tuple[int, int, int, float]) -> None:
        targets, probabilities, names = random_multi(*case)
        metrics = evaluate_predictions(targets, probabilities, names, multi_label=True)
        predicted = probabilities >= 0.5
        truth = targets.astype(int)

        def score(function: Any, average: str) -> float:
            return float(function(truth, predicted.astype(int), average=average, zero_division=0.0))

        expected = {
            "subset_accuracy": judge.accuracy_score(truth, predicted),
            "hamming_loss": judge.hamming_loss(truth, predicted),
            "macro_precision": score(judge.precision_score, "macro"),
            "macro_recall": score(judge.recall_score, "macro"),
            "macro_f1": score(judge.f1_score, "macro"),
            "micro_precision": score(judge.precision_score, "micro"),
            "micro_recall": score(judge.recall_score, "micro"),
            "micro_f1": score(judge.f1_score, "micro"),
            "weighted_f1": score(judge.f1_score, "weighted"),
            "samples_f1": score(judge.f1_score, "samples"),
            "lrap": judge.label_ranking_average_precision_score(truth, probabilities),
            "log_loss": np.mean(
                [
                    judge.log_loss(
                        truth[:, k], np.stack([1 - probabilities[:, k], probabilities[:, k]], 1), labels=[0, 1]
                    )
                    for k in range(truth.shape[1])
                ]
            ),
            "brier": np.mean((probabilities - targets) ** 2),
            "label_cardinality_true": targets.sum(axis=1).mean(),
            "label_cardinality_predicted": predicted.sum(axis=1).mean(),
        }
        assert {key: metrics.values[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        for k, one in enumerate(metrics.classes):
            if truth[:, k].any():
                expected_ap = judge.average_precision_score(truth[:, k], probabilities[:, k])
                assert one.average_precision == pytest.approx(expected_ap)
            else:
                assert one.average_precision is None

    def test_macro_average_precision_is_over_labels_that_occur(self) -> None:
        targets, probabilities, names = random_multi(1, 40, 4, 0.4)
        targets[:, 3] = 0.0
        values = evaluate_predictions(targets, probabilities, names, multi_label=True).values
        expected = judge.average_precision_score(targets[:, :3], probabilities[:, :3], average="macro")
        assert values["macro_average_precision"] == pytest.approx(expected)
        nothing = evaluate_predictions(np.zeros((2, 2)), np.full((2, 2), 0.2), ["a", "b"], multi_label=True)
        assert nothing.values["macro_average_precision"] is None

    def test_ece_is_over_all_label_decisions(self) -> None:
        targets, probabilities, names = random_multi(2, 30, 3, 0.5)
        metrics = evaluate_predictions(targets, probabilities, names, multi_label=True)
        bins: dict[int, list[tuple[float, float]]] = {}
        for p, y in zip(probabilities.ravel().tolist(), targets.ravel().tolist(), strict=True):
            # Two decimals: the bin (0.2, 0.3] holds 0.21 to 0.30; hundredths as integers are exact.
            bins.setdefault(max(0, (round(p * 100) + 9) // 10 - 1), []).append((p, y))
        ece = sum(abs(sum(y for _, y in b) - sum(p for p, _ in b)) for b in bins.values()) / targets.size
        assert metrics.values["ece"] == pytest.approx(ece, abs=1e-12)
        assert sum(b.count for b in metrics.reliability) == targets.size

    def test_one_label_equals_binary_scores(self) -> None:
        targets, probabilities, _ = random_multi(4, 60, 1, 0.4)
        metrics = evaluate_predictions(targets, probabilities, ["only"], multi_label=True)
        assert metrics.values["macro_f1"] == pytest.approx(judge.f1_score(targets[:, 0], probabilities[:, 0] >= 0.5))
        assert metrics.confusion is None

    def test_thresholds_per_label(self) -> None:
        probabilities = np.array([[0.3, 0.6], [0.2, 0.8]])
        targets = np.array([[1.0, 0.0], [0.0, 1.0]])
        exact = evaluate_predictions(
            targets, probabilities, ["a", "b"], multi_label=True, threshold=np.array([0.3, 0.7])
        )
        assert exact.values["subset_accuracy"] == 1.0
        with pytest.raises(DataError, match="threshold"):
            evaluate_predictions(targets, probabilities, ["a", "b"], multi_label=True, threshold=np.ones(3))


@pytest.mark.parametrize("multi_label", [False, True])
def test_as_dict_is_strict_json(multi_label: bool) -> None:
    targets = np.zeros((1, 2)) if multi_label else np.array([0])
    metrics = evaluate_predictions(targets, np.array([[0.75, 0.25]]), ["a", "b"], multi_label=multi_label)
    read = json.loads(json.dumps(metrics.as_dict(), allow_nan=False))
    assert read["values"] == dict(metrics.values)
    assert read["task"] == ("multi_label" if multi_label else "single_label")
    assert len(read["classes"]) == 2
    assert len(read["reliability"]) == 10
    assert None in [bin_["accuracy"] for bin_ in read["reliability"]]


GOOD = np.array([[0.5, 0.5], [0.1, 0.9], [0.3, 0.7]])


@pytest.mark.parametrize(
    ("targets", "probabilities", "multi_label", "message"),
    [
        (np.array([0, 1]), GOOD, False, r"targets.*got \(2,\).*wanted \(3,\)"),
        (np.array([0, 1, 0]), GOOD[:, :1], False, r"label map; got \(3, 1\)"),
        (np.array([0, 1, 0]), np.array([[0.5, 0.5], [0.1, 0.9], [np.nan, 0.7]]), False, "row 2.*not finite"),
        (np.array([0, 1, 2]), GOOD, False, "row 2.*got 2; wanted 0 to 1"),
        (np.array([0, -1, 1]), GOOD, False, "row 1.*got -1"),
        (np.array([0.0, 1.0, 1.0]), GOOD, False, "classes are integers"),
        (np.array([0, 1, 1]), np.array([[0.5, 0.5], [3.0, -1.0], [0.5, 0.5]]), False, "row 1.*softmax"),
        (np.array([0, 1, 1]), np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.9]]), False, "row 2.*a sum of 1.8"),
        (np.zeros(0, dtype=int), np.zeros((0, 2)), False, "no rows"),
        (np.array([0, 1, 0]), GOOD, True, r"one 0 or 1.*got \(3,\)"),
        (np.array([[0, 1], [0.5, 1], [0, 0]]), GOOD, True, "row 1.*0 or 1"),
    ],
)
def test_bad_inputs_are_refused(targets: Any, probabilities: Any, multi_label: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_predictions(targets, probabilities, ["a", "b"], multi_label=multi_label)


def test_no_classes_are_refused() -> None:
    with pytest.raises(DataError, match="no classes"):
        evaluate_predictions(np.zeros(3, dtype=int), np.zeros((3, 0)), [], multi_label=False)


def test_rounded_probabilities_pass() -> None:
    half = GOOD.astype(np.float16)
    metrics = evaluate_predictions(np.array([0, 1, 1]), half, ["a", "b"], multi_label=False)
    assert metrics.values["accuracy"] == 1.0


def test_a_hair_above_one_is_taken_for_one() -> None:
    probabilities = np.array([[1.0 + 5e-7, -5e-7]])
    metrics = evaluate_predictions(np.array([0]), probabilities, ["a", "b"], multi_label=False)
    assert metrics.values["mean_confidence"] == 1.0
    assert metrics.values["brier"] == 0.0
