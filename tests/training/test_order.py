"""The steps of a run against their definition, walked step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.seeding import numpy_generator
from qlassify.training import order as module
from qlassify.training.order import StepOrder

orders = st.builds(
    StepOrder,
    num_rows=st.integers(1, 40),
    rows_per_step=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)


def rows_of(order: StepOrder) -> tuple[Encoded, np.ndarray]:
    lengths = np.random.default_rng(order.seed).integers(1, 30, order.num_rows)
    return Encoded.from_rows([list(range(1, length + 1)) for length in lengths]), lengths


@given(order=orders)
def test_tokens_of_steps_are_those_of_their_rows(order: StepOrder) -> None:
    _, lengths = rows_of(order)
    steps = [order.rows_of_step(step) for step in range(order.total_steps)]
    assert order.tokens_of_steps(lengths).tolist() == [int(lengths[rows].sum()) for rows in steps]
    for epoch in range(order.epochs):
        part = steps[epoch * order.steps_per_epoch : (epoch + 1) * order.steps_per_epoch]
        assert sorted(np.concatenate(part).tolist()) == list(range(order.num_rows))


@given(order=orders, budget=st.integers(5, 200))
def test_no_micro_batch_of_the_run_is_heavier(order: StepOrder, budget: int) -> None:
    """Among all micro-batches of all steps; with a budget, any other step's largest may be a little larger."""
    encoded, lengths = rows_of(order)
    heaviest = order.heaviest_batches(encoded, budget)
    every = [
        batch for step in range(order.total_steps) for batch in micro_batches(encoded, order.rows_of_step(step), budget)
    ]
    assert max(int(batch.lengths.max()) for batch in heaviest) == int(lengths.max())
    if max(order.tokens_of_steps(lengths)) <= budget:
        assert max(batch.num_tokens for batch in heaviest) == max(batch.num_tokens for batch in every)
    assert all(batch.num_tokens <= max(budget, int(lengths.max())) for batch in heaviest)


@given(order=orders)
def test_the_typical_step_is_the_nearest_to_the_mean(order: StepOrder) -> None:
    _, lengths = rows_of(order)
    tokens = order.tokens_of_steps(lengths)
    distance = np.abs(tokens - tokens.mean())
    assert distance[order.typical_step(lengths)] == distance.min()


def test_an_epoch_is_drawn_once_for_all_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counting(seed: int, name: str, epoch: int) -> np.random.Generator:
        drawn.append(epoch)
        return numpy_generator(seed, name, epoch)

    monkeypatch.setattr(module, "numpy_generator", counting)
    order = StepOrder(num_rows=1000, rows_per_step=4, epochs=2, seed=123456)
    steps = [order.rows_of_step(step) for step in range(order.total_steps)]
    assert drawn == [0, 1]
    for epoch in (0, 1):
        wanted = numpy_generator(123456, "shuffle", epoch).permutation(1000)
        assert np.array_equal(np.concatenate(steps[250 * epoch : 250 * (epoch + 1)]), wanted)
    with pytest.raises(ValueError, match="read-only"):
        steps[0][0] = 7
