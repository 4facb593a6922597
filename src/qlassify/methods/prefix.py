"""Prefix tuning: trained keys and values before those of every text, in every attention layer.

    attention(Q, [P_k; K], [P_v; V])        P_k, P_v (P, K, D) per layer, the same for every text

(Li and Liang 2021, arXiv:2101.00190; for classifiers of all sizes P-tuning v2, Liu et al. 2022, arXiv:2110.07602). What
is wrapped is the module that calls attention; its prefix travels as a keyword argument into packed attention, which
puts it before the keys and values of each text. No rotary rotation is applied to it and a text's positions begin behind
it, as with PEFT's prefix in the cache. The latter can be left (``shift_positions``): a model with absolute positions
then starts nearer to what it was and has all its positions for text, at the price of a file that PEFT cannot use.

Virtual tokens put before the text's own (prompt tuning) were the alternative: they pass through every layer and cost
its whole work, where a prefix costs P more columns of scores.

With ``reparametrize``, all layers' vectors are the output of one small network while it trains (Li and Liang, section
4.3): embedding (P, E), then E -> hidden, tanh, hidden -> 2 x K x D for each layer. The network is a means of training;
what is saved is its output, and what is loaded is plain prefix tuning.

It cannot be merged, since no weight computes a key that does not depend on the text. Nor does it start as the base
model, since any further key takes a share of the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlassify.config.method import PrefixConfig, positions_before_text
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.adapter_module import AdapterModule
from qlassify.seeding import torch_generator

TENSOR = "prompt_embeddings"
"""The one tensor of a saved prefix: (P, layers * 2 * K * D), a layer's keys before its values; the name is PEFT's."""
KEY_STD = 1.0
"""Keys start as PEFT's do: as large as a layer's own, so that each draws the attention of other queries."""
VALUE_STD = 0.02
"""Values start near zero, which keeps the hidden states near the base model's: a prefix that adds nothing only scales
what attention gives. All-MiniLM-L6-v2 on TREC with 16 tokens: pooled vectors are 42 % of their length away from the
base model's, 64 % with values as large as the keys (PEFT), 53 % with keys and values of real tokens; without shifted
positions 25 %, 45 % and 59 %. One epoch gave a validation loss of 0.33, with PEFT's start 0.38, and with keys as small
as the values 0.40."""


class PrefixVectors(nn.Module):
    """The vectors of one layer, trained themselves.

    Attributes:
        prefix_key, prefix_value: (P, K, D).
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.prefix_key = nn.Parameter(key)
        self.prefix_value = nn.Parameter(value)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter."""
        return {"prefix_key": self.prefix_key, "prefix_value": self.prefix_value}

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, K, D) each."""
        return self.prefix_key, self.prefix_value


class PrefixTrunk(nn.Module):
    """The part of the network that all layers share.

    Attributes:
        embedding: (P, E).
        down, down_bias: (hidden, E) and (hidden,).
    """

    def __init__(self, config: PrefixConfig, width: int, init: torch.Generator, like: Tensor) -> None:
        super().__init__()
        hidden, dtype = config.hidden_size or width, like.dtype
        embedding = torch.empty(config.num_virtual_tokens, width, dtype=dtype).normal_(generator=init)
        self.embedding = nn.Parameter(embedding.to(like.device))
        self.down = nn.Parameter(_uniform(hidden, width, init, like))
        self.down_bias = nn.Parameter(torch.zeros_like(self.down[:, 0]))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter."""
        return {f"trunk.{name}": parameter for name, parameter in self.named_parameters()}

    def forward(self) -> Tensor:
        """(P, hidden)."""
        return torch.tanh(functional.linear(self.embedding, self.down, self.down_bias))


class PrefixOutput(nn.Module):
    """The part of the network that gives one layer's vectors.

    The first layer's holds the trunk, so that each parameter of the network is some layer's. The trunk is computed for
    each layer anew: it is some thousandths of the layer's own work, and a result kept from one layer to the next would
    have to be known to be of this step.

    Attributes:
        up, up_bias: (2 * K * D, hidden) and (2 * K * D,).
        trunk: the shared part; None in all layers but the first.
    """

    def __init__(self, trunk: PrefixTrunk, shape: tuple[int, int], init: torch.Generator, *, holds_trunk: bool) -> None:
        super().__init__()
        self._shape = shape
        self._shared = (trunk,)  # in a tuple, so that it is registered once
        self.trunk = trunk if holds_trunk else None
        # The trunk's output is about one half in size, so that this gives the sizes that drawn vectors have.
        up = [
            torch.empty(shape[0] * shape[1], len(trunk.down), dtype=trunk.down.dtype).normal_(
                0, 2 * std * len(trunk.down) ** -0.5, generator=init
            )
            for std in (KEY_STD, VALUE_STD)
        ]
        self.up = nn.Parameter(torch.cat(up).to(trunk.down.device))
        self.up_bias = nn.Parameter(torch.zeros_like(self.up[:, 0]))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter."""
        own = {"up": self.up, "up_bias": self.up_bias}
        return own if self.trunk is None else {**self.trunk.trainable(), **own}

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, K, D) each."""
        both = functional.linear(self._shared[0](), self.up, self.up_bias)
        key, value = both.view(len(both), 2, *self._shape).unbind(dim=1)
        return key, value


class PrefixAttention(AdapterModule):
    """A module that calls packed attention, with a prefix. What it is asked for and has not, its base answers.

    Attributes:
        source: gives the vectors.
        position_shift: by how much the backbone moves the texts' positions, P or 0.
    """

    mergeable: ClassVar[bool] = False

    def __init__(self, base: nn.Module, source: PrefixVectors | PrefixOutput, position_shift: int) -> None:
        super().__init__(base)
        self.source = source
        self.position_shift = position_shift

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name in a checkpoint, below the module's path -> trainable parameter."""
        return self.source.trainable()

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix, (P, K, D) each."""
        key, value = self.source()
        return key, value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, with the prefix before each text."""
        return self.base(*args, prefix=self.vectors(), **kwargs)


def wrap(model: nn.Module, config: PrefixConfig, *, seed: int) -> dict[str, PrefixAttention]:
    """Path -> wrapper of each module that calls packed attention.

    Raises:
        ConfigError: the model runs padded, or its layers have keys and values of several shapes.
    """
    shapes = attention_shapes(model)
    shape = next(iter(shapes.values()))
    frozen = next(p for p in model.parameters() if p.is_floating_point())
    like = torch.empty(0, dtype=torch.float64 if frozen.dtype == torch.float64 else torch.float32, device=frozen.device)
    trunk: PrefixTrunk | None = None
    if config.reparametrize:
        trunk = PrefixTrunk(config, shape[0] * shape[1], torch_generator(seed, "init/prefix"), like)
    layers: dict[str, PrefixAttention] = {}
    for path in shapes:
        init = torch_generator(seed, f"init/{path}")
        source: PrefixVectors | PrefixOutput
        if trunk is None:
            source = _drawn(config.num_virtual_tokens, shape, init, like)
        else:
            source = PrefixOutput(trunk, shape, init, holds_trunk=not layers)
        layers[path] = PrefixAttention(model.get_submodule(path), source, positions_before_text(config))
    return layers


def attention_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Path -> (K, D) of each module that calls packed attention, in the model's order.

    Raises:
        ConfigError: there is none, or their keys and values have several shapes.
    """
    found = {
        path: module.key_value_shapes
        for path, module in model.named_modules()
        if hasattr(module, "key_value_shapes") and not isinstance(module, AdapterModule)
    }
    if not found:
        raise ConfigError(
            "prefix tuning works inside attention over packed texts, which this architecture does not run on",
            where="method.kind",
            got=type(model).__name__,
            do="Use another method: lora, dora, ia3, adapter, bitfit and full train every architecture.",
        )
    several = sorted({tuple(shape) for pair in found.values() for shape in pair})
    if len(several) > 1:
        raise ConfigError(
            "prefix tuning needs keys and values of one shape in all layers",
            where="method.kind",
            got=", ".join(f"{heads} heads of {dim}" for heads, dim in several),
            do="Use another method, such as lora.",
        )
    return {path: (key[0], key[1]) for path, (key, _) in found.items()}


def to_tensor(layers: Mapping[str, AdapterModule]) -> Tensor:
    """The vectors of all layers as they are saved, (P, layers * 2 * K * D) on the CPU."""
    pairs = [torch.stack(layer.vectors(), dim=1) for layer in layers.values() if isinstance(layer, PrefixAttention)]
    stacked = torch.stack(pairs, dim=1).detach().cpu()  # (P, layers, 2, K, D)
    return stacked.reshape(len(stacked), -1).contiguous()


def from_tensors(
    layers: Mapping[str, AdapterModule], tensors: Mapping[str, Tensor], where: object
) -> dict[str, Tensor]:
    """Name of a parameter -> vectors, from the tensors of a saved file.

    Raises:
        ModelError: the one tensor is missing or misshapen, there are others, or the layers have a network.
    """
    wanted = to_tensor(layers).shape
    problems = [] if TENSOR in tensors else [f"missing {TENSOR}"]
    problems += [f"unknown {name}" for name in tensors if name != TENSOR]
    if TENSOR in tensors and tensors[TENSOR].shape != wanted:
        problems.append(f"{TENSOR} is {tuple(tensors[TENSOR].shape)}, not {tuple(wanted)}")
    if problems:
        raise ModelError("the saved tensors are not those of this model", where=where, got="; ".join(problems[:4]))
    if any("prefix_key" not in layer.trainable() for layer in layers.values()):
        raise ModelError(
            "a saved prefix cannot be put into the network that made it",
            where=where,
            do="Attach the method without reparametrize; it then computes the same.",
        )
    named: dict[str, Tensor] = {}
    per_layer = tensors[TENSOR].chunk(len(layers), dim=1)
    for (path, layer), saved in zip(layers.items(), per_layer, strict=True):
        for (name, parameter), half in zip(layer.trainable().items(), saved.chunk(2, dim=1), strict=True):
            named[f"{path}.{name}"] = half.reshape(parameter.shape)
    return named


def _drawn(length: int, shape: tuple[int, int], init: torch.Generator, like: Tensor) -> PrefixVectors:
    """The vectors that a layer starts with."""
    key, value = (
        torch.empty(length, *shape, dtype=like.dtype).normal_(0, std, generator=init).to(like.device)
        for std in (KEY_STD, VALUE_STD)
    )
    return PrefixVectors(key, value)


def _uniform(rows: int, columns: int, init: torch.Generator, like: Tensor) -> Tensor:
    """(rows, columns), uniform within 1 / sqrt(columns)."""
    bound = columns**-0.5
    return torch.empty(rows, columns, dtype=like.dtype).uniform_(-bound, bound, generator=init).to(like.device)
