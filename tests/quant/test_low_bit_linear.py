"""``LowBitLinear`` against products with the numbers its codes stand for: values, gradients, memory, moves, copies.

Whether codes give back the right numbers is ``test_formats.py``'s business; here ``weight.dequantize`` is taken as
given and everything is about the layer around it.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qlassify.config.quant import QuantConfig
from qlassify.errors import ModelError
from qlassify.quant.linear import LowBitLinear, low_bit_layers
from qlassify.quant.tensor import quantize
from reference.quant import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

IN, OUT = 24, 17
FORMATS = {
    "nf4": QuantConfig(kind="nf4", group_size=64),
    "nf4 single": QuantConfig(kind="nf4", group_size=32, double=False),
    "fp4": QuantConfig(kind="fp4", group_size=7),
    "int4": QuantConfig(kind="int4", group_size=24),
    "int4 with zero points": QuantConfig(kind="int4", group_size=50, zero_point=True),
    "int8": QuantConfig(kind="int8", group_size=1000),
    "int8 with zero points": QuantConfig(kind="int8", group_size=16, zero_point=True),
}
"""Every kind and every way of keeping scales; groups that fit a row, that do not, and one longer than the weight."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-53}
"""Largest relative error of rounding to a type."""


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest) -> QuantConfig:
    return FORMATS[request.param]


def build(
    config: QuantConfig,
    generator: torch.Generator,
    *,
    in_features: int = IN,
    out_features: int = OUT,
    bias: bool = True,
) -> LowBitLinear:
    weight = torch.randn(out_features, in_features, generator=generator)
    return LowBitLinear.from_weight(weight, torch.randn(out_features, generator=generator) if bias else None, config)


def run(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of x."""
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


def product_bound(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a product ``a @ b`` of numbers of ``dtype`` may lie from the exact one, element by element.

    n products summed in fp32 (or better) in any order are off by at most (n + 1) roundings of the sum of magnitudes;
    the result and a bias are then rounded to ``dtype`` once each.
    """
    sums = EPSILON[torch.float64 if dtype == torch.float64 else torch.float32]
    return (a.double().abs() @ b.double().abs()) * (2 * EPSILON[dtype] + (a.shape[-1] + 2) * sums) + 1e-30


def snapshot(layer: LowBitLinear) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.weight.tensors().items()}


def assert_weight_is(layer: LowBitLinear, wanted: dict[str, Tensor]) -> None:
    found = layer.weight.tensors()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert same_bits(found[name], tensor), name


# Values and gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_output_and_gradient_are_those_of_the_numbers(
    config: QuantConfig, bias: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    layer = build(config, generator, bias=bias)
    x = torch.randn(5, IN, generator=generator).to(dtype)
    grad = torch.randn(5, OUT, generator=generator).to(dtype)
    y, grad_x = run(layer, x, grad)
    assert (y.dtype, grad_x.dtype) == (dtype, dtype)
    weight = layer.weight.dequantize(dtype)
    exact = x.double() @ weight.double().T
    if layer.bias is not None:
        added = layer.bias.to(dtype).double()
        exact, slack = exact + added, added.abs() * 2 * EPSILON[dtype]
    else:
        slack = torch.zeros(OUT, dtype=torch.float64)
    assert bool(((y.double() - exact).abs() <= product_bound(x, weight.T, dtype) + slack).all())
    assert bool(((grad_x.double() - grad.double() @ weight.double()).abs() <= product_bound(grad, weight, dtype)).all())


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 5), (3, 1, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_any_leading_shape(shape: tuple[int, ...], bias: bool, generator: torch.Generator) -> None:
    """Row by row the same as one row alone, and as a dense layer with these numbers."""
    layer = build(FORMATS["nf4"], generator, bias=bias)
    dense = nn.Linear(IN, OUT, bias=bias)
    with torch.no_grad():
        dense.weight.copy_(layer.weight.dequantize())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    x = torch.randn(*shape, IN, generator=generator)
    grad = torch.randn(*shape, OUT, generator=generator)
    found, wanted = run(layer, x, grad), run(dense, x, grad)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        # 24 or 17 products of order one, summed in fp32 in another order for another shape.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_strided_input_and_a_strided_gradient(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    x = torch.randn(IN, 5, 3, generator=generator).permute(2, 1, 0)
    grad = torch.randn(1, 1, OUT, generator=generator).expand(3, 5, OUT)
    assert not x.is_contiguous()
    assert not grad.is_contiguous()
    found, wanted = run(layer, x, grad), run(layer, x.contiguous(), grad.contiguous())
    for one, other in zip(found, wanted, strict=True):
        # 24 or 17 products of order one, which another memory layout may add in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_only_x_gets_a_gradient(config: QuantConfig, generator: torch.Generator) -> None:
    layer = build(config, generator)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    before = snapshot(layer)
    x = torch.randn(4, IN, generator=generator, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is None
    assert_weight_is(layer, before)


def test_without_a_gradient_there_is_no_graph(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    x = torch.randn(4, IN, generator=generator)
    assert layer(x).grad_fn is None
    with torch.no_grad():
        assert layer(x.requires_grad_()).grad_fn is None


def test_a_second_derivative_is_refused(generator: torch.Generator) -> None:
    """It would be wrong without a word: backward forms its weight outside the graph."""
    layer = build(FORMATS["nf4"], generator)
    x = torch.randn(4, IN, generator=generator, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    ],
    ids=str,
)
def test_training_after_inference_mode(dtype: torch.dtype, generator: torch.Generator) -> None:
    """The buffer outlives the call that made it, and tensors made under ``inference_mode`` are forbidden elsewhere."""
    layer = build(FORMATS["nf4"], generator)
    x, grad = torch.randn(3, IN, generator=generator).to(dtype), torch.randn(3, OUT, generator=generator).to(dtype)
    found: list[tuple[Tensor, Tensor]] = []

    def in_a_new_thread() -> None:
        """A new thread has no buffer yet."""
        with torch.inference_mode():
            layer(x)
        found.append(run(layer, x, grad))

    in_thread(in_a_new_thread)
    for one, other in zip(found[0], run(layer, x, grad), strict=True):
        assert same_bits(one, other)


# What autograd keeps


def test_nothing_of_the_weights_size_is_kept_for_backward(generator: torch.Generator) -> None:
    """A chain of layers of a size that no other tensor has: between forward and backward there is one buffer."""
    size, rows = 101, 3
    layers = [build(FORMATS["nf4"], generator, in_features=size, out_features=size) for _ in range(4)]
    chain = nn.Sequential(*[module for layer in layers for module in (layer, nn.Tanh())])
    x = torch.randn(rows, size, generator=generator, requires_grad=True)
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = chain(x)
    assert packed, "tanh keeps its output"
    assert max(packed) <= 4 * rows * size, packed
    gc.collect()
    alive = {
        one.untyped_storage().data_ptr()
        for one in gc.get_objects()
        if issubclass(type(one), Tensor) and one.device.type == "cpu" and one.numel() == size * size
    }
    assert len(alive) <= 1, "the shared buffer at most"
    # What the nodes themselves hold: the layer, and no tensor.
    node, seen = y.grad_fn, 0
    while node is not None:
        if type(node).__name__.startswith("_LowBit"):
            seen += 1
            assert node.saved_tensors == ()
            assert not [value for value in vars(node).values() if isinstance(value, Tensor)]
        node = node.next_functions[0][0] if node.next_functions else None
    assert seen == len(layers)
    y.sum().backward()
    assert x.grad is not None


# Types and devices


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.half(),
        lambda module: module.double(),
        lambda module: module.bfloat16().float(),
        lambda module: module.to("cpu", torch.float64),
        lambda module: module.type(torch.float16),
    ],
    ids=["to bf16", "half", "double", "bf16 and back", "to cpu float64", "type"],
)
def test_codes_and_scales_keep_their_types(
    config: QuantConfig, move: Callable[[nn.Module], nn.Module], generator: torch.Generator
) -> None:
    """Scales rounded to bf16 would be another weight, and one that depends on the way here."""
    layer = build(config, generator)
    before = snapshot(layer)
    numbers = layer.weight.dequantize()
    move(nn.Sequential(layer))
    assert_weight_is(layer, before)
    assert same_bits(layer.weight.dequantize(), numbers)


def test_the_bias_follows_the_model(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    assert layer.bias is not None
    wanted = layer.bias.detach().bfloat16()
    nn.Sequential(layer).to(torch.bfloat16)
    assert same_bits(layer.bias, wanted)
    x = torch.randn(3, IN, generator=generator)
    assert layer(x).dtype == torch.float32, "the product has the type of x, whatever the bias has"


def test_a_move_to_another_device_takes_everything_along(config: QuantConfig, generator: torch.Generator) -> None:
    layer = build(config, generator)
    types = {name: tensor.dtype for name, tensor in layer.weight.tensors().items()}
    nn.Sequential(layer).to("meta", torch.bfloat16)
    found = layer.weight.tensors()
    assert {name: tensor.dtype for name, tensor in found.items()} == types
    assert {tensor.device.type for tensor in (*found.values(), layer.bias)} == {"meta"}  # type: ignore[union-attr]
    assert layer.device.type == "meta"


# Keeping the numbers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_numbers_change_no_bit(config: QuantConfig, dtype: torch.dtype, generator: torch.Generator) -> None:
    layer = build(config, generator)
    x, grad = torch.randn(4, IN, generator=generator).to(dtype), torch.randn(4, OUT, generator=generator).to(dtype)
    wanted = run(layer, x, grad)
    for kept in (dtype, torch.bfloat16, None):
        layer.keep_dense(kept)
        for one, other in zip(run(layer, x, grad), wanted, strict=True):
            assert same_bits(one, other), kept


def test_kept_numbers_are_formed_once_and_given_up_when_told(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlassify.quant.tensor import QuantizedTensor

    calls: list[torch.dtype] = []
    dequantize = QuantizedTensor.dequantize

    def counted(self: QuantizedTensor, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None) -> Tensor:
        calls.append(dtype)
        return dequantize(self, dtype, out=out)

    layer = build(FORMATS["nf4"], generator)
    x, grad = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    monkeypatch.setattr(QuantizedTensor, "dequantize", counted)
    run(layer, x, grad)
    assert len(calls) == 2, "once for forward and once for backward"
    layer.keep_dense(torch.float32)
    calls.clear()
    run(layer, x, grad)
    assert calls == []
    kept = weakref.ref(layer.dense_weight(torch.float32))
    gc.collect()
    assert kept() is not None
    layer.keep_dense(None)
    gc.collect()
    assert kept() is None
    run(layer, x, grad)
    assert len(calls) == 2


def test_kept_numbers_are_each_layers_own(generator: torch.Generator) -> None:
    """One that keeps its numbers, one that does not, and again one that does: nobody writes over anybody's."""
    layers = [build(FORMATS["nf4"], generator) for _ in range(3)]
    x, grad = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    wanted = [run(layer, x, grad) for layer in layers]
    layers[0].keep_dense(torch.float32)
    layers[2].keep_dense(torch.float32)
    for _ in range(2):
        for layer, ones in zip(layers, wanted, strict=True):
            assert all(same_bits(one, other) for one, other in zip(run(layer, x, grad), ones, strict=True))


def test_kept_numbers_do_not_outlive_their_codes(generator: torch.Generator) -> None:
    layer, other = (build(FORMATS["nf4"], generator, bias=False) for _ in range(2))
    layer.keep_dense(torch.float32)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(4, IN, generator=generator)
    assert same_bits(layer(x), other(x))


def test_a_move_drops_the_kept_numbers(generator: torch.Generator) -> None:
    """On the new device they would not be where the codes are, and in the new type they would be rounded twice."""
    layer = build(FORMATS["nf4"], generator, bias=False)
    x = torch.randn(4, IN, generator=generator)
    wanted = layer(x)
    layer.keep_dense(torch.float32)
    kept = weakref.ref(layer.dense_weight(torch.float32))
    layer.to(torch.bfloat16)
    gc.collect()
    assert kept() is None
    assert same_bits(layer(x), wanted)


# The shared buffer


def test_layers_that_share_the_buffer_do_not_disturb_each_other(generator: torch.Generator) -> None:
    """Different sizes, one used twice, two paths that meet: every product must see its own layer's numbers."""
    wide = build(FORMATS["nf4"], generator, in_features=IN, out_features=40)
    narrow = build(FORMATS["int8"], generator, in_features=40, out_features=OUT, bias=False)
    square = build(FORMATS["int4 with zero points"], generator, in_features=OUT, out_features=OUT)
    short = build(FORMATS["fp4"], generator, in_features=IN, out_features=OUT)
    x = torch.randn(6, IN, generator=generator)
    grad = torch.randn(6, OUT, generator=generator)

    def graph(layers: list[nn.Module], x: Tensor) -> Tensor:
        first, second, third, fourth = layers
        hidden = third(second(torch.tanh(first(x))))
        result: Tensor = third(torch.tanh(hidden) + fourth(x)) * fourth(x)
        return result

    low_bit: list[nn.Module] = [wide, narrow, square, short]
    plain = [dense_twin(layer) for layer in (wide, narrow, square, short)]
    leaf = x.clone().requires_grad_()
    y = graph(low_bit, leaf)
    y.backward(grad)
    twin = x.double().requires_grad_()
    wanted = graph(plain, twin)
    wanted.backward(grad.double())
    assert leaf.grad is not None
    assert twin.grad is not None
    for found, exact in ((y.detach(), wanted.detach()), (leaf.grad, twin.grad)):
        # The house tolerance of fp32 against float64; its absolute part is per unit of the largest element, because
        # sums over up to forty products cancel on the way.
        torch.testing.assert_close(
            found.double(), exact, rtol=1e-5, atol=2e-6 * max(1.0, float(exact.abs().max())), check_dtype=False
        )


def dense_twin(layer: LowBitLinear) -> nn.Linear:
    """The same layer with float64 numbers of its own."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(layer.weight.dequantize())
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


def test_the_buffer_is_one_and_as_large_as_the_largest_weight(generator: torch.Generator) -> None:
    small, large = (build(FORMATS["nf4"], generator, in_features=IN, out_features=rows) for rows in (OUT, 3 * OUT))
    found: list[Tensor] = []

    def in_a_new_thread() -> None:
        for layer in (small, large, small, large):
            found.append(layer.dense_weight(torch.float32))

    in_thread(in_a_new_thread)
    storages = [tensor.untyped_storage() for tensor in found]
    assert storages[1].data_ptr() == storages[2].data_ptr() == storages[3].data_ptr()
    assert storages[3].nbytes() == 4 * 3 * OUT * IN


def test_two_threads_do_not_disturb_each_other(generator: torch.Generator) -> None:
    """Each runs forward and backward of its own layer many times while the other does the same."""
    layers = [build(FORMATS["nf4"], generator, out_features=rows) for rows in (OUT, 64)]
    inputs = [torch.randn(4, IN, generator=generator) for _ in layers]
    grads = [torch.randn(4, layer.out_features, generator=generator) for layer in layers]
    wanted = [run(layer, x, grad) for layer, x, grad in zip(layers, inputs, grads, strict=True)]
    differences: list[str] = []
    start = threading.Barrier(len(layers))

    def work(index: int) -> None:
        start.wait()
        for repetition in range(200):
            found = run(layers[index], inputs[index], grads[index])
            if not all(same_bits(one, other) for one, other in zip(found, wanted[index], strict=True)):
                differences.append(f"thread {index}, repetition {repetition}")
                return

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(layers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == []


def test_forward_here_and_backward_in_another_thread(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    x = torch.randn(4, IN, generator=generator, requires_grad=True)
    grad = torch.randn(4, OUT, generator=generator)
    wanted = run(layer, x, grad)[1]
    y = layer(x)
    in_thread(lambda: y.backward(grad))
    assert x.grad is not None
    assert same_bits(x.grad, wanted)


def in_thread(work: Callable[[], object]) -> None:
    """Run something in a new thread, whose errors are the test's."""
    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


# Copies, files, sizes


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("kept", [None, torch.float32], ids=["codes", "with numbers"])
def test_a_copy_is_the_same_layer_with_memory_of_its_own(
    config: QuantConfig,
    kept: torch.dtype | None,
    duplicate: Callable[[LowBitLinear], LowBitLinear],
    generator: torch.Generator,
) -> None:
    layer = build(config, generator)
    layer.keep_dense(kept)
    other = duplicate(layer)
    assert_weight_is(other, snapshot(layer))
    x, grad = torch.randn(4, IN, generator=generator), torch.randn(4, OUT, generator=generator)
    wanted = run(layer, x, grad)
    for one, two in zip(run(other, x, grad), wanted, strict=True):
        assert same_bits(one, two)
    for mine, its in zip(layer.weight.tensors().values(), other.weight.tensors().values(), strict=True):
        assert mine.data_ptr() != its.data_ptr()
    changed = LowBitLinear(quantize(torch.randn(OUT, IN, generator=generator), config), other.bias)
    other.load_state_dict(changed.state_dict())
    assert same_bits(layer(x), wanted[0])


def names_of(config: QuantConfig) -> set[str]:
    scales = {"weight_scale_codes", "weight_scale_maxima", "weight_scale_mean"} if config.double else {"weight_scales"}
    return {"weight_codes", "bias"} | scales | ({"weight_offsets"} if config.zero_point else set())


@pytest.mark.parametrize(("device", "assign"), [("cpu", False), ("meta", True)])
def test_a_state_goes_into_an_empty_layer(
    config: QuantConfig, device: str, assign: bool, generator: torch.Generator
) -> None:
    layer = build(config, generator)
    state = layer.state_dict()
    assert set(state) == names_of(config)
    bias = nn.Parameter(torch.empty(OUT, device=device), requires_grad=False)
    empty = LowBitLinear.empty((OUT, IN), config, bias=bias, device=device)
    assert empty.device.type == device
    empty.load_state_dict(state, strict=True, assign=assign)
    assert_weight_is(empty, snapshot(layer))
    x = torch.randn(4, IN, generator=generator)
    assert same_bits(empty(x), layer(x))


def test_the_state_does_not_hold_the_kept_numbers(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    layer.keep_dense(torch.float32)
    assert set(layer.state_dict()) == names_of(FORMATS["nf4"])


def test_a_state_of_another_size_is_refused(generator: torch.Generator) -> None:
    layer = build(FORMATS["nf4"], generator)
    other = build(FORMATS["nf4"], generator, out_features=OUT + 1)
    with pytest.raises(RuntimeError, match="weight_codes"):
        layer.load_state_dict(other.state_dict())


def test_from_weight_is_quantize(config: QuantConfig, generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator).bfloat16()
    layer = LowBitLinear.from_weight(weight, None, config)
    assert_weight_is(layer, quantize(weight, config).tensors())
    assert (layer.in_features, layer.out_features, layer.bias, layer.config) == (IN, OUT, None, config)
    assert layer.weight.nbytes == config.storage_bytes(OUT * IN)
    assert f"{IN}, {OUT}, bias=False, {config}" in repr(layer)


def test_a_weight_that_is_not_finite_is_named(generator: torch.Generator) -> None:
    weight = torch.randn(OUT, IN, generator=generator)
    weight[3, 4] = float("inf")
    with pytest.raises(ModelError, match="inf at position") as caught:
        LowBitLinear.from_weight(weight, name="encoder.query.weight")
    assert caught.value.where == "encoder.query.weight"


def test_the_low_bit_layers_of_a_model(generator: torch.Generator) -> None:
    first, second = build(FORMATS["nf4"], generator), build(FORMATS["int8"], generator)
    model = nn.ModuleDict({"b": nn.Sequential(nn.Linear(2, 2), second), "a": first, "norm": nn.LayerNorm(2)})
    assert low_bit_layers(model) == {"b.1": second, "a": first}
    assert list(low_bit_layers(model)) == ["b.1", "a"]
    assert low_bit_layers(first) == {"": first}


@pytest.fixture(autouse=True)
def _no_buffer_from_before() -> None:
    """Each test starts without a buffer in this thread, so that it does not depend on the tests before it."""
    from qlassify.quant import linear

    linear._buffers.__dict__.clear()
