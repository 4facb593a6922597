"""What a method costs on a given model: parameters, bytes and arithmetic, counted from the shapes of its layers.

    trainable bytes    16 x N: fp32 values, gradients and two AdamW moments
    frozen bytes       each parameter in its own type; low-bit weights by their format
    file bytes         4 x N, and the header of the tensors' file to the byte
    forward FLOP       2 x (P + N_p) a token
    training FLOP      (4 x P + 6 x N_p) a token; 6 x P when the weights themselves are trained; 2 x P, once and not
                       in each epoch, for a probe

N are the trained parameters, P the weights of the model's linear layers, N_p those of N that are matrices and are
multiplied with. Backward costs two products where a matrix is trained (its own gradient and its input's) and one where
it is frozen. PiSSA's path has twice the rank, in products and in the file, because what it began with is subtracted;
that half is fixed, 4 x N more bytes beside the frozen weights. Of a prefix that a network makes, the network is
trained and the vectors are saved. Left out, of the model and of the method alike:
attention, also over a prefix, whose work grows with the length of a text, and everything that is done number by number
(norms, activations, IA3's factors, BitFit's shifts).

Nothing is built and no value is drawn: the model may be on the meta device, where a shape takes no memory. The
alternative, attaching the method and counting, needs the memory that one wants to know of beforehand; the tests do it
on small models and hold this file to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

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
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError
from qlassify.methods import bitfit, bottleneck, full, ia3
from qlassify.methods.base_layer import is_linear, linear_shape
from qlassify.methods.dora import MAGNITUDE
from qlassify.methods.peft_format import PREFIX
from qlassify.methods.qlora import require_rank
from qlassify.methods.targets import linear_layers, match_targets
from qlassify.quant.linear import LowBitLinear, low_bit_layers

BYTES_PER_VALUE = 4
"""Trained values, their gradients and each of AdamW's two moments are fp32."""


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What a method costs on a model. The head, which every method trains, is not in it.

    Attributes:
        method: the method in words.
        trainable_parameters: values that are trained.
        frozen_parameters: parameters of the pretrained model, which stay as they were loaded under every method.
        value_bytes: of the trained values.
        gradient_bytes: of their gradients.
        moment_bytes: of AdamW's two moments.
        frozen_bytes: of the pretrained model, and of what PiSSA began with.
        file_bytes: of ``adapter_model.safetensors``.
        forward_flop_per_token: of the products with linear layers and the method's matrices.
        train_flop_per_token: the same forward and backward.
        flop_per_pass: of one forward pass whatever its tokens: DoRA's row lengths, the network that makes a prefix.
    """

    method: str
    trainable_parameters: int
    frozen_parameters: int
    value_bytes: int
    gradient_bytes: int
    moment_bytes: int
    frozen_bytes: int
    file_bytes: int
    forward_flop_per_token: int
    train_flop_per_token: int
    flop_per_pass: int

    @property
    def trainable_bytes(self) -> int:
        """Trained values, gradients and moments together."""
        return self.value_bytes + self.gradient_bytes + self.moment_bytes

    @property
    def total_bytes(self) -> int:
        """Frozen and trainable together: what training takes before the first activation."""
        return self.frozen_bytes + self.trainable_bytes

    @property
    def trainable_percent(self) -> float:
        """Trained values in per cent of the pretrained model's parameters."""
        return 100 * self.trainable_parameters / self.frozen_parameters

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, sums included, for a file."""
        sums = ("trainable_bytes", "total_bytes", "trainable_percent")
        return {**asdict(self), **{name: getattr(self, name) for name in sums}}


@dataclass(frozen=True, slots=True)
class _Trained:
    """A tensor that a method trains.

    Attributes:
        name: in the file, below the prefix that nearly all have.
        shape: in the file.
        multiplied: whether every token is multiplied with it as a matrix.
        prefixed: whether the name has the prefix.
    """

    name: str
    shape: tuple[int, ...]
    multiplied: bool = False
    prefixed: bool = True

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def method_cost(model: nn.Module, config: MethodConfig, *, quant: QuantConfig | None = None) -> MethodCost:
    """Count what a method costs on a model.

    Args:
        model: the backbone's bare model, built or on the meta device (``models.backbone.load_skeleton``).
        config: the method.
        quant: the format that its linear layers would be stored in; those that are low-bit already keep their own.

    Raises:
        ConfigError: the method does not fit the model, or is one whose tensors are not known here.
    """
    if isinstance(config, FullConfig) and quant is not None:
        raise full.cannot_train_low_bit()
    tensors = tuple(_trained(model, config))
    linear = sum(math.prod(linear_shape(layer)) for layer in linear_layers(model).values())
    stored = sum(tensor.numel for tensor in tensors)
    # After PiSSA, half of each matrix in the file is what it began with.
    products = sum(tensor.numel for tensor in tensors if tensor.multiplied)
    fixed = products // 2 if isinstance(config, LoraConfig) and config.start == "pissa" else 0
    trained = _network_parameters(model, config) if _has_network(config) else stored - fixed
    # Where the weights themselves are trained, their products are the model's own and must not count twice.
    own = isinstance(config, FullConfig)
    beside = 0 if own else products
    passes = 6 if own else 2 if isinstance(config, ProbeConfig) else 4
    return MethodCost(
        method=str(config),
        trainable_parameters=trained,
        frozen_parameters=_num_parameters(model),
        value_bytes=BYTES_PER_VALUE * trained,
        gradient_bytes=BYTES_PER_VALUE * trained,
        moment_bytes=2 * BYTES_PER_VALUE * trained,
        frozen_bytes=_frozen_bytes(model, quant) + BYTES_PER_VALUE * fixed,
        file_bytes=_file_bytes(tensors),
        forward_flop_per_token=2 * (linear + beside),
        train_flop_per_token=passes * linear + 6 * beside,
        flop_per_pass=_flop_per_pass(model, config),
    )


def _trained(model: nn.Module, config: MethodConfig) -> Iterator[_Trained]:
    """The tensors that a method trains, with the names and shapes of its file."""
    if isinstance(config, LoraConfig):
        rank = _path_rank(config)
        for path in match_targets(model, config.target_modules):
            rows, columns = linear_shape(model.get_submodule(path))
            require_rank(config, (rows, columns), where=f"method.rank at {path}")
            yield _Trained(f"{path}.lora_A.weight", (rank, columns), multiplied=True)
            yield _Trained(f"{path}.lora_B.weight", (rows, rank), multiplied=True)
            if config.dora:
                yield _Trained(f"{path}.{MAGNITUDE}", (rows,))
    elif isinstance(config, Ia3Config):
        outputs, inputs = ia3.targets(model, config)
        yield from (_Trained(f"{path}.ia3_l", (_shape(model, path)[0], 1)) for path in outputs)
        yield from (_Trained(f"{path}.ia3_l", (1, _shape(model, path)[1])) for path in inputs)
    elif isinstance(config, BottleneckConfig):
        for path in bottleneck.targets(model, config):
            hidden, size = _shape(model, path)[0], config.size
            yield _Trained(f"{path}.adapter_down.weight", (size, hidden), multiplied=True)
            yield _Trained(f"{path}.adapter_down.bias", (size,))
            yield _Trained(f"{path}.adapter_up.weight", (hidden, size), multiplied=True)
            yield _Trained(f"{path}.adapter_up.bias", (hidden,))
    elif isinstance(config, BitfitConfig):
        for path, module in bitfit.targets(model).items():
            yield _Trained(f"{path}.bias_shift", (_width(module),))
    elif isinstance(config, FullConfig):
        for path, module in full.targets(model).items():
            for name, weight in module.named_parameters(recurse=False):
                yield _Trained(f"{path}.{name}", tuple(weight.shape), is_linear(module) and name == "weight")
    elif isinstance(config, PrefixConfig):
        # For all layers one tensor; its name in the file is bare.
        shape = (config.num_virtual_tokens, 2 * _num_layers(model) * _key_width(model))
        yield _Trained("prompt_embeddings", shape, prefixed=False)
    else:
        assert isinstance(config, ProbeConfig)


def _path_rank(config: LoraConfig) -> int:
    """Rows of the A that tokens are multiplied with, and that is saved."""
    return 2 * config.rank if config.start == "pissa" else config.rank


def _has_network(config: MethodConfig) -> bool:
    """Whether a prefix is made by a network, which is trained in its place and not saved."""
    return isinstance(config, PrefixConfig) and config.reparametrize


def _network_parameters(model: nn.Module, config: MethodConfig) -> int:
    """Embeddings, the shared layer, and a layer for each layer's keys and values (``prefix.PrefixTrunk``)."""
    assert isinstance(config, PrefixConfig)
    width = _key_width(model)
    hidden = config.hidden_size or width
    shared = config.num_virtual_tokens * width + hidden * width + hidden
    return shared + _num_layers(model) * (2 * width * hidden + 2 * width)


def _architecture(model: nn.Module) -> Any:
    architecture = getattr(model, "config", None)
    if architecture is None:
        raise ConfigError("prefix tuning is counted from an architecture's configuration", got=type(model).__name__)
    return architecture


def _num_layers(model: nn.Module) -> int:
    return int(_architecture(model).num_hidden_layers)


def _key_width(model: nn.Module) -> int:
    """Width of the keys of all heads together."""
    architecture = _architecture(model)
    heads = int(architecture.num_attention_heads)
    head_size = getattr(architecture, "head_dim", None) or architecture.hidden_size // heads
    return int((getattr(architecture, "num_key_value_heads", None) or heads) * head_size)


def _shape(model: nn.Module, path: str) -> tuple[int, int]:
    return linear_shape(model.get_submodule(path))


def _width(module: nn.Module) -> int:
    """Width of the output of a linear layer or a norm."""
    if is_linear(module):
        return linear_shape(module)[0]
    assert isinstance(module.bias, Tensor)
    return len(module.bias)


def _num_parameters(model: nn.Module) -> int:
    """All parameters of the pretrained model, tied ones once; numbers in low-bit weights are parameters too."""
    low_bit = sum(math.prod(linear_shape(layer)) for layer in low_bit_layers(model).values())
    return sum(parameter.numel() for parameter in model.parameters()) + low_bit


def _frozen_bytes(model: nn.Module, quant: QuantConfig | None) -> int:
    """Bytes of the model's parameters, with its linear layers' weights in a low-bit format where there is one."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for layer in linear_layers(model).values():
        if isinstance(layer, LowBitLinear):
            total += layer.config.storage_bytes(math.prod(linear_shape(layer)))
        elif quant is not None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            total += quant.storage_bytes(weight.numel()) - weight.numel() * weight.element_size()
    return total


def _file_bytes(tensors: Iterable[_Trained]) -> int:
    """Bytes of the safetensors file: the header's length, the header padded to 8 bytes, the values.

    The header is written as the format's own library writes it: the metadata first, then tensors of one type by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        end = position + BYTES_PER_VALUE * tensor.numel
        header[(PREFIX if tensor.prefixed else "") + tensor.name] = {
            "dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + position


def _flop_per_pass(model: nn.Module, config: MethodConfig) -> int:
    """DoRA forms W A^T, A A^T and B (A A^T) in every forward pass; a network forms the prefix of each layer."""
    if isinstance(config, PrefixConfig) and config.reparametrize:
        width = _key_width(model)
        hidden = config.hidden_size or width
        return 2 * config.num_virtual_tokens * _num_layers(model) * (width * hidden + hidden * 2 * width)
    if not isinstance(config, LoraConfig) or not config.dora:
        return 0
    shapes = (_shape(model, path) for path in match_targets(model, config.target_modules))
    rank = _path_rank(config)
    return sum(2 * rank * (rows * columns + rank * columns + rank * rows) for rows, columns in shapes)
