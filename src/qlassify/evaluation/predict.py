"""From a classifier and encoded rows to logits, in the order of the rows.

Rows are computed longest first in packed micro-batches and put back in their order. The logits of a row are the same
function of its tokens whatever shares its batch, up to the rounding of differently shaped matrix products. So where
memory runs out, smaller micro-batches give the same answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import DivergenceError, QlassifyWarning
from qlassify.models.backbone import Backbone
from qlassify.models.classifier import Classifier
from qlassify.models.soundness import origin
from qlassify.planning.out_of_memory import Shortage, first_line, halved, is_out_of_memory

Extra = TypeVar("Extra")

TOKEN_BUDGETS = {"cpu": 2048, "cuda": 8192}
"""Tokens computed at once when nothing else is said: enough to fill the matrix products. On the CPU more is no faster
and takes memory."""


def default_token_budget(device: str) -> int:
    """Tokens computed at once on a kind of device (``cpu``, ``cuda``)."""
    return TOKEN_BUDGETS.get(device, TOKEN_BUDGETS["cpu"])


def predict_logits(
    classifier: Classifier,
    encoded: Encoded,
    *,
    token_budget: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """(N, C) logits of all rows.

    Args:
        classifier: put into evaluation mode for the call and back afterwards.
        encoded: N tokenised rows.
        token_budget: most tokens computed at once; by device when None.
        progress: called with the number of rows done after each micro-batch.

    Raises:
        DivergenceError: logits are not finite; names the first such row and where the numbers come from.
    """
    width = classifier.head.weight.shape[0]
    return _compute(classifier, classifier, encoded, width, token_budget, progress)


def predict_vectors(
    classifier: Classifier, encoded: Encoded, *, token_budget: int | None = None
) -> npt.NDArray[np.float32]:
    """(N, H) pooled vectors of all rows, which the head has not seen yet; otherwise as ``predict_logits``."""
    return _compute(classifier, classifier.vectors, encoded, classifier.head.weight.shape[1], token_budget, None)


def _compute(
    classifier: Classifier,
    function: Callable[[PackedBatch], torch.Tensor],
    encoded: Encoded,
    width: int,
    token_budget: int | None,
    progress: Callable[[int], None] | None,
) -> npt.NDArray[np.float32]:
    """(N, width) values that a function of a micro-batch gives for all rows, without gradients."""
    values = np.empty((len(encoded), width), dtype=np.float32)
    was_training = classifier.training
    classifier.eval()

    def cut(rows: npt.NDArray[np.int64], budget: int) -> Iterator[tuple[PackedBatch, None]]:
        return ((batch, None) for batch in micro_batches(encoded, rows, budget))

    def compute(batch: PackedBatch, _: None) -> None:
        values[batch.rows] = function(batch).float().cpu().numpy()

    try:
        predict_all(classifier.backbone, len(encoded), cut, compute, token_budget=token_budget, progress=progress)
    finally:
        classifier.train(was_training)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        why, do = origin(classifier)
        raise DivergenceError(
            "predictions are not finite",
            where=f"row {int(np.argmin(finite)) + 1}",
            got=f"{np.count_nonzero(~finite)} such rows; {why}",
            do=f"{do}.",
        )
    return values


def predict_all(
    backbone: Backbone,
    num_rows: int,
    cut: Callable[[npt.NDArray[np.int64], int], Iterator[tuple[PackedBatch, Extra]]],
    compute: Callable[[PackedBatch, Extra], None],
    *,
    token_budget: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Compute all rows in micro-batches, without gradients.

    Where memory runs out, the rows that are still to come are computed with half of the budget, and so are those of
    later calls on the same model. Their values are the same up to rounding, and a warning says so.

    Args:
        backbone: remembers at how many tokens memory ran out.
        num_rows: N; rows are numbered from 0.
        cut: cuts rows into micro-batches of at most so many tokens, each with what ``compute`` has to know of it.
        compute: computes a micro-batch and keeps what comes of it.
        token_budget: most tokens computed at once; by device when None.
        progress: called with the number of rows done after each micro-batch.

    Raises:
        MemoryPlanError: a single row does not fit into memory.
    """
    waiting = np.ones(num_rows, dtype=np.bool_)
    budget = token_budget or default_token_budget(backbone.device.type)
    budget = min(budget, backbone.fitting_tokens or budget)

    def go_on() -> Shortage | None:
        """The rows that wait, until memory runs out."""
        computing = (0, 0)
        try:
            for batch, extra in cut(np.flatnonzero(waiting), budget):
                computing = (batch.num_tokens, batch.num_rows)
                compute(batch, extra)
                waiting[batch.rows] = False
                computing = (0, 0)
                if progress is not None:
                    progress(num_rows - int(waiting.sum()))
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            return Shortage(*computing, first_line(error))
        return None

    with torch.inference_mode():
        while (shortage := go_on()) is not None:
            # Behind the handler, where the error and the tensors that its traceback held are gone.
            if backbone.device.type == "cuda":
                torch.cuda.empty_cache()
            budget = backbone.fitting_tokens = halved(budget, shortage)
            sentence = f"memory ran out {shortage.where}; predicting goes on with {budget}"
            warnings.warn(sentence, QlassifyWarning, stacklevel=2)


def probabilities(logits: npt.NDArray[np.float32], *, multi_label: bool) -> npt.NDArray[np.float64]:
    """(N, C) probabilities in float64: a softmax over classes, or a sigmoid per label."""
    wide = logits.astype(np.float64)
    if multi_label:
        return np.exp(-np.logaddexp(0.0, -wide))
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
