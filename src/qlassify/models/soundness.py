"""Where numbers that are not finite come from.

A loss that is NaN says nothing about its origin: a weight of the base model, one that training drove out of its range,
or a sum on the way that grew too large. Looking at every weight at every step would cost more than it finds. So files
are looked at when they are read (``whole``), weights when a loss or a logit is not finite, by the name of the first bad
tensor, and what is to be written before it is written: NaN is never saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from qlassify.errors import DivergenceError
from qlassify.formats.finite import find_not_finite

LOWER_RATE = "Lower training.learning_rate"
DAMAGED = "Its file is damaged; get it again"


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first tensor that holds NaN or infinity, in words; None when all are finite."""
    for name, tensor in tensors:
        found = find_not_finite(tensor)
        if found is not None:
            return f"{name} holds {found[1]} at position {found[0]} of {tensor.numel()}"
    return None


def origin(classifier: nn.Module) -> tuple[str, str]:
    """Why a loss or a logit of a classifier is not finite, and what to do about it.

    Returns:
        Two sentences without their full stops.
    """
    frozen = _frozen_not_finite(classifier)
    if frozen is not None:
        return f"the base model's {frozen}", DAMAGED
    trained = not_finite((name, p) for name, p in classifier.named_parameters() if p.requires_grad)
    if trained is not None:
        return f"the trained {trained}", LOWER_RATE
    return "all weights are finite, so numbers grew too large on the way", f"{LOWER_RATE}, or look at these rows"


def _frozen_not_finite(model: nn.Module) -> str | None:
    """The first bad tensor among those that are not trained, scales of low-bit weights among them."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return not_finite((name, value) for name, value in model.state_dict().items() if name not in trained)


def require_finite_weights(weights: Mapping[str, Tensor], *, where: object) -> None:
    """Refuse to write weights that hold NaN or infinity.

    Raises:
        DivergenceError: names the first such tensor; nothing has been written.
    """
    found = not_finite(weights.items())
    if found is not None:
        raise DivergenceError(
            "weights that are not finite are not saved",
            where=where,
            got=found,
            do=f"{LOWER_RATE}; the last checkpoint holds finite weights.",
        )
