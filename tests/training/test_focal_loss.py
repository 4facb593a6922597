"""Focal loss against its definition in float64, its gradient, extreme logits, and one step of a real model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from qlassify.config.run import RunConfig, TrainingConfig
from qlassify.data.packing import micro_batches
from qlassify.errors import ConfigError
from qlassify.training.loss import LossSum, Objective
from qlassify.training.step import snapshot
from tiny_jobs import TinyTraining

ROWS, CLASSES = 11, 4
WEIGHTS = torch.tensor([0.3, 1.7, 0.9, 1.1])

# Both sides are float64 and sum about ten terms of order one: 1e-11 leaves room for the cancellation in the naive 1 - p
# and is far below what a wrong formula would change.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64) * 2


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def flags() -> torch.Tensor:
    return (torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(5)) < 0.4).double()


def naive(logits: torch.Tensor, targets: torch.Tensor, gamma: float, weights: torch.Tensor | None) -> torch.Tensor:
    """-w (1 - p)^gamma log p as the paper writes it, from probabilities; summed over rows."""
    if targets.ndim == 2:
        p = torch.sigmoid(logits)
        w = torch.ones(CLASSES).double() if weights is None else weights.double()
        positive = -w * targets * (1 - p) ** gamma * torch.log(p)
        negative = -(1 - targets) * p**gamma * torch.log(1 - p)
        return (positive + negative).mean(dim=1).sum()
    p = torch.softmax(logits, dim=1)[torch.arange(len(targets)), targets]
    w = torch.ones(len(targets)).double() if weights is None else weights.double()[targets]
    return (-w * (1 - p) ** gamma * torch.log(p)).sum()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_value_and_gradient_are_the_definitions(
    logits: torch.Tensor,
    targets: torch.Tensor,
    flags: torch.Tensor,
    gamma: float,
    weights: torch.Tensor | None,
    multi_label: bool,
) -> None:
    wanted_targets = flags if multi_label else targets
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = Objective(multi_label, weights, focal_gamma=gamma)(ours, wanted_targets)
    wanted = naive(theirs, wanted_targets, gamma, weights)
    torch.testing.assert_close(loss.total, wanted, **CLOSE)
    assert loss.count == ROWS
    loss.total.backward()
    wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradcheck(logits: torch.Tensor, targets: torch.Tensor, flags: torch.Tensor, multi_label: bool) -> None:
    objective = Objective(multi_label, WEIGHTS, focal_gamma=2.0)
    wanted = flags if multi_label else targets
    assert torch.autograd.gradcheck(lambda x: objective(x, wanted).total, (logits.clone().requires_grad_(),))


@pytest.mark.parametrize("multi_label", [False, True])
def test_gamma_zero_is_bitwise_the_plain_loss(
    logits: torch.Tensor, targets: torch.Tensor, flags: torch.Tensor, multi_label: bool
) -> None:
    wanted = flags.float() if multi_label else targets
    plain, zero = (logits.float().requires_grad_() for _ in range(2))
    first = Objective(multi_label, WEIGHTS)(plain, wanted).total
    second = Objective(multi_label, WEIGHTS, focal_gamma=0.0)(zero, wanted).total
    assert torch.equal(first, second)
    first.backward()
    second.backward()
    assert plain.grad is not None
    assert zero.grad is not None
    assert torch.equal(plain.grad, zero.grad)


def test_closed_form_of_two_even_classes() -> None:
    """With equal logits p is 1/2: the loss is 2^-gamma log 2."""
    for gamma in (1.0, 2.0, 3.5):
        loss = Objective(focal_gamma=gamma)(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1]))
        assert float(loss.total) == pytest.approx(2**-gamma * math.log(2), rel=1e-14)  # a few roundings of float64


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, sign: float, multi_label: bool) -> None:
    """In fp32, with p rounding to 1 and to 0; the naive power below 1 has an infinite slope at 1 - p = 0."""
    logits = torch.tensor([[1e4, -1e4, 0.0]]) * sign
    logits.requires_grad_()
    target = torch.tensor([[1.0, 0.0, 1.0]]) if multi_label else torch.tensor([0])
    total = Objective(multi_label, focal_gamma=gamma)(logits, target).total
    total.backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    middle = 0.5**gamma * math.log(2)
    right, wrong = (middle / 3, (2e4 + middle) / 3) if multi_label else (0.0, 2e4)
    # fp32 rounds 1e4 to a thousandth: 1e-6 of the value is what there is.
    assert float(total.detach()) == pytest.approx(right if sign > 0 else wrong, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("target", [0, 1])
def test_a_loss_that_is_not_finite_is_not_hidden(value: float, target: int) -> None:
    logits = torch.tensor([[value, 0.0, 0.0]])
    assert not math.isfinite(float(Objective(focal_gamma=2.0)(logits, torch.tensor([target])).total))
    flags = torch.tensor([[float(target == 0), 0.0, 0.0]])
    assert not math.isfinite(float(Objective(multi_label=True, focal_gamma=2.0)(logits, flags).total))


def test_sums_and_counts_add_over_a_partition(logits: torch.Tensor, targets: torch.Tensor) -> None:
    objective = Objective(class_weights=WEIGHTS, focal_gamma=2.0)
    parts = [objective(logits[a:b], targets[a:b]) for a, b in itertools.pairwise((0, 3, 4, ROWS))]
    assert sum(part.count for part in parts) == ROWS
    total = torch.stack([part.total for part in parts]).sum()
    torch.testing.assert_close(total, objective(logits, targets).total, **CLOSE)


class Naive(Objective):
    """The definition, as the loss of a real step."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> LossSum:
        assert self.class_weights is not None
        p = torch.softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]
        weights = self.class_weights.to(logits)[targets]
        return LossSum((-weights * (1 - p) ** self.focal_gamma * p.log()).sum(), len(targets))


def test_one_step_of_a_model_is_the_definitions(tiny_base: Path, rows: list[tuple[str, str]]) -> None:
    """In float64, cut into micro-batches: gradients and moved parameters are those of the naive formula uncut."""
    weights = torch.tensor([0.5, 1.5, 1.0])
    worlds = []
    for objective, budget in (
        (Objective(False, weights, focal_gamma=2.0), 40),
        (Naive(False, weights, 0.0, 2.0), 10**6),
    ):
        world = TinyTraining(tiny_base, objective=objective, dtype=torch.float64, warm=True)
        encoded, targets = world.encode(rows[:12])
        world.stepper.accumulate(micro_batches(encoded, range(12), budget), targets)
        gradients = world.gradients()
        world.stepper.apply()
        worlds.append((gradients, snapshot(world.optimizer.parameters)))
    plain = TinyTraining(tiny_base, objective=Objective(False, weights), dtype=torch.float64, warm=True)
    plain.stepper.accumulate(micro_batches(encoded, range(12), 10**6), targets)
    (ours, moved), (wanted, wanted_moved) = worlds
    for name, gradient in wanted.items():
        # Float64 through two layers, summed in another order; gradients are of order 1e-3 to 1.
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12)
        # AdamW's first step divides the gradient by its size, which leaves its relative error.
        torch.testing.assert_close(moved[name], wanted_moved[name], rtol=1e-8, atol=1e-8)
    assert any(not torch.allclose(plain.gradients()[name], g, rtol=0.05) for name, g in wanted.items())


def test_label_smoothing_is_refused_beside_it() -> None:
    with pytest.raises(ConfigError, match="do not go together"):
        TrainingConfig(focal_gamma=2.0, label_smoothing=0.1)
    with pytest.raises(ConfigError, match="do not go together"):
        Objective(label_smoothing=0.1, focal_gamma=2.0)
    with pytest.raises(ConfigError, match=r"focal_gamma is -1"):
        TrainingConfig(focal_gamma=-1)


def test_a_probe_has_no_use_for_it() -> None:
    with pytest.raises(ConfigError, match=r"training\.focal_gamma does not go with method\.kind=probe"):
        RunConfig.parse({"method": {"kind": "probe"}, "training": {"focal_gamma": 1.0}})


def test_easy_rows_count_less() -> None:
    """The paper's own example: at p = 0.9 gamma 2 divides the loss by 100 (section 3.2)."""
    logits = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
    plain = float(functional.cross_entropy(logits, torch.tensor([0])))
    focal = float(Objective(focal_gamma=2.0)(logits, torch.tensor([0])).total)
    assert plain / focal == pytest.approx(100, rel=1e-12)  # ten roundings of float64
