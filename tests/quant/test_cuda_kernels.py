"""The Triton kernels against the reference, to the last bit.

Without a GPU they run in Triton's interpreter, on CPU tensors: that tests the indices, the masks and the arithmetic.
What the interpreter cannot show is read in the code that Triton's compiler makes, for which it needs no GPU either:
that nothing is fused and that the hardware rounds to nearest even. On a GPU everything is compared for real.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qlassify.quant.kernels
from qlassify.config.quant import QuantConfig
from qlassify.quant import double as double_module
from qlassify.quant import tensor as tensor_module
from qlassify.quant.kernels import Kernels, reference
from qlassify.quant.tensor import QuantizedTensor, from_tensors, quantize

pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS = {
    "nf4": QuantConfig(kind="nf4", double=False),
    "nf4-double": QuantConfig(kind="nf4", double=True),
    "fp4": QuantConfig(kind="fp4", double=False),
    "fp4-double": QuantConfig(kind="fp4", double=True),
    "int4": QuantConfig(kind="int4", double=False),
    "int4-double": QuantConfig(kind="int4", double=True),
    "int4-zero-points": QuantConfig(kind="int4", zero_point=True),
    "int8": QuantConfig(kind="int8"),
    "int8-double": QuantConfig(kind="int8", double=True),
    "int8-zero-points": QuantConfig(kind="int8", zero_point=True),
}
GROUP_SIZES = (1, 3, 16, 32, 64, 100, 4096)
DTYPES = (torch.float32, torch.bfloat16)
GUARD = 64
"""Numbers after a result that a kernel must leave alone: more than a vector store writes."""


def copy_of_module(patch: pytest.MonkeyPatch, *, interpreted: bool) -> ModuleType:
    """The module under test once more, with kernels of its own.

    A kernel is compiled or interpreted according to TRITON_INTERPRET at its decoration, so the variable is set around
    another import of the file. Setting it before the first import of Triton would depend on which test of the suite
    imports Triton first and would leave nothing to compile; a process for each kind would have to send results back.
    """
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")
    patch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    original = importlib.util.find_spec("qlassify.quant.kernels.cuda")
    assert original is not None
    assert original.origin is not None
    spec = importlib.util.spec_from_file_location("copy_of_cuda_kernels", original.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert bool(module.INTERPRETED) == interpreted
    return module


@functools.cache
def interpreted_module() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        return copy_of_module(patch, interpreted=True)


@contextmanager
def interpreter() -> Iterator[Any]:
    """The interpreted kernels, with the interpreter on while they are used and off again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield interpreted_module()


@contextmanager
def used(kernels: Kernels) -> Iterator[None]:
    """Quantised tensors on every device go through these kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tensor_module, double_module):
            patch.setattr(module, "kernels_for", lambda device: kernels)
        yield


def quantized(config: QuantConfig, group_size: int, count: int, seed: int = 0) -> QuantizedTensor:
    """Random normal numbers in this format, of which no two groups have the same spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(-(-count // group_size), generator=generator).add_(0.01).repeat_interleave(group_size)[:count]
    with used(reference):
        weight = torch.randn(count, generator=generator) * spread
        return quantize(weight, config.model_copy(update={"group_size": group_size}))


def dense(kernels: Any, weight: QuantizedTensor, dtype: torch.dtype) -> Tensor:
    """The weight as numbers from these kernels, which are seen to write these numbers and no others."""
    count = weight.shape[0]
    room = torch.full((count + GUARD,), 7.0, dtype=dtype, device=weight.codes.device)
    with used(kernels):
        weight.dequantize(dtype, out=room[:count])
    assert bool((room[count:] == 7.0).all()), "written past the end"
    return room[:count]


def bits(values: Tensor) -> Tensor:
    """The numbers as integers: zeros of both signs are then two things."""
    return values.cpu().view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)


def same(kernels: Any, weight: QuantizedTensor, dtype: torch.dtype) -> bool:
    return torch.equal(bits(dense(kernels, weight, dtype)), bits(dense(reference, weight, dtype)))


def ties() -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and offsets of k + 1/2 for 0 <= k < 256.

    bf16 has eight significant bits, so from 128 on every one of them is halfway between two neighbours. Rounding up
    gets each even k wrong, cutting off each odd one.
    """
    return torch.arange(256, dtype=torch.uint8), torch.ones(4), torch.full((4,), 0.5)


# In the interpreter


@pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_interpreted_kernels_agree_with_the_reference(name: str, group_size: int, dtype: torch.dtype) -> None:
    # Two groups and a short third, several programs, and an odd count: the last byte is half empty.
    count = max(2 * group_size + group_size // 2, 2100) | 1
    with interpreter() as kernels:
        assert same(kernels, quantized(FORMATS[name], group_size, count), dtype)


@settings(max_examples=50)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    group_size=st.integers(1, 300),
    count=st.integers(1, 2500),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_interpreted_kernels_agree_on_any_size(
    name: str, group_size: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    with interpreter() as kernels:
        assert same(kernels, quantized(FORMATS[name], group_size, count, seed), dtype)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["nf4", "int4-zero-points", "int8"])
def test_f_edge_next_to_nothing_is_dequantised(name: str, count: int) -> None:
    weight = quantized(FORMATS[name], 64, 2)
    with interpreter() as kernels:
        whole, room = dense(kernels, weight, torch.float32), torch.full((2,), 7.0)
        levels, scales = tensor_module._levels(weight.config, torch.device("cpu")), weight.scales
        assert isinstance(scales, Tensor)
        if weight.config.bits == 4:
            kernels.dequantize4(weight.codes, levels, scales, weight.offsets, 64, room[:count])
        else:
            kernels.dequantize8(weight.codes, 128, scales, weight.offsets, 64, room[:count])
    assert room.tolist() == whole[:count].tolist() + [7.0] * (2 - count)


def test_f_edge_a_group_larger_than_32_bits() -> None:
    """Positions are then counted in 64 bits, which is another type in the kernel."""
    weight = quantized(FORMATS["int4-zero-points"], 2000, 1999)
    huge = from_tensors(weight.config.model_copy(update={"group_size": 2**40}), weight.shape, weight.tensors())
    with interpreter() as kernels:
        assert torch.equal(dense(kernels, huge, torch.float32), dense(reference, weight, torch.float32))


def test_interpreted_kernels_round_ties_to_even() -> None:
    codes, scales, offsets = ties()
    expected, found = torch.empty(256, dtype=torch.bfloat16), torch.empty(256, dtype=torch.bfloat16)
    reference.dequantize8(codes, 0, scales, offsets, 64, expected)
    with interpreter() as kernels:
        kernels.dequantize8(codes, 0, scales, offsets, 64, found)
    assert found[128:132].tolist() == [128, 130, 130, 132]
    assert torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1500])
def test_interpreted_scales_agree_for_all_codes(count: int, generator: torch.Generator) -> None:
    codes = torch.arange(count).to(torch.uint8)
    maxima = torch.rand(-(-count // 256), generator=generator)
    mean = torch.randn((), generator=generator)
    expected, found = torch.empty(count), torch.full((count + GUARD,), 7.0)
    reference.expand_scales(codes, maxima, mean, expected)
    with interpreter() as kernels:
        kernels.expand_scales(codes, maxima, mean, found[:count])
    assert torch.equal(bits(found[:count]), bits(expected))
    assert bool((found[count:] == 7.0).all())


# In the code that is compiled for a GPU


class CompiledOnly:
    """Stands in for a kernel: a launch compiles it with what the launch was given, and keeps the code."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.code: list[str] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            self.code += [one.asm["ptx"] for one in (made if isinstance(made, list) else [made])]

        return launch


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, dict[str, CompiledOnly]]:
    """The module with its kernels compiled for an A100 wherever they would be launched, and those kernels by name.

    A copy, because kernels remember what they were compiled for: on a machine with another GPU the module's own could
    not be launched afterwards.
    """
    module = copy_of_module(monkeypatch, interpreted=False)
    compiler = importlib.import_module("triton.backends.compiler")
    runtime = importlib.import_module("triton.runtime")

    class Ampere:
        """What the compiler asks a driver for."""

        get_current_target = staticmethod(lambda: compiler.GPUTarget("cuda", 80, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device=0: 0)

    monkeypatch.setattr(runtime.driver, "_active", Ampere())
    # An empty cache: everything is compiled here and now, and nothing is left behind.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = ("_dequantize4", "_dequantize8", "_expand_scales", "_tuned_dequantize4", "_tuned_dequantize8")
    kernels = {name: CompiledOnly(getattr(module, name)) for name in names}
    for name, kernel in kernels.items():
        monkeypatch.setattr(module, name, kernel)
    return module, kernels


@pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))
def test_compiled_kernels_round_product_and_sum_apart(
    compiled: tuple[ModuleType, dict[str, CompiledOnly]], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, kernels = compiled
    codes, numbers = torch.zeros(1 << 10, dtype=torch.uint8), torch.zeros(1 << 10)
    for tuned_from in (1, 1 << 20):
        monkeypatch.setattr(cuda, "TUNED_FROM", tuned_from)
        cuda.dequantize4(codes, numbers, numbers, numbers, 64, torch.empty(1 << 10, dtype=dtype))
        cuda.dequantize8(codes, 128, numbers, numbers, 100, torch.empty(1 << 10, dtype=dtype))
    cuda.expand_scales(codes, numbers, numbers[0], numbers)
    for name, kernel in kernels.items():
        to_bf16 = dtype == torch.bfloat16 and name != "_expand_scales"
        assert len(kernel.code) == (5 if "tuned" in name else 1)
        for code in kernel.code:
            # `.rn` on both is also what keeps the assembler that follows from fusing them.
            assert "mul.rn.f32" in code
            assert "add.rn.f32" in code
            assert re.findall(r"\bfma\b.*|.*\.ftz\b.*", code) == []
            assert ("cvt.rn.bf16x2.f32" in code) == to_bf16
            # Never number by number.
            stores = re.findall(r"\bst\.global\S*", code)
            assert stores
            assert not {f"st.global.{kind}{16 if to_bf16 else 32}" for kind in "buf"} & set(stores)


# On a GPU


@pytest.fixture
def gpu() -> torch.device:
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


def gpu_kernels(gpu: torch.device) -> Kernels:
    kernels = qlassify.quant.kernels.kernels_for(gpu)
    assert kernels is importlib.import_module("qlassify.quant.kernels.cuda")
    return kernels


def agrees_on(gpu: torch.device, weight: QuantizedTensor, dtype: torch.dtype) -> bool:
    """Whether the GPU makes the same numbers of a weight as the reference on the CPU."""
    there = from_tensors(weight.config, weight.shape, {name: t.to(gpu) for name, t in weight.tensors().items()})
    return torch.equal(bits(dense(gpu_kernels(gpu), there, dtype)), bits(dense(reference, weight, dtype)))


@pytest.mark.gpu
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_kernels_agree_with_the_reference_on_a_gpu(gpu: torch.device, name: str, group_size: int) -> None:
    for count in (1, 2, max(2 * group_size + group_size // 2, 2100) | 1, 4 * group_size + 1024):
        weight = quantized(FORMATS[name], group_size, count)
        for dtype in DTYPES:
            assert agrees_on(gpu, weight, dtype), (count, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["nf4-double", "int4-zero-points", "int8"])
def test_kernels_agree_on_a_large_matrix_on_a_gpu(gpu: torch.device, name: str) -> None:
    """Large enough for block sizes to be timed; once more with an odd number behind, so that a block is cut off."""
    for count in (4096 * 4096, 4096 * 4096 + 33):
        weight = quantized(FORMATS[name], 64, count)
        for dtype in DTYPES:
            assert agrees_on(gpu, weight, dtype), (count, dtype)


@pytest.mark.gpu
def test_f_edge_numbers_beyond_32_bits_are_found_on_a_gpu(gpu: torch.device) -> None:
    count, start = 2**31 + 4097, 2**31 - 4096  # 64 groups before the limit, 64 and a bit behind it
    if torch.cuda.mem_get_info(gpu)[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free memory on the CUDA device")
    codes = torch.randint(0, 256, (-(-count // 2),), dtype=torch.uint8, device=gpu)
    scales = torch.rand(-(-count // 64), device=gpu)
    levels = tensor_module._levels(FORMATS["nf4"], gpu)
    found = torch.empty(count, dtype=torch.bfloat16, device=gpu)
    gpu_kernels(gpu).dequantize4(codes, levels, scales, None, 64, found)
    expected = torch.empty(count - start, dtype=torch.bfloat16)
    reference.dequantize4(codes[start // 2 :].cpu(), levels.cpu(), scales[start // 64 :].cpu(), None, 64, expected)
    assert torch.equal(bits(found[start:]), bits(expected))


@pytest.mark.gpu
def test_ties_are_rounded_to_even_on_a_gpu(gpu: torch.device) -> None:
    codes, scales, offsets = (tensor.to(gpu) for tensor in ties())
    found = torch.empty(256, dtype=torch.bfloat16, device=gpu)
    gpu_kernels(gpu).dequantize8(codes, 0, scales, offsets, 64, found)
    assert found[128:132].tolist() == [128, 130, 130, 132]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in FORMATS if "double" not in name])
def test_weights_are_quantised_alike_on_a_gpu(gpu: torch.device, name: str, generator: torch.Generator) -> None:
    """Not the doubly quantised: their mean is a sum, and the order in which a GPU adds is its own."""
    weight = torch.randn(100_001, generator=generator)
    with used(reference):
        here, there = quantize(weight, FORMATS[name]).tensors(), quantize(weight.to(gpu), FORMATS[name]).tensors()
    for part, tensor in here.items():
        assert torch.equal(tensor, there[part].cpu()), part


# Without Triton


def test_f_edge_without_triton_the_reference_is_used_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "qlassify.quant.kernels.cuda", raising=False)
    with pytest.warns(UserWarning, match="Triton cannot be used"):
        assert qlassify.quant.kernels._cuda.__wrapped__() is reference
