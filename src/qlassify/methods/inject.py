"""Attach a method's layers to a model and take them off again.

``attach`` replaces modules by wrappers and returns an ``Attachment``, the record of what was done: which module stood
where, and which parameters are trainable now. Parameters are known by identity from then on, never by a substring of
their name. ``detach`` puts the original module objects back.

Targets are ``all-linear`` or names. A name matches a module whose dotted path is that name or ends with it at a dot:
``query`` and ``attention.self.query`` both match ``encoder.layer.0.attention.self.query``. A name that matches nothing
is an error that lists what exists: a silently unmatched target is a model that does not learn.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qlassify.config.method import ALL_LINEAR, LoraConfig
from qlassify.errors import ConfigError
from qlassify.methods.base_layer import is_linear, linear_shape
from qlassify.methods.dora import DoraLinear
from qlassify.methods.lora import LoraLinear
from qlassify.methods.qlora import QLoraLinear, require_rank
from qlassify.quant.linear import LowBitLinear
from qlassify.seeding import torch_generator


@dataclass(frozen=True, slots=True)
class Attachment:
    """A method attached to a model.

    Attributes:
        model: the model it is attached to.
        config: the method's configuration.
        layers: dotted path of each wrapped module -> its wrapper.
        dropout_generator: the stream of dropout masks, part of a run's state.
    """

    model: nn.Module
    config: LoraConfig
    layers: Mapping[str, LoraLinear]
    dropout_generator: torch.Generator

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> trainable parameter, in the order of the layers; the names are those of the saved file."""
        return {
            f"{path}.{name}": parameter
            for path, layer in self.layers.items()
            for name, parameter in layer.trainable().items()
        }

    def num_parameters(self) -> int:
        """Trainable parameters, counted on the built layers."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def detach(self) -> None:
        """Put the original modules back; the model is then what it was before ``attach``."""
        for path, layer in self.layers.items():
            _replace(self.model, path, layer.base)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted path -> linear layer of a model, in the model's order."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


def match_targets(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """The paths of the linear layers that ``targets`` name.

    Raises:
        ConfigError: a target matches no linear layer, or something is attached already.
    """
    layers = linear_layers(model)
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise ConfigError("a method is attached to this model already", do="Detach it first.")
    if targets == ALL_LINEAR:
        return list(layers)
    names = (targets,) if isinstance(targets, str) else targets
    chosen: set[str] = set()
    for name in names:
        matched = {path for path in layers if path == name or path.endswith(f".{name}")}
        if not matched:
            known = sorted({path.rsplit(".", 1)[-1] for path in layers})
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                "the target matches no linear layer of the backbone",
                where="method.target_modules",
                got=repr(name),
                wanted=f"all-linear, or any of {', '.join(known)}",
                do=f"Did you mean {close[0]}?" if close else "The head is always trained and is never a target.",
            )
        chosen |= matched
    return [path for path in layers if path in chosen]


def attach(model: nn.Module, config: LoraConfig, *, seed: int) -> Attachment:
    """Wrap the target layers of ``model`` in place.

    Each layer's A is drawn from a stream of its own (``init/<path>``), so it does not depend on which other layers
    are wrapped.

    Raises:
        ConfigError: a target matches nothing, or the rank exceeds a target's smaller side.
    """
    paths = match_targets(model, config.target_modules)
    dropout = torch_generator(seed, "dropout")
    layers: dict[str, LoraLinear] = {}
    for path in paths:
        base = model.get_submodule(path)
        require_rank(config, linear_shape(base), where=f"method.rank at {path}")
        layers[path] = _wrap(base, config, init=torch_generator(seed, f"init/{path}"), dropout=dropout)
    for path, layer in layers.items():
        layer.train(model.training)
        _replace(model, path, layer)
    return Attachment(model, config, layers, dropout)


def _wrap(base: nn.Module, config: LoraConfig, *, init: torch.Generator, dropout: torch.Generator) -> LoraLinear:
    """The wrapper that the method and the layer ask for."""
    if config.dora:
        return DoraLinear(base, config, init=init, dropout=dropout)
    if isinstance(base, LowBitLinear):
        return QLoraLinear(base, config, init=init, dropout=dropout)
    return LoraLinear(base, config, init=init, dropout=dropout)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
