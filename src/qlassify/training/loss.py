"""Losses as a sum and a count, so that any later stage can divide correctly.

A mean of means is not the mean when batches differ in size; frameworks that average each micro-batch and then average
the averages give the last, smaller batch too much weight. Here a loss is ``LossSum(total, count)``: totals add,
counts add, and the division happens once per optimiser step.

Class weights multiply each row's loss, and the sum is divided by the number of rows, not by the sum of the weights
(PyTorch's ``weight=`` does the latter): with weights that sum to the number of classes the scale of the loss, and so
the meaning of the learning rate, stays put.

Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 4) multiplies the loss by (1 - p)^gamma, where p is the probability
of the target: rows that are right already count less. The factor is formed from log(1 - p) = log sigmoid(z), z being
the log-odds against the target (log-sum-exp of the other logits minus the target's). 1 - p itself is 0 where p rounds
to 1, and below gamma 1 its power has an infinite slope there. Their alpha is what class weights are here. Together with
label smoothing it is refused: a smoothed target has no one class whose p it could be.

A non-finite loss is returned as it is. Replacing it by a number hides the divergence and poisons the optimiser's
moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qlassify.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LossSum:
    """The loss of some rows: ``total`` is their sum (a scalar tensor), ``count`` their number."""

    total: Tensor
    count: int


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised.

    Attributes:
        multi_label: binary cross-entropy per label, averaged over labels, in place of cross-entropy over classes.
        class_weights: (C,) factors on a row's loss by its class (single-label), or on each label's positive term
            (multi-label); None for none.
        label_smoothing: share of a single-label target's mass spread evenly over all classes.
        focal_gamma: exponent of the focal loss; 0 for none.

    Raises:
        ConfigError: focal loss together with label smoothing.
    """

    multi_label: bool = False
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.focal_gamma and self.label_smoothing:
            raise ConfigError(
                "focal loss and label smoothing do not go together",
                where="training",
                got=f"focal_gamma {self.focal_gamma:g}, label_smoothing {self.label_smoothing:g}",
                do="Set one of them to 0.",
            )

    def __call__(self, logits: Tensor, targets: Tensor) -> LossSum:
        """Sum the losses of B rows.

        Args:
            logits: (B, C).
            targets: (B,) int64 class indices, or (B, C) 0/1 in the type of the logits when multi-label.
        """
        if self.multi_label:
            return self._multi_label(logits, targets)
        log_probabilities = functional.log_softmax(logits, dim=-1)
        losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
        if self.label_smoothing:
            even = -log_probabilities.mean(dim=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * even
        if self.focal_gamma:
            losses = losses * self._focal_factors(_log_odds_against(logits, targets))
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(logits)[targets]
        return LossSum(losses.sum(), len(targets))

    def _multi_label(self, logits: Tensor, targets: Tensor) -> LossSum:
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), pos_weight=weights, reduction="none"
        )
        if self.focal_gamma:
            losses = losses * self._focal_factors(torch.where(targets > 0.5, -logits, logits))
        return LossSum(losses.mean(dim=-1).sum(), len(targets))

    def _focal_factors(self, log_odds_against: Tensor) -> Tensor:
        """(1 - p)^gamma from the log-odds against the target, of any shape."""
        return torch.exp(self.focal_gamma * functional.logsigmoid(log_odds_against))


def _log_odds_against(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) log((1 - p) / p) of each row's class, from (B, C) logits."""
    others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(dim=-1)
    return others - logits.gather(1, targets[:, None])[:, 0]


def num_correct(logits: Tensor, targets: Tensor, *, multi_label: bool) -> int:
    """Rows whose prediction equals the target: the first largest logit, or every label on its side of 0."""
    with torch.no_grad():
        if multi_label:
            return int(((logits > 0) == (targets > 0.5)).all(dim=-1).sum())
        return int((logits.argmax(dim=-1) == targets).sum())
