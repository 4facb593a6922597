"""A ``DecisionRule`` chosen on rows that were not trained on.

What is chosen from data and what from settings: the temperature, the thresholds of several labels and the floor of the
label sets come from the rows; a threshold, costs and the probability below which the classifier abstains come from the
person, who alone knows what a mistake costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.config.run import EvaluationConfig
from qlassify.data.labels import LabelMap
from qlassify.errors import ConfigError
from qlassify.evaluation.conformal import set_floor
from qlassify.evaluation.decision import DecisionRule, PositiveRule
from qlassify.evaluation.predict import probabilities
from qlassify.evaluation.temperature import fit_temperature
from qlassify.evaluation.thresholds import cost_threshold, f1_thresholds

NEUTRAL = 0.5
"""The threshold of probabilities that answers nothing else than the most likely class."""
MIN_ROWS = 50
"""Fewer rows than this say nothing that could be relied on: then only what the settings say holds."""


@dataclass(frozen=True, slots=True)
class DecisionFit:
    """A rule, and what still has to be done for it.

    Attributes:
        rule: the rule; its temperature is the product with what the head held before.
        temperature: what the logits have to be divided by now.
        notes: a sentence for what could not be chosen.
    """

    rule: DecisionRule
    temperature: float
    notes: tuple[str, ...]


def plain_rule(settings: EvaluationConfig, labels: LabelMap) -> DecisionRule:
    """The rule that the settings alone make: nothing is chosen from rows.

    Raises:
        ConfigError: the settings ask for something that these labels do not have.
    """
    require_possible(settings, labels)
    threshold = NEUTRAL if settings.threshold == "tuned" else settings.threshold
    positive = None
    if settings.positive is not None:
        costs = cost_threshold(settings.false_positive_cost, settings.false_negative_cost)
        positive = PositiveRule(
            index=labels.names.index(settings.positive),
            threshold=costs if settings.threshold == "tuned" else threshold,
            false_positive_cost=settings.false_positive_cost,
            false_negative_cost=settings.false_negative_cost,
        )
    return DecisionRule(
        threshold=threshold if labels.multi_label else NEUTRAL, positive=positive, abstain_below=settings.abstain_below
    )


def require_possible(settings: EvaluationConfig, labels: LabelMap) -> None:
    """Refuse decisions that these labels have no place for.

    Raises:
        ConfigError: names the setting.
    """
    uneven = settings.false_positive_cost != settings.false_negative_cost
    if settings.positive is None and uneven:
        raise ConfigError(
            "costs of mistakes need to know which of two classes is the positive one",
            where="evaluation.positive",
            wanted=", ".join(labels.names[:2]) if len(labels) == 2 else "a task of two classes",
        )
    if settings.positive is not None and (labels.multi_label or len(labels) != 2):
        raise ConfigError(
            "a positive class is for one of two labels",
            where="evaluation.positive",
            got=f"{len(labels)} labels" + (", several per text" if labels.multi_label else ""),
            do="Leave it out; with several labels per text give evaluation.threshold.",
        )
    if settings.positive is not None and settings.positive not in labels.names:
        raise ConfigError(
            "the positive class is none of the labels",
            where="evaluation.positive",
            got=settings.positive,
            wanted=" or ".join(labels.names),
        )
    if settings.threshold not in ("tuned", NEUTRAL) and settings.positive is None and not labels.multi_label:
        raise ConfigError(
            "a threshold is for several labels per text, or for the positive class of two",
            where="evaluation.threshold",
            got=settings.threshold,
            do="Leave it out, or name the class with evaluation.positive."
            if len(labels) == 2
            else "Leave it out; evaluation.abstain_below gives no answer where the best one is doubtful.",
        )
    if settings.abstain_below is not None and labels.multi_label:
        raise ConfigError(
            "abstaining is for one label per text; with several a text may have none",
            where="evaluation.abstain_below",
            do="Leave it out.",
        )


def fit_decision(
    logits_NC: npt.NDArray[np.float32],
    targets: npt.NDArray[Any],
    labels: LabelMap,
    settings: EvaluationConfig,
    *,
    held_temperature: float = 1.0,
) -> DecisionFit:
    """Choose temperature, thresholds and the floor of the label sets.

    Args:
        logits_NC: (N, C) logits of rows that were not trained on.
        targets: (N,) class indices, or (N, C) 0/1.
        labels: the classes.
        settings: what is wanted.
        held_temperature: what the head was divided by before these logits were made.

    Raises:
        ConfigError: the settings ask for something that these labels do not have.
    """
    plain = plain_rule(settings, labels).replace(temperature=held_temperature)
    if not settings.calibrate:
        return DecisionFit(plain.replace(temperature=1.0), 1 / held_temperature, ())
    if len(targets) < MIN_ROWS:
        told = f"Probabilities are not calibrated: {len(targets)} validation rows are fewer than {MIN_ROWS}."
        return DecisionFit(plain, 1.0, (told,))
    temperature = fit_temperature(logits_NC, targets, multi_label=labels.multi_label, held_temperature=held_temperature)
    scores = probabilities(np.float32(1 / temperature) * logits_NC, multi_label=labels.multi_label)
    rule = plain.replace(temperature=held_temperature * temperature, fitted_rows=len(targets))
    if labels.multi_label:
        if settings.threshold == "tuned":
            rule = rule.replace(thresholds=f1_thresholds(scores, targets))
        return DecisionFit(rule, temperature, ())
    if settings.coverage is not None:
        rule = rule.replace(coverage=settings.coverage, set_floor=set_floor(scores, targets, settings.coverage))
    return DecisionFit(rule, temperature, _set_notes(rule, len(targets)))


def _set_notes(rule: DecisionRule, num_rows: int) -> tuple[str, ...]:
    if rule.set_floor != 0.0 or rule.coverage is None:
        return ()
    return (
        f"Label sets hold every class: {num_rows} validation rows are too few to promise a coverage of "
        f"{rule.coverage:.0%}.",
    )
