"""The learning rate as a factor in [0, 1] of its peak, a pure function of the step.

Warm-up rises linearly and reaches the peak on its last step; the first step already moves (a first factor of zero is a
step spent on nothing). Warm-up applies to every schedule, the constant one too: there, common trainers ignore it
without a word. The decay of ``linear`` and ``cosine`` ends at zero one step after the last.
"""

from __future__ import annotations

import math


def warmup_steps(total_steps: int, fraction: float) -> int:
    """Steps of warm-up: floor(fraction * total), at least one when the fraction is not zero."""
    return max(1, math.floor(fraction * total_steps)) if fraction > 0 else 0


def rate_factor(step: int, total_steps: int, *, warmup: int, schedule: str) -> float:
    """The factor for optimiser step ``step`` (0 is the first)."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    assert schedule == "linear", schedule
    return 1 - done
