"""The score by which weights are chosen: which ones there are, and a sentence for one that is none of them.

The names are those of a real evaluation, of one row, so that a metric that is added later can be chosen by without a
list that has to be kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from qlassify.errors import ConfigError
from qlassify.evaluation.metrics import evaluate_predictions


def score_names(labels: Sequence[str], *, multi_label: bool) -> tuple[str, ...]:
    """The scores that an evaluation of this kind of labels has, ``loss`` first."""
    size = len(labels)
    targets = np.zeros((1, size), np.float32) if multi_label else np.zeros(1, np.int64)
    found = evaluate_predictions(targets, np.full((1, size), 1 / size), tuple(labels), multi_label=multi_label)
    return ("loss", *found.values)


def require_score(metric: str, labels: Sequence[str], *, multi_label: bool) -> None:
    """Refuse a selection metric that no evaluation has.

    Raises:
        ConfigError: it is none of ``score_names``.
    """
    known = score_names(labels, multi_label=multi_label)
    if metric in known:
        return
    near = difflib.get_close_matches(metric, known, n=1)
    raise ConfigError(
        "the selection metric is not a score",
        where="training.selection_metric",
        got=metric,
        wanted=", ".join(known),
        do=f"Did you mean {near[0]}?" if near else None,
    )
