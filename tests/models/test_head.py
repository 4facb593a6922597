"""The head: its formula, its precision, and that it starts from a stream of its own."""

from __future__ import annotations

import pytest
import torch

from qlassify.models.head import INITIAL_STD, ClassificationHead


def test_logits_are_the_formula(generator: torch.Generator) -> None:
    head = ClassificationHead(6, 3, seed=1, dtype=torch.float64)
    with torch.no_grad():
        head.bias.normal_(generator=generator)
    vectors = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    wanted = torch.stack([head.weight @ vector + head.bias for vector in vectors])
    # Six products summed in float64, perhaps in another order.
    torch.testing.assert_close(head(vectors), wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_head_is_fp32_whatever_comes_in(dtype: torch.dtype, generator: torch.Generator) -> None:
    head = ClassificationHead(6, 3, seed=1)
    vectors = torch.randn(4, 6, generator=generator).to(dtype)
    logits = head(vectors)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(vectors.float()))
    logits.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32


def test_one_seed_one_head() -> None:
    first, second, other = (ClassificationHead(32, 5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = ClassificationHead(32, 5, seed=3).weight
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(ClassificationHead(32, 5, seed=3).weight, first)


def test_the_start_is_small_and_normal() -> None:
    head = ClassificationHead(1000, 40, seed=0)
    assert torch.equal(head.bias, torch.zeros(40))
    # The deviation of 40,000 draws is known to 1 / sqrt(80,000) = 0.35 %: 2 % is more than five deviations.
    assert float(head.weight.detach().std()) == pytest.approx(INITIAL_STD, rel=0.02)
    assert abs(float(head.weight.detach().mean())) < 5 * INITIAL_STD / 200
    # A normal draw leaves the interval of a uniform one of equal deviation (sqrt(3) of them) in 8 % of all cases.
    outside = float((head.weight.detach().abs() > 3**0.5 * INITIAL_STD).float().mean())
    assert outside == pytest.approx(0.083, abs=0.01)


def test_both_parameters_are_trainable() -> None:
    head = ClassificationHead(4, 2, seed=0)
    assert {name for name, parameter in head.named_parameters() if parameter.requires_grad} == {"weight", "bias"}
