"""What the parts of a step take on this machine, tried out on stand-ins so that nothing of the run moves.

Forward and backward are timed on the run itself (``TrainingLoop.rehearse``). What comes after them grows with the
trained values alone: dividing, clipping and moving them, and writing them to disk. Full fine-tuning spends a quarter of
its time on these, LoRA next to none. Both are timed on a few million numbers and scaled: they are read and written from
one end to the other, so time per number is nearly the same; gigabytes go to memory and to a disk at a lower rate than
megabytes, which caches take, so of many values more are tried.

An ordinary step is tried more than once, because the first one of its length also compiles what it needs and other
programs can be in the way of any of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qlassify.errors import CheckpointError
from qlassify.training.checkpoint import Checkpoint, CheckpointStore, Progress
from qlassify.training.optimizer import Optimizer
from qlassify.training.step import clipped_

SAMPLE = 1 << 22
"""Numbers that are tried at most: 16 MiB, more than caches hold beside gradients and moments."""
SAMPLE_SHARE = 16
"""Of many values a sixteenth is tried, if that is more than ``SAMPLE``."""
NEGLIGIBLE = 1 << 20
"""Trained values below which writing them is not worth trying out."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What trying out a run's steps came to.

    Attributes:
        heaviest_tokens: of the micro-batch that takes most memory; it fits.
        tokens: of the step that was timed.
        seconds: wall time of its forward and backward.
        update_seconds: wall time of moving the trained values once.
        checkpoint_seconds: wall time of writing a checkpoint.
    """

    heaviest_tokens: int
    tokens: int
    seconds: float
    update_seconds: float = 0.0
    checkpoint_seconds: float = 0.0


def _sample(count: int) -> int:
    return min(count, max(SAMPLE, count // SAMPLE_SHARE))


ENOUGH_SECONDS = 3.0
"""Two tries that took so long are not followed by a third."""


def usual_seconds(work: Callable[[], object]) -> float:
    """Wall time of what is done again and again: the middle of three tries, of slow work the shorter of two."""
    tries: list[float] = []
    while len(tries) < 2 or (len(tries) < 3 and sum(tries) < ENOUGH_SECONDS):
        started = time.perf_counter()
        work()
        tries.append(time.perf_counter() - started)
    return sorted(tries)[(len(tries) - 1) // 2]


def update_seconds(count: int, device: torch.device) -> float:
    """Wall time of clipping ``count`` gradients and moving as many values by AdamW."""
    size = _sample(count)
    stand_in = nn.Parameter(torch.zeros(size, device=device))
    optimizer = Optimizer({"stand_in": stand_in}, {}, learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.01)
    seconds = 0.0
    for _ in range(3):  # the first one makes the moments
        stand_in.grad = torch.full_like(stand_in, 1e-3)
        started = time.perf_counter()
        clipped_([stand_in.grad], rows=2, clip_norm=1e-3)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds * count / size


def checkpoint_seconds(count: int, folder: Path | None) -> float:
    """Wall time of writing a checkpoint of ``count`` trained values; 0 where there are few.

    Args:
        count: trained values.
        folder: where checkpoints go, made if need be; the system's folder for temporary files when None. What is
            written is removed again.

    Raises:
        CheckpointError: nothing can be written there.
    """
    if count < NEGLIGIBLE:
        return 0.0
    size = _sample(count)
    tensors = {"stand_in": torch.zeros(size)}
    moments = {f"{kind}/stand_in": torch.zeros(size) for kind in ("exp_avg", "exp_avg_sq")}
    state = Checkpoint(Progress(), tensors, moments, {}, torch.zeros(8, dtype=torch.uint8))
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=folder) as scratch:
            started = time.perf_counter()
            CheckpointStore(Path(scratch)).save(state)
            return (time.perf_counter() - started) * count / size
    except OSError as error:
        raise CheckpointError(
            "cannot write a checkpoint for a trial",
            where=folder or tempfile.gettempdir(),
            got=error,
            do="Free space or fix the permissions, then start again.",
        ) from None
