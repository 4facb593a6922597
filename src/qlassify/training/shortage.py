"""Trying a computation that may run out of memory, so that nothing of a failed try is left.

A try that failed leaves three things: gradients of the micro-batches before the one that failed, the state of the
generator that dropout draws its keys from, and the tensors of the failed micro-batch, which live as long as the error
does, because its traceback holds the frames that hold them. All three are put back here, so that what is computed next
is what would have been computed had the try not been made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from qlassify.planning.out_of_memory import Shortage, first_line, is_out_of_memory
from qlassify.training.step import Stepper

Result = TypeVar("Result")


def attempt(act: Callable[[], Result], stepper: Stepper, generator: torch.Generator) -> Result | Shortage:
    """What ``act`` gives, or, if memory ran out on the way, for which micro-batch; then no trace of it is left.

    Args:
        act: computes gradients with ``stepper``.
        stepper: its gradients are forgotten if memory ran out.
        generator: of dropout; put back to where it stood if memory ran out.

    Raises:
        Exception: whatever else ``act`` raises.
    """
    state = generator.get_state()
    try:
        return act()
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        said = first_line(error)
    # Behind the handler, where the error and what its traceback held are gone.
    stepper.forget()
    generator.set_state(state)
    if stepper.classifier.backbone.device.type == "cuda":
        torch.cuda.empty_cache()  # pieces of the sizes that failed would lie beside those of the next try
    tokens, rows = stepper.computing
    return Shortage(tokens, rows, said)
