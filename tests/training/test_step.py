"""One optimiser step is a set of rows, however it is cut, clipped once, and taken whole or not at all.

The model is a tiny BERT with real attention, adapters and head; what is compared is the gradient or the parameters
that the step leaves behind.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qlassify.data.packing import micro_batches
from qlassify.training.loss import LossSum, Objective
from qlassify.training.step import global_norm, restore, snapshot
from tiny_jobs import TinyTraining

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = list[tuple[str, str]]

TOLERANCES = {
    # Cuts change the shapes of matrix products and so the order of sums: the project's fp32 tolerance.
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    # The same in float64, where a hundred million times less is lost.
    torch.float64: {"rtol": 1e-10, "atol": 1e-13},
}


def gradients_of(training: TinyTraining, rows: Rows, cuts: list[int], budget: int) -> dict[str, torch.Tensor]:
    """Gradients after accumulating ``rows`` in parts that end at ``cuts``, divided by the number of rows."""
    encoded, targets = training.encode(rows)
    edges = [0, *cuts, len(rows)]
    for start, stop in itertools.pairwise(edges):
        training.stepper.accumulate(micro_batches(encoded, range(start, stop), budget), targets)
    gradients = {name: gradient / len(rows) for name, gradient in training.gradients().items()}
    training.optimizer.clear_gradients()
    training.stepper.apply()  # with nothing to apply, this only forgets the sums
    return gradients


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "fp64"])
def test_any_cut_gives_the_same_gradient(tiny_base: Path, rows: Rows, dtype: torch.dtype) -> None:
    """Four accumulated batches of eight, one of 32, token budgets from one text to all, and the mean by autograd."""
    training = TinyTraining(tiny_base, dtype=dtype, warm=True)
    chosen = rows[:32]
    encoded, targets = training.encode(chosen)
    (batch,) = micro_batches(encoded, range(32), 10**6)
    training.classifier.train()
    logits = training.classifier(batch)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[batch.rows])).backward()
    wanted = training.gradients()
    training.optimizer.clear_gradients()
    assert len(wanted) == len(training.optimizer.parameters)
    assert all(gradient.abs().max() > 0 for gradient in wanted.values())

    longest = int(encoded.lengths.max())
    cuts = [([8, 16, 24], 10**6), ([], 10**6), ([], longest), ([], 1), ([], 57), ([1, 30], 40)]
    for edges, budget in cuts:
        got = gradients_of(training, chosen, edges, budget)
        for name, gradient in wanted.items():
            torch.testing.assert_close(got[name], gradient, **TOLERANCES[dtype], msg=f"{name}, {edges}, {budget}")


def test_the_step_that_follows_is_the_same_too(tiny_base: Path, rows: Rows) -> None:
    """Accumulating 4 x 8 and taking 1 x 32 leave the same parameters, and report the same figures."""
    results, values = [], []
    for parts in (1, 4):
        training = TinyTraining(tiny_base, dtype=torch.float64, warm=True)
        encoded, targets = training.encode(rows[:32])
        for part in np.split(np.arange(32), parts):
            training.stepper.accumulate(micro_batches(encoded, part, 8192), targets)
        results.append(training.stepper.apply())
        values.append(snapshot(training.optimizer.parameters))
    assert results[0].total == results[1].total == 32
    assert results[0].correct == results[1].correct
    assert results[0].num_tokens == results[1].num_tokens
    # Sums of 32 losses in another order, in float64.
    assert results[0].avg_loss == pytest.approx(results[1].avg_loss, rel=1e-12)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-10)
    for name, value in values[0].items():
        # Adam divides by the square root of a squared gradient: where that is near zero, a rounding error of 1e-17
        # against epsilon 1e-8 moves a parameter by up to the learning rate times 1e-9.
        torch.testing.assert_close(values[1][name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_a_short_step_weighs_what_it_holds(tiny_base: Path, rows: Rows) -> None:
    """Three rows after a full step are divided by three, not by the batch size before."""
    training = TinyTraining(tiny_base, warm=True, clip_norm=None)
    encoded, targets = training.encode(rows[:19])
    training.stepper.accumulate(micro_batches(encoded, range(16), 8192), targets)
    training.stepper.apply()
    training.stepper.accumulate(micro_batches(encoded, range(16, 19), 8192), targets)
    summed = training.gradients()
    result = training.stepper.apply()
    assert result.total == 3
    wanted = float(global_norm([gradient / 3 for gradient in summed.values()]))
    # The same norm with the division before or after the squares are summed: a few fp32 roundings.
    assert result.grad_norm == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6])
def test_clipping_is_torchs_after_averaging(tiny_base: Path, rows: Rows, clip: float) -> None:
    training = TinyTraining(tiny_base, dtype=torch.float64, warm=True, clip_norm=clip)
    moved: dict[str, torch.Tensor] = {}

    def record() -> None:
        moved.update(training.gradients())

    training.optimizer.step = record  # type: ignore[method-assign]
    encoded, targets = training.encode(rows[:24])
    training.stepper.accumulate(micro_batches(encoded, range(24), 100), targets)
    parameters = list(training.optimizer.parameters.values())
    summed = training.gradients()
    result = training.stepper.apply()
    for parameter, gradient in zip(parameters, summed.values(), strict=True):
        parameter.grad = gradient / 24
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-12)
    for name, parameter in training.optimizer.parameters.items():
        # torch divides by the norm plus 1e-6; the norms here are of order 0.1 to 10.
        torch.testing.assert_close(moved[name], parameter.grad, rtol=3e-5, atol=0.0, msg=name)
    total = float(global_norm(list(moved.values())))
    assert total <= clip * (1 + 1e-12)


def test_without_a_bound_nothing_is_clipped(tiny_base: Path, rows: Rows) -> None:
    training = TinyTraining(tiny_base, warm=True, clip_norm=None)
    seen: list[float] = []
    training.optimizer.step = lambda: seen.append(float(global_norm(training.gradients().values())))  # type: ignore[method-assign]
    encoded, targets = training.encode(rows[:8])
    training.stepper.accumulate(micro_batches(encoded, range(8), 8192), targets)
    with torch.no_grad():
        for parameter in training.optimizer.parameters.values():
            assert parameter.grad is not None
            parameter.grad.mul_(1000)
    result = training.stepper.apply()
    assert seen == [result.grad_norm]
    assert result.grad_norm > 10


def test_global_norm_is_over_all_tensors() -> None:
    tensors = [torch.full((2, 2), 2.0), torch.tensor([3.0, 0.0]), torch.tensor(0.0)]
    assert float(global_norm(tensors)) == 5.0


def state_of(training: TinyTraining) -> dict[str, torch.Tensor]:
    """Everything a step could move: parameters and moments."""
    moments = {key: value.clone() for key, value in training.optimizer.state_tensors().items()}
    return {**snapshot(training.optimizer.parameters), **moments}


def assert_bitwise(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


class PoisonedObjective(Objective):
    """Multiplies the loss by something that is not finite, or only its gradient, while ``poison`` is set."""

    poison = ""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> LossSum:
        loss = super().__call__(logits, targets)
        if self.poison == "loss":
            return LossSum(loss.total * math.inf, loss.count)
        if self.poison == "gradient":
            # sqrt has an infinite slope at 0: the value is finite and unchanged, the gradient is not.
            return LossSum(loss.total + torch.sqrt(logits.sum() * 0), loss.count)
        return loss


@pytest.mark.parametrize("poison", ["loss", "gradient", "one micro-batch"])
def test_a_step_that_is_not_finite_changes_nothing(
    tiny_base: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """Parameters and moments stay bitwise, the step says so, and the next step is what it would have been."""
    twins = []
    for poisoned in (True, False):
        training = TinyTraining(tiny_base, objective=PoisonedObjective())
        encoded, targets = training.encode(rows)
        for start in (0, 8):
            training.stepper.accumulate(micro_batches(encoded, range(start, start + 8), 8192), targets)
            training.stepper.apply()
        before = state_of(training)
        if poisoned:
            monkeypatch.setattr(PoisonedObjective, "poison", "loss" if poison != "gradient" else "gradient")
            training.stepper.accumulate(micro_batches(encoded, range(16, 20), 8192), targets)
            if poison == "one micro-batch":
                monkeypatch.setattr(PoisonedObjective, "poison", "")
            training.stepper.accumulate(micro_batches(encoded, range(20, 24), 8192), targets)
            monkeypatch.setattr(PoisonedObjective, "poison", "")
            result = training.stepper.apply()
            assert not result.applied
            assert not (math.isfinite(result.avg_loss) and math.isfinite(result.grad_norm))
            assert result.total == 8
            assert_bitwise(state_of(training), before)
            assert training.gradients() == {}
        training.stepper.accumulate(micro_batches(encoded, range(24, 32), 8192), targets)
        assert training.stepper.apply().applied
        twins.append(state_of(training))
    assert_bitwise(*twins)


def test_a_nan_in_the_head_is_met_the_same_way(tiny_base: Path, rows: Rows) -> None:
    training = TinyTraining(tiny_base)
    with torch.no_grad():
        training.classifier.head.bias[1] = math.nan
    before = snapshot(training.optimizer.parameters)
    encoded, targets = training.encode(rows[:8])
    training.stepper.accumulate(micro_batches(encoded, range(8), 8192), targets)
    result = training.stepper.apply()
    assert not result.applied
    assert math.isnan(result.avg_loss)
    after = snapshot(training.optimizer.parameters)
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    assert training.optimizer.state_tensors() == {}


def test_apply_without_rows_moves_nothing(tiny_base: Path) -> None:
    training = TinyTraining(tiny_base)
    before = snapshot(training.optimizer.parameters)
    result = training.stepper.apply()
    assert (result.applied, result.total, result.accuracy()) == (False, 0, 0.0)
    assert_bitwise(snapshot(training.optimizer.parameters), before)


def test_accumulate_reports_its_own_batches_only(tiny_base: Path, rows: Rows) -> None:
    training = TinyTraining(tiny_base)
    encoded, targets = training.encode(rows[:10])
    first = training.stepper.accumulate(micro_batches(encoded, range(6), 20), targets)
    second = training.stepper.accumulate(micro_batches(encoded, range(6, 10), 20), targets)
    assert (first.total, second.total, first.applied, second.applied) == (6, 4, False, False)
    assert first.num_tokens + second.num_tokens == encoded.num_tokens
    whole = training.stepper.apply()
    assert whole.total == 10
    assert whole.correct == first.correct + second.correct
    # The weighted mean of two means, against the sum divided once.
    assert whole.avg_loss == pytest.approx((6 * first.avg_loss + 4 * second.avg_loss) / 10, rel=1e-12)


def test_both_adapter_matrices_and_the_head_move(tiny_base: Path, rows: Rows) -> None:
    """B starts at zero, so A has no gradient in the first step; after the second every tensor has moved."""
    training = TinyTraining(tiny_base)
    start = snapshot(training.optimizer.parameters)
    encoded, targets = training.encode(rows[:16])
    for _ in range(2):
        training.stepper.accumulate(micro_batches(encoded, range(16), 8192), targets)
        training.stepper.apply()
    after = snapshot(training.optimizer.parameters)
    assert [name for name in start if torch.equal(start[name], after[name])] == []
    frozen = [p for p in training.classifier.backbone.model.parameters() if not p.requires_grad]
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)


def test_snapshot_is_a_copy_and_restore_puts_it_back(tiny_base: Path) -> None:
    training = TinyTraining(tiny_base)
    kept = snapshot(training.optimizer.parameters)
    with torch.no_grad():
        for parameter in training.optimizer.parameters.values():
            parameter.add_(1.0)
    assert not any(torch.equal(kept[name], p) for name, p in training.optimizer.parameters.items())
    restore(training.optimizer.parameters, kept)
    assert_bitwise(snapshot(training.optimizer.parameters), kept)
