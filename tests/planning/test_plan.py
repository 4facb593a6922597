"""The plan's bytes and counts in closed form, with and without low-bit weights, and when it allows dense copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.config.quant import QuantConfig
from qlassify.planning.plan import (
    ModelShape,
    Plan,
    human_bytes,
    human_count,
    largest_micro_batch,
    make_plan,
    make_probe_plan,
)

LENGTHS = np.array([5, 9, 3, 7, 9, 2, 8], dtype=np.int64)


def shape_of(*low_bit: int, others: int = 1000, width: int = 2, quant: QuantConfig | None = None) -> ModelShape:
    """A model of ``others`` numbers beside low-bit weights of the given sizes."""
    return ModelShape(
        num_parameters=others + sum(low_bit),
        num_linear_parameters=600 + sum(low_bit),
        bytes_per_parameter=width,
        num_layers=2,
        hidden_size=8,
        feed_forward_size=16,
        low_bit=low_bit,
        quant=quant,
    )


def plan_of(shape: ModelShape, *, trainable: int = 50) -> Plan:
    return make_plan(shape, trainable_parameters=trainable, lengths=LENGTHS, epochs=3, rows_per_step=4, token_budget=20)


def test_without_low_bit_weights_every_number_has_its_bytes() -> None:
    plan = plan_of(shape_of(others=1000, width=4))
    assert (plan.frozen_bytes, plan.dense_copy_bytes) == (4000, 0)
    assert plan.trainable_bytes == 16 * 50
    # The longest four rows of a step have 9 + 9 + 8 + 7 tokens, more than the budget of 20.
    assert plan.activation_bytes == 20 * 2 * (10 * 8 + 3 * 16) * 4
    assert plan.total_bytes == plan.frozen_bytes + plan.trainable_bytes + plan.activation_bytes
    assert (plan.steps, plan.tokens) == (6, 3 * 43)
    assert plan.train_flop == 4 * (600 + 50) * 3 * 43


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig(kind="int8"), QuantConfig(kind="int4", zero_point=True)])
def test_low_bit_weights_have_their_codes_and_one_buffer(width: int, quant: QuantConfig) -> None:
    """The buffer is as large as the largest weight in the type of the products; copies are as large as all of them."""
    plan = plan_of(shape_of(6400, 9000, 6400, width=width, quant=quant))
    stored = sum(quant.storage_bytes(count) for count in (6400, 9000, 6400))
    assert plan.frozen_bytes == 1000 * width + stored + 9000 * width
    assert plan.dense_copy_bytes == (6400 + 9000 + 6400) * width
    assert plan.frozen_parameters == 1000 + 6400 + 9000 + 6400
    plain = plan_of(shape_of(others=1000 + 21_800, width=width))
    assert plan.activation_bytes == plain.activation_bytes
    assert plan.train_flop == 4 * (600 + 21_800 + 50) * 3 * 43


def test_nf4_takes_an_eighth_of_fp32() -> None:
    """0.494 B numbers in few bits, as a plan would say: 4.127 / 32 of what fp32 takes, and the buffer."""
    counts = (896 * 4864,) * 72 + (896 * 896,) * 48
    shape = shape_of(*counts, others=0, width=4, quant=QuantConfig())
    # 4 bytes for each weight's mean of scales and the last group of 256 scales, which is not full, come on top.
    assert shape.frozen_bytes / (4 * sum(counts)) == pytest.approx(4.127 / 32, rel=1e-3)
    assert shape.buffer_bytes == 4 * 896 * 4864


@given(low_bit=st.lists(st.integers(1, 10**6), max_size=4), free=st.integers(0, 10**8))
def test_copies_are_allowed_within_half_of_what_is_free(low_bit: list[int], free: int) -> None:
    plan = plan_of(shape_of(*low_bit, quant=QuantConfig()))
    needed = 2 * (plan.total_bytes + plan.dense_copy_bytes)
    assert plan.allows_dense_copies(free) is (needed <= free)
    assert plan.allows_dense_copies(needed)
    assert not plan.allows_dense_copies(needed - 1)


@pytest.mark.parametrize(
    ("lengths", "rows", "budget", "wanted"),
    [
        ([], 4, 20, 0),
        ([5, 3], 4, 20, 8),
        ([5, 9, 3, 7], 2, 20, 16),
        ([5, 9, 3, 7], 2, 10, 10),
        ([50, 9], 2, 10, 50),  # a text longer than the budget runs alone
    ],
)
def test_the_largest_micro_batch(lengths: list[int], rows: int, budget: int, wanted: int) -> None:
    found = largest_micro_batch(np.array(lengths, dtype=np.int64), rows_per_step=rows, token_budget=budget)
    assert found == wanted


def test_a_probe_passes_over_the_rows_once() -> None:
    """One layer's values at a time, no gradients; of each row a vector, twice, in float64."""
    shape = shape_of(6400, others=1000, width=2, quant=QuantConfig())
    plan = make_probe_plan(shape, head_parameters=27, lengths=LENGTHS, penalties=11, token_budget=20)
    assert (plan.steps, plan.tokens, plan.trainable_parameters) == (11, 43, 27)
    assert plan.train_flop == 2 * (600 + 6400) * 43
    assert plan.trainable_bytes == 8 * (2 * 7 * 8 + 24 * 27)
    assert plan.activation_bytes == 20 * (10 * 8 + 3 * 16) * 2
    trained = plan_of(shape)
    assert (plan.frozen_bytes, plan.dense_copy_bytes) == (trained.frozen_bytes, trained.dense_copy_bytes)
    assert plan.total_bytes == plan.frozen_bytes + plan.trainable_bytes + plan.activation_bytes


def test_the_plan_of_a_file_has_every_figure() -> None:
    plan = plan_of(shape_of(64, quant=QuantConfig()))
    assert Plan(**plan.as_dict()) == plan


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (4e9, "4.0 GB"), (7e15, "7000.0 TB")],
)
def test_bytes_in_words(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (22_713_216, "22.7 M"), (494_000_000, "494.0 M"), (7e9, "7.0 B")]
)
def test_counts_in_words(count: float, text: str) -> None:
    assert human_count(count) == text
