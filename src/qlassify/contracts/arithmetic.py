"""The closed forms that contracts test and state, as functions of numbers, so that a test can do the sums again."""

from __future__ import annotations

import math


def optimiser_steps(rows: int, rows_per_step: int, epochs: int) -> int:
    """Optimiser steps of a run: every epoch ends with a step of what is left."""
    return -(-rows // rows_per_step) * epochs


def expected_bearing_steps(rows: float, of_class: float, rows_per_step: int, epochs: int) -> float:
    """Expected optimiser steps that hold at least one row of a class: S (1 - (1 - p)^B).

    Args:
        rows: training rows, N.
        of_class: rows of the class; p is its share.
        rows_per_step: rows of a step, B.
        epochs: passes over the rows; S is ceil(N / B) steps for each.
    """
    steps = math.ceil(rows / rows_per_step) * epochs
    absent = max(0.0, 1 - of_class / rows)
    return float(steps * (1 - absent**rows_per_step))


def accumulation_for(target: int, batch_size: int) -> int:
    """Batches per step that come nearest to ``target`` rows: at least one."""
    return max(1, round(target / batch_size))


def next_power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << max(0, count - 1).bit_length()


def accuracy_half_width(rows: int, accuracy: float = 0.9) -> float:
    """Half the width of a 95 % interval (normal approximation) of an accuracy that is measured on so many rows."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / rows)


def parameters_in_words(count: float) -> str:
    """``494_032_768`` as ``494 M``, ``7_000_000_000`` as ``7 B``: a model of half a billion is not one of 0 B."""
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def percent(share: float) -> str:
    """``0.0645`` as ``6.45 %``."""
    return f"{100 * share:.3g} %"


def megabytes(count: float) -> str:
    """Bytes in MB, powers of 1000."""
    return f"{count / 1e6:,.1f} MB"
