"""The decision rule and what is chosen for it, against closed forms, scikit-learn and simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss

from qlassify.config.run import EvaluationConfig
from qlassify.data.labels import LabelMap
from qlassify.errors import ConfigError
from qlassify.evaluation.conformal import label_sets, set_floor
from qlassify.evaluation.decision import DecisionRule, PositiveRule, named_sets
from qlassify.evaluation.decision_fit import MIN_ROWS, fit_decision, plain_rule
from qlassify.evaluation.decision_scores import _set_scores, answered_shares, evaluate_answers, score_decisions
from qlassify.evaluation.predict import probabilities
from qlassify.evaluation.temperature import LARGEST_TEMPERATURE, fit_temperature
from qlassify.evaluation.thresholds import (
    COMMON_ROWS,
    best_threshold,
    common_threshold,
    cost_threshold,
    f1_thresholds,
)

ABC = LabelMap(("a", "b", "c"), multi_label=False)
TAGS = LabelMap(("a", "b", "c"), multi_label=True)
YES_NO = LabelMap(("no", "yes"), multi_label=False)


def drawn_classes(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Classes drawn from softmax(logits): for them the logits are calibrated by construction."""
    scores = probabilities(logits.astype(np.float32), multi_label=False)
    return (scores.cumsum(axis=1) > rng.random((len(scores), 1))).argmax(axis=1)


class TestTemperature:
    @pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
    def test_finds_what_the_logits_were_multiplied_by(self, true_temperature: float) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 2, (20_000, 5))
        found = fit_temperature(true_temperature * logits, drawn_classes(logits, rng), multi_label=False)
        # The standard deviation over seeds 0 to 9 is 0.4 %.
        assert found == pytest.approx(true_temperature, rel=0.03)

    def test_several_labels(self) -> None:
        rng = np.random.default_rng(1)
        logits = rng.normal(-1, 2, (10_000, 4))
        targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        assert fit_temperature(2.0 * logits, targets, multi_label=True) == pytest.approx(2.0, rel=0.03)

    def test_is_the_minimum_of_scikit_learns_log_loss(self) -> None:
        rng = np.random.default_rng(2)
        logits = rng.normal(0, 3, (400, 4))
        targets = drawn_classes(0.4 * logits, rng)

        def loss(temperature: float) -> float:
            # The prior weighs as much as one row.
            nats = 400 * log_loss(targets, probabilities(logits / temperature, multi_label=False), labels=range(4))
            return float(nats + 0.5 * math.log(temperature) ** 2)

        found = fit_temperature(logits, targets, multi_label=False)
        for factor in (0.99, 1.01):
            assert loss(found) < loss(found * factor)

    def test_rows_that_are_all_right_do_not_make_it_certain(self) -> None:
        logits = np.full((100, 2), -1.0)
        logits[:, 0] = 1.0
        found = fit_temperature(logits, np.zeros(100, np.int64), multi_label=False)
        assert 1 / LARGEST_TEMPERATURE < found < 1.0

    def test_no_rows(self) -> None:
        assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64), multi_label=False) == 1.0

    @given(st.integers(0, 1000))
    @settings(max_examples=10)
    def test_the_largest_stays_the_largest(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 3, (60, 3)).astype(np.float32)
        fit = fit_decision(logits, rng.integers(0, 3, 60), ABC, EvaluationConfig())
        cooled = probabilities(logits / np.float32(fit.temperature), multi_label=False)
        assert (cooled.argmax(axis=1) == logits.argmax(axis=1)).all()


class TestThresholds:
    @given(st.integers(0, 1000))
    @settings(max_examples=20)
    def test_no_other_threshold_has_a_better_f1(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        scores = rng.random(40).round(1)  # with equal probabilities among them
        truth = rng.random(40) < scores
        truth[int(rng.integers(40))] = True
        best = f1_score(truth, scores >= best_threshold(scores, truth))
        others = [f1_score(truth, scores >= one, zero_division=0) for one in np.linspace(0, 1, 201)]
        assert best == pytest.approx(max(others))

    def test_the_common_one_has_the_best_macro_f1(self) -> None:
        rng = np.random.default_rng(3)
        scores = rng.random((200, 3)) ** 2
        truth = rng.random((200, 3)) < scores
        chosen = common_threshold(scores, truth)
        macro = {
            one: f1_score(truth, scores >= one, average="macro", zero_division=0)
            for one in np.linspace(0.01, 0.99, 99).tolist()
        }
        assert macro[chosen] == pytest.approx(max(macro.values()))

    def test_a_rare_label_lies_between_and_a_frequent_one_has_its_own(self) -> None:
        rng = np.random.default_rng(4)
        truth = np.zeros((4000, 2), dtype=bool)
        truth[:2000, 0] = True
        truth[:COMMON_ROWS, 1] = True
        scores = np.where(truth, 0.3, 0.1) + 0.05 * rng.random((4000, 2))
        common = common_threshold(scores, truth)
        own, rare = f1_thresholds(scores, truth)
        alone = best_threshold(scores[:, 1], truth[:, 1])
        logit = [math.log(one / (1 - one)) for one in (common, rare, alone)]
        assert logit[1] == pytest.approx((logit[0] + logit[2]) / 2)  # as many rows of its own as speak for the other
        # 2,000 rows against the two that speak for the common one.
        assert own == pytest.approx(best_threshold(scores[:, 0], truth[:, 0]), abs=0.01)

    def test_labels_without_rows(self) -> None:
        assert f1_thresholds(np.full((5, 2), 0.2), np.zeros((5, 2))) == (0.5, 0.5)

    def test_costs(self) -> None:
        assert cost_threshold(1, 1) == 0.5
        assert cost_threshold(1, 9) == pytest.approx(0.1)
        # Just at the threshold both decisions cost the same: (1 - p) * 3 = p * 7.
        p = cost_threshold(3, 7)
        assert (1 - p) * 3 == pytest.approx(p * 7)


class TestSets:
    @pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
    def test_the_promise_is_kept_on_average(self, coverage: float) -> None:
        rng = np.random.default_rng(5)
        found = []
        for _ in range(200):
            logits = rng.normal(0, 1.5, (300, 4))
            targets = drawn_classes(0.7 * logits, rng)  # the model is overconfident; the promise does not mind
            scores = probabilities(logits, multi_label=False)
            sets = label_sets(scores[100:], set_floor(scores[:100], targets[:100], coverage))
            found.append(sets[np.arange(200), targets[100:]].mean())
        # One trial's coverage has a standard deviation of at most sqrt(c(1-c)/100 + c(1-c)/200) = 0.049, and the mean
        # of 200 trials one of 0.0035.
        assert coverage - 0.011 <= np.mean(found) <= coverage + 0.011 + 1 / 101

    def test_by_hand(self) -> None:
        scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
        targets = np.array([0, 0, 0, 1])  # the true classes have 0.9, 0.6, 0.3 and 0.8
        assert set_floor(scores, targets, 0.6) == 0.6  # ceil(5 * 0.6) = 3rd of the most probable
        assert set_floor(scores, targets, 0.8) == 0.3
        assert set_floor(scores, targets, 0.9) == 0.0  # would need a fifth
        sets = label_sets(np.array([[0.65, 0.35], [0.5, 0.5], [0.55, 0.45]]), 0.6)
        assert sets.tolist() == [[True, False], [True, False], [True, False]]  # never empty

    def test_shares_that_come_out_a_hair_above_a_whole_number(self) -> None:
        """0.07 * 100 is 7.000000000000001: seven of a hundred are enough."""
        scores = np.linspace(0.99, 0.01, 99)
        of_two = np.stack([scores, 1 - scores], axis=1)
        assert set_floor(of_two, np.zeros(99, np.int64), 0.07) == scores[6]

    def test_bounds_of_chance(self) -> None:
        """The coverage of simulated sets lies within them in 99 of 100 cases."""
        rng = np.random.default_rng(12)
        inside = 0
        for _ in range(300):
            of_truth = rng.random(99 + 200)
            both = np.stack([of_truth, np.full(299, -1.0)], axis=1)
            rule = DecisionRule(
                coverage=0.9, set_floor=set_floor(both[:99], np.zeros(99, np.int64), 0.9), fitted_rows=99
            )
            # A third class is always the likeliest, so a set may miss the true one.
            scores = np.concatenate([np.full((200, 1), 1.0), both[99:]], axis=1) / 3
            low_rule = rule.replace(set_floor=(rule.set_floor or 0.0) / 3)
            told = _set_scores(low_rule, scores, np.ones(200, np.int64))
            assert told is not None
            inside += told.expected_low <= told.coverage <= told.expected_high
        # 297 of 300 are expected with a standard deviation of 1.7; four of them below.
        assert inside >= 290

    def test_names_are_likeliest_first(self) -> None:
        scores = np.array([[0.2, 0.5, 0.3]])
        assert named_sets(scores, np.array([[True, True, False]]), ABC) == [("b", "a")]


class TestRule:
    def test_one_label(self) -> None:
        scores = np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4]])
        assert DecisionRule().answers(scores, ABC) == ["a", "b"]
        assert DecisionRule(abstain_below=0.45).answers(scores, ABC) == ["a", None]

    def test_several_labels(self) -> None:
        scores = np.array([[0.5, 0.3, 0.2]])
        assert DecisionRule().answers(scores, TAGS) == [("a",)]
        assert DecisionRule(thresholds=(0.6, 0.3, 0.2)).answers(scores, TAGS) == [("b", "c")]

    def test_a_positive_class(self) -> None:
        scores = np.array([[0.85, 0.15], [0.95, 0.05]])
        rule = DecisionRule(positive=PositiveRule(index=1, threshold=0.1))
        assert rule.answers(scores, YES_NO) == ["yes", "no"]
        assert rule.replace(abstain_below=0.5).answers(scores, YES_NO) == [None, "no"]

    @pytest.mark.parametrize(
        ("rule", "named"),
        [
            ({"thresholds": (0.5, 1.0)}, "thresholds"),
            ({"coverage": 0.9}, "set_floor"),
            ({"temperature": 0}, "temperature"),
            ({"positive": {"index": 2, "threshold": 0.5}}, "positive.index"),
        ],
        ids=["a threshold of one", "a coverage without a floor", "no temperature", "a third class"],
    )
    def test_nonsense_is_refused(self, rule: dict[str, object], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            DecisionRule.parse(rule)

    def test_it_survives_json(self) -> None:
        rule = DecisionRule(thresholds=(0.1, 0.2, 0.3), temperature=1.7, fitted_rows=80)
        assert DecisionRule.model_validate_json(rule.model_dump_json()) == rule


class TestFitting:
    @pytest.mark.parametrize(
        ("labels", "wanted", "named"),
        [
            (ABC, {"positive": "a"}, "evaluation.positive"),
            (YES_NO, {"positive": "maybe"}, "no or yes"),
            (YES_NO, {"false_negative_cost": 5}, "positive"),
            (TAGS, {"abstain_below": 0.5}, "abstain"),
        ],
        ids=["three classes", "an unknown class", "costs of nothing", "silence among several labels"],
    )
    def test_impossible_wishes_are_refused(self, labels: LabelMap, wanted: dict[str, object], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            plain_rule(EvaluationConfig.parse(wanted), labels)

    def test_few_rows_choose_nothing_and_it_is_said(self) -> None:
        fit = fit_decision(np.zeros((MIN_ROWS - 1, 3), np.float32), np.zeros(49, np.int64), ABC, EvaluationConfig())
        assert fit.rule == DecisionRule()
        assert str(MIN_ROWS - 1) in fit.notes[0]

    def test_too_few_rows_for_the_promise_are_told(self) -> None:
        rng = np.random.default_rng(6)
        logits = rng.normal(size=(60, 3)).astype(np.float32)
        fit = fit_decision(logits, rng.integers(0, 3, 60), ABC, EvaluationConfig(coverage=0.99))
        assert fit.rule.set_floor == 0.0
        assert "60" in fit.notes[0]

    def test_it_can_be_undone(self) -> None:
        rng = np.random.default_rng(7)
        logits, targets = rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 3, 60)
        fit = fit_decision(logits, targets, ABC, EvaluationConfig(calibrate=False), held_temperature=1.6)
        assert fit.rule == DecisionRule()
        assert fit.temperature == pytest.approx(1 / 1.6)

    def test_twice_is_once(self) -> None:
        rng = np.random.default_rng(8)
        logits = rng.normal(0, 4, (500, 3)).astype(np.float32)
        targets = drawn_classes(0.5 * logits, rng)
        first = fit_decision(logits, targets, ABC, EvaluationConfig())
        cooled = (logits / np.float32(first.temperature)).astype(np.float32)
        second = fit_decision(cooled, targets, ABC, EvaluationConfig(), held_temperature=first.rule.temperature)
        # The search ends within 1e-5 of the minimum; the logits were rounded to fp32 between.
        assert second.temperature == pytest.approx(1.0, abs=1e-4)
        assert second.rule.temperature == pytest.approx(first.rule.temperature, rel=1e-4)


class TestScores:
    def test_before_and_after(self) -> None:
        rng = np.random.default_rng(9)
        logits = rng.normal(0, 2, (2000, 4)).astype(np.float32)
        targets = drawn_classes(logits, rng)
        sure = (3 * logits).astype(np.float32)
        labels = LabelMap(("a", "b", "c", "d"), multi_label=False)
        fit = fit_decision(sure[:1000], targets[:1000], labels, EvaluationConfig(coverage=0.9))
        after = probabilities(sure[1000:] / np.float32(fit.temperature), multi_label=False)
        before = probabilities(sure[1000:], multi_label=False)
        told = score_decisions(fit.rule, after, before, targets[1000:], labels.names, multi_label=False)
        now = evaluate_answers(fit.rule, targets[1000:], after, labels.names, multi_label=False)
        assert now.values["accuracy"] == told.plain.values["accuracy"]
        assert (now.values["ece"] or 1) < 0.5 * (told.plain.values["ece"] or 0)
        assert told.sets is not None
        assert told.sets.expected_low <= told.sets.coverage <= told.sets.expected_high

    def test_tuned_thresholds_raise_macro_f1(self) -> None:
        rng = np.random.default_rng(10)
        logits = rng.normal(-2.5, 1.5, (4000, 3)).astype(np.float32)
        targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        fit = fit_decision(logits[:2000], targets[:2000], TAGS, EvaluationConfig())
        scores = probabilities(logits[2000:] / np.float32(fit.temperature), multi_label=True)
        tuned = evaluate_answers(fit.rule, targets[2000:], scores, TAGS.names, multi_label=True)
        plain = probabilities(logits[2000:], multi_label=True)
        told = score_decisions(fit.rule, scores, plain, targets[2000:], TAGS.names, multi_label=True)
        assert (tuned.values["macro_f1"] or 0) > (told.plain.values["macro_f1"] or 0) + 0.02

    def test_costs_and_silence(self) -> None:
        scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]])
        targets = np.array([0, 1, 1, 1])
        rule = DecisionRule(positive=PositiveRule(index=1, threshold=0.25, false_negative_cost=3.0), abstain_below=0.7)
        told = score_decisions(rule, scores, scores, targets, YES_NO.names, multi_label=False)
        assert told.cost is not None
        assert told.cost.cost == pytest.approx(3 / 4)  # the last row is missed
        assert told.cost.cost_at_half == pytest.approx(6 / 4)
        assert told.abstained == pytest.approx(2 / 4)  # the answers have 0.9, 0.3, 0.6 and 0.8

    def test_the_surest_rows(self) -> None:
        scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55]])
        shares = answered_shares(scores, np.array([True, True, False, True]), scores.argmax(axis=1))
        by_share = {one.share: one for one in shares}
        assert by_share[1.0].accuracy == 0.75
        assert by_share[0.5].accuracy == 1.0
        assert by_share[0.5].from_probability == pytest.approx(0.8)
