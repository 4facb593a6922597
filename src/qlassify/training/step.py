"""One optimiser step: sum the gradients of its rows, divide once, clip once, move.

An optimiser step is a set of rows. However it is cut into micro-batches, by a token budget or by the caller, the
losses are summed, the gradient is divided by the number of rows that contributed, and one global norm over all
trainable parameters is clipped after that division. So accumulating four batches of eight equals one batch of 32, the
last short step of an epoch weighs what it holds, and the reported norm is the one that was clipped.

A step whose loss or gradient is not finite changes nothing: gradients are dropped, moments and parameters stay, and
the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qlassify.data.packing import PackedBatch
from qlassify.models.classifier import Classifier
from qlassify.training.loss import Objective, num_correct
from qlassify.training.optimizer import Optimizer

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch or a step came to.

    Attributes:
        avg_loss: mean loss per row; NaN or infinite when the step was skipped for that.
        correct: rows predicted right, before the parameters moved.
        total: rows.
        grad_norm: global L2 norm of the averaged gradient before clipping; 0 when gradients were only summed, NaN or
            infinite when the step was skipped for that.
        applied: whether the parameters moved.
        num_tokens: tokens computed.
    """

    avg_loss: float
    correct: int
    total: int
    grad_norm: float = 0.0
    applied: bool = True
    num_tokens: int = 0

    def accuracy(self) -> float:
        """Share of rows predicted right; 0 when there are none."""
        return self.correct / self.total if self.total else 0.0


class Stepper:
    """Accumulates gradients and applies them.

    Args:
        classifier: the model.
        optimizer: holds the trainable parameters.
        objective: the loss.
        clip_norm: largest global gradient norm, or None.

    Attributes:
        computing: (tokens, rows) of the micro-batch that is being computed, or of the one that failed; zeros between
            micro-batches, while the next one is cut.
    """

    def __init__(
        self, classifier: Classifier, optimizer: Optimizer, objective: Objective, clip_norm: float | None
    ) -> None:
        self.classifier = classifier
        self.optimizer = optimizer
        self.objective = objective
        self.clip_norm = clip_norm
        self.computing = (0, 0)
        self._loss, self._correct, self._total, self._tokens = 0.0, 0, 0, 0

    def accumulate(self, batches: Iterable[PackedBatch], targets: Targets) -> BatchResult:
        """Add the gradients of some micro-batches to those already summed.

        Args:
            batches: packed texts; their ``rows`` index ``targets``.
            targets: (N,) classes or (N, C) labels of all rows.

        Returns:
            The result of these batches alone, with ``applied`` False.
        """
        self.classifier.train()
        loss, correct, total, tokens = 0.0, 0, 0, 0
        self.computing = (0, 0)
        for batch in batches:
            self.computing = (batch.num_tokens, batch.num_rows)
            logits = self.classifier(batch)
            wanted = torch.from_numpy(targets[batch.rows]).to(logits.device)
            part = self.objective(logits, wanted)
            value = float(part.total.detach())
            loss += value
            total += part.count
            tokens += batch.num_tokens
            correct += num_correct(logits, wanted, multi_label=self.objective.multi_label)
            if math.isfinite(value):
                part.total.backward()  # type: ignore[no-untyped-call]
            self.computing = (0, 0)
        self._loss += loss
        self._correct += correct
        self._total += total
        self._tokens += tokens
        return BatchResult(loss / max(1, total), correct, total, applied=False, num_tokens=tokens)

    def rehearse(self, batches: Iterable[PackedBatch], targets: Targets) -> None:
        """Compute gradients of some micro-batches and forget them."""
        self.accumulate(batches, targets)
        self.forget()

    def apply(self) -> BatchResult:
        """Divide the summed gradients by the number of rows, clip, move, and start afresh."""
        parameters = self.optimizer.parameters
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm = math.nan
        if self._total and math.isfinite(self._loss) and gradients:
            norm = clipped_(gradients, self._total, self.clip_norm)
            if math.isfinite(norm):
                self.optimizer.step()
        applied = math.isfinite(norm)
        result = BatchResult(self._loss / max(1, self._total), self._correct, self._total, norm, applied, self._tokens)
        self.forget()
        return result

    def forget(self) -> None:
        """Start afresh: no gradients, nothing counted."""
        self.optimizer.clear_gradients()
        self._loss, self._correct, self._total, self._tokens = 0.0, 0, 0, 0


def clipped_(gradients: list[Tensor], rows: int, clip_norm: float | None) -> float:
    """Divide summed gradients by the number of rows and clip their global norm, in place.

    Returns:
        The norm before clipping; where it is not finite nothing was clipped.
    """
    torch._foreach_mul_(gradients, 1 / rows)
    norm = float(global_norm(gradients))
    if math.isfinite(norm) and clip_norm is not None and norm > clip_norm:
        torch._foreach_mul_(gradients, clip_norm / norm)
    return norm


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, in fp32 (float64 for float64)."""
    norms = torch._foreach_norm(list(tensors), 2)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total


def head_parameters(classifier: Classifier) -> dict[str, nn.Parameter]:
    """Name -> parameter of the head, as in ``head.safetensors`` with the prefix ``head.``."""
    return {f"head.{name}": parameter for name, parameter in classifier.head.named_parameters()}


def snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the parameters' values, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def restore(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Put values from ``snapshot`` back."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
