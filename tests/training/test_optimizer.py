"""The optimiser's groups, and its steps against AdamW written out by hand in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qlassify.errors import CheckpointError
from qlassify.training.optimizer import BETAS, EPSILON, Optimizer


def make(dtype: torch.dtype = torch.float32) -> tuple[Optimizer, dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(3)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))

    method = {"a": parameter(4, 3), "v": parameter(4)}
    head = {"head.weight": parameter(2, 4), "head.bias": parameter(2)}
    optimizer = Optimizer(method, head, learning_rate=1e-2, head_learning_rate=3e-2, weight_decay=0.1)
    return optimizer, method, head


def give_gradients(parameters: dict[str, nn.Parameter], seed: int) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    gradients = {}
    for name, parameter in parameters.items():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.to(parameter.dtype)
        gradients[name] = parameter.grad.double().numpy().copy()
    return gradients


def adamw_by_hand(value: np.ndarray, gradients: list[np.ndarray], rates: list[float], decay: float) -> np.ndarray:
    """Loshchilov and Hutter's algorithm 2 in float64, step by step."""
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        value = value - rate * decay * value
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        corrected = np.sqrt(second / (1 - BETAS[1] ** step)) + EPSILON
        value = value - rate * (first / (1 - BETAS[0] ** step)) / corrected
    return value


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [
        # The same arithmetic in another association; 1e-12 is thousands of float64 roundings.
        (torch.float64, 1e-12, 1e-12),
        # Three steps of fp32 on values of order one: the project's fp32-against-float64 tolerance.
        (torch.float32, 1e-5, 1e-6),
    ],
)
def test_steps_equal_adamw_by_hand(dtype: torch.dtype, rtol: float, atol: float) -> None:
    optimizer, method, head = make(dtype)
    start = {name: parameter.detach().double().numpy().copy() for name, parameter in optimizer.parameters.items()}
    factors = [0.5, 1.0, 0.25]
    history: list[dict[str, np.ndarray]] = []
    for seed, factor in enumerate(factors):
        optimizer.set_rate_factor(factor)
        history.append(give_gradients(optimizer.parameters, seed))
        optimizer.step()
        optimizer.clear_gradients()
    for name, parameter in optimizer.parameters.items():
        peak = 3e-2 if name in head else 1e-2
        decay = 0.1 if parameter.dim() >= 2 else 0.0
        wanted = adamw_by_hand(
            start[name], [one[name] for one in history], [peak * factor for factor in factors], decay
        )
        np.testing.assert_allclose(parameter.detach().double().numpy(), wanted, rtol=rtol, atol=atol, err_msg=name)
    assert set(method) | set(head) == set(optimizer.parameters)


def test_vectors_do_not_decay_and_matrices_do() -> None:
    """With a zero gradient the moments are zero, so only decay can move anything."""
    optimizer, _, _ = make()
    before = {name: parameter.detach().clone() for name, parameter in optimizer.parameters.items()}
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in optimizer.parameters.items():
        moved = not torch.equal(parameter.detach(), before[name])
        assert moved == (parameter.dim() >= 2), name


def test_the_rate_factor_applies_to_every_group_and_to_the_peak() -> None:
    optimizer, _, _ = make()
    optimizer.set_rate_factor(0.5)
    optimizer.set_rate_factor(0.25)
    rates = {group["lr"] for group in optimizer._adamw.param_groups}
    assert rates == {0.25 * 1e-2, 0.25 * 3e-2}, "a factor is of the peak, not of the rate before"
    assert optimizer.learning_rate == 0.25 * 1e-2


def test_setting_the_peak_keeps_the_heads_ratio() -> None:
    optimizer, _, _ = make()
    optimizer.set_peak(5e-2)
    assert optimizer.learning_rate == 5e-2
    assert sorted({group["lr"] for group in optimizer._adamw.param_groups}) == pytest.approx([5e-2, 15e-2])


def test_state_travels_by_name_into_an_optimiser_built_in_another_order() -> None:
    source, _, _ = make()
    give_gradients(source.parameters, 0)
    source.step()
    state = {key: value.clone() for key, value in source.state_tensors().items()}
    assert {key.partition("/")[0] for key in state} == {"exp_avg", "exp_avg_sq", "step"}
    assert {key.partition("/")[2] for key in state} == set(source.parameters)

    values = {name: parameter.detach().clone() for name, parameter in source.parameters.items()}
    other, method, head = make()
    reordered = Optimizer(
        dict(reversed(method.items())),
        dict(reversed(head.items())),
        learning_rate=1e-2,
        head_learning_rate=3e-2,
        weight_decay=0.1,
    )
    with torch.no_grad():
        for name, parameter in reordered.parameters.items():
            parameter.copy_(values[name])
    reordered.load_state_tensors(state)
    for one in (source, reordered):
        give_gradients({name: one.parameters[name] for name in sorted(one.parameters)}, 1)
        one.step()
    for name, parameter in source.parameters.items():
        assert torch.equal(parameter, reordered.parameters[name]), name
    assert other is not source


def test_loaded_state_is_a_copy() -> None:
    source, _, _ = make()
    give_gradients(source.parameters, 0)
    source.step()
    state = {key: value.clone() for key, value in source.state_tensors().items()}
    target, _, _ = make()
    target.load_state_tensors(state)
    kept = {key: value.clone() for key, value in state.items()}
    give_gradients(target.parameters, 1)
    target.step()
    assert all(torch.equal(state[key], kept[key]) for key in state)


def test_state_of_an_unknown_parameter_is_refused() -> None:
    optimizer, _, _ = make()
    with pytest.raises(CheckpointError, match="unknown parameter; got stranger"):
        optimizer.load_state_tensors({"exp_avg/stranger": torch.zeros(1)})


def test_without_a_head_group_rates_still_stand() -> None:
    """A method of vectors only (as a bias-only one is) has no decaying group of its own."""
    vector = nn.Parameter(torch.ones(3))
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = Optimizer(
        {"v": vector}, {"head.weight": weight}, learning_rate=1e-2, head_learning_rate=3e-2, weight_decay=0.1
    )
    assert optimizer.learning_rate == 1e-2
    decays = [(group["weight_decay"], len(group["params"])) for group in optimizer._adamw.param_groups]
    assert decays == [(0.0, 1), (0.1, 1)]
