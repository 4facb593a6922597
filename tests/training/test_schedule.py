"""The schedule against its closed forms, step by step, for many lengths."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.training.schedule import rate_factor, warmup_steps

SCHEDULES = ("linear", "cosine", "constant")


def factors(total: int, warmup: int, schedule: str) -> list[float]:
    return [rate_factor(step, total, warmup=warmup, schedule=schedule) for step in range(total)]


@pytest.mark.parametrize(
    ("total", "fraction", "steps"),
    [(100, 0.06, 6), (100, 0.0, 0), (10, 0.06, 1), (1, 0.06, 1), (33, 0.1, 3), (1000, 0.5, 500)],
)
def test_warmup_steps(total: int, fraction: float, steps: int) -> None:
    assert warmup_steps(total, fraction) == steps


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear_and_reaches_one_on_its_last_step(schedule: str) -> None:
    """The constant schedule honours it as well."""
    assert factors(20, 4, schedule)[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_first_step_is_at_the_peak(schedule: str) -> None:
    assert factors(7, 0, schedule)[0] == 1.0


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 20), st.sampled_from(SCHEDULES))
def test_closed_forms(total: int, warmup: int, schedule: str) -> None:
    warmup = min(warmup, total)
    for step, factor in enumerate(factors(total, warmup, schedule)):
        if step < warmup:
            wanted = (step + 1) / warmup
        else:
            done = (step - warmup) / (total - warmup)
            wanted = {
                "linear": 1 - done,
                "cosine": (1 + math.cos(math.pi * done)) / 2,
                "constant": 1.0,
            }[schedule]
        # The same formula in another association: a few rounding errors of numbers below one.
        assert factor == pytest.approx(wanted, abs=1e-15)
        assert 0 < factor <= 1, "every step of the run moves"


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_ends_at_zero_one_step_after_the_last(schedule: str) -> None:
    # cos(pi) is -1 exactly in floating point, so nothing needs to be allowed for.
    assert rate_factor(50, 50, warmup=3, schedule=schedule) == 0.0
    assert rate_factor(49, 50, warmup=3, schedule=schedule) > 0.0


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(0, 10), st.sampled_from(["linear", "cosine"]))
def test_after_the_warmup_the_rate_never_rises(total: int, warmup: int, schedule: str) -> None:
    after = factors(total, min(warmup, total), schedule)[max(0, warmup - 1) :]
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_an_unknown_schedule_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="quadratic"):
        rate_factor(1, 2, warmup=0, schedule="quadratic")
