"""Losses as a sum and a count, so that any later stage can divide correctly.

A mean of means is not the mean when batches differ in size; frameworks that average each micro-batch and then average
the averages give the last, smaller batch too much weight. Here a loss is ``LossSum(total, count)``: totals add,
counts add, and the division happens once per optimiser step.

Class weights multiply each row's loss, and the sum is divided by the number of rows, not by the sum of the weights
(PyTorch's ``weight=`` does the latter): with weights that sum to the number of classes the scale of the loss, and so
the meaning of the learning rate, stays put.

A non-finite loss is returned as it is. Replacing it by a number hides the divergence and poisons the optimiser's
moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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
    """

    multi_label: bool = False
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

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
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(logits)[targets]
        return LossSum(losses.sum(), len(targets))

    def _multi_label(self, logits: Tensor, targets: Tensor) -> LossSum:
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), pos_weight=weights, reduction="none"
        )
        return LossSum(losses.mean(dim=-1).sum(), len(targets))


def num_correct(logits: Tensor, targets: Tensor, *, multi_label: bool) -> int:
    """Rows whose prediction equals the target: the first largest logit, or every label on its side of 0."""
    with torch.no_grad():
        if multi_label:
            return int(((logits > 0) == (targets > 0.5)).all(dim=-1).sum())
        return int((logits.argmax(dim=-1) == targets).sum())
