"""Whether low-bit weights are also kept as numbers while a classifier trains."""

from __future__ import annotations

from typing import Literal

import torch

from qlassify.models.backbone import Backbone
from qlassify.planning.plan import Plan, human_bytes
from qlassify.quant.linear import low_bit_layers


def settle_dense_copies(
    backbone: Backbone,
    setting: Literal["never", "auto", "always"],
    plan: Plan,
    *,
    free_bytes: int | None,
    dtype: torch.dtype,
) -> str | None:
    """Keep low-bit weights as numbers if the settings ask for it and, with ``auto``, the plan allows it.

    Args:
        backbone: the model.
        setting: ``model.dense_copies``.
        plan: what the run needs.
        free_bytes: memory that is free where the model computes; None where the system does not say.
        dtype: of the numbers.

    Returns:
        A sentence about it; None when there was nothing to decide.
    """
    layers = low_bit_layers(backbone.model).values()
    if not layers or setting == "never":
        return None
    kept = setting == "always" or (free_bytes is not None and plan.allows_dense_copies(free_bytes))
    for low_bit in layers:
        low_bit.keep_dense(dtype if kept else None)
    size = human_bytes(plan.dense_copy_bytes)
    if kept:
        return f"The low-bit weights are also kept as numbers, {size}, to save forming them anew."
    return f"The low-bit weights are not kept as numbers ({size}): memory is too scarce."
