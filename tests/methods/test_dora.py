"""The DoRA layer against a float64 twin: forward, gradients with constant lengths, when lengths are formed, merging.

The layer never forms W + scaling * B A to measure its rows; the twin does nothing else.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qlassify.config.method import LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.methods.base_layer import dense_weight, linear_shape
from qlassify.methods.dora import DoraLinear
from qlassify.methods.dropout import Dropout
from qlassify.methods.inject import attach, linear_layers
from qlassify.methods.lora import LoraLinear
from qlassify.methods.state import load_adapter, merge, save_adapter
from qlassify.quant.linear import LowBitLinear
from qlassify.seeding import torch_generator
from qlassify.training.optimizer import Optimizer
from reference.dora import dora_forward, row_lengths
from reference.quant import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

IN, OUT = 24, 16
UNQUANTISED = ("linear", "linear without bias", "conv1d")
KINDS = (*UNQUANTISED, "nf4", "nf4 without bias", "int8")
LOW_BIT = {"nf4": QuantConfig(group_size=50), "int8": QuantConfig(kind="int8")}
CONFIG = LoraConfig(kind="dora", rank=4, alpha=6)


def base_layer(
    kind: str,
    generator: torch.Generator,
    *,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A frozen layer with weights of order one; of a low-bit layer, ``dtype`` is the bias's."""
    name, _, without = kind.partition(" without ")
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = None if without else torch.randn(out_features, generator=generator)
    if name in LOW_BIT:
        return LowBitLinear.from_weight(weight, bias, LOW_BIT[name]).to(dtype)
    layer: nn.Module = nn.Linear(in_features, out_features, bias=bias is not None)
    if name == "conv1d":
        layer, weight = Conv1D(out_features, in_features), weight.T
    with torch.no_grad():
        layer.weight.copy_(weight)  # type: ignore[operator]
        if bias is not None:
            layer.bias.copy_(bias)  # type: ignore[operator]
    return layer.requires_grad_(False).to(dtype)


def wrap(base: nn.Module, config: LoraConfig = CONFIG) -> DoraLinear:
    return DoraLinear(base, config, init=torch_generator(0, "init/test"), dropout=torch_generator(0, "dropout"))


def build(
    kind: str,
    generator: torch.Generator,
    config: LoraConfig = CONFIG,
    *,
    dtype: torch.dtype = torch.float32,
    moved: bool = True,
) -> DoraLinear:
    """A layer whose factors and lengths are away from their start, so that every gradient has something to say."""
    layer = wrap(base_layer(kind, generator, dtype=dtype), config)
    if moved:
        move(layer, generator)
    return layer


def move(layer: DoraLinear, generator: torch.Generator, size: float = 1.0) -> None:
    with torch.no_grad():
        for parameter in layer.trainable().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def numbers_of(layer: DoraLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    """The frozen weight (out, in) that a product of this type is formed with, in float64 and in memory of its own."""
    return dense_weight(layer.base, dtype).detach().double().clone()


def exact_lengths(layer: DoraLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    a, b = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    return row_lengths(numbers_of(layer, dtype), a, b, layer.scaling)


def ours(layer: DoraLinear, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients of x, A, B and the lengths m."""
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, layer.lora_A, layer.lora_B, layer.magnitude], grad)]


def twin(layer: DoraLinear, x: Tensor, grad: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    values = (x, layer.lora_A, layer.lora_B, layer.magnitude)
    leaves = [tensor.detach().double().requires_grad_() for tensor in values]
    bias = None if layer.bias is None else layer.bias.double()
    rows = leaves[0].reshape(-1, x.shape[-1])
    weight = numbers_of(layer, x.dtype)
    y = dora_forward(rows, weight, bias, *leaves[1:], scaling=layer.scaling, mask_TI=mask)  # type: ignore[misc]
    y = y.view(grad.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def assert_near(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    for tensor, exact in zip(found, wanted, strict=True):
        # fp32: the house tolerance against float64. float64: sums of 24 products in another order. Sums of products of
        # order one reach a few tens and cancel, so the absolute part is per unit of the tensor's largest element.
        rtol, atol = (1e-5, 2e-6) if dtype == torch.float32 else (1e-11, 1e-12)
        atol *= max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(tensor.double(), exact, rtol=rtol, atol=atol)


# Forward and gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_output_and_gradients_equal_the_twin(
    kind: str, shape: tuple[int, ...], rslora: bool, generator: torch.Generator
) -> None:
    layer = build(kind, generator, CONFIG.replace(rslora=rslora))
    x, grad = torch.randn(*shape, IN, generator=generator), torch.randn(*shape, OUT, generator=generator)
    found = ours(layer, x, grad)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert_near(found, twin(layer, x, grad))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_in_float64_they_are_equal_to_the_last_digits(kind: str, generator: torch.Generator) -> None:
    """Tight enough to see a term of the lengths' expansion that is small beside the others."""
    layer = build(kind, generator, dtype=torch.float64, moved=False)
    move(layer, generator, 1e-3)
    x = torch.randn(2, 3, IN, generator=generator, dtype=torch.float64)
    grad = torch.randn(2, 3, OUT, generator=generator, dtype=torch.float64)
    assert_near(ours(layer, x, grad), twin(layer, x, grad), torch.float64)


def test_the_lengths_are_constants_in_backward(generator: torch.Generator) -> None:
    """The gradient of the whole formula is another one: that it was left out is seen, and not lost in a tolerance."""
    layer = build("linear", generator)
    x, grad = torch.randn(7, IN, generator=generator), torch.randn(7, OUT, generator=generator)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (layer.lora_A, layer.lora_B)]
    weight, bias = numbers_of(layer), layer.bias.double()  # type: ignore[union-attr]
    rows = weight + layer.scaling * leaves[1] @ leaves[0]
    y = x.double() @ (layer.magnitude.double() / rows.norm(dim=1) * rows.T).T.T + bias
    whole = torch.autograd.grad(y, leaves, grad.double())
    found = ours(layer, x, grad)[2:4]
    for one, other in zip(found, whole, strict=True):
        assert float((one.double() - other).norm() / other.norm()) > 0.05


def test_gradients_reach_what_is_trained_and_nothing_else(generator: torch.Generator) -> None:
    for kind in KINDS:
        layer = build(kind, generator)
        layer(torch.randn(5, IN, generator=generator)).square().sum().backward()
        found = [name for name, parameter in layer.named_parameters() if parameter.grad is not None]
        assert sorted(found) == ["lora_A", "lora_B", "magnitude"]
        assert sorted(layer.trainable()) == ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in KINDS), *((kind, torch.float64) for kind in UNQUANTISED)],
)
def test_gradients_under_dropout_belong_to_the_drawn_mask(
    kind: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    layer = build(kind, generator, CONFIG.replace(dropout=0.4), dtype=dtype).train()
    x = torch.randn(3, 5, IN, generator=generator, dtype=dtype)
    grad = torch.randn(3, 5, OUT, generator=generator, dtype=dtype)
    found = ours(layer, x, grad)
    dropout = Dropout.draw(0.4, torch_generator(0, "dropout"))
    kept = dropout.kept(x.view(15, IN))
    assert_near(found, twin(layer, x, grad, kept.double() * dropout.scale), dtype)
    assert_near(ours(layer.eval(), x, grad), twin(layer, x, grad), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bf16_base_trains_fp32_parameters(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in layer.trainable().values()} == {torch.float32}
    x, grad = (torch.randn(9, size, generator=generator).bfloat16() for size in (IN, OUT))
    found = ours(layer, x, grad)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 2 + [torch.float32] * 3
    for tensor, wanted in zip(found, twin(layer, x, grad), strict=True):
        # Weight, factors, products, the factor m / n, the scaled result and its sum with the bias are rounded to bf16,
        # each by at most 2^-8 = 0.4 % of itself: 3 % of the norm is seven of them in a row.
        assert float((tensor.double() - wanted).norm()) <= 3e-2 * float(wanted.norm())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_kept_numbers_change_no_bit(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator)
    x, grad = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    wanted = ours(layer, x, grad)
    layer.base.keep_dense(torch.float32)  # type: ignore[operator]
    move(layer, generator, 0.0)  # the lengths are formed anew
    for one, other in zip(ours(layer, x, grad), wanted, strict=True):
        assert same_bits(one, other)


# How it starts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fresh_layer_is_its_base_bitwise(kind: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    layer = build(kind, generator, dtype=dtype, moved=False)
    x = torch.randn(2, 5, IN, generator=generator).to(dtype)
    assert same_bits(layer(x).detach(), layer.base(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_lengths_start_at_the_rows(kind: str, generator: torch.Generator) -> None:
    layer = build(kind, generator, moved=False)
    assert layer.magnitude.shape == (OUT,)
    # A sum of 24 squares in fp32, and a square root.
    torch.testing.assert_close(layer.magnitude.detach().double(), numbers_of(layer).norm(dim=1), rtol=2e-6, atol=0)


def test_a_row_of_zeros_gives_zeros_and_not_nan(generator: torch.Generator) -> None:
    """Its length is zero, and zero by zero is what a fresh layer would divide."""
    base = base_layer("linear without bias", generator)
    with torch.no_grad():
        base.weight[3] = 0.0  # type: ignore[index, operator]
    layer = wrap(base)
    x = torch.randn(5, IN, generator=generator, requires_grad=True)
    for _ in range(2):
        y = layer(x)
        assert bool((y[:, 3] == 0).all())
        y.square().sum().backward()
        for tensor in (x, *layer.trainable().values()):
            assert tensor.grad is not None
            assert bool(tensor.grad.isfinite().all())
        with torch.no_grad():
            layer.lora_B.normal_(generator=generator)


def test_rows_that_the_update_cancels_give_no_nan(generator: torch.Generator) -> None:
    """W + scaling * B A is all zeros, and the expansion of its squared lengths may round below zero."""
    base = base_layer("linear without bias", generator)
    first = wrap(base)
    b = torch.randn(first.lora_B.shape, generator=generator)
    with torch.no_grad():
        base.weight.copy_(-first.scaling * b @ first.lora_A)  # type: ignore[operator]
    layer = wrap(base)
    assert same_bits(layer.lora_A.detach(), first.lora_A.detach())
    with torch.no_grad():
        layer.lora_B.copy_(b)
    assert float(exact_lengths(layer).max()) < 1e-5
    x = torch.randn(5, IN, generator=generator, requires_grad=True)
    layer(x).square().sum().backward()
    assert bool((layer.lengths() >= 0).all())
    for tensor in (x, *layer.trainable().values()):
        assert not bool(tensor.grad.isnan().any())  # type: ignore[union-attr]


# Lengths


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**31),
    size=st.floats(-3, 1),
)
def test_lengths_are_those_of_the_sum(shape: tuple[int, int], seed: int, size: float) -> None:
    """Also where the update is much smaller or much larger than the weight."""
    generator = torch.Generator().manual_seed(seed)
    base = base_layer("linear", generator, out_features=shape[0], in_features=shape[1])
    layer = wrap(base, LoraConfig(kind="dora", rank=min(shape), alpha=3))
    move(layer, generator, 10.0**size)
    exact = exact_lengths(layer)
    # Every term of the expansion is a sum of products of W, A and B, rounded at each of at most 12 + 12 + 12 additions
    # and a few products: so many roundings of the sum of their magnitudes. Where terms cancel, that is much.
    update = layer.scaling * layer.lora_B.detach().double().abs() @ layer.lora_A.detach().double().abs()
    scale = (numbers_of(layer).abs() + update).square().sum(dim=1)
    squares = layer.lengths().double().square()
    assert bool(((squares - exact.square()).abs() <= 48 * 2.0**-24 * scale + 1e-37).all())


def test_many_rows(generator: torch.Generator) -> None:
    """More than are squared at a time."""
    base = base_layer("linear", generator, out_features=2500, in_features=3)
    layer = wrap(base, LoraConfig(kind="dora", rank=2))
    # A sum of three squares in fp32, and a square root.
    torch.testing.assert_close(layer.magnitude.detach().double(), numbers_of(layer).norm(dim=1), rtol=1e-6, atol=0)


def by_optimizer(layer: DoraLinear, folder: Path) -> None:
    """A step of the project's own optimiser."""
    optimizer = Optimizer(layer.trainable(), {}, learning_rate=0.1, head_learning_rate=0.1, weight_decay=0.01)
    layer(torch.ones(3, IN)).square().sum().backward()
    optimizer.step()
    optimizer.clear_gradients()


def by_loading(layer: DoraLinear, folder: Path) -> None:
    """Another adapter's values, through a file."""
    holders = [nn.ModuleDict({"query": nn.Linear(IN, OUT).requires_grad_(False)}) for _ in range(2)]
    attachments = [attach(holder, CONFIG, seed=seed) for seed, holder in enumerate(holders)]
    with torch.no_grad():
        for parameter in attachments[1].parameters().values():
            parameter.normal_()
    save_adapter(attachments[1], folder, base_model="x")
    layers = {"query": layer}
    load_adapter(type(attachments[0])(holders[0], CONFIG, layers, attachments[0].dropout_generator), folder)


def by_state_dict(layer: DoraLinear, folder: Path) -> None:
    layer.load_state_dict(
        {name: value * 1.5 if "lora" in name else value for name, value in layer.state_dict().items()}
    )


def by_new_parameters(layer: DoraLinear, folder: Path) -> None:
    """Twice, because the second ones have been written to as often as the first."""
    for _ in range(2):
        layer.lora_A, layer.lora_B = (nn.Parameter(1.2 * p.detach()) for p in (layer.lora_A, layer.lora_B))
        layer.lengths()


def in_place(layer: DoraLinear, folder: Path) -> None:
    with torch.no_grad():
        layer.lora_B.mul_(1.5)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
@pytest.mark.parametrize(
    "change",
    [
        by_optimizer,
        by_loading,
        by_state_dict,
        by_new_parameters,
        in_place,
    ],
)
def test_lengths_follow_the_factors(
    kind: str, change: Callable[[DoraLinear, Path], None], generator: torch.Generator, tmp_path: Path
) -> None:
    layer = build(kind, generator)
    x, grad = torch.randn(3, IN, generator=generator), torch.randn(3, OUT, generator=generator)
    ours(layer, x, grad)  # the lengths of the old factors are known now
    before = layer.lengths().clone()
    change(layer, tmp_path)
    assert float((layer.lengths() - before).abs().max()) > 1e-3
    assert_near(ours(layer, x, grad), twin(layer, x, grad))


def test_lengths_are_not_known_by_an_address(generator: torch.Generator) -> None:
    """Factors that come and go lie where earlier ones lay."""
    layer = build("linear", generator)
    x = torch.randn(3, IN, generator=generator)
    with torch.no_grad():
        for _ in range(20):
            b = torch.randn(OUT, 4, generator=generator)
            found = torch.func.functional_call(layer, {"lora_B": b}, (x,))
            weight, bias = numbers_of(layer), layer.bias.double()  # type: ignore[union-attr]
            a, m = layer.lora_A.double(), layer.magnitude.double()
            assert_near([found], [dora_forward(x.double(), weight, bias, a, b.double(), m, layer.scaling)])
            del b


@pytest.mark.parametrize("kind", KINDS)
def test_training_after_inference_mode(kind: str, generator: torch.Generator) -> None:
    """Evaluating forms the lengths; the next training step must be able to use them."""
    layer, untouched = (build(kind, torch.Generator().manual_seed(1)) for _ in range(2))
    x, grad = torch.randn(3, IN, generator=generator), torch.randn(3, OUT, generator=generator)
    with torch.inference_mode():
        layer(x)
    for one, other in zip(ours(layer, x, grad), ours(untouched, x, grad), strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_goes_its_own_way(duplicate: Callable[[DoraLinear], DoraLinear], generator: torch.Generator) -> None:
    layer = build("nf4", generator)
    x = torch.randn(3, IN, generator=generator)
    wanted = layer(x).detach()
    other = duplicate(layer)
    assert same_bits(other(x).detach(), wanted)
    in_place(other, Path())
    assert same_bits(layer(x).detach(), wanted)
    grad = torch.randn(3, OUT, generator=generator)
    assert_near(ours(other, x, grad), twin(other, x, grad))


# Counting and choosing


@pytest.mark.parametrize("name", ["bert", "gpt2", "phi4"])
@pytest.mark.parametrize("rank", [1, 16])
def test_the_closed_form_equals_the_built_count(name: str, rank: int, tiny_directories: dict[str, Path]) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_directories[name])
    shapes = [linear_shape(layer) for layer in linear_layers(model).values()]
    config = LoraConfig(kind="dora", rank=rank)
    attachment = attach(model, config, seed=0)
    assert {type(layer) for layer in attachment.layers.values()} == {DoraLinear}
    assert attachment.num_parameters() == config.parameter_count(shapes)
    assert attachment.num_parameters() == sum(rank * (rows + columns) + rows for rows, columns in shapes)


@pytest.mark.parametrize("kind", ["dora", "qdora"])
def test_both_names_wrap_whatever_layer_is_there(kind: str, generator: torch.Generator) -> None:
    """The q is about how the model is loaded; the layer that trains is the same."""
    model = nn.ModuleDict({name.partition(" ")[0]: base_layer(name, generator) for name in ("linear", "conv1d", "nf4")})
    attachment = attach(model, LoraConfig(kind=kind, rank=4), seed=0)  # type: ignore[arg-type]
    assert {type(layer) for layer in attachment.layers.values()} == {DoraLinear}
    originals = [layer.base for layer in attachment.layers.values()]
    attachment.detach()
    assert list(model.values()) == originals


def test_dora_starts_from_the_factors_of_lora(generator: torch.Generator) -> None:
    layers = [base_layer("linear", generator) for _ in range(2)]
    found = [
        attach(nn.ModuleDict({"query": layer}), LoraConfig(kind=kind, rank=4), seed=5).layers["query"]  # type: ignore[arg-type]
        for kind, layer in zip(("lora", "dora"), layers, strict=True)
    ]
    assert isinstance(found[0], LoraLinear)
    assert same_bits(found[0].lora_A.detach(), found[1].lora_A.detach())


# Merging


MERGED = {
    torch.float64: 1e-11,  # sums of 24 products in another order
    torch.float32: 1e-5,  # the same at fp32's eps of 1.2e-7, relative to an output of up to a hundred
    torch.bfloat16: 3e-2,  # weight, factor, products and sums are rounded one after another, as in training
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in KINDS for dtype in MERGED if kind in UNQUANTISED or dtype != torch.float64],
)
def test_a_merged_layer_equals_the_adapter(kind: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    norm = nn.LayerNorm(IN, dtype=dtype).requires_grad_(False)
    model = nn.Sequential(norm, base_layer(kind, generator, dtype=dtype))
    attachment = attach(model, CONFIG, seed=0)
    layer = attachment.layers["1"]
    assert isinstance(layer, DoraLinear)
    move(layer, generator)
    inputs = torch.randn(100, IN, generator=generator).to(dtype)
    adapted = model(inputs).detach()
    merge(attachment)
    assert isinstance(model[1], Conv1D if kind == "conv1d" else nn.Linear)
    assert model[1].weight.dtype == dtype
    error = (model(inputs) - adapted).double().norm() / adapted.double().norm()
    assert float(error) <= MERGED[dtype]


def test_the_merged_rows_have_the_trained_lengths(generator: torch.Generator) -> None:
    layer = build("linear", generator, dtype=torch.float64)
    merged = layer.merged_weight()
    # Float64 sums of 24 squares.
    torch.testing.assert_close(merged.norm(dim=1), layer.magnitude.detach().abs(), rtol=1e-12, atol=0)
    whole = numbers_of(layer, torch.float64) + layer.scaling * (layer.lora_B @ layer.lora_A).detach()
    cosine = nn.functional.cosine_similarity(merged * layer.magnitude.detach().sign()[:, None], whole)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-12, atol=0)
