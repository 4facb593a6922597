"""How much memory computing takes, found by computing without values.

On torch's meta device a tensor has a shape, a type and a lifetime, and no memory. A training step on such tensors makes
and drops the same tensors as a real one, in the same order, so adding up what is alive at each moment gives the peak of
the real step exactly: saved activations, gradients, and what operations hold for a moment, for every architecture and
method there is, in a fraction of a second and before a single weight is read. The alternative, a formula such as
"about ten times the hidden size a layer", has to be kept in step with the code by hand and is wrong for the next
method.

What it cannot see is memory that operations take inside (packed operands of a matrix product) and what the allocator
keeps between uses; ``planning`` adds a margin for both.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlassify.data.packing import PackedBatch
from qlassify.models.classifier import Classifier
from qlassify.training.loss import Objective


@dataclass(slots=True)
class LiveBytes:
    """Bytes of the tensors that operations have made.

    Attributes:
        now: of those that are alive.
        peak: the most that were alive at once.
    """

    now: int = 0
    peak: int = 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of what operations return, and uncounts them when they are freed."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = live
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # A view or an in-place operation gives back an argument's storage, which may be older than the watch.
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self._live.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self._live.now += size
        self._live.peak = max(self._live.peak, self._live.now)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Count the tensors that operations make while the context is open; those from before do not count."""
    live = LiveBytes()
    with _Watch(live):
        yield live


def training_bytes(classifier: Classifier, objective: Objective, batch: PackedBatch, *, passes: int) -> int:
    """The most bytes that forward and backward hold at once, gradients of the trained parameters included.

    Args:
        classifier: on the meta device, or any other; its gradients are cleared afterwards.
        objective: the loss.
        batch: the micro-batch.
        passes: 1 if it is a whole step; 2 if gradients of an earlier micro-batch stand there already.
    """
    classifier.train()
    shape = (batch.num_rows, len(classifier.head.weight)) if objective.multi_label else (batch.num_rows,)
    dtype = torch.float32 if objective.multi_label else torch.int64
    targets = torch.zeros(shape, dtype=dtype, device=classifier.head.weight.device)
    with live_bytes() as live:
        for _ in range(passes):
            objective(classifier(batch), targets).total.backward()  # type: ignore[no-untyped-call]
    classifier.zero_grad(set_to_none=True)
    return live.peak


def prediction_bytes(classifier: Classifier, batch: PackedBatch) -> int:
    """The most bytes that a forward pass without gradients holds at once."""
    classifier.eval()
    with torch.inference_mode(), live_bytes() as live:
        classifier(batch)
    return live.peak
