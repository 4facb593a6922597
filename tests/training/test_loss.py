"""The loss against ``torch.nn.functional``, and that its sums and counts add up over any partition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qlassify.training.loss import Objective, num_correct

ROWS, CLASSES = 13, 4


@pytest.fixture
def logits(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64) * 3


@pytest.fixture
def targets(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, CLASSES, (ROWS,), generator=generator)


@pytest.fixture
def flags(generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(ROWS, CLASSES, generator=generator) < 0.4).double()


WEIGHTS = torch.tensor([0.3, 1.7, 0.9, 1.1])

# Comparisons are in float64 and both sides sum about ten terms of order one in a different order: 1e-12 is ten
# thousand rounding errors, and far below anything that a wrong formula would change.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_sums_what_torch_sums(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> None:
    loss = Objective(label_smoothing=smoothing)(logits, targets)
    wanted = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss.total, wanted, **CLOSE)
    assert loss.count == ROWS


def test_class_weights_multiply_a_row_by_its_class(logits: torch.Tensor, targets: torch.Tensor) -> None:
    loss = Objective(class_weights=WEIGHTS)(logits, targets)
    wanted = functional.cross_entropy(logits, targets, reduction="sum", weight=WEIGHTS.double())
    torch.testing.assert_close(loss.total, wanted, **CLOSE)


def test_weighted_mean_divides_by_rows_and_not_by_weights(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """torch's mean with ``weight=`` divides by the sum of the weights; here the divisor is the number of rows."""
    loss = Objective(class_weights=WEIGHTS)(logits, targets)
    torch_mean = functional.cross_entropy(logits, targets, weight=WEIGHTS.double())
    weight_sum = WEIGHTS.double()[targets].sum()
    torch.testing.assert_close(loss.total / loss.count, torch_mean * weight_sum / ROWS, **CLOSE)
    assert abs(float(weight_sum) - ROWS) > 0.5, "the two divisors must differ, or this test shows nothing"


def test_weights_and_smoothing_together_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """The row's weight multiplies the row's smoothed loss as a whole."""
    loss = Objective(class_weights=WEIGHTS, label_smoothing=0.2)(logits, targets)
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        losses = [log_sum - value for value in row]
        total += float(WEIGHTS[target]) * (0.8 * losses[target] + 0.2 * sum(losses) / CLASSES)
    assert float(loss.total) == pytest.approx(total, rel=1e-12)


def test_multi_label_is_the_mean_over_labels_summed_over_rows(logits: torch.Tensor, flags: torch.Tensor) -> None:
    loss = Objective(multi_label=True)(logits, flags)
    wanted = functional.binary_cross_entropy_with_logits(logits, flags, reduction="sum") / CLASSES
    torch.testing.assert_close(loss.total, wanted, **CLOSE)
    assert loss.count == ROWS


def test_multi_label_weights_multiply_the_positive_term(logits: torch.Tensor, flags: torch.Tensor) -> None:
    loss = Objective(multi_label=True, class_weights=WEIGHTS)(logits, flags)
    positive, negative = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    wanted = (WEIGHTS.double() * flags * positive + (1 - flags) * negative).mean(dim=1).sum()
    torch.testing.assert_close(loss.total, wanted, **CLOSE)


@settings(deadline=None)
@given(st.lists(st.integers(0, ROWS), max_size=4), st.booleans())
def test_sums_and_counts_add_over_any_partition(cuts: list[int], multi_label: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    wanted = functional.one_hot(targets, CLASSES).double() if multi_label else targets
    objective = Objective(multi_label, WEIGHTS, 0.0 if multi_label else 0.1)
    whole = objective(logits, wanted)
    edges = [0, *sorted(cuts), ROWS]
    parts = [objective(logits[a:b], wanted[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    assert sum(part.count for part in parts) == whole.count
    torch.testing.assert_close(torch.stack([part.total for part in parts]).sum(), whole.total, **CLOSE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_hidden(value: float) -> None:
    logits = torch.tensor([[value, 0.0, 0.0]])
    assert not math.isfinite(float(Objective()(logits, torch.tensor([1])).total))


def test_extreme_logits_stay_finite() -> None:
    """Softmax and sigmoid are formed in the log domain: logits of +-1e4 give a loss of 1e4 and not infinity."""
    logits = torch.tensor([[1e4, -1e4]])
    assert float(Objective()(logits, torch.tensor([1])).total) == pytest.approx(2e4)
    assert float(Objective(multi_label=True)(logits, torch.tensor([[0.0, 1.0]])).total) == pytest.approx(1e4)


def test_number_correct() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert num_correct(logits, torch.tensor([1, 0, 0]), multi_label=False) == 2, "of equals the first one counts"
    flags = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert num_correct(logits, flags, multi_label=True) == 2, "a row is right when all of its labels are"


def test_objective_takes_the_targets_that_the_data_room_makes() -> None:
    """float32 flags against float32 logits, and int64 classes: the types of ``LabelMap.encode``."""
    logits = torch.zeros(2, 3)
    assert Objective()(logits, torch.from_numpy(np.array([0, 2]))).count == 2
    flags = torch.from_numpy(np.zeros((2, 3), dtype=np.float32))
    assert float(Objective(multi_label=True)(logits, flags).total) == pytest.approx(2 * math.log(2))
