"""What the decisions of a classifier are worth on scored rows: before and after calibration, sets, silence, costs.

The scores of ``metrics`` are those of the answers as they are given. Here stands what they would be without the rule,
and what the rule promises beside what it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.evaluation.conformal import covering_rank
from qlassify.evaluation.decision import DecisionRule, PositiveRule
from qlassify.evaluation.metrics import Metrics, evaluate_predictions

ANSWERED_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the rows, the surest first, for which the report says how often the answer is right."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SetScores:
    """How label sets do on the scored rows.

    Attributes:
        promised: the coverage that they were made for.
        coverage: the share that holds the true class.
        expected_low: least coverage that chance explains at 99 %, if the promise holds.
        expected_high: highest.
        mean_size: classes in a set, on average.
        single: share of the sets that hold one class.
    """

    promised: float
    coverage: float
    expected_low: float
    expected_high: float
    mean_size: float
    single: float

    @property
    def kept(self) -> bool:
        """Whether the coverage is not below what chance explains."""
        return self.coverage >= self.expected_low


@dataclass(frozen=True, slots=True)
class AnsweredShare:
    """The accuracy if only the surest rows are answered.

    Attributes:
        share: of the rows that are answered.
        from_probability: the least probability among their answers.
        accuracy: among them.
    """

    share: float
    from_probability: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class CostScores:
    """Mean cost of a decision about one of two classes.

    Attributes:
        positive: the class.
        threshold: its probability from which it is the answer.
        cost: mean cost a row with that threshold.
        cost_at_half: the same with the more probable class as the answer.
    """

    positive: str
    threshold: float
    cost: float
    cost_at_half: float


@dataclass(frozen=True, slots=True)
class DecisionScores:
    """What the rule does to the scored rows.

    Attributes:
        plain: all scores without it: uncalibrated probabilities, the most probable class, 0.5 for every label.
        sets: of the label sets; None without them.
        answered: accuracy by the share of rows that are answered; empty for several labels per text.
        abstained: share of the rows without an answer.
        cost: of the mistakes; None without a positive class.
    """

    plain: Metrics
    sets: SetScores | None
    answered: tuple[AnsweredShare, ...]
    abstained: float
    cost: CostScores | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; of the plain scores the named values."""
        return {
            "plain": dict(self.plain.values),
            "sets": None if self.sets is None else asdict(self.sets),
            "answered": [asdict(one) for one in self.answered],
            "abstained": self.abstained,
            "cost": None if self.cost is None else asdict(self.cost),
        }


def evaluate_answers(
    rule: DecisionRule, targets: npt.NDArray[Any], scores_NC: FloatArray, names: Sequence[str], *, multi_label: bool
) -> Metrics:
    """All scores of the answers that a rule gives; abstentions count as the answer that was withheld.

    Args:
        rule: the rule.
        targets: (N,) class indices, or (N, C) 0/1.
        scores_NC: (N, C) probabilities.
        names: of the classes.
        multi_label: whether a row may have several.
    """
    if multi_label:
        thresholds = rule.label_thresholds(len(names))
        return evaluate_predictions(targets, scores_NC, names, multi_label=True, threshold=thresholds)
    classes = None if rule.positive is None else rule.classes(np.asarray(scores_NC))
    return evaluate_predictions(targets, scores_NC, names, multi_label=False, predicted=classes)


def score_decisions(
    rule: DecisionRule,
    scores_NC: FloatArray,
    plain_NC: FloatArray,
    targets: npt.NDArray[Any],
    names: Sequence[str],
    *,
    multi_label: bool,
) -> DecisionScores:
    """Compare what the rule answers with what would be answered without it.

    Args:
        rule: the rule.
        scores_NC: (N, C) probabilities of the scored rows.
        plain_NC: the same before calibration.
        targets: (N,) class indices, or (N, C) 0/1.
        names: of the classes.
        multi_label: whether a row may have several.
    """
    plain = evaluate_predictions(targets, plain_NC, names, multi_label=multi_label)
    if multi_label:
        return DecisionScores(plain, None, (), 0.0, None)
    return DecisionScores(
        plain,
        _set_scores(rule, scores_NC, targets),
        answered_shares(scores_NC, rule.classes(scores_NC) == targets, rule.classes(scores_NC)),
        float(rule.abstains(scores_NC).mean()),
        _cost_scores(rule.positive, rule, scores_NC, targets, names),
    )


def _set_scores(rule: DecisionRule, scores_NC: FloatArray, targets: npt.NDArray[Any]) -> SetScores | None:
    sets = rule.sets(scores_NC)
    if sets is None or rule.coverage is None:
        return None
    n, sizes = len(targets), sets.sum(axis=1)
    low, high = _chance_bounds(n, rule.fitted_rows, rule.coverage)
    return SetScores(
        promised=rule.coverage,
        coverage=float(sets[np.arange(n), targets].mean()),
        expected_low=low,
        expected_high=high,
        mean_size=float(sizes.mean()),
        single=float((sizes == 1).mean()),
    )


def _chance_bounds(num_rows: int, fitted_rows: int, coverage: float) -> tuple[float, float]:
    """Between which shares the coverage on ``num_rows`` new rows lies in 99 of 100 cases, if the promise holds.

    Over the choice of both the fitted and the new rows, from one source, the number of covered rows is beta-binomial
    (Angelopoulos and Bates 2021, arXiv:2107.07511, on the concentration of the empirical coverage).
    """
    from scipy.stats import betabinom

    rank = covering_rank(fitted_rows, coverage)
    if rank > fitted_rows:
        return 1.0, 1.0  # every class is in every set
    law = betabinom(num_rows, rank, fitted_rows + 1 - rank)
    return float(law.ppf(0.005) / num_rows), float(law.ppf(0.995) / num_rows)


def answered_shares(
    scores_NC: FloatArray, correct_N: npt.NDArray[np.bool_], answers_N: npt.NDArray[np.int64]
) -> tuple[AnsweredShare, ...]:
    """Accuracy when only the surest rows are answered.

    Args:
        scores_NC: (N, C) probabilities.
        correct_N: whether each answer is right.
        answers_N: the class of each answer.
    """
    sureness = scores_NC[np.arange(len(scores_NC)), answers_N]
    order = np.argsort(-sureness, kind="stable")
    found = []
    for share in ANSWERED_SHARES:
        kept = order[: max(1, round(share * len(order)))]
        found.append(AnsweredShare(share, float(sureness[kept[-1]]), float(correct_N[kept].mean())))
    return tuple(found)


def _cost_scores(
    positive: PositiveRule | None,
    rule: DecisionRule,
    scores_NC: FloatArray,
    targets: npt.NDArray[Any],
    names: Sequence[str],
) -> CostScores | None:
    if positive is None:
        return None
    index = positive.index

    def mean_cost(answers: npt.NDArray[np.int64]) -> float:
        false_positive = (answers == index) & (targets != index)
        false_negative = (answers != index) & (targets == index)
        wrong = positive.false_positive_cost * false_positive.mean()
        return float(wrong + positive.false_negative_cost * false_negative.mean())

    return CostScores(
        names[index],
        positive.threshold,
        mean_cost(rule.classes(scores_NC)),
        mean_cost(scores_NC.argmax(axis=1)),
    )
