"""The plan's bytes and counts in closed form, with and without low-bit weights, and when it allows dense copies."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError
from qlassify.planning.plan import (
    Activations,
    ModelShape,
    Plan,
    _memory,
    human_bytes,
    human_count,
    human_seconds,
    make_plan,
    make_probe_plan,
    parse_bytes,
    summarise,
)

RUNTIME = 777
ACTIVATIONS = Activations(heaviest_tokens=20, training_bytes=5200, prediction_bytes=1100)


def shape_of(*low_bit: int, others: int = 1000, width: int = 2, quant: QuantConfig | None = None) -> ModelShape:
    """A model of ``others`` numbers beside low-bit weights of the given sizes."""
    return ModelShape(
        num_parameters=others + sum(low_bit),
        num_linear_parameters=600 + sum(low_bit),
        bytes_per_parameter=width,
        hidden_size=8,
        low_bit=low_bit,
        quant=quant,
    )


def plan_of(
    shape: ModelShape,
    *,
    trainable: int = 50,
    activations: Activations = ACTIVATIONS,
    fixed_bytes: int = 0,
    evaluations: int = 3,
) -> Plan:
    return make_plan(
        shape,
        trainable_parameters=trainable,
        activations=activations,
        tokens_per_epoch=43,
        epochs=3,
        steps=6,
        evaluations=evaluations,
        runtime_bytes=RUNTIME,
        fixed_bytes=fixed_bytes,
    )


def test_the_only_evaluation_is_behind_the_last_step() -> None:
    """The copy that it makes of the values takes the place of their gradients."""
    once, often = (plan_of(shape_of(others=1000, width=4), evaluations=number).memory for number in (1, 2))
    assert (once.best_bytes, often.best_bytes) == (0, 4 * 50)
    assert often.total_bytes - once.total_bytes == 4 * 50


@pytest.mark.parametrize(
    ("activations", "kept"), [(5000, 5000), (500_000_000, 500_000_000), (3_000_000_000, 1_000_000_000)]
)
def test_what_the_allocator_keeps(activations: int, kept: int) -> None:
    """As much again up to half a gigabyte, then 0.4 GB and a fifth of it."""
    memory = _memory(
        shape_of(others=1000, width=4), activation_bytes=activations, runtime_bytes=0, dense_bytes=0, trained_bytes=0,
        gradient_bytes=0, optimizer_bytes=0, best_bytes=0,
    )  # fmt: skip
    assert memory.allocator_bytes == kept


def test_without_low_bit_weights_every_number_has_its_bytes() -> None:
    plan = plan_of(shape_of(others=1000, width=4), fixed_bytes=60)
    memory = plan.memory
    assert (memory.dense_bytes, memory.low_bit_bytes, memory.buffer_bytes) == (4060, 0, 0)
    assert (memory.trained_bytes, memory.gradient_bytes, memory.optimizer_bytes, memory.best_bytes) == (
        4 * 50,
        4 * 50,
        8 * 50,
        4 * 50,
    )
    # The rehearsal counts the gradients, which have a term of their own.
    assert memory.activation_bytes == 5200 - 4 * 50
    assert memory.allocator_bytes == 5000
    assert memory.runtime_bytes == RUNTIME
    assert plan.total_bytes == 4060 + 20 * 50 + 2 * 5000 + RUNTIME
    assert (plan.steps, plan.epochs, plan.tokens, plan.heaviest_tokens) == (6, 3, 3 * 43, 20)
    assert (plan.trainable_parameters, plan.frozen_parameters, plan.dense_copy_bytes) == (50, 1000, 0)
    assert plan.train_flop == 4 * (600 + 50) * 3 * 43


@pytest.mark.parametrize("prediction_bytes", [4999, 5001, 90_000])
def test_activations_are_those_of_training_or_of_scoring(prediction_bytes: int) -> None:
    """The held-out rows are scored while no gradient is there: whichever is more, not both."""
    plan = plan_of(shape_of(), activations=replace(ACTIVATIONS, prediction_bytes=prediction_bytes))
    assert plan.memory.activation_bytes == max(5000, prediction_bytes)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig(kind="int8"), QuantConfig(kind="int4", zero_point=True)])
def test_low_bit_weights_have_their_codes_and_one_buffer(width: int, quant: QuantConfig) -> None:
    """The buffer is as large as the largest weight in the type of the products; copies are as large as all of them."""
    plan = plan_of(shape_of(6400, 9000, 6400, width=width, quant=quant))
    stored = sum(quant.storage_bytes(count) for count in (6400, 9000, 6400))
    memory = plan.memory
    assert (memory.dense_bytes, memory.low_bit_bytes, memory.buffer_bytes) == (1000 * width, stored, 9000 * width)
    assert plan.dense_copy_bytes == (6400 + 9000 + 6400) * width
    assert plan.frozen_parameters == 1000 + 6400 + 9000 + 6400
    plain = plan_of(shape_of(others=1000 + 21_800, width=width))
    assert memory.activation_bytes == plain.memory.activation_bytes
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


def test_a_probe_passes_over_the_rows_once() -> None:
    """What a prediction holds, no gradients; of each row a vector, twice, in float64."""
    shape = shape_of(6400, others=1000, width=2, quant=QuantConfig())
    plan = make_probe_plan(
        shape,
        head_parameters=27,
        activations=Activations(20, 0, 1100),
        rows=7,
        tokens=43,
        penalties=11,
        runtime_bytes=RUNTIME,
    )
    memory, trained = plan.memory, plan_of(shape).memory
    assert (plan.steps, plan.epochs, plan.tokens, plan.trainable_parameters) == (11, 1, 43, 27)
    assert plan.train_flop == 2 * (600 + 6400) * 43
    assert (memory.trained_bytes, memory.gradient_bytes, memory.best_bytes) == (4 * 27, 0, 4 * 27)
    assert memory.optimizer_bytes == 8 * (2 * 7 * 8 + 24 * 27)
    assert memory.activation_bytes == 1100
    for name in ("runtime_bytes", "dense_bytes", "low_bit_bytes", "buffer_bytes"):
        assert getattr(memory, name) == getattr(trained, name)
    assert plan.dense_copy_bytes == plan_of(shape).dense_copy_bytes


def test_the_plan_of_a_file_has_every_figure() -> None:
    plan = plan_of(shape_of(64, quant=QuantConfig()))
    record = json.loads(json.dumps(plan.as_dict()))
    memory = record.pop("memory")
    assert memory.pop("total_bytes") == plan.total_bytes == sum(memory.values())
    assert replace(plan.memory, **memory) == plan.memory
    assert memory.keys() == plan.memory.as_dict().keys() - {"total_bytes"}
    assert Plan(**record, memory=plan.memory) == plan


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.14, "3.1 s"),
        (9.96, "10.0 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (134, "2 min 14 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3600 * 30 + 61, "30 h 1 min"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("512", 512),
        ("512B", 512),
        ("2e9", 2 * 10**9),
        ("500MB", 5 * 10**8),
        ("500 mb", 5 * 10**8),
        ("1.5k", 1500),
        ("8GiB", 8 * 2**30),
        (" 8 gib ", 8 * 2**30),
        ("8Gi", 8 * 2**30),
        ("0.5TiB", 2**39),
        ("3T", 3 * 10**12),
        ("7KiB", 7 * 2**10),
        ("7MiB", 7 * 2**20),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "eight", "8X", "8 i", "8iB", "-1GB", "1.2.3", ".", "0", "0.0GB", "1e999", "8 G B"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="8GiB") as caught:
        parse_bytes(text)
    assert caught.value.got == text


@given(count=st.integers(1, 10**15), unit=st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_sizes_have_their_units(count: int, unit: str) -> None:
    """Powers of 1000, of 1024 with an i; exact as long as a float holds the number exactly."""
    power = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}[unit.removesuffix("i")]
    factor = (1024 if unit.endswith("i") else 1000) ** power
    # Beyond 2**53 the product is the nearest float: half a unit in the last place is 2**-53 of it.
    assert parse_bytes(f"{count}{unit}B") == pytest.approx(count * factor, rel=2**-52)


def test_lengths_in_a_few_figures() -> None:
    """Percentiles are lengths that occur: of 1 to 100, the 50th is 50 and the 99th 99."""
    assert summarise(range(1, 101)) == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert summarise([]) == {}
