"""``QLoraLinear``: the low-bit layer with a LoRA path, under the names and with the counts that kizzasi's layer has.

The products are held against the float64 twin of LoRA on the weight that the codes stand for, so whatever is checked
here is the layer; how near that weight is to the one that was quantised is a bound of the format.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError, DataError, ModelError
from qlassify.methods.dropout import Dropout
from qlassify.methods.inject import attach
from qlassify.methods.lora import LoraLinear
from qlassify.methods.qlora import QLoraLinear
from qlassify.methods.state import merge
from qlassify.quant.linear import LowBitLinear
from qlassify.quant.tensor import quantize
from qlassify.seeding import torch_generator
from reference.lora import lora_forward
from reference.quant import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

IN, OUT = 24, 16
FORMATS = {
    "nf4": QuantConfig(double=False),
    "nf4 double": QuantConfig(),
    "fp4": QuantConfig(kind="fp4"),
    "int4 with zero points": QuantConfig(kind="int4", zero_point=True),
    "int8": QuantConfig(kind="int8"),
}
NF4_HALF_GAP = (1 - 0.6961928009986877) / 2
"""Half the widest gap of NF4's levels, the one next to -1: the largest error in units of the scale."""


@pytest.fixture(params=FORMATS)
def quant(request: pytest.FixtureRequest) -> QuantConfig:
    return FORMATS[request.param]


def build(
    generator: torch.Generator,
    *,
    quant: QuantConfig | None = None,
    bias: bool = True,
    random_b: bool = True,
    rank: int = 4,
    alpha: float = 6.0,
    group_size: int = 50,
) -> QLoraLinear:
    """A layer of 16 by 24 whose groups do not fit its rows; B is random, so that every gradient counts."""
    weight = torch.randn(OUT, IN, generator=generator)
    layer = QLoraLinear.from_weight(
        weight, rank, alpha, group_size, bias=torch.randn(OUT, generator=generator) if bias else None, quant=quant
    )
    if random_b:
        with torch.no_grad():
            layer.lora_B.normal_(generator=generator)
    return layer


def ours(layer: QLoraLinear, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients of x, A and B."""
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, layer.lora_A, layer.lora_B], grad)]


def twin(layer: QLoraLinear, x: Tensor, grad: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """The same by the twin, in float64, on the weight that the codes stand for."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, layer.lora_A, layer.lora_B)]
    bias = None if layer.bias is None else layer.bias.double()
    rows = leaves[0].reshape(-1, x.shape[-1])
    weight = layer.dequantize_weight().to(x.dtype).double()
    y = lora_forward(rows, weight, bias, leaves[1], leaves[2], layer.scaling, mask).view(grad.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def assert_near(found: list[Tensor], wanted: list[Tensor]) -> None:
    for tensor, exact in zip(found, wanted, strict=True):
        assert tensor.dtype == torch.float32
        # The house tolerance of fp32 against float64. Sums of products of order one reach a few tens and cancel, so its
        # absolute part is per unit of the tensor's largest element.
        atol = 1e-6 * max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=atol)


# Forward and gradients


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_output_and_gradients_equal_the_twin(
    quant: QuantConfig, shape: tuple[int, ...], bias: bool, generator: torch.Generator
) -> None:
    layer = build(generator, quant=quant, bias=bias)
    x, grad = torch.randn(*shape, IN, generator=generator), torch.randn(*shape, OUT, generator=generator)
    assert_near(ours(layer, x, grad), twin(layer, x, grad))


def test_one_vector_is_the_row_of_a_batch(generator: torch.Generator) -> None:
    layer = build(generator)
    x = torch.randn(5, IN, generator=generator)
    batch = layer(x)
    for row in range(5):
        y = layer(x[row])
        assert y.shape == (OUT,)
        # Sums of 24 products of order one in another order.
        torch.testing.assert_close(y, batch[row], rtol=1e-5, atol=1e-5)


def test_no_rows(generator: torch.Generator) -> None:
    layer = build(generator)
    y = layer(torch.empty(0, IN, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, OUT)
    assert layer.lora_B.grad is not None
    assert not layer.lora_B.grad.any()


def test_gradients_reach_x_a_and_b_and_nothing_else(quant: QuantConfig, generator: torch.Generator) -> None:
    layer = build(generator, quant=quant)
    codes = {name: tensor.clone() for name, tensor in layer.base.weight.tensors().items()}
    x = torch.randn(5, IN, generator=generator, requires_grad=True)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["lora_A", "lora_B"]
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    assert x.grad is not None
    for name, tensor in layer.base.weight.tensors().items():
        assert same_bits(tensor, codes[name]), name


def test_gradients_under_dropout_belong_to_the_drawn_mask(generator: torch.Generator) -> None:
    base = build(generator).base
    config = LoraConfig(kind="qlora", rank=4, alpha=6, dropout=0.4)
    layer = QLoraLinear(base, config, init=torch_generator(0, "init"), dropout=torch_generator(0, "dropout")).train()
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)
    x, grad = torch.randn(3, 5, IN, generator=generator), torch.randn(3, 5, OUT, generator=generator)
    found = ours(layer, x, grad)
    dropout = Dropout.draw(0.4, torch_generator(0, "dropout"))
    kept = dropout.kept(x.view(15, IN))
    assert_near(found, twin(layer, x, grad, kept.double() * dropout.scale))


def test_bf16_inputs_train_fp32_factors(quant: QuantConfig, generator: torch.Generator) -> None:
    layer = build(generator, quant=quant)
    x, grad = (torch.randn(9, size, generator=generator).bfloat16() for size in (IN, OUT))
    found = ours(layer, x, grad)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for tensor, wanted in zip(found, twin(layer, x, grad), strict=True):
        # Factors, inner products and results are rounded to bf16, each by at most 2^-8 = 0.4 % of itself and
        # independently of one another: 1.6 % of the norm, the house rtol of bf16, bounds four of them.
        assert float((tensor.double() - wanted).norm()) <= 1.6e-2 * float(wanted.norm())


def test_kept_numbers_change_no_bit(quant: QuantConfig, generator: torch.Generator) -> None:
    layer = build(generator, quant=quant)
    x, grad = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    wanted = ours(layer, x, grad)
    layer.base.keep_dense(torch.float32)
    for one, other in zip(ours(layer, x, grad), wanted, strict=True):
        assert same_bits(one, other)


def test_nothing_of_the_weights_size_is_kept_for_backward(generator: torch.Generator) -> None:
    """What the path keeps grows with the rows and the rank; three rows of 101 numbers are far below 101 squared."""
    size, rows = 101, 3
    layers = [QLoraLinear.from_weight(torch.randn(size, size, generator=generator), 4) for _ in range(3)]
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.untyped_storage().nbytes())
        return tensor

    x = torch.randn(rows, size, generator=generator, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = nn.Sequential(*layers)(x)
    assert packed
    assert max(packed) <= 4 * 4 * size, "a factor of rank 4 is the largest"
    assert type(y.grad_fn.next_functions[0][0]).__name__ == type(y.grad_fn).__name__, "one node per layer"


# How it starts


def test_a_fresh_layer_is_its_quantised_weight(quant: QuantConfig, generator: torch.Generator) -> None:
    layer = build(generator, quant=quant, random_b=False)
    assert not layer.lora_B.any()
    assert bool(layer.lora_A.all())
    x = torch.randn(5, IN, generator=generator)
    assert same_bits(layer(x), layer.base(x))
    exact = x.double() @ layer.dequantize_weight().double().T + layer.bias.double()  # type: ignore[union-attr]
    # The house tolerance of fp32 against float64, per unit of the largest element.
    atol = 1e-6 * float(exact.abs().max())
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=atol)


def test_the_seed_decides_a_and_nothing_else(generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    first, again, other = (QLoraLinear.from_weight(weight, 4, seed=seed) for seed in (1, 1, 2))
    assert same_bits(first.lora_A.detach(), again.lora_A.detach())
    assert not torch.equal(first.lora_A, other.lora_A)
    for name, tensor in first.base.weight.tensors().items():
        assert same_bits(tensor, other.base.weight.tensors()[name])


def test_the_scaling_is_alpha_over_rank(generator: torch.Generator) -> None:
    layer = build(generator, rank=8, alpha=12.0, bias=False)
    assert layer.scaling == 1.5
    x = torch.randn(3, IN, generator=generator)
    low_rank = x.double() @ layer.lora_A.detach().double().T @ layer.lora_B.detach().double().T
    # The difference of two fp32 results of a few tens, each rounded to 6e-8 of itself.
    torch.testing.assert_close((layer(x) - layer.base(x)).double(), 1.5 * low_rank, rtol=1e-4, atol=1e-4)


def test_the_weight_comes_back_in_memory_of_its_own(generator: torch.Generator) -> None:
    layer, other = build(generator), build(generator)
    numbers = layer.dequantize_weight()
    wanted = numbers.clone()
    layer(torch.randn(2, IN, generator=generator))
    other(torch.randn(2, IN, generator=generator))
    assert (numbers.shape, numbers.dtype) == ((OUT, IN), torch.float32)
    assert same_bits(numbers, wanted)
    numbers.zero_()
    assert same_bits(layer.dequantize_weight(), wanted)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    group_size=st.sampled_from([1, 16, 32, 64, 100]),
    seed=st.integers(0, 2**31),
)
def test_weights_within_nine_tenths_come_back_within_a_half(
    rows: int, columns: int, group_size: int, seed: int
) -> None:
    """The bound that kizzasi's layer is held to, and the one that NF4 really has."""
    weight = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9
    found = QLoraLinear.from_weight(weight, 1, 1.0, group_size).dequantize_weight()
    error = (found - weight).abs()
    assert float(error.max()) < 0.5
    padded = nn.functional.pad(weight.abs().flatten(), (0, -weight.numel() % group_size)).view(-1, group_size)
    absmax = padded.amax(dim=1).repeat_interleave(group_size)[: weight.numel()].view_as(weight)
    # Half the widest gap times the group's scale, and a rounding of the product and of the quotient.
    assert bool((error <= (NF4_HALF_GAP + 1e-6) * absmax).all())


# Counting


def test_kizzasis_figure() -> None:
    """256 by 128 in groups of 64: 131,072 bytes in fp32, 16,384 of codes and 8 for each of 512 groups."""
    layer = QLoraLinear.from_weight(torch.ones(256, 128), rank=8, alpha=16.0, group_size=64)
    assert layer.memory_saved_bytes() == 110_592
    assert layer.trainable_params() == 8 * (256 + 128)


@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 50),
    group_size=st.integers(1, 3000),
    rank=st.integers(1, 8),
)
def test_counts_in_closed_form(rows: int, columns: int, group_size: int, rank: int) -> None:
    rank = min(rank, rows, columns)
    layer = QLoraLinear.from_weight(torch.ones(rows, columns), rank, 1.0, group_size)
    n, groups = rows * columns, math.ceil(rows * columns / group_size)
    assert layer.memory_saved_bytes() == max(0, 4 * n - math.ceil(n / 2) - 8 * groups)
    assert layer.stored_bytes() == math.ceil(n / 2) + 4 * groups
    assert layer.trainable_params() == rank * (rows + columns)
    assert layer.trainable_params() == sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert (layer.out_features, layer.in_features, layer.rank, layer.group_size) == (rows, columns, rank, group_size)
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((rank, columns), (rows, rank))
    assert same_bits(layer.zero_point, torch.zeros(groups))


def test_eight_bits_save_less(generator: torch.Generator) -> None:
    layer = build(generator, quant=QuantConfig(kind="int8"), group_size=64)
    n, groups = OUT * IN, OUT * IN // 64
    assert layer.memory_saved_bytes() == 4 * n - n - 8 * groups
    assert layer.stored_bytes() == n + 4 * groups


def test_stored_bytes_are_those_that_are_held(quant: QuantConfig, generator: torch.Generator) -> None:
    layer = build(generator, quant=quant, bias=False)
    held = {name: tensor for name, tensor in layer.state_dict().items() if not name.startswith("lora_")}
    assert layer.stored_bytes() == sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    assert layer.stored_bytes() == quant.replace(group_size=50).storage_bytes(OUT * IN)


def test_zero_points_are_the_groups_offsets(generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    layer = QLoraLinear.from_weight(weight, 4, quant=FORMATS["int4 with zero points"])
    smallest = weight.flatten().view(-1, 64).amin(dim=1)
    assert same_bits(layer.zero_point, smallest)


# What cannot be

WEIGHT = torch.ones(OUT, IN)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": OUT + 1}, f"{OUT + 1} for a weight of {OUT} x {IN}; wanted at most {OUT}"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -64}, "group_size is -64"),
        ({"group_size": 0, "quant": QuantConfig()}, "group_size is 0"),
        ({"weight": torch.ones(IN)}, r"matrix; got \(24,\)"),
        ({"weight": torch.ones(2, 3, 4)}, r"matrix; got \(2, 3, 4\)"),
        ({"weight": torch.tensor(1.0)}, r"matrix; got \(\)"),
        ({"weight": torch.ones(0, IN)}, r"matrix; got \(0, 24\)"),
        ({"weight": torch.ones(OUT, 0)}, r"matrix; got \(16, 0\)"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_settings_that_cannot_be(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        QLoraLinear.from_weight(**{"weight": WEIGHT, "rank": 4, **settings})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float, quant: QuantConfig) -> None:
    weight = WEIGHT.clone()
    weight[3, 5] = bad
    with pytest.raises(ModelError, match="not finite") as caught:
        QLoraLinear.from_weight(weight, 4, quant=quant)
    assert f"at position {3 * IN + 5} of {OUT * IN}" in (caught.value.got or "")


def test_whole_numbers_are_no_weight() -> None:
    with pytest.raises(ModelError, match="floating-point"):
        QLoraLinear.from_weight(torch.ones(OUT, IN, dtype=torch.int8), 4)


@pytest.mark.parametrize("shape", [(), (IN - 1,), (IN + 1,), (IN, 1), (2, OUT), (IN, IN, 1), (3, 0)], ids=str)
def test_an_input_of_another_width_is_refused(shape: tuple[int, ...], generator: torch.Generator) -> None:
    layer = build(generator)
    with pytest.raises(DataError, match="does not fit") as caught:
        layer(torch.zeros(shape))
    assert caught.value.got == str(shape)
    assert caught.value.wanted == f"(..., {IN})"


# In a model


def model_of(generator: torch.Generator) -> nn.Sequential:
    """A low-bit layer, an ordinary one, a low-bit one."""
    first = LowBitLinear.from_weight(torch.randn(OUT, IN, generator=generator), torch.randn(OUT, generator=generator))
    last = LowBitLinear.from_weight(torch.randn(8, OUT, generator=generator), None, QuantConfig(kind="int8"))
    return nn.Sequential(first, nn.Linear(OUT, OUT).requires_grad_(False), nn.Tanh(), last)


def test_attaching_chooses_by_the_layer(generator: torch.Generator) -> None:
    model = model_of(generator)
    originals = list(model)
    attachment = attach(model, LoraConfig(rank=4), seed=0)
    assert [type(layer) for layer in attachment.layers.values()] == [QLoraLinear, LoraLinear, QLoraLinear]
    shapes = [(OUT, IN), (OUT, OUT), (8, OUT)]
    assert attachment.num_parameters() == LoraConfig(rank=4).parameter_count(shapes)
    attachment.detach()
    assert all(one is other for one, other in zip(model, originals, strict=True))


def test_the_format_does_not_move_the_initial_factors(generator: torch.Generator) -> None:
    """A is a function of the seed and the path: the same run with and without few bits starts from the same factors."""
    weight = torch.randn(OUT, IN, generator=generator)
    factors = []
    for layer in (LowBitLinear.from_weight(weight), nn.Linear(IN, OUT).requires_grad_(False)):
        attachment = attach(nn.ModuleDict({"query": layer}), LoraConfig(rank=4), seed=3)
        factors.append(attachment.layers["query"].lora_A.detach())
    assert same_bits(*factors)


def test_a_rank_above_a_low_bit_layers_smaller_side_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ConfigError, match=r"method\.rank at 3.*9 for a weight of 8 x 16"):
        attach(model_of(generator), LoraConfig(rank=9), seed=0)


@pytest.mark.parametrize("kind", ["qlora", "qdora"])
def test_merging_makes_an_ordinary_layer(kind: str, generator: torch.Generator) -> None:
    model = model_of(generator)
    attachment = attach(model, LoraConfig(kind=kind, rank=4), seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    untouched = copy.deepcopy(model)
    low_bit = model[0].base
    before = {name: tensor.clone() for name, tensor in low_bit.weight.tensors().items()}
    merge(attachment)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear, nn.Tanh, nn.Linear]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(20, IN, generator=generator)
    found, wanted = model(x), untouched(x).detach()
    # The house tolerance of a small model's logits; weights of order one make hidden values of a few tens, and the
    # absolute part is per unit of the largest.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    for name, tensor in low_bit.weight.tensors().items():
        assert same_bits(tensor, before[name]), "the codes are not written to"


def test_a_merged_layer_shares_no_memory_with_another(generator: torch.Generator) -> None:
    """All low-bit layers become numbers in one buffer; what is merged must not stay there."""
    model = nn.Sequential(*[LowBitLinear.from_weight(torch.randn(IN, IN, generator=generator)) for _ in range(3)])
    wanted = [layer.weight.dequantize() for layer in model]
    merge(attach(model, LoraConfig(rank=4), seed=0))
    found = [layer.weight for layer in model]
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 3
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other), "B is zero"


def test_a_bf16_model_merges_to_bf16(generator: torch.Generator) -> None:
    model = model_of(generator).to(torch.bfloat16)
    merge(attach(model, LoraConfig(rank=4), seed=0))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.zeros(2, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_quantising_is_quantize(generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator).bfloat16()
    layer = QLoraLinear.from_weight(weight, 4, quant=QuantConfig(kind="fp4"), group_size=32)
    wanted = quantize(weight, QuantConfig(kind="fp4", group_size=32))
    for name, tensor in layer.base.weight.tensors().items():
        assert same_bits(tensor, wanted.tensors()[name])
