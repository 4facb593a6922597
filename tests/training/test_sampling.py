"""Balanced sampling by counting: classes per epoch, rows over epochs, steps by their number alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.config.run import RunConfig, TrainingConfig
from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import ConfigError
from qlassify.training.order import StepOrder
from qlassify.training.sampling import BalancedDraws
from tiny_jobs import TinyTraining

BALANCED = TrainingConfig(sampling="balanced", batch_size=5, epochs=6)


@st.composite
def rows_with_classes(draw: st.DrawFn) -> np.ndarray:
    """Class numbers of some rows, one of which is rare; numbers may be left out, as by a class without rows."""
    counts = draw(st.lists(st.integers(0, 23), min_size=1, max_size=5).filter(any))
    classes = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(classes)


def epochs_of(order: StepOrder) -> list[np.ndarray]:
    steps = [order.rows_of_step(step) for step in range(order.total_steps)]
    each = order.steps_per_epoch
    return [np.concatenate(steps[epoch * each : (epoch + 1) * each]) for epoch in range(order.epochs)]


@settings(max_examples=40)
@given(classes=rows_with_classes(), seed=st.integers(0, 9))
def test_every_class_comes_equally_often(classes: np.ndarray, seed: int) -> None:
    """Floor or ceiling of N / C times in every epoch, and the same of e N / C over the first e epochs."""
    order = StepOrder.of(len(classes), BALANCED, seed, classes)
    present = len(set(classes.tolist()))
    total: Counter[int] = Counter()
    for epoch, rows in enumerate(epochs_of(order), start=1):
        assert len(rows) == len(classes), "an epoch keeps its length"
        now = Counter(classes[rows].tolist())
        assert len(now) == min(present, len(classes))
        total += now
        for drawn, share in ((now, len(classes) / present), (total, epoch * len(classes) / present)):
            assert {int(np.floor(share)), int(np.ceil(share))} >= set(drawn.values())


@settings(max_examples=40)
@given(classes=rows_with_classes(), seed=st.integers(0, 9))
def test_no_row_comes_again_before_all_of_its_class_have_come(classes: np.ndarray, seed: int) -> None:
    """After any epoch, rows of one class differ by at most one in how often they have come."""
    order = StepOrder.of(len(classes), BALANCED, seed, classes)
    total = np.zeros(len(classes), dtype=np.int64)
    for rows in epochs_of(order):
        np.add.at(total, rows, 1)
        for number in set(classes.tolist()):
            of_class = total[classes == number]
            assert of_class.max() - of_class.min() <= 1


def test_over_enough_epochs_every_row_of_a_frequent_class_comes() -> None:
    """90 and 10 rows: 50 draws each an epoch; two epochs are 100 draws of the 90."""
    classes = np.repeat([0, 1], [90, 10])
    first, second = epochs_of(StepOrder.of(100, BALANCED.replace(epochs=2), 0, classes))
    assert Counter(classes[first].tolist()) == {0: 50, 1: 50}
    assert Counter(Counter(first[first >= 90].tolist()).values()) == {5: 10}, "each rare row five times"
    assert len(set(first[first < 90].tolist())) == 50, "no frequent row twice"
    assert len({*first.tolist(), *second.tolist()}) == 100


def test_an_epoch_is_known_without_those_before_it() -> None:
    classes = np.repeat([0, 1, 2], [40, 7, 3])
    whole = epochs_of(StepOrder.of(50, BALANCED, 3, classes))
    draws = BalancedDraws.of(classes, 3)
    for epoch in (5, 0, 3):
        assert np.array_equal(draws.rows_of_epoch(epoch), whole[epoch])
    assert not np.array_equal(BalancedDraws.of(classes, 4).rows_of_epoch(0), whole[0]), "another seed, another order"
    assert not np.array_equal(np.sort(whole[0]), np.sort(whole[1])), "epochs show different rows of the frequent class"


def test_within_an_epoch_classes_are_mixed() -> None:
    """Not class after class: the longest run of one class in 300 draws of three is far below 100."""
    classes = np.repeat([0, 1, 2], [200, 60, 40])
    drawn = classes[BalancedDraws.of(classes, 0).rows_of_epoch(0)]
    edges = np.flatnonzero(np.diff(drawn)) + 1
    longest = max(len(run) for run in np.split(drawn, edges))
    assert longest < 20  # the chance of a run of 20 is about 300 * 3^-19, below one in a million


@settings(max_examples=30)
@given(classes=rows_with_classes(), seed=st.integers(0, 9), budget=st.integers(5, 200))
def test_the_plan_sees_the_steps_that_are_taken(classes: np.ndarray, seed: int, budget: int) -> None:
    """Tokens of each step, the longest text read and the heaviest micro-batch, against a walk over all steps."""
    order = StepOrder.of(len(classes), BALANCED.replace(epochs=2), seed, classes)
    lengths = np.random.default_rng(seed).integers(1, 30, len(classes))
    encoded = Encoded.from_rows([list(range(1, length + 1)) for length in lengths])
    steps = [order.rows_of_step(step) for step in range(order.total_steps)]
    assert order.tokens_of_steps(lengths).tolist() == [int(lengths[rows].sum()) for rows in steps]
    every = [batch for rows in steps for batch in micro_batches(encoded, rows, budget)]
    heaviest = order.heaviest_batches(encoded, budget)
    assert max(int(batch.lengths.max()) for batch in heaviest) == max(int(batch.lengths.max()) for batch in every)
    if max(order.tokens_of_steps(lengths)) <= budget:
        assert max(batch.num_tokens for batch in heaviest) == max(batch.num_tokens for batch in every)


def test_shuffled_is_what_it_was() -> None:
    """Without the setting, targets change nothing."""
    config = TrainingConfig(batch_size=4, epochs=2)
    classes = np.repeat([0, 1], [20, 3])
    with_targets, without = StepOrder.of(23, config, 1, classes), StepOrder.of(23, config, 1)
    assert with_targets == without
    assert sorted(np.concatenate([without.rows_of_step(step) for step in range(6)]).tolist()) == list(range(23))


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ConfigError, match="several labels") as refused:
        StepOrder.of(4, BALANCED, 0, np.eye(4, 3, dtype=np.float32))
    assert "training.class_weights=sqrt_inverse" in str(refused.value.do)
    with pytest.raises(ConfigError, match="needs the class of each row"):
        StepOrder.of(4, BALANCED, 0)
    with pytest.raises(ConfigError, match=r"training\.sampling does not go with method\.kind=probe"):
        RunConfig.parse({"method": {"kind": "probe"}, "training": {"sampling": "balanced"}})


def test_the_targets_of_the_data_room_are_what_is_read(tiny_base: Path, rows: list[tuple[str, str]]) -> None:
    _, targets = TinyTraining(tiny_base).encode(rows[:30])
    drawn = targets[StepOrder.of(30, BALANCED, 0, targets).rows_of_step(0)]
    assert drawn.dtype == np.int64
    assert len(drawn) == 5
