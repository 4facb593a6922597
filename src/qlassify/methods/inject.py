"""Attach a method's layers to a model and take them off again.

``attach`` replaces modules by wrappers and returns an ``Attachment``, the record of what was done: which module stood
where, and which parameters are trainable now. Parameters are known by identity from then on, never by a substring of
their name. ``detach`` puts the original module objects back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qlassify.config.method import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    ProbeConfig,
)
from qlassify.errors import ConfigError
from qlassify.methods import bitfit, bottleneck, full, ia3, prefix
from qlassify.methods.adapter_module import AdapterModule
from qlassify.methods.base_layer import linear_shape
from qlassify.methods.dora import DoraLinear
from qlassify.methods.lora import LoraLinear
from qlassify.methods.qlora import QLoraLinear, require_rank
from qlassify.methods.targets import linear_layers, match_targets
from qlassify.quant.linear import LowBitLinear
from qlassify.seeding import torch_generator

__all__ = ["Attachment", "attach", "linear_layers", "match_targets", "rate_factors", "replace_module"]


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
    config: MethodConfig
    layers: Mapping[str, AdapterModule]
    dropout_generator: torch.Generator

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> trainable parameter, in the order of the layers; the names are those of a checkpoint.

        A saved file has the same ones, but for a prefix (``methods.prefix``).
        """
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
        for path, layer in reversed(list(self.layers.items())):
            replace_module(self.model, path, layer.base)


def attach(model: nn.Module, config: MethodConfig, *, seed: int) -> Attachment:
    """Put a method's wrappers into ``model``.

    What a wrapper draws comes from a stream of its own (``init/<path>``), so it does not depend on which other modules
    are wrapped.

    Raises:
        ConfigError: something is attached already, or the method does not fit the model.
    """
    if any(isinstance(module, AdapterModule) for module in model.modules()):
        raise ConfigError("a method is attached to this model already", do="Detach it first.")
    dropout = torch_generator(seed, "dropout")
    layers = _wrappers(model, config, seed, dropout)
    for path, layer in layers.items():
        layer.train(model.training)
        replace_module(model, path, layer)
    return Attachment(model, config, layers, dropout)


def rate_factors(attachment: Attachment) -> dict[str, float]:
    """Name -> factor on the learning rate, for the parameters whose rate differs: B with LoRA+."""
    config = attachment.config
    if not isinstance(config, LoraConfig) or config.lora_plus_ratio == 1:
        return {}
    return {name: config.lora_plus_ratio for name in attachment.parameters() if name.endswith(".lora_B.weight")}


def _wrappers(
    model: nn.Module, config: MethodConfig, seed: int, dropout: torch.Generator
) -> Mapping[str, AdapterModule]:
    """Path -> wrapper, inner modules before those that contain them."""
    if isinstance(config, Ia3Config):
        return ia3.wrap(model, config)
    if isinstance(config, BottleneckConfig):
        return bottleneck.wrap(model, config, seed=seed)
    if isinstance(config, BitfitConfig):
        return bitfit.wrap(model)
    if isinstance(config, FullConfig):
        return full.wrap(model)
    if isinstance(config, ProbeConfig):
        return {}
    if isinstance(config, PrefixConfig):
        return prefix.wrap(model, config, seed=seed)
    layers: dict[str, AdapterModule] = {}
    for path in match_targets(model, config.target_modules):
        base = model.get_submodule(path)
        require_rank(config, linear_shape(base), where=f"method.rank at {path}")
        layers[path] = _wrap(base, config, init=torch_generator(seed, f"init/{path}"), dropout=dropout)
    return layers


def _wrap(base: nn.Module, config: LoraConfig, *, init: torch.Generator, dropout: torch.Generator) -> LoraLinear:
    """The wrapper that the method and the layer ask for."""
    if config.dora:
        return DoraLinear(base, config, init=init, dropout=dropout)
    if isinstance(base, LowBitLinear):
        return QLoraLinear(base, config, init=init, dropout=dropout)
    return LoraLinear(base, config, init=init, dropout=dropout)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module into a model at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
