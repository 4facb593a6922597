"""From a classifier and encoded rows to logits, in the order of the rows.

Rows are computed longest first in packed micro-batches and put back in their order. The logits of a row are the same
function of its tokens whatever shares its batch, up to the rounding of differently shaped matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.models.classifier import Classifier

TOKEN_BUDGET = 8192
"""Tokens computed at once when nothing else is said: enough to fill the matrix products, little memory."""


def predict_logits(
    classifier: Classifier,
    encoded: Encoded,
    *,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """(N, C) logits of all rows.

    Args:
        classifier: put into evaluation mode for the call and back afterwards.
        encoded: N tokenised rows.
        token_budget: most tokens computed at once.
        progress: called with the number of rows done after each micro-batch.
    """
    num_classes = classifier.head.weight.shape[0]
    logits = np.empty((len(encoded), num_classes), dtype=np.float32)
    was_training = classifier.training
    classifier.eval()
    done = 0
    try:
        with torch.inference_mode():
            for batch in micro_batches(encoded, range(len(encoded)), token_budget):
                logits[batch.rows] = classifier(batch).float().cpu().numpy()
                done += batch.num_rows
                if progress is not None:
                    progress(done)
    finally:
        classifier.train(was_training)
    return logits


def probabilities(logits: npt.NDArray[np.float32], *, multi_label: bool) -> npt.NDArray[np.float64]:
    """(N, C) probabilities in float64: a softmax over classes, or a sigmoid per label."""
    wide = logits.astype(np.float64)
    if multi_label:
        return np.exp(-np.logaddexp(0.0, -wide))
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
