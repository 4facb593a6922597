"""One number that makes a classifier's probabilities mean what they say.

A network that was trained on few rows for several epochs is surer than it is right: it goes on lowering the training
loss by growing its logits long after its decisions have stopped changing. Dividing all logits by one temperature
T > 0, chosen for the likelihood of rows that were not trained on, mends most of it (Guo et al. 2017, arXiv:1706.04599,
section 4.2), and cannot change which class is the most probable. Vector and matrix scaling have a parameter per class
or pair of classes; the same paper finds that they over-fit validation sets of the usual size. Isotonic regression per
class would break the order of the classes.

The likelihood is convex in 1 / T, so a bounded search for a minimum is enough. Where the validation rows are all right
it has none: T would fall to nothing and every probability rise to one. The search therefore minimises the *posterior*
with a log-normal prior around T = 1 whose weight is that of a single row, ``log(T)^2 / 2``; on some hundred rows with
mistakes among them it is not felt.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_TEMPERATURE = 20.0
"""Temperatures are sought between its inverse and itself."""


def fit_temperature(
    logits_NC: NDArray[Any], targets: NDArray[Any], *, multi_label: bool, held_temperature: float = 1.0
) -> float:
    """The temperature that makes ``targets`` most likely.

    Args:
        logits_NC: (N, C) logits of rows that were not trained on.
        targets: (N,) class indices, or (N, C) 0/1 when multi-label; then all N * C decisions share one temperature.
        multi_label: which of the two.
        held_temperature: what the logits were divided by already; the prior is on the product of both.

    Returns:
        T such that T * ``held_temperature`` is in [1 / 20, 20]; 1.0 for no rows.
    """
    if not len(logits_NC):
        return 1.0
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits_NC, np.float64) * held_temperature

    def posterior(log_temperature: float) -> float:
        scaled = logits * math.exp(-log_temperature)
        return _negative_log_likelihood(scaled, targets, multi_label) + 0.5 * log_temperature**2

    bound = math.log(LARGEST_TEMPERATURE)
    # The default tolerance (1e-5 in log T) is far below what N rows can tell.
    found = minimize_scalar(posterior, bounds=(-bound, bound), method="bounded")
    return float(math.exp(found.x)) / held_temperature


def _negative_log_likelihood(logits: NDArray[np.float64], targets: NDArray[Any], multi_label: bool) -> float:
    """Summed over rows (and labels), in nats, from the logits: no probability is formed that could round to 0."""
    if multi_label:
        return float(np.logaddexp(0.0, np.where(np.asarray(targets) > 0.5, -logits, logits)).sum())
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(targets)), targets]).sum())
