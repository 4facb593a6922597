"""Label sets that hold the true class as often as they promise.

Split-conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002): on n rows that were not trained on, ask how
improbable the model found each row's true class, take the quantile of these figures that belongs to the promised
coverage, and answer a new row with every class that is less improbable than that. If the new row comes from where the n
rows came from, the set holds its class with at least the promised probability, whatever the model is worth; a poor
model pays with large sets, not with broken promises.

The measure of improbability is one minus the probability of the class (the "least ambiguous" sets of Sadinle et al.
2019, arXiv:1609.00451), so a set is simply every class from a floor on. Adaptive sets (Romano et al. 2020,
arXiv:2006.02544) spread the coverage more evenly over easy and hard rows and are larger on average. A set that would be
empty gets the most probable class, which can only raise the coverage.

The coverage is an average over rows and not a promise for each class. The n rows also chose the best weights and the
temperature, which costs the guarantee a little of its rigour; give fresh rows to ``qlassify calibrate`` where it
matters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def covering_rank(num_rows: int, coverage: float) -> int:
    """How many of n + 1 rows, the surest first, a set with the wanted coverage has to hold.

    The one is the new row, which may be more improbable than all n.
    """
    # The product of a share and a whole number may come out a hair above the whole number that it is.
    return math.ceil((num_rows + 1) * coverage - 1e-9)


def set_floor(scores_NC: FloatArray, targets_N: NDArray[Any], coverage: float) -> float:
    """The least probability of a class in a label set with the wanted coverage.

    Args:
        scores_NC: (n, C) probabilities of rows that were not trained on.
        targets_N: (n,) their true classes.
        coverage: the promised share of sets that hold the true class, in (0, 1).

    Returns:
        The floor in [0, 1]. 0.0, every class in every set, where n rows are too few for the promise: it needs at least
        ``coverage / (1 - coverage)`` of them.
    """
    n = len(targets_N)
    rank = covering_rank(n, coverage)
    if rank > n:
        return 0.0
    of_truth = np.asarray(scores_NC)[np.arange(n), targets_N]
    return float(np.sort(of_truth)[n - rank])


def label_sets(scores_NC: FloatArray, floor: float) -> NDArray[np.bool_]:
    """(N, C) which classes are in each row's set: all from ``floor`` on, and the most probable one in any case."""
    sets: NDArray[np.bool_] = np.asarray(scores_NC) >= floor
    sets[np.arange(len(sets)), np.asarray(scores_NC).argmax(axis=1)] = True
    return sets
