"""What a method costs, by its closed form, against what is built, saved and computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conformance.worlds import METHODS
from qlassify.config.fine_tune_method import FineTuneMethod
from qlassify.config.method import BottleneckConfig, FullConfig, LoraConfig, MethodConfig, PrefixConfig, ProbeConfig
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.cost import MethodCost, method_cost
from qlassify.methods.inject import attach
from qlassify.methods.state import WEIGHTS_FILE, save_adapter
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.packed_layout import PackedLayout
from qlassify.training.optimizer import Optimizer
from reference.products import ProductCounter
from tiny_models import FAMILIES

FORMATS = {"nf4": QuantConfig(), "int8": QuantConfig(kind="int8")}


CONFIGS: dict[str, MethodConfig] = {name: method.config for name, method in METHODS.items()} | {
    "pissa": LoraConfig(rank=4, alpha=8.0, start="pissa"),
    "pissa with dora": LoraConfig(kind="dora", rank=4, alpha=8.0, start="pissa"),
    "probe": ProbeConfig(),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "method", ["lora", "pissa", "pissa with dora", "dora", "ia3", "houlsby", "pfeiffer", "bitfit", "full", "probe"]
)
def test_counted_on_shapes_as_on_the_built_model(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, method: str
) -> None:
    config = CONFIGS[method]
    cost = method_cost(load_skeleton(tiny_directories[name]), config)
    backbone = load_backbone(tiny_directories[name])
    assert method_cost(backbone.model, config) == cost
    assert cost.frozen_parameters == backbone.num_parameters
    bare = stored_bytes(backbone.model)
    attachment = attach(backbone.model, config, seed=0)
    starts = (tensor for path, tensor in backbone.model.named_buffers() if ".start_" in path)
    assert cost.frozen_bytes == bare + sum(tensor.numel() * tensor.element_size() for tensor in starts)
    assert cost.trainable_parameters == attachment.num_parameters()
    save_adapter(attachment, tmp_path, base_model="tiny")
    assert cost.file_bytes == (tmp_path / WEIGHTS_FILE).stat().st_size


@pytest.mark.parametrize("name", FAMILIES)
def test_a_skeleton_has_every_shape_and_no_memory(tiny_directories: dict[str, Path], name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        bones = dict(load_skeleton(tiny_directories[name], dtype).named_parameters())
        built = dict(load_backbone(tiny_directories[name], dtype).model.named_parameters())
        assert {key: (p.shape, p.dtype) for key, p in bones.items()} == {
            key: (p.shape, p.dtype) for key, p in built.items()
        }
        assert all(p.is_meta and not p.requires_grad for p in bones.values())


PREFIXES = {
    "vectors": FineTuneMethod.prefix(3).to_config(),
    "network": PrefixConfig(num_virtual_tokens=3, reparametrize=True),
    "narrow network": PrefixConfig(num_virtual_tokens=3, reparametrize=True, hidden_size=24),
}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.packed])
@pytest.mark.parametrize("kind", PREFIXES)
def test_prefixes_are_counted_on_shapes(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    config = PREFIXES[kind]
    backbone = load_backbone(tiny_directories[name])
    cost = method_cost(load_skeleton(tiny_directories[name]), config)
    assert cost == method_cost(backbone.model, config)
    attachment = attach(backbone.model, config, seed=0)
    assert cost.trainable_parameters == attachment.num_parameters()
    save_adapter(attachment, tmp_path, base_model="tiny")
    assert cost.file_bytes == (tmp_path / WEIGHTS_FILE).stat().st_size


def stored_bytes(model: nn.Module) -> int:
    """Bytes of every storage that parameters and low-bit codes lie in; other buffers are no weights."""
    named = [*model.named_parameters(), *(item for item in model.named_buffers() if ".weight_" in item[0])]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in named}
    return sum(storages.values())


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_frozen_bytes_of_low_bit_weights(
    tiny_directories: dict[str, Path], name: str, kind: str, dtype: torch.dtype
) -> None:
    config, quant = METHODS["lora"].config, FORMATS[kind]
    cost = method_cost(load_skeleton(tiny_directories[name], dtype), config, quant=quant)
    backbone = load_backbone(tiny_directories[name], dtype, quant=quant)
    assert cost.frozen_bytes == stored_bytes(backbone.model)
    assert method_cost(backbone.model, config) == cost
    assert cost.frozen_parameters == backbone.num_parameters


def test_training_state_is_what_the_optimiser_holds(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    config = METHODS["dora"].config
    cost = method_cost(backbone.model, config)
    parameters = attach(backbone.model, config, seed=0).parameters()
    optimizer = Optimizer(parameters, {}, learning_rate=1e-3, head_learning_rate=None, weight_decay=0.0)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    values = sum(p.numel() * p.element_size() for p in parameters.values())
    # Beside the moments, an optimiser has a counter of one number for each parameter.
    moments = sum(t.numel() * t.element_size() for t in optimizer.state_tensors().values() if t.dim())
    assert (cost.value_bytes, cost.gradient_bytes, cost.moment_bytes) == (values, values, moments)
    assert cost.trainable_bytes == 16 * cost.trainable_parameters
    assert cost.total_bytes == cost.frozen_bytes + cost.trainable_bytes


def count_flop(backbone: Backbone, tokens: int, *, train: bool) -> int:
    """Operations of one pass over a text of so many tokens."""
    layout = PackedLayout(np.array([tokens], dtype=np.int64))
    ids = torch.arange(2, 2 + tokens)
    # With a gradient of the embeddings, every layer needs its input's: the first ones would go without.
    backbone.model.get_input_embeddings().weight.requires_grad_(train)
    with ProductCounter() as counter, torch.set_grad_enabled(train):
        hidden = backbone(ids, torch.arange(tokens), None, layout)
        if train:
            hidden.sum().backward()
    return counter.flop


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["bert", "gpt2", "gemma2"])
@pytest.mark.parametrize("method", ["lora", "pissa", "pissa with dora", "dora", "ia3", "houlsby", "bitfit", "full"])
def test_flop_as_torch_counts_them(tiny_directories: dict[str, Path], name: str, method: str) -> None:
    config = CONFIGS[method]
    backbone = load_backbone(tiny_directories[name])
    cost = method_cost(backbone.model, config)
    attach(backbone.model, config, seed=0)
    for tokens in (5, 11):
        assert count_flop(backbone, tokens, train=False) == tokens * cost.forward_flop_per_token + cost.flop_per_pass
        assert count_flop(backbone, tokens, train=True) == tokens * cost.train_flop_per_token + cost.flop_per_pass


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", PREFIXES)
def test_flop_of_a_prefix_are_those_of_the_network_that_makes_it(tiny_directories: dict[str, Path], kind: str) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    cost = method_cost(backbone.model, PREFIXES[kind])
    attach(backbone.model, PREFIXES[kind], seed=0)
    for tokens in (5, 11):
        assert count_flop(backbone, tokens, train=False) == tokens * cost.forward_flop_per_token + cost.flop_per_pass
    assert (cost.flop_per_pass > 0) == (kind != "vectors")


@settings(max_examples=20)
@given(rank=st.integers(1, 63), size=st.integers(1, 300))
def test_more_rank_or_width_costs_more_of_everything_but_the_base(rank: int, size: int) -> None:
    model = nn.ModuleDict({"query": nn.Linear(96, 64, device="meta"), "output": nn.Linear(64, 96, device="meta")})
    pairs = [
        (LoraConfig(rank=rank), LoraConfig(rank=rank + 1)),
        (LoraConfig(kind="dora", rank=rank), LoraConfig(kind="dora", rank=rank + 1)),
        (
            BottleneckConfig(size=size, target_modules=("output",)),
            BottleneckConfig(size=size + 1, target_modules=("output",)),
        ),
    ]
    grows = ("trainable_parameters", "trainable_bytes", "file_bytes", "forward_flop_per_token", "train_flop_per_token")
    for less, more in pairs:
        a, b = method_cost(model, less), method_cost(model, more)
        assert all(getattr(a, name) < getattr(b, name) for name in grows)
        assert a.frozen_bytes == b.frozen_bytes == 4 * (96 * 64 * 2 + 64 + 96)
    low, plain = method_cost(model, LoraConfig(rank=rank), quant=QuantConfig()), method_cost(model, pairs[0][0])
    assert low.frozen_bytes < plain.frozen_bytes
    assert low.trainable_bytes == plain.trainable_bytes
    assert low.train_flop_per_token == plain.train_flop_per_token


def test_targets_are_respected(tiny_directories: dict[str, Path]) -> None:
    """Rank 4 on the queries and values of 4 layers of width 64."""
    model = load_skeleton(tiny_directories["bert"])
    cost = method_cost(model, LoraConfig(rank=4, target_modules=("query", "value")))
    assert cost.trainable_parameters == 8 * 4 * (64 + 64)
    assert cost.trainable_percent == 100 * cost.trainable_parameters / cost.frozen_parameters


def test_a_probe_trains_nothing_and_reads_each_text_once(tiny_directories: dict[str, Path]) -> None:
    model = load_skeleton(tiny_directories["bert"])
    probe, lora = method_cost(model, ProbeConfig()), method_cost(model, LoraConfig(rank=1))
    assert (probe.trainable_parameters, probe.trainable_bytes) == (0, 0)
    assert probe.train_flop_per_token == probe.forward_flop_per_token < lora.forward_flop_per_token
    assert probe.frozen_bytes == probe.total_bytes == lora.frozen_bytes


def test_what_does_not_fit_is_refused(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    model = load_skeleton(tiny_directories["bert"])
    with pytest.raises(ConfigError, match="low-bit weights cannot be trained"):
        method_cost(model, FullConfig(), quant=QuantConfig())
    with pytest.raises(ConfigError, match="rank exceeds"):
        method_cost(model, LoraConfig(rank=65))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        method_cost(model, LoraConfig(target_modules=("quary",)))
    with pytest.raises(ModelError, match="cannot read the model's configuration"):
        load_skeleton(tmp_path)


def test_as_data(tiny_directories: dict[str, Path]) -> None:
    cost = method_cost(load_skeleton(tiny_directories["bert"]), FineTuneMethod.lora(4).to_config())
    data = json.loads(json.dumps(cost.as_dict()))
    assert data.pop("trainable_bytes") == cost.trainable_bytes
    assert data.pop("total_bytes") == cost.total_bytes
    assert data.pop("trainable_percent") == cost.trainable_percent
    assert MethodCost(**data) == cost
