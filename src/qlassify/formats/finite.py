"""Whether a tensor holds NaN or infinity, found in stretches: a mask of the whole would be a quarter of it again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qlassify.errors import ModelError

STRETCH_ELEMENTS = 1 << 18


def require_finite(tensor: Tensor, *, where: object | None = None) -> None:
    """Refuse a contiguous tensor that holds NaN or infinity; whole numbers are always good.

    Sums are looked at first: one number that is not finite makes the sum so, and a sum takes an eighth of the time.

    Raises:
        ModelError: names the first such number and its place.
    """
    if not tensor.is_floating_point():
        return
    flat = tensor.view(-1)
    for start in range(0, len(flat), STRETCH_ELEMENTS):
        stretch = flat[start : start + STRETCH_ELEMENTS]
        if math.isfinite(float(stretch.sum())):
            continue
        bad = ~torch.isfinite(stretch)
        if bool(bad.any()):
            position = start + int(bad.nonzero()[0])
            raise ModelError(
                "a tensor holds a number that is not finite",
                where=where,
                got=f"{flat[position].item()} at position {position} of {len(flat)}",
                wanted="finite numbers",
                do="The file is damaged or the model diverged in training; get it again.",
            )
