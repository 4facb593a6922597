"""From probabilities to answers: the one place that says what a classifier replies.

A probability is not yet an answer. How many labels are given, from which probability, when it is better to say nothing,
how large a set has to be to hold the truth nine times in ten: these are decisions, they can be changed without
training anew, and they have to be the same in the evaluation and in production. So they are a value of their own,
``DecisionRule``, that is fitted after training (``calibrating``), saved with the classifier and used by everything that
answers.

The temperature is not among the things that a rule applies: it is divided into the head when it is fitted, so that the
logits themselves are calibrated and an export, another library or an adapter on a shared base inherits it without
knowing. The rule only remembers it, which is enough to show what the probabilities were before.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import pydantic

from qlassify.config.section import Section
from qlassify.data.labels import LabelMap
from qlassify.errors import ConfigError
from qlassify.evaluation.conformal import label_sets

FloatArray = npt.NDArray[np.float64]
Answer = str | tuple[str, ...] | None
"""A label, the labels of a text that may have several, or None where the classifier abstains."""

Probability = pydantic.Field(gt=0, lt=1)


class PositiveRule(Section):
    """When a classifier of two classes answers with the one that matters."""

    index: int = pydantic.Field(ge=0, le=1)
    """Which of the two classes."""
    threshold: float = Probability
    """The probability of that class from which it is the answer."""
    false_positive_cost: float = pydantic.Field(default=1.0, gt=0)
    """What it costs to answer with it where it is wrong."""
    false_negative_cost: float = pydantic.Field(default=1.0, gt=0)
    """What it costs to miss it."""


class DecisionRule(Section):
    """How answers are read off the probabilities."""

    threshold: float = pydantic.Field(default=0.5, gt=0, lt=1)
    """Several labels per text: the probability from which a label is given, where ``thresholds`` says nothing else."""
    thresholds: tuple[float, ...] | None = None
    """The same, one number per label."""
    positive: PositiveRule | None = None
    """Two classes: a threshold on one of them in place of "the more probable one"."""
    abstain_below: float | None = pydantic.Field(default=None, gt=0, le=1)
    """One label per text: no answer where the probability of the answer is below this."""
    coverage: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """One label per text: the promised share of label sets that hold the true class."""
    set_floor: float | None = pydantic.Field(default=None, ge=0, le=1)
    """The least probability of a class in a label set."""
    temperature: float = pydantic.Field(default=1.0, gt=0)
    """What the logits were divided by; the head holds it already."""
    fitted_rows: int = pydantic.Field(default=0, ge=0)
    """Rows on which all this was chosen; 0 where nothing was."""

    @pydantic.model_validator(mode="after")
    def _thresholds_are_probabilities(self) -> Self:
        if self.thresholds is not None and not all(0 < one < 1 for one in self.thresholds):
            raise ValueError(f"thresholds lie between 0 and 1; got {list(self.thresholds)}")
        if (self.coverage is None) != (self.set_floor is None):
            raise ValueError("coverage and set_floor come together")
        return self

    def label_thresholds(self, num_labels: int) -> npt.NDArray[np.float64]:
        """(C,) from which probability each label is given (several labels per text)."""
        return np.array(self.thresholds or (self.threshold,) * num_labels, dtype=np.float64)

    def classes(self, scores_NC: FloatArray) -> npt.NDArray[np.int64]:
        """(N,) the class of each row (one label per text), the first of equals, abstentions not considered."""
        if self.positive is None:
            return np.asarray(scores_NC.argmax(axis=1), dtype=np.int64)
        index = self.positive.index
        return np.where(scores_NC[:, index] >= self.positive.threshold, index, 1 - index).astype(np.int64)

    def flags(self, scores_NC: FloatArray) -> npt.NDArray[np.bool_]:
        """(N, C) which labels are given (several labels per text)."""
        return np.asarray(scores_NC >= self.label_thresholds(scores_NC.shape[1]))

    def abstains(self, scores_NC: FloatArray) -> npt.NDArray[np.bool_]:
        """(N,) whether no answer is given because its probability is too small (one label per text)."""
        if self.abstain_below is None:
            return np.zeros(len(scores_NC), dtype=np.bool_)
        of_answer = scores_NC[np.arange(len(scores_NC)), self.classes(scores_NC)]
        return np.asarray(of_answer < self.abstain_below)

    def sets(self, scores_NC: FloatArray) -> npt.NDArray[np.bool_] | None:
        """(N, C) which classes are in each row's label set; None for a rule without sets."""
        return None if self.set_floor is None else label_sets(scores_NC, self.set_floor)

    def answers(self, scores_NC: FloatArray, labels: LabelMap) -> list[Answer]:
        """What the classifier replies to each row."""
        names = labels.names
        if labels.multi_label:
            return [
                tuple(name for name, given in zip(names, row, strict=True) if given) for row in self.flags(scores_NC)
            ]
        silent = self.abstains(scores_NC)
        return [None if no else names[k] for k, no in zip(self.classes(scores_NC).tolist(), silent, strict=True)]

    def require_sets(self, scores_NC: FloatArray) -> npt.NDArray[np.bool_]:
        """``sets``, for a caller who cannot do without.

        Raises:
            ConfigError: the rule has none.
        """
        sets = self.sets(scores_NC)
        if sets is None:
            raise ConfigError(
                "this classifier has no label sets",
                wanted="one label per text, and validation rows to choose a coverage on",
                do="Make them with: qlassify calibrate RUN DATA --coverage 0.95",
            )
        return sets


def named_sets(scores_NC: FloatArray, sets_NC: npt.NDArray[np.bool_], labels: LabelMap) -> list[tuple[str, ...]]:
    """The names of each row's label set, the likeliest first."""
    order = np.argsort(-scores_NC, axis=1, kind="stable")
    return [
        tuple(labels.names[k] for k in ranked if row[k])
        for ranked, row in zip(order.tolist(), sets_NC.tolist(), strict=True)
    ]
