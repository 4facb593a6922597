"""A linear probe, solved: multinomial or per-label logistic regression on the frozen model's vectors.

With nothing of the backbone trained, each text's vector is a constant. So the vectors are computed once, and what is
left is a convex problem with one penalty,

    minimise over W, b:   mean loss(W z + b) + penalty / 2 * ||W||^2        z: vectors with mean 0 and deviation 1

which L-BFGS solves to its end (Liu and Nocedal 1989). It is solved for a row of penalties from strong to weak, each
from the last one's solution, and the one with the best score on the held-out rows is kept: the whole path costs less
than an epoch of training. The same vectors through AdamW for some epochs would stop somewhere on the way to one of
these solutions, at a place that depends on rate, batch size and order of the rows.

The loss is the one that every method trains with (``Objective``), so class weights, label smoothing and several labels
mean the same here. Means and deviations are folded into W and b at the end, and the head is an ordinary head. (A head
without a bias has nothing to fold a mean into; its vectors are only scaled.) All is
computed in float64; the vectors come in the head's own precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.config.run import TrainingConfig
from qlassify.errors import DivergenceError
from qlassify.models.head import ClassificationHead
from qlassify.training.checkpoint import Checkpoint, Progress
from qlassify.training.events import EvaluationEvent, StepEvent, TrainingEndEvent, TrainingEvent
from qlassify.training.loop import Scorer, is_better
from qlassify.training.loss import Objective, num_correct
from qlassify.training.step import Targets, restore, snapshot

FloatArray = npt.NDArray[np.float64]

MAX_ITERATIONS = 5000
GRADIENT_TOLERANCE = 1e-6
"""Largest partial derivative of the mean loss at which a solution counts as found."""
ACCEPTED_GRADIENT = 1e-3
"""Largest at which it is taken when the line search cannot go on for rounding."""
PATIENCE = 2
"""Penalties in a row without a better score, after which weaker ones are not tried: they fit noise."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimum for one penalty.

    Attributes:
        weight: (C, H), for standardised vectors.
        bias: (C,).
        loss: mean loss of the rows, without the penalty.
        gradient: largest partial derivative left.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gradient: float


def solve(
    vectors_NH: Tensor,
    targets: Tensor,
    objective: Objective,
    penalty: float,
    start: Solution | None,
    num_classes: int,
    *,
    with_bias: bool = True,
) -> Solution:
    """Minimise the penalised mean loss.

    Args:
        vectors_NH: (N, H) float64.
        targets: (N,) int64 classes, or (N, C) 0/1.
        objective: the loss.
        penalty: factor on half the squared norm of the weights; biases have none.
        start: where to begin; at zero when None.
        num_classes: C.
        with_bias: whether biases are solved for; otherwise they stay zero.

    Raises:
        DivergenceError: the loss is not finite, or no minimum was found.
    """
    from scipy.optimize import minimize

    count, width = vectors_NH.shape

    def split(flat: Tensor) -> tuple[Tensor, Tensor]:
        return flat[: num_classes * width].view(num_classes, width), flat[num_classes * width :]

    def value_and_gradient(point: FloatArray) -> tuple[float, FloatArray]:
        flat = torch.from_numpy(point.copy())
        weight, bias = split(flat)
        logits = torch.addmm(bias, vectors_NH, weight.T).requires_grad_()
        loss = objective(logits, targets).total / count
        (slope,) = torch.autograd.grad(loss, logits)
        gradient = torch.cat(
            [(slope.T @ vectors_NH).add_(weight, alpha=penalty).view(-1), slope.sum(dim=0) * with_bias]
        )
        value = float(loss.detach()) + penalty / 2 * float(weight.square().sum())
        return value, np.asarray(gradient.numpy(), dtype=np.float64)

    first = np.zeros(num_classes * (width + 1))
    if start is not None:
        first = torch.cat([start.weight.reshape(-1), start.bias]).numpy()
    found = minimize(
        value_and_gradient,
        first,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0},
    )
    left = float(np.abs(found.jac).max())
    if not np.isfinite(found.fun) or left > ACCEPTED_GRADIENT:
        raise DivergenceError(
            "the logistic regression found no minimum",
            where=f"penalty {penalty:g}",
            got=f"loss {found.fun}, largest derivative {left:g} after {found.nit} iterations",
            do="Leave weak penalties out (method.penalties), or look for vectors that are not finite.",
        )
    weight, bias = split(torch.from_numpy(found.x.copy()))
    loss = float(found.fun) - penalty / 2 * float(weight.square().sum())
    return Solution(weight, bias, loss, left)


class ProbeSolver:
    """The place of a training loop for a probe: one step per penalty, each scored, the best one kept.

    Args:
        head: what is solved for.
        vectors: gives the (N, H) vectors of the training rows; called once, when the run begins.
        targets: (N,) classes or (N, C) labels.
        objective: the loss.
        penalties: tried in this order.
        config: the selection metric.
        scorer: scores the held-out rows with the head as it stands.
    """

    def __init__(
        self,
        head: ClassificationHead,
        vectors: Callable[[], Tensor],
        targets: Targets,
        objective: Objective,
        *,
        penalties: Sequence[float],
        config: TrainingConfig,
        scorer: Scorer,
    ) -> None:
        self.head = head
        self.config = config
        self.progress = Progress()
        self._vectors = vectors
        self._targets = targets
        self._objective = objective
        self._penalties = tuple(penalties)
        self._scorer = scorer

    def resume(self, checkpoint: Checkpoint) -> None:
        """Nothing to do: a probe writes no checkpoints, and solving again gives the same."""

    def run(self) -> Iterator[TrainingEvent]:
        """Solve for each penalty until the score stops rising, then put the best head in place."""
        vectors = self._vectors().double()
        targets = torch.from_numpy(self._targets)
        if targets.dtype != torch.int64:
            targets = targets.double()
        # Without a bias nothing can stand for the mean.
        mean = vectors.mean(dim=0) if self.head.bias is not None else torch.zeros_like(vectors[0])
        deviation = vectors.std(dim=0, correction=0).clamp(min=1e-12)
        vectors = (vectors - mean) / deviation
        solution: Solution | None = None
        best = snapshot(dict(self.head.named_parameters()))
        for penalty in self._penalties:
            started = time.perf_counter()
            solution = solve(
                vectors,
                targets,
                self._objective,
                penalty,
                solution,
                len(self.head.weight),
                with_bias=self.head.bias is not None,
            )
            self._into_head(solution, mean, deviation)
            self.progress = replace(self.progress, step=self.progress.step + 1)
            yield self._step(solution, vectors, targets, time.perf_counter() - started)
            event = self._evaluate()
            yield event
            if event.improved:
                best = snapshot(dict(self.head.named_parameters()))
            if self.progress.stopped_early:
                break
        restore(dict(self.head.named_parameters()), best)
        progress = self.progress
        yield TrainingEndEvent(progress.step, progress.best_step, progress.best_score, progress.stopped_early, 0)

    @torch.no_grad()
    def _into_head(self, solution: Solution, mean: Tensor, deviation: Tensor) -> None:
        """W z + b with z = (v - mean) / deviation is (W / deviation) v + (b - W mean / deviation)."""
        weight = solution.weight / deviation
        self.head.weight.copy_(weight)
        if self.head.bias is not None:
            self.head.bias.copy_(solution.bias - weight @ mean)

    def _step(self, solution: Solution, vectors: Tensor, targets: Tensor, seconds: float) -> StepEvent:
        logits = torch.addmm(solution.bias, vectors, solution.weight.T)
        correct = num_correct(logits, targets, multi_label=self._objective.multi_label)
        step = self.progress.step
        return StepEvent(
            step=step,
            total_steps=len(self._penalties),
            epoch=float(step),
            loss=solution.loss,
            accuracy=correct / len(vectors),
            learning_rate=0.0,
            grad_norm=solution.gradient,
            rows=len(vectors),
            tokens=0,
            seconds=seconds,
        )

    def _evaluate(self) -> EvaluationEvent:
        started = time.perf_counter()
        scores, metric = self._scorer(), self.config.selection_metric
        progress, score = self.progress, scores[metric]
        improved = is_better(score, progress.best_score, metric)
        if improved:
            self.progress = replace(progress, best_step=progress.step, best_score=score, since_best=0)
        else:
            since = progress.since_best + 1
            stopped = since >= PATIENCE and progress.step < len(self._penalties)
            self.progress = replace(progress, since_best=since, stopped_early=stopped)
        return EvaluationEvent(
            progress.step, float(progress.step), scores, metric, improved, time.perf_counter() - started
        )
