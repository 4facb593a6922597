"""The LoRA layer against a float64 twin: forward, gradients, dropout, initialisation, counting and merging.

Names that begin with ``test_f_math`` or ``test_f_edge`` are falsification tests: each states a claim that has been
made about LoRA implementations in general and would fail if it were untrue here.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qlassify.config.method import LoraConfig
from qlassify.methods.base_layer import linear_shape
from qlassify.methods.dropout import Dropout
from qlassify.methods.inject import attach, linear_layers
from qlassify.methods.lora import LoraLinear
from qlassify.methods.state import merge
from qlassify.seeding import torch_generator
from reference.lora import lora_forward

pytestmark = pytest.mark.usefixtures("one_thread")

IN, OUT = 24, 16
KINDS = ("linear", "linear without bias", "conv1d")


def base_layer(
    kind: str, generator: torch.Generator, *, in_features: int = IN, out_features: int = OUT, dtype: torch.dtype
) -> nn.Module:
    """A frozen layer with weights of order one."""
    if kind == "conv1d":
        layer: nn.Module = Conv1D(out_features, in_features)
    else:
        layer = nn.Linear(in_features, out_features, bias=kind == "linear")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer.requires_grad_(False).to(dtype)


def build(
    kind: str,
    generator: torch.Generator,
    config: LoraConfig,
    *,
    dtype: torch.dtype = torch.float32,
    random_b: bool = True,
    in_features: int = IN,
    out_features: int = OUT,
) -> LoraLinear:
    base = base_layer(kind, generator, in_features=in_features, out_features=out_features, dtype=dtype)
    layer = LoraLinear(base, config, init=torch_generator(0, "init/test"), dropout=torch_generator(0, "dropout"))
    if random_b:
        with torch.no_grad():
            layer.lora_B.normal_(generator=generator)
    return layer


def twin(layer: LoraLinear, x: Tensor, grad: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of x, A and B by the twin, in float64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, layer.lora_A, layer.lora_B)]
    bias = None if layer.bias is None else layer.bias.double()
    rows = leaves[0].reshape(-1, x.shape[-1])
    y = lora_forward(rows, layer.weight.double(), bias, leaves[1], leaves[2], layer.scaling, mask)
    y = y.view(grad.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def ours(layer: LoraLinear, x: Tensor, grad: Tensor) -> list[Tensor]:
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, layer.lora_A, layer.lora_B], grad)]


# Forward and gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7,), (1,), (2, 5), (1, 9), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("rslora", [False, True])
def test_output_and_gradients_equal_the_twin(
    kind: str, shape: tuple[int, ...], rslora: bool, generator: torch.Generator
) -> None:
    layer = build(kind, generator, LoraConfig(rank=4, alpha=6, rslora=rslora))
    x = torch.randn(*shape, IN, generator=generator)
    grad = torch.randn(*shape, OUT, generator=generator)
    for found, wanted in zip(ours(layer, x, grad), twin(layer, x, grad), strict=True):
        assert found.dtype == torch.float32
        # The house tolerance of fp32 against float64. Sums of products of order one reach a few tens and cancel, so its
        # absolute part is per unit of the tensor's largest element.
        atol = 1e-6 * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strided_input_is_read_rightly(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, LoraConfig(rank=4), dtype=torch.float64)
    x = torch.randn(IN, 5, 3, generator=generator, dtype=torch.float64).permute(2, 1, 0)
    grad = torch.randn(OUT, 5, 3, generator=generator, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous()
    for found, wanted in zip(ours(layer, x, grad), twin(layer, x, grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)  # float64, another order of 24 additions


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_output(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, LoraConfig(rank=2, alpha=3), dtype=torch.float64, in_features=5, out_features=3)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,))

    # gradcheck's defaults: central differences of step 1e-6 are right to about 1e-9 in float64.
    assert torch.autograd.gradcheck(run, (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_needs_no_gradient_gets_none(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, LoraConfig(rank=4))
    x = torch.randn(6, IN, generator=generator)
    grad = torch.randn(6, OUT, generator=generator)
    with_x = ours(layer, x, grad)
    layer(x).backward(grad)
    assert x.grad is None
    assert torch.equal(layer.lora_A.grad, with_x[2])
    assert torch.equal(layer.lora_B.grad, with_x[3])
    assert all(parameter.grad is None for parameter in layer.base.parameters())


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_a_frozen_factor_gets_no_gradient(frozen: str, generator: torch.Generator) -> None:
    layer = build("linear", generator, LoraConfig(rank=4))
    layer.get_parameter(frozen).requires_grad_(False)
    layer(torch.randn(6, IN, generator=generator)).sum().backward()
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}[frozen]
    assert layer.get_parameter(frozen).grad is None
    assert layer.get_parameter(other).grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_f_edge_008_a_bf16_base_trains_fp32_factors(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, LoraConfig(rank=4, alpha=4), dtype=torch.bfloat16)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    x = torch.randn(2, 9, IN, generator=generator).bfloat16()
    grad = torch.randn(2, 9, OUT, generator=generator).bfloat16()
    found = ours(layer, x, grad)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for tensor, wanted in zip(found, twin(layer, x, grad), strict=True):
        # Factors, inner products and results are rounded to bf16, each by at most 2^-8 = 0.4 % of itself and
        # independently of one another: 1.6 % of the norm, the house rtol of bf16, bounds four of them.
        assert float((tensor.double() - wanted).norm()) <= 1.6e-2 * float(wanted.norm())


# Dropout


def identity_path(dropout: float, size: int = 64, *, seed: int = 0) -> LoraLinear:
    """A layer whose output is x + drop(x): A and B are the identity, the weight too, and scaling is 1."""
    base = nn.Linear(size, size, bias=False).double()
    config = LoraConfig(rank=size, alpha=size, dropout=dropout)
    layer = LoraLinear(base, config, init=torch_generator(0, "init"), dropout=torch_generator(seed, "dropout"))
    with torch.no_grad():
        for tensor in (base.weight, layer.lora_A, layer.lora_B):
            tensor.copy_(torch.eye(size))
    base.requires_grad_(False)
    return layer.train()


def drawn_mask(layer: LoraLinear, rows: int) -> Tensor:
    """The mask that the next forward draws, read off its output."""
    ones = torch.ones(rows, layer.lora_A.shape[1], dtype=torch.float64)
    return (layer(ones) - ones).detach()


@pytest.mark.parametrize("dropout", [0.05, 0.3, 0.9])
def test_dropout_keeps_the_right_share(dropout: float) -> None:
    mask = drawn_mask(identity_path(dropout), 1000)
    kept = mask > 0
    keep = 1 - dropout
    # 1 / keep is a factor in float64; its probability has 32 bits.
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / keep), rtol=1e-8, atol=0)
    assert torch.equal(mask[~kept], torch.zeros_like(mask[~kept]))
    # 64,000 draws: five standard deviations of a share.
    assert float(kept.double().mean()) == pytest.approx(keep, abs=5 * math.sqrt(keep * dropout / mask.numel()))
    # Neither a token nor a feature is dropped as a whole.
    assert 0 < int(kept.sum(dim=0).min()) <= int(kept.sum(dim=0).max()) < 1000
    assert int(kept.sum(dim=1).min()) < int(kept.sum(dim=1).max())


def test_dropout_is_a_stream() -> None:
    first, again, other = identity_path(0.5), identity_path(0.5), identity_path(0.5, seed=1)
    masks = [drawn_mask(first, 8), drawn_mask(first, 8)]
    assert not torch.equal(*masks)
    assert torch.equal(drawn_mask(again, 8), masks[0])
    assert torch.equal(drawn_mask(again, 8), masks[1])
    assert not torch.equal(drawn_mask(other, 8), masks[0])


def test_dropout_leaves_the_global_generator_alone() -> None:
    layer = identity_path(0.5)
    state = torch.get_rng_state()
    drawn_mask(layer, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_drops_nothing() -> None:
    layer = identity_path(0.5).eval()
    assert torch.equal(drawn_mask(layer, 8), torch.ones(8, 64, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_under_dropout_belong_to_the_drawn_mask(
    kind: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    layer = build(kind, generator, LoraConfig(rank=4, alpha=6, dropout=0.4), dtype=dtype).train()
    x = torch.randn(3, 5, IN, generator=generator, dtype=dtype)
    grad = torch.randn(3, 5, OUT, generator=generator, dtype=dtype)
    found = ours(layer, x, grad)
    dropout = Dropout.draw(0.4, torch_generator(0, "dropout"))
    mask = dropout.kept(x.view(15, IN)).double() * dropout.scale
    for tensor, wanted in zip(found, twin(layer, x, grad, mask), strict=True):
        # fp32: the house tolerance; float64: two orders of a sum.
        rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (1e-11, 1e-12)
        torch.testing.assert_close(tensor.double(), wanted, rtol=rtol, atol=atol * max(1.0, float(wanted.abs().max())))


# Initialisation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_f_math_001_002_a_fresh_layer_is_its_base_bitwise(
    kind: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    layer = build(kind, generator, LoraConfig(), dtype=dtype, random_b=False)
    x = torch.randn(2, 5, IN, generator=generator).to(dtype)
    assert torch.equal(layer.delta(), torch.zeros_like(layer.delta()))
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("rank", [4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("rslora", [False, True], ids=["f_math_004", "f_math_003"])
def test_f_math_003_004_scaling(rank: int, rslora: bool, generator: torch.Generator) -> None:
    config = LoraConfig(rank=rank, alpha=24, rslora=rslora)
    layer = build("linear", generator, config, dtype=torch.float64, in_features=256, out_features=256)
    divisor = math.sqrt(rank) if rslora else rank
    assert config.scaling == layer.scaling == 24 / divisor
    x = torch.randn(3, 256, generator=generator, dtype=torch.float64)
    low_rank = x @ layer.lora_A.T @ layer.lora_B.T
    # The factor as it acts, to the rounding of float64 sums of 256 products.
    torch.testing.assert_close(layer(x) - layer.base(x), 24 / divisor * low_rank, rtol=1e-10, atol=1e-10)


def test_a_is_uniform_within_its_bound(generator: torch.Generator) -> None:
    layer = build("linear", generator, LoraConfig(rank=64), in_features=400, out_features=64, random_b=False)
    bound = 400**-0.5
    a = layer.lora_A.detach()
    assert float(a.abs().max()) <= bound
    # 25,600 draws: the largest misses the bound by a share of 1 / 25,600 on average, 1e-3 is beyond chance.
    assert float(a.max()) > bound * 0.999
    assert float(a.min()) < -bound * 0.999
    # Standard deviation of a uniform draw, known to about 0.3 % from as many: 2 % is more than five deviations.
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    # The mean of as many draws has the deviation bound / sqrt(3) / 160.
    assert abs(float(a.mean())) < 5 * bound / math.sqrt(3) / 160


def test_each_layer_draws_its_own_a() -> None:
    model = nn.Sequential(*[nn.Linear(IN, IN) for _ in range(3)])
    attachment = attach(model, LoraConfig(rank=8), seed=0)
    factors = [layer.lora_A.detach() for layer in attachment.layers.values()]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(factors[first], factors[second])
    # Stacked they span 24 dimensions: no factor is another one, scaled, permuted or combined.
    assert int(torch.linalg.matrix_rank(torch.cat(factors))) == 24


@pytest.mark.parametrize(("rank", "name"), [(1, "f_edge_001"), (OUT, "f_edge_002")])
def test_f_edge_001_002_the_smallest_and_the_largest_rank(rank: int, name: str, generator: torch.Generator) -> None:
    layer = build("linear", generator, LoraConfig(rank=rank))
    assert int(torch.linalg.matrix_rank(layer.delta().detach())) == rank, name
    x, grad = torch.randn(5, IN, generator=generator), torch.randn(5, OUT, generator=generator)
    for found, wanted in zip(ours(layer, x, grad), twin(layer, x, grad), strict=True):
        # The house tolerance of fp32 against float64, per unit of the largest element.
        atol = 1e-6 * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=atol)


# Merging


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-11),  # sums of 24 products in another order
        (torch.float32, 1e-5),  # the same at fp32's eps of 1.2e-7, relative to an output of up to a hundred
        (torch.bfloat16, 1.6e-2),  # the merged weight is rounded to bf16 once: the house rtol of bf16
    ],
)
def test_f_math_005_a_merged_layer_equals_the_adapter(
    kind: str, dtype: torch.dtype, tolerance: float, generator: torch.Generator
) -> None:
    model = nn.Sequential(base_layer(kind, generator, dtype=dtype))
    attachment = attach(model, LoraConfig(rank=4, alpha=6), seed=0)
    layer = attachment.layers["0"]
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)
    inputs = torch.randn(100, IN, generator=generator).to(dtype)
    adapted = model(inputs).detach()
    factors = [layer.lora_A.detach().clone(), layer.lora_B.detach().clone()]
    merge(attachment)
    assert model[0] is layer.base
    assert torch.equal(layer.lora_A, factors[0])
    assert torch.equal(layer.lora_B, factors[1])
    assert model[0].weight.dtype == dtype
    error = (model(inputs) - adapted).double().norm() / adapted.double().norm()
    assert float(error) <= tolerance


def test_delta_is_what_merging_adds(generator: torch.Generator) -> None:
    layer = build("conv1d", generator, LoraConfig(rank=4, alpha=6), dtype=torch.float64)
    delta = layer.delta()
    # One product of four terms in float64, scaled before or after.
    torch.testing.assert_close(delta, 1.5 * layer.lora_B @ layer.lora_A, rtol=1e-13, atol=1e-13)
    assert delta.shape == linear_shape(layer.base) == (OUT, IN)


# Counting


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "phi4"])
@pytest.mark.parametrize("rank", [1, 5, 16])
def test_f_math_007_the_closed_form_equals_the_built_count(
    name: str, rank: int, tiny_directories: dict[str, Path]
) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_directories[name])
    shapes = [linear_shape(layer) for layer in linear_layers(model).values()]
    config = LoraConfig(rank=rank)
    attachment = attach(model, config, seed=0)
    assert attachment.num_parameters() == config.parameter_count(shapes)
    assert attachment.num_parameters() == sum(rank * (rows + columns) for rows, columns in shapes)


def test_f_math_007_qwen2_half_a_billion() -> None:
    """24 layers, rank 16, a query of 896 by 896 and a value of 896 by 128: 1,081,344, counted on no memory."""
    config = transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    lora = LoraConfig(rank=16, target_modules=("q_proj", "v_proj"))
    attachment = attach(model, lora, seed=0)
    assert attachment.num_parameters() == 1_081_344
    assert lora.parameter_count([(896, 896), (128, 896)] * 24) == 1_081_344
