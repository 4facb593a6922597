"""Whether a tensor holds NaN or infinity, found in stretches: a mask of the whole would be a quarter of it again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qlassify.errors import ModelError

STRETCH_ELEMENTS = 1 << 18


def find_not_finite(tensor: Tensor) -> tuple[int, float] | None:
    """Place (in the tensor laid out in a row) and value of the first number that is NaN or infinity; None without one.

    Whole numbers are always good. Sums are looked at first: one number that is not finite makes the sum so, and a sum
    takes an eighth of the time.
    """
    if not tensor.is_floating_point():
        return None
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), STRETCH_ELEMENTS):
        stretch = flat[start : start + STRETCH_ELEMENTS]
        if math.isfinite(float(stretch.sum())):
            continue
        bad = ~torch.isfinite(stretch)
        if bool(bad.any()):
            position = int(bad.nonzero()[0])
            return start + position, stretch[position].item()
    return None


def require_finite(tensor: Tensor, *, where: object | None = None) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Raises:
        ModelError: names the first such number and its place.
    """
    found = find_not_finite(tensor)
    if found is not None:
        position, value = found
        raise ModelError(
            "a tensor holds a number that is not finite",
            where=where,
            got=f"{value} at position {position} of {tensor.numel()}",
            wanted="finite numbers",
            do="The file is damaged or the model diverged in training; get it again.",
        )
