"""Compiled attention against a float64 twin, and against itself: alone, among others, on more threads, by strides."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlassify.kernels import attention, texts
from qlassify.kernels.attention import Mask
from qlassify.kernels.texts import Texts
from qlassify.models import attention as packed
from qlassify.models.packed_layout import PackedLayout
from qlassify.training.footprint import live_bytes
from reference.attention import attend

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Case:
    """One drawn attention problem."""

    lengths: tuple[int, ...]
    kv_heads: int
    groups: int
    dim: int
    value_dim: int
    causal: bool
    window: int
    seed: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, value and the gradient of the output, fp32."""
        generator = torch.Generator().manual_seed(self.seed)
        heads, tokens = self.kv_heads * self.groups, sum(self.lengths)
        shapes = (
            (heads, self.dim),
            (self.kv_heads, self.dim),
            (self.kv_heads, self.value_dim),
            (heads, self.value_dim),
        )
        a, b, c, d = (torch.randn(tokens, *shape, generator=generator) for shape in shapes)
        return a, b, c, d

    @property
    def texts(self) -> Texts:
        """Where the texts lie."""
        return Texts.of(np.array(self.lengths))

    @property
    def mask(self) -> Mask:
        """Which keys are seen."""
        return Mask(self.causal, self.window)


def cases(longest: int = 70) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        lengths=st.lists(st.integers(1, longest), min_size=1, max_size=4).map(tuple),
        kv_heads=st.integers(1, 2),
        groups=st.integers(1, 3),
        dim=st.sampled_from([16, 32, 48]),
        value_dim=st.sampled_from([16, 32, 80]),
        causal=st.booleans(),
        window=st.sampled_from([0, 0, 1, 2, 5, 16, 17, 1000]),
        seed=st.integers(0, 2**31),
    )


def ours(case: Case, *, keep: bool = True, factor: float = 0.2) -> tuple[Tensor, ...]:
    """Output and the three gradients."""
    query, key, value, grad = case.tensors()
    out, kept = attention.forward(query, key, value, case.texts, case.mask, factor, keep=keep)
    assert (kept is not None) is keep
    return out, *attention.backward(grad, (query, key, value), kept, case.texts, case.mask, factor)


@DRAWN
@given(case=cases())
def test_output_and_gradients_are_near_the_twin(case: Case) -> None:
    query, key, value, grad = (tensor.double() for tensor in case.tensors())
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    window = case.window or None
    wanted = attend(*leaves, case.lengths, scaling=0.2, causal=case.causal, window=window, softcap=None, prefix=None)
    for name, found, twin in zip(
        ("output", "query", "key", "value"),
        ours(case),
        [wanted, *torch.autograd.grad(wanted, leaves, grad)],
        strict=True,
    ):
        # The house tolerance of fp32 against float64; the absolute part per unit of the tensor's largest element.
        atol = 1e-6 * max(1.0, float(twin.detach().abs().max()))
        torch.testing.assert_close(
            found.double(), twin.detach(), rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@DRAWN
@given(case=cases())
def test_recomputed_probabilities_change_no_bit(case: Case) -> None:
    for kept, recomputed in zip(ours(case), ours(case, keep=False), strict=True):
        assert torch.equal(kept, recomputed)


@DRAWN
@given(case=cases(), poison=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_a_text_is_bitwise_what_it_is_alone(case: Case, poison: float) -> None:
    """Among others that hold what no text should."""
    query, key, value, grad = case.tensors()
    start = sum(case.lengths[:-1])
    alone = Case(case.lengths[-1:], case.kv_heads, case.groups, case.dim, case.value_dim, case.causal, case.window, 0)
    own = [tensor[start:].clone() for tensor in (query, key, value, grad)]
    for tensor in (query, key, value, grad):
        tensor[:start] = poison
    out, kept = attention.forward(query, key, value, case.texts, case.mask, 0.3, keep=True)
    grads = attention.backward(grad, (query, key, value), kept, case.texts, case.mask, 0.3)
    single, kept = attention.forward(*own[:3], alone.texts, alone.mask, 0.3, keep=True)
    single_grads = attention.backward(own[3], (own[0], own[1], own[2]), kept, alone.texts, alone.mask, 0.3)
    for found, wanted in zip((out, *grads), (single, *single_grads), strict=True):
        assert torch.equal(found[start:], wanted)


@pytest.mark.parametrize("parts", [2, 3])
def test_threads_change_no_bit(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((40, 3, 17, 1, 29), 2, 2, 16, 32, False, 0, 5)
    whole = ours(case)
    monkeypatch.setattr(texts, "WORK_OF_A_PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: parts)
    assert len(case.texts.edges(4, 16)) > 2
    for found, wanted in zip(ours(case), whole, strict=True):
        assert torch.equal(found, wanted)


def test_one_text_is_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "WORK_OF_A_PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert Texts.of(np.array([50])).edges(4, 16) == [0, 1]


def test_heads_one_after_another_are_read_where_they_are() -> None:
    """Rotary positions leave (heads, T, D) in memory; what counts is the shape."""
    case = Case((5, 19), 2, 3, 16, 16, True, 0, 3)
    query, key, value, grad = case.tensors()
    moved = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (query, key, value)]
    assert not moved[0].is_contiguous()
    found, kept = attention.forward(*moved, case.texts, case.mask, 0.2, keep=True)
    grads = attention.backward(grad, (moved[0], moved[1], moved[2]), kept, case.texts, case.mask, 0.2)
    for one, other in zip((found, *grads), ours(case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 30.0, 1e4])
def test_softmax_is_right_for_small_and_for_large_scores(size: float) -> None:
    """From equal probabilities to a single one; exp is our own polynomial."""
    generator = torch.Generator().manual_seed(1)
    query, key = (size * torch.randn(23, 1, 16, generator=generator) for _ in range(2))
    value = torch.eye(23, 32)[:, None, :].contiguous()  # the output shows the probabilities themselves
    out, _ = attention.forward(query, key, value, Texts.of(np.array([23])), Mask(False, 0), 1.0, keep=False)
    scores = query.double()[:, 0] @ key.double()[:, 0].T
    wanted = torch.softmax(scores, dim=-1)
    # A score of size s is off by 16 roundings of 2^-24 s in fp32, and moves its probability by as much of itself.
    error = 16 * 2**-24 * float(scores.abs().max()) + 1e-6
    torch.testing.assert_close(
        out[:, 0, :23].double(), wanted, rtol=min(error, 1.0), atol=1e-7 + min(error, 1.0) * 1e-3
    )
    torch.testing.assert_close(out.double().sum(dim=-1), torch.ones(23, 1, dtype=torch.float64), rtol=1e-6, atol=0)


SCRIPT = """
import numpy as np, torch
from qlassify.kernels import attention
texts, mask = attention.Texts.of(np.array([3, 300])), attention.Mask(False, 0)
query, key, value, grad = torch.randn(4, 303, 2, 64, generator=torch.Generator().manual_seed(0)).unbind()
leaves = [tensor[3:].transpose(0, 1).double().requires_grad_() for tensor in (query, key, value)]
wanted = torch.nn.functional.scaled_dot_product_attention(*leaves, scale=0.2)
wanted_grads = torch.autograd.grad(wanted, leaves, grad[3:].transpose(0, 1).double())
for keep in (True, False):
    out, kept = attention.forward(query, key, value, texts, mask, 0.2, keep=keep)
    grads = attention.backward(grad, (query, key, value), kept, texts, mask, 0.2)
    for found, twin in zip((out, *grads), (wanted, *wanted_grads)):
        print(float((found[3:].transpose(0, 1) - twin).abs().max()))
"""


def test_what_a_kernel_works_in_is_its_own_until_it_ends() -> None:
    """With an allocator that hands what is freed back to the system at once, so that touching it ends the process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_PERTURB_": "165"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == 8
    # Sums of 300 products in fp32, of numbers up to about ten; memory that somebody else writes to is off by far more.
    assert max(errors) < 1e-4


def test_what_is_not_a_number_stays_so() -> None:
    case = Case((6,), 1, 1, 16, 16, False, 0, 2)
    query, key, value, _ = case.tensors()
    query[2, 0, 3] = math.nan
    out, _ = attention.forward(query, key, value, case.texts, case.mask, 0.2, keep=False)
    assert out[2].isnan().all()
    assert out[[0, 1, 3, 4, 5]].isfinite().all()


def test_the_meta_device_gets_shapes() -> None:
    case = Case((5, 9), 2, 2, 16, 32, True, 0, 1)
    query, key, value, grad = (tensor.to("meta") for tensor in case.tensors())
    out, kept = attention.forward(query, key, value, case.texts, case.mask, 0.2, keep=True)
    real = ours(case)
    grads = attention.backward(grad, (query, key, value), kept, case.texts, case.mask, 0.2)
    assert [tensor.shape for tensor in (out, *grads)] == [tensor.shape for tensor in real]
    assert kept is not None
    assert kept.numel() == 4 * (5 * 16 + 9 * 16)


@pytest.mark.parametrize(("keep", "forward", "backward"), [(True, 0, 1), (False, 1, 2)])
def test_the_meta_device_counts_what_the_threads_work_in(
    keep: bool, forward: int, backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is returned: matrices of 304 x 304 scores and 304 x 32 transposed numbers for each of two threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    case = Case((300, 290, 300), 2, 2, 16, 32, True, 0, 1)
    query, key, value, grad = (tensor.to("meta") for tensor in case.tensors())
    with live_bytes() as live:
        out, kept = attention.forward(query, key, value, case.texts, case.mask, 0.2, keep=keep)
    returned = 4 * (out.numel() + (0 if kept is None else kept.numel()))
    assert live.peak - returned == 4 * 2 * (forward * 304 * 304 + 304 * 32)
    with live_bytes() as live:
        grads = attention.backward(grad, (query, key, value), kept, case.texts, case.mask, 0.2)
    assert live.peak - 4 * sum(one.numel() for one in grads) == 4 * 2 * (backward * 304 * 304 + 304 * 32)


def run(layout: PackedLayout, *, dtype: torch.dtype = torch.float32, softcap: float | None = None) -> Tensor:
    """Packed attention as transformers calls it."""
    module = torch.nn.Module()
    module.is_causal = False
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, layout.num_tokens, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)
    )
    out, _ = packed.packed_attention(module, query, key, value, None, packed_layout=layout, softcap=softcap)
    return out


def made_rectangles(layout: PackedLayout) -> bool:
    return "_rectangles" in vars(layout)


@pytest.mark.parametrize(
    ("dtype", "softcap", "longest", "by_text"),
    [
        (torch.float32, None, 2048, True),
        (torch.float32, None, 2049, False),
        (torch.float32, 2.0, 20, False),
        (torch.bfloat16, None, 128, True),
        (torch.bfloat16, None, 129, False),
        (torch.float64, None, 20, False),
    ],
)
def test_who_attends(dtype: torch.dtype, softcap: float | None, longest: int, by_text: bool) -> None:
    layout = PackedLayout(np.array([3, longest]))
    out = run(layout, dtype=dtype, softcap=softcap)
    assert out.dtype == dtype
    assert made_rectangles(layout) is not by_text


def test_a_gpu_does_not_get_the_cpu_s_loops() -> None:
    layout = PackedLayout(np.array([3, 4]))
    layout.processor = "cuda"
    by_rectangle = run(layout)
    assert made_rectangles(layout)
    # Two orders of fp32 sums of 16 products.
    torch.testing.assert_close(by_rectangle, run(PackedLayout(np.array([3, 4]))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 2**22])
def test_autograd_of_both_ways_is_the_same(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "KEPT_SCORES", kept)
    case = Case((30, 7), 2, 2, 16, 32, True, 9, 4)
    *inputs, grad = case.tensors()
    leaves = [tensor.requires_grad_() for tensor in inputs]
    module = torch.nn.Module()
    module.is_causal = True
    results = []
    for processor in ("cpu", "cuda"):
        layout = PackedLayout(np.array(case.lengths))
        layout.processor = processor
        out, _ = packed.packed_attention(
            module, *(leaf.transpose(0, 1)[None] for leaf in leaves), None, packed_layout=layout, sliding_window=9
        )
        results.append([out[0].detach(), *torch.autograd.grad(out[0], leaves, grad)])
    for one, other in zip(*results, strict=True):
        # Two orders of fp32 sums.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=3e-6)
