"""Where LoRA begins and how fast its factors move: PiSSA, LoftQ, LoRA+."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from qlassify.config.method import LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError
from qlassify.methods.inject import attach, rate_factors
from qlassify.methods.lora import LoraLinear
from qlassify.methods.state import load_adapter, read_adapter_config, save_adapter
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.packed_layout import PackedLayout
from qlassify.quant.linear import low_bit_layers
from qlassify.quant.low_rank import leading_factors
from qlassify.quantization import quantize_model
from qlassify.training.optimizer import Optimizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

IDS, POSITIONS = torch.arange(3, 14), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4])


def hidden(backbone: Backbone) -> torch.Tensor:
    import numpy as np

    with torch.no_grad():
        return backbone(IDS, POSITIONS, None, PackedLayout(np.array([6, 5])))


def spectrum(rows: int, columns: int, *, decay: float, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values are powers of ``decay``."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))[0]
    return (left * decay ** torch.arange(size)) @ right.T


@pytest.mark.parametrize(("rows", "columns", "decay"), [(12, 9, 0.5), (200, 90, 0.9), (90, 200, 0.98), (64, 64, 1.0)])
def test_no_product_of_that_rank_is_nearer(rows: int, columns: int, decay: float) -> None:
    """Eckart and Young: the distance is the root of the sum of the squared singular values that are left out."""
    matrix, rank = spectrum(rows, columns, decay=decay), 8
    b, a = leading_factors(matrix, rank)
    assert (b.shape, a.shape) == ((rows, rank), (rank, columns))
    values = decay ** torch.arange(min(rows, columns), dtype=torch.float64)
    best = values[rank:].square().sum().sqrt()
    # Seventeen multiplications by the spectrum separate even values that differ by 2 %; equal ones need no separating.
    assert float(torch.linalg.norm(matrix - b @ a)) == pytest.approx(float(best), rel=1e-3)
    # Both factors carry the root of each value.
    torch.testing.assert_close(b.square().sum(dim=0), a.square().sum(dim=1))


@pytest.mark.parity
@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_moves_as_pefts(rslora: bool) -> None:
    """One step of plain gradient descent from the same weight: the weights in effect are equal before and after."""
    torch.manual_seed(0)
    linear = nn.Linear(24, 16)
    model = nn.ModuleDict({"target": linear})
    config = LoraConfig(rank=4, alpha=8.0, rslora=rslora, start="pissa")
    base = copy.deepcopy(linear).requires_grad_(False)
    ours = LoraLinear(base, config, init=torch.Generator().manual_seed(2), dropout=torch.Generator())
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, target_modules=["target"], init_lora_weights="pissa"),
        model,
    )["target"]
    x = torch.randn(7, 24)
    for _ in range(2):
        # Fp32 sums of 24 products in another order; the components are of order one.
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
        for layer, parameters in ((ours, ours.parameters()), (theirs, theirs.parameters())):
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            loss = layer(x).square().sum()
            for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                parameter.data -= 1e-3 * gradient
    assert not torch.allclose(ours(x), base(x), atol=1e-2)


@pytest.mark.parametrize("quant", [None, QuantConfig()], ids=["fp32", "nf4"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_pissa_begins_as_the_base_and_is_saved_as_plain_lora(
    kind: str, quant: QuantConfig | None, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load_backbone(tiny_directories["bert"], quant=quant)
    bare = hidden(backbone)
    config = LoraConfig(kind=kind, rank=3, alpha=6.0, start="pissa")  # type: ignore[arg-type]
    attachment = attach(backbone.model, config, seed=0)
    # (B A - B0 A0) x is zero up to the rounding of its six terms; hidden states are of order one.
    torch.testing.assert_close(hidden(backbone), bare, atol=1e-5, rtol=0)
    with torch.no_grad():
        for index, parameter in enumerate(attachment.parameters().values()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    changed = hidden(backbone)
    assert not torch.allclose(changed, bare, atol=1e-2)
    save_adapter(attachment, tmp_path, base_model="tiny")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (6, 12.0, True)
    attachment.detach()
    read = read_adapter_config(tmp_path)
    assert isinstance(read, LoraConfig)
    assert (read.start, read.rank, read.scaling) == ("zero", 6, config.scaling)
    again = attach(backbone.model, read, seed=9)
    load_adapter(again, tmp_path)
    assert torch.equal(hidden(backbone), changed)


def test_pissas_path_of_twice_the_rank_has_to_fit(tiny_directories: dict[str, Path]) -> None:
    """Of the smaller side, 64, half is the most."""
    model = load_backbone(tiny_directories["bert"]).model
    attach(model, LoraConfig(rank=32, start="pissa"), seed=0).detach()
    with pytest.raises(ConfigError, match=r"33, which PiSSA's path has twice: 66, .* wanted at most 32"):
        attach(model, LoraConfig(rank=33, start="pissa"), seed=0)


@pytest.mark.parity
def test_a_pissa_adapter_loads_in_peft(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    backbone = load_backbone(tiny_directories["bert"])
    attachment = attach(backbone.model, LoraConfig(rank=3, alpha=6.0, start="pissa"), seed=0)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.mul_(1.1)
    save_adapter(attachment, tmp_path, base_model=str(tiny_directories["bert"]))
    base = transformers.AutoModel.from_pretrained(tiny_directories["bert"], add_pooling_layer=False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        wanted = [theirs(input_ids=part[None]).last_hidden_state[0] for part in torch.split(IDS, [6, 5])]
    # Two implementations of one fp32 model: the bound of the parity suite.
    torch.testing.assert_close(hidden(backbone), torch.cat(wanted), atol=1e-4, rtol=1e-4)


def test_loftq_begins_nearest_to_the_original(tiny_directories: dict[str, Path]) -> None:
    quant = QuantConfig(group_size=32)
    original = load_backbone(tiny_directories["bert"])
    plain = load_backbone(tiny_directories["bert"], quant=quant)
    backbone = load_backbone(tiny_directories["bert"], quant=quant, residual_rank=4)
    codes = {path: layer.weight.codes for path, layer in low_bit_layers(plain.model).items()}
    attachment = attach(backbone.model, LoraConfig(kind="qlora", rank=4, alpha=8.0, start="loftq"), seed=0)
    for path, layer in attachment.layers.items():
        assert isinstance(layer, LoraLinear)
        assert torch.equal(layer.base.weight.codes, codes[path])  # type: ignore[union-attr, arg-type]
        weight = original.model.get_submodule(path).weight.detach().double()
        lost = weight - plain.model.get_submodule(path).weight.dequantize().double()  # type: ignore[operator, union-attr]
        left = weight - layer.merged_weight().double()
        best = torch.linalg.svdvals(lost)[4:].square().sum().sqrt()
        # The range finder is within a thousandth of the best on spectra that hardly fall.
        assert float(torch.linalg.norm(left)) == pytest.approx(float(best), rel=1e-2)
        assert torch.linalg.norm(left) < 0.95 * torch.linalg.norm(lost)


def test_loftq_needs_original_and_quantised_weights(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(rank=4, start="loftq")
    with pytest.raises(ConfigError, match="not quantised"):
        attach(load_backbone(tiny_directories["bert"]).model, config, seed=0)
    quantize_model(str(tiny_directories["bert"]), tmp_path / "low")
    with pytest.raises(ConfigError, match="quantised weights alone"):
        attach(load_backbone(tmp_path / "low").model, config, seed=0)


def test_lora_plus_moves_b_faster(tiny_directories: dict[str, Path]) -> None:
    """AdamW's first step is the learning rate in the direction of the gradient's sign, whatever its size."""
    backbone = load_backbone(tiny_directories["bert"])
    attachment = attach(backbone.model, LoraConfig(rank=4, lora_plus_ratio=16.0), seed=0)
    parameters = attachment.parameters()
    head = {"head.weight": nn.Parameter(torch.zeros(3, 2))}
    optimizer = Optimizer(
        parameters,
        head,
        learning_rate=1e-4,
        head_learning_rate=1e-3,
        weight_decay=0.0,
        rate_factors=rate_factors(attachment),
    )
    assert optimizer.learning_rate == 1e-4
    before = {name: value.detach().clone() for name, value in (parameters | head).items()}
    for value in (parameters | head).values():
        value.grad = torch.full_like(value, 0.3)
    optimizer.step()
    for name, value in (parameters | head).items():
        rate = 1e-3 if name.startswith("head") else 16e-4 if "lora_B" in name else 1e-4
        # Fp32 differences of numbers below one.
        torch.testing.assert_close(before[name] - value.detach(), torch.full_like(value, rate), atol=1e-7, rtol=1e-3)
