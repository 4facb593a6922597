"""A data set's linear probe: its vectors formed once, its held-out rows scored from them.

``training.probe`` solves for a head on vectors that are there; here is where they come from. Training and validation
texts go through the backbone when the run begins, each once, and everything after that is arithmetic on their vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from qlassify.config.run import TrainingConfig
from qlassify.data.dataset import Dataset, LabelledRows
from qlassify.data.tokenise import Encoded
from qlassify.evaluation.metrics import Metrics
from qlassify.evaluation.predict import predict_vectors, probabilities
from qlassify.stepwise import Trainable
from qlassify.training.probe import ProbeSolver

Scoring = Callable[[LabelledRows, npt.NDArray[np.float64]], Metrics]


def probe_solver(
    trainable: Trainable,
    dataset: Dataset,
    encoded: Mapping[str, Encoded],
    *,
    penalties: Sequence[float],
    config: TrainingConfig,
    metrics: Scoring,
) -> ProbeSolver:
    """What solves for the head of a classifier whose method is a probe.

    Args:
        trainable: the classifier.
        dataset: training and validation rows.
        encoded: their token ids, by part.
        penalties: tried in this order.
        config: the selection metric.
        metrics: of labelled rows and their probabilities.
    """
    head, multi_label = trainable.classifier.head, trainable.labels.multi_label

    @functools.cache
    def vectors(part: str) -> torch.Tensor:
        return torch.from_numpy(predict_vectors(trainable.classifier, encoded[part])).to(head.weight.device)

    def score() -> Mapping[str, float | None]:
        with torch.no_grad():
            logits = head(vectors("validation")).float().cpu().numpy()
        values = metrics(dataset.validation, probabilities(logits, multi_label=multi_label)).values
        return {"loss": values["log_loss"], **values}

    return ProbeSolver(
        head,
        lambda: vectors("train").cpu(),
        dataset.train.targets,
        trainable.stepper.objective,
        penalties=penalties,
        config=config,
        scorer=score,
    )
