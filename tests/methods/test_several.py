"""Several adapters on one model: each text gets its own adapter's result, and the base product is formed once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qlassify.config.method import BitfitConfig, Ia3Config, LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.data.packing import PackedBatch, pack_in_order
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.base_layer import dense_weight
from qlassify.methods.cost import method_cost
from qlassify.methods.inject import attach
from qlassify.methods.several import AdapterSet, Segment, SeveralLinear
from qlassify.methods.state import WEIGHTS_FILE, load_adapter, read_adapter_config, save_adapter
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.classifier import hidden_states
from reference.products import ProductCounter
from tiny_models import FAMILIES, random_texts

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    "plain": LoraConfig(rank=4, alpha=8.0),
    "narrow": LoraConfig(rank=7, alpha=3.0, target_modules=("o_proj",)),
    "stable": LoraConfig(rank=2, alpha=8.0, rslora=True),
    "turned": LoraConfig(kind="dora", rank=3, alpha=6.0),
}
TARGETS = {
    "bert": "value",
    "roberta": "value",
    "distilbert": "v_lin",
    "gpt2": "c_fc",
    "deberta": "value_proj",
    "modernbert": "Wqkv",
    "phi3": "qkv_proj",
}


def config_of(name: str, family: str) -> LoraConfig:
    """``narrow`` is on one layer of each block, by the name it has in the family."""
    config = CONFIGS[name]
    return config.replace(target_modules=(TARGETS.get(family, "o_proj"),)) if name == "narrow" else config


def save_random(backbone: Backbone, config: LoraConfig, directory: Path, *, seed: int) -> Path:
    """An adapter whose every value is random."""
    attachment = attach(backbone.model, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    directory.mkdir(parents=True, exist_ok=True)
    save_adapter(attachment, directory, base_model="tiny")
    attachment.detach()
    return directory


def save_all(backbone: Backbone, family: str, root: Path) -> dict[str, Path]:
    return {
        name: save_random(backbone, config_of(name, family), root / name, seed=seed)
        for seed, name in enumerate(CONFIGS, start=1)
    }


@torch.no_grad()
def alone(backbone: Backbone, directory: Path, batch: PackedBatch) -> Tensor:
    """(T, H) hidden states with one adapter, attached as for training."""
    attachment = attach(backbone.model, read_adapter_config(directory), seed=0)
    load_adapter(attachment, directory)
    backbone.eval()
    try:
        return hidden_states(backbone, batch)[0]
    finally:
        attachment.detach()


def batch_of(family: str, *, seed: int = 3) -> tuple[PackedBatch, tuple[Segment, ...]]:
    """Eight texts, two of each adapter, side by side."""
    texts = random_texts((9, 4, 12, 6, 7, 3, 5, 8), FAMILIES[family], seed=seed)
    batch = pack_in_order(texts, range(8))
    ends = np.cumsum(batch.lengths)
    bounds = [0, *ends[1::2].tolist()]
    return batch, tuple(Segment(name, bounds[i], bounds[i + 1]) for i, name in enumerate(CONFIGS))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.packed])
def test_a_mixed_batch_is_each_adapter_s_own(tiny_directories: dict[str, Path], tmp_path: Path, name: str) -> None:
    backbone = load_backbone(tiny_directories[name])
    directories = save_all(backbone, name, tmp_path)
    batch, segments = batch_of(name)
    wanted = {adapter: alone(backbone, path, batch) for adapter, path in directories.items()}
    adapters = AdapterSet(backbone.model)
    for adapter, path in directories.items():
        adapters.add(adapter, path)
    with torch.no_grad(), adapters.using(segments):
        found = hidden_states(backbone, batch)[0]
    scale = float(found.abs().max())
    for segment in segments:
        part = slice(segment.start, segment.stop)
        # The same products in fp32 over the same tokens; the low-rank ones have fewer rows and may be summed in
        # another order, at most some tens of units in the last place after four layers.
        torch.testing.assert_close(found[part], wanted[segment.adapter][part], rtol=1e-5, atol=1e-5 * scale)
    # The adapters are different enough that a text under the wrong one would show.
    assert (wanted["plain"] - wanted["stable"]).abs().max() > 1e-2 * scale
    assert (wanted["narrow"] - wanted["turned"]).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2", "deberta"])
@pytest.mark.parametrize("quant", [None, QuantConfig()], ids=["fp32", "nf4"])
def test_one_adapter_for_all_is_bitwise_that_adapter(
    tiny_directories: dict[str, Path], tmp_path: Path, family: str, quant: QuantConfig | None
) -> None:
    backbone = load_backbone(tiny_directories[family], quant=quant)
    directories = save_all(backbone, family, tmp_path)
    batch, _ = batch_of(family)
    wanted = {adapter: alone(backbone, path, batch) for adapter, path in directories.items()}
    adapters = AdapterSet(backbone.model)
    for adapter, path in directories.items():
        adapters.add(adapter, path)
    for adapter in (*directories, *directories):
        with torch.no_grad(), adapters.using(adapter):
            assert torch.equal(hidden_states(backbone, batch)[0], wanted[adapter])


def test_the_base_product_is_formed_once(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """The batch costs each token's base products and its own adapter's, and nothing for the other adapters."""
    backbone = load_backbone(tiny_directories["qwen2"])
    adapters = AdapterSet(backbone.model)
    for adapter, path in save_all(backbone, "qwen2", tmp_path).items():
        adapters.add(adapter, path)
    batch, segments = batch_of("qwen2")
    with ProductCounter() as counter, torch.no_grad(), adapters.using(segments):
        hidden_states(backbone, batch)
    bare = load_skeleton(tiny_directories["qwen2"])
    costs = {name: method_cost(bare, config_of(name, "qwen2")).forward_flop_per_token for name in CONFIGS}
    assert counter.flop == sum((segment.stop - segment.start) * costs[segment.adapter] for segment in segments)


def test_a_layer_against_the_sum_of_its_parts(tmp_path: Path, generator: torch.Generator) -> None:
    """y = (W + s B A) x + b for each row, in float64."""
    model = nn.ModuleDict({"query": nn.Linear(24, 20), "key": nn.Linear(24, 20, bias=False)}).requires_grad_(False)
    parts: dict[str, Tensor] = {}
    for seed, (name, rank) in enumerate({"a": 3, "b": 5}.items()):
        attachment = attach(model, LoraConfig(rank=rank, alpha=4.0, target_modules=("query",)), seed=seed)
        with torch.no_grad():
            for parameter in attachment.parameters().values():
                parameter.normal_(generator=generator)
        values = {key.rpartition("lora_")[2][0]: p.detach().double() for key, p in attachment.parameters().items()}
        parts[name] = 4.0 / rank * values["B"] @ values["A"]
        (tmp_path / name).mkdir()
        save_adapter(attachment, tmp_path / name, base_model="tiny")
        attachment.detach()
    adapters = AdapterSet(model)
    for name in parts:
        adapters.add(name, tmp_path / name)
    x = torch.randn(1, 11, 24, generator=generator)
    layer = model["query"]
    assert isinstance(layer, SeveralLinear)
    with torch.no_grad(), adapters.using((Segment("b", 0, 4), Segment("a", 4, 11))):
        found = layer(x)
    base = layer.base
    assert isinstance(base, nn.Linear)
    weight, bias = dense_weight(base, torch.float32).double(), base.bias.double()
    rows = x[0].double()
    wanted = torch.cat([rows[:4] @ (weight + parts["b"]).T, rows[4:] @ (weight + parts["a"]).T]) + bias
    # fp32 sums of 24 and 5 products of numbers of order one, 1e-6 each.
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-5, atol=1e-4)
    assert not isinstance(model["key"], SeveralLinear)


def test_adding_and_removing_leaves_the_very_modules(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    model = backbone.model
    before = dict(model.named_modules())
    values = {name: parameter.clone() for name, parameter in model.named_parameters()}
    directories = save_all(backbone, "bert", tmp_path)
    batch, _ = batch_of("bert")
    adapters = AdapterSet(model)
    adapters.add("narrow", directories["narrow"])
    assert sum(isinstance(module, SeveralLinear) for module in model.modules()) == 4
    adapters.add("plain", directories["plain"])
    with torch.no_grad(), adapters.using("narrow"):
        wanted = hidden_states(backbone, batch)[0]
    adapters.remove("plain")
    assert list(adapters.configs) == ["narrow"]
    assert sum(isinstance(module, SeveralLinear) for module in model.modules()) == 4
    with torch.no_grad(), adapters.using("narrow"):
        assert torch.equal(hidden_states(backbone, batch)[0], wanted)
    adapters.detach()
    now = dict(model.named_modules())
    assert list(now) == list(before)
    assert all(now[name] is module for name, module in before.items())
    assert all(torch.equal(parameter, values[name]) for name, parameter in model.named_parameters())


def test_an_adapter_s_bytes_are_its_factors(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(tiny_directories["qwen2"])
    directories = save_all(backbone, "qwen2", tmp_path)
    adapters = AdapterSet(backbone.model)
    bare = load_skeleton(tiny_directories["qwen2"])
    for name, path in directories.items():
        adapters.add(name, path)
        # DoRA's lengths become one number per row, as many as were trained.
        assert adapters.nbytes(name) == method_cost(bare, config_of(name, "qwen2")).value_bytes


def test_two_threads_use_two_adapters(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """While one thread is inside ``using``, the other chooses another adapter, and each gets its own."""
    backbone = load_backbone(tiny_directories["bert"])
    directories = save_all(backbone, "bert", tmp_path)
    adapters = AdapterSet(backbone.model)
    for name in ("plain", "stable"):
        adapters.add(name, directories[name])
    batch, _ = batch_of("bert")
    both = threading.Barrier(2)
    found: dict[str, Tensor] = {}

    def compute(name: str) -> None:
        with torch.no_grad(), adapters.using(name):
            both.wait(timeout=60)
            found[name] = hidden_states(backbone, batch)[0]
            both.wait(timeout=60)

    threads = [threading.Thread(target=compute, args=(name,)) for name in ("plain", "stable")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    adapters.detach()
    for name in ("plain", "stable"):
        assert torch.equal(found[name], alone(backbone, directories[name], batch))


def test_what_is_refused(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    directories = save_all(backbone, "bert", tmp_path)
    adapters = AdapterSet(backbone.model)
    adapters.add("plain", directories["plain"])
    batch, segments = batch_of("bert")
    with pytest.raises(ConfigError, match="there already"):
        adapters.add("plain", directories["stable"])
    with pytest.raises(ConfigError, match=r"no adapter of this name.*Did you mean plain"):
        adapters.remove("plan")
    with pytest.raises(ConfigError, match="no adapter of this name"), adapters.using(segments):
        pass
    with pytest.raises(ConfigError, match="no adapter of the set is chosen"):
        hidden_states(backbone, batch)
    with pytest.raises(ConfigError, match="attached to this model already"):
        attach(backbone.model, LoraConfig(), seed=0)
    short = (Segment("plain", 0, batch.num_tokens - 1),)
    with pytest.raises(ModelError, match="something else than the batch's tokens"), adapters.using(short):
        hidden_states(backbone, batch)


@pytest.mark.parametrize("config", [Ia3Config(), BitfitConfig()], ids=str)
def test_methods_outside_the_family_are_refused(
    tiny_directories: dict[str, Path], tmp_path: Path, config: Ia3Config | BitfitConfig
) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    attachment = attach(backbone.model, config, seed=0)
    save_adapter(attachment, tmp_path, base_model="tiny")
    attachment.detach()
    with pytest.raises(ConfigError, match="cannot share a model"):
        AdapterSet(backbone.model).add("x", tmp_path)


def test_a_damaged_adapter_changes_nothing(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    directories = save_all(backbone, "bert", tmp_path)
    adapters = AdapterSet(backbone.model)
    adapters.add("plain", directories["plain"])
    before = dict(backbone.model.named_modules())
    (directories["stable"] / WEIGHTS_FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot read the tensors"):
        adapters.add("stable", directories["stable"])
    now = dict(backbone.model.named_modules())
    assert list(now) == list(before)
    assert all(now[name] is module for name, module in before.items())
    assert list(adapters.configs) == ["plain"]
