"""Several LoRA adapters on one model: the base product once for all tokens, then each adapter's own low-rank path.

    y = x W^T + b                                                 all T tokens
    y[i:j] += scaling_n * (x[i:j] A_n^T) B_n^T                    the tokens of adapter n, for each n

A packed batch holds texts side by side, and a text belongs to one adapter, so the tokens of an adapter are a range once
its texts stand together. The base product is nearly all of the work; N adapters in a batch add 2 N small products to
each layer. Computing a batch per adapter instead would read the base weights N times, and form them N times when they
are low-bit, also where each adapter has only a text or two.

Which range is whose does not fit through transformers' layers as an argument: a linear layer is called with x alone.
It stands in a ``Routing`` that belongs to the set and that each layer of the set looks at; it has a value per thread
and only while ``using`` is entered. Nothing is global.

LoRA, rank-stabilised LoRA and DoRA can be in a set, with any ranks and targets; a layer that only some adapters have
is computed plainly for the others. Nothing here is trained: DoRA's row lengths are formed once, when it is added.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import bias_of, dense_weight
from qlassify.methods.dora import DoraLinear
from qlassify.methods.inject import attach, replace_module
from qlassify.methods.lora import LoraLinear
from qlassify.methods.state import load_adapter, read_adapter_config


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a packed batch that belong to one adapter.

    Attributes:
        adapter: its name.
        start: first token.
        stop: one past the last.
    """

    adapter: str
    start: int
    stop: int


class Routing(threading.local):
    """Whose tokens the batch in hand holds, per thread; None between batches."""

    segments: str | tuple[Segment, ...] | None = None
    """One adapter's name for everything, or ranges that follow one another and cover the batch."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter's share of one layer.

    Attributes:
        a: (rank, in) in the type that it was saved in, as is ``b``.
        b: (out, rank).
        scaling: factor on the low-rank path.
        change: (out,) by which DoRA changes each output, relative to it; None for LoRA.
    """

    a: Tensor
    b: Tensor
    scaling: float
    change: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: LoraLinear) -> LowRank:
        """What a layer that was loaded for training or predicting adds to its base."""
        change = layer.magnitude / layer.lengths() - 1 if isinstance(layer, DoraLinear) else None
        return cls(layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling, change)

    def add_to(self, y: Tensor, x: Tensor, bias: Tensor | None) -> None:
        """Turn y (tokens, out), the base layer's output for x (tokens, in), into the adapter's, as in training."""
        y.addmm_(x @ self.a.to(x.dtype).T, self.b.to(x.dtype).T, alpha=self.scaling)
        if self.change is not None:
            y.addcmul_(y if bias is None else y - bias, self.change.to(x.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self.a, self.b) if self.change is None else (self.a, self.b, self.change)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class SeveralLinear(AdapterModule):
    """A frozen linear layer with the low-rank paths of those adapters that have one here.

    Args:
        base: the layer.
        routing: the set's.

    Attributes:
        adapters: name -> low-rank path.
    """

    mergeable: ClassVar[bool] = False

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__(base)
        self._routing = routing
        self.adapters: dict[str, LowRank] = {}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Nothing: adapters in a set are fixed."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in evaluation and without a graph.

        Raises:
            ConfigError: no adapter is chosen.
            ModelError: x is not the batch's tokens.
        """
        segments = self._segments(x.numel() // x.shape[-1])
        if not any(segment.adapter in self.adapters for segment in segments):
            plain: Tensor = self.base(x)
            return plain
        rows, bias = x.reshape(-1, x.shape[-1]), bias_of(self.base, x.dtype)
        y = nn.functional.linear(rows, dense_weight(self.base, x.dtype), bias)
        for segment in segments:
            low_rank = self.adapters.get(segment.adapter)
            if low_rank is not None:
                low_rank.add_to(y[segment.start : segment.stop], rows[segment.start : segment.stop], bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _segments(self, num_rows: int) -> tuple[Segment, ...]:
        segments = self._routing.segments
        if segments is None:
            raise ConfigError("no adapter of the set is chosen", do="Call the model inside AdapterSet.using.")
        if isinstance(segments, str):
            return (Segment(segments, 0, num_rows),)
        if segments[-1].stop != num_rows:
            # Relative positions, for one, are projected once for a whole batch: they are nobody's tokens.
            raise ModelError(
                "the architecture multiplies something else than the batch's tokens with an adapted layer",
                got=f"{num_rows} rows",
                wanted=f"{segments[-1].stop} tokens",
                do="Use one adapter per call.",
            )
        return segments


class AdapterSet:
    """Named adapters on one model.

    ``add`` and ``remove`` change the model's modules, so nothing may be computed meanwhile.

    Args:
        model: the backbone's bare model. Its weights are never changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._routing = Routing()
        self._layers: dict[str, SeveralLinear] = {}
        self._configs: dict[str, LoraConfig] = {}

    @property
    def configs(self) -> Mapping[str, LoraConfig]:
        """Name -> method of each adapter, in the order in which they were added."""
        return dict(self._configs)

    def nbytes(self, name: str) -> int:
        """Bytes of an adapter's tensors."""
        self.require(name)
        return sum(layer.adapters[name].nbytes for layer in self._layers.values() if name in layer.adapters)

    def require(self, name: str) -> None:
        """Refuse a name that no adapter has.

        Raises:
            ConfigError: it is unknown.
        """
        if name in self._configs:
            return
        near = difflib.get_close_matches(str(name), self._configs, n=1)
        raise ConfigError(
            "no adapter of this name",
            got=repr(name),
            wanted=", ".join(self._configs) or "nothing; the set is empty",
            do=f"Did you mean {near[0]}?" if near else None,
        )

    def add(self, name: str, directory: Path) -> None:
        """Load an adapter that ``save_adapter`` or PEFT wrote; on an error the set is what it was.

        Raises:
            ConfigError: the name is taken, or the method is not one of LoRA's family.
            ModelError: the adapter cannot be read, or does not fit the model.
        """
        if name in self._configs:
            raise ConfigError("an adapter of this name is there already", got=repr(name), do="Remove it first.")
        config = read_adapter_config(directory)
        if not isinstance(config, LoraConfig):
            raise ConfigError(
                "this method cannot share a model with others",
                where=directory,
                got=str(config),
                wanted="lora, qlora, dora or qdora",
                do="Load it by itself with ClassifyPipeline.load.",
            )
        with self._taken_off():
            attachment = attach(self.model, config, seed=0)
            try:
                load_adapter(attachment, directory)
                found = {
                    path: LowRank.of(layer)
                    for path, layer in attachment.layers.items()
                    if isinstance(layer, LoraLinear)
                }
            finally:
                attachment.detach()
            for path, low_rank in found.items():
                if path not in self._layers:
                    layer = SeveralLinear(self.model.get_submodule(path), self._routing)
                    self._layers[path] = layer.train(self.model.training)
                self._layers[path].adapters[name] = low_rank
            self._configs[name] = config

    def remove(self, name: str) -> None:
        """Forget an adapter; layers that no other adapter has are the model's own again.

        Raises:
            ConfigError: no adapter of this name.
        """
        self.require(name)
        with self._taken_off():
            del self._configs[name]
            for path, layer in list(self._layers.items()):
                layer.adapters.pop(name, None)
                if not layer.adapters:
                    del self._layers[path]

    def detach(self) -> None:
        """Forget all adapters; the model is then what it was."""
        for name in list(self._configs):
            self.remove(name)

    @contextlib.contextmanager
    def using(self, segments: str | tuple[Segment, ...]) -> Iterator[None]:
        """Compute with one adapter for everything, or with the adapters of a packed batch's token ranges.

        Args:
            segments: a name; or ranges that follow one another from token 0 to the batch's last.

        Raises:
            ConfigError: an adapter that is not in the set.
        """
        for name in (segments,) if isinstance(segments, str) else {segment.adapter for segment in segments}:
            self.require(name)
        before = self._routing.segments
        self._routing.segments = segments
        try:
            yield
        finally:
            self._routing.segments = before

    @contextlib.contextmanager
    def _taken_off(self) -> Iterator[None]:
        """With the model's own modules in their places; whatever layers the set has afterwards are put back."""
        for path, layer in self._layers.items():
            replace_module(self.model, path, layer.base)
        try:
            yield
        finally:
            for path, layer in self._layers.items():
                replace_module(self.model, path, layer)
