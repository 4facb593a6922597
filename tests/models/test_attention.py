"""Packed attention against a float64 twin, against itself in other batches, and what it refuses.

Forward and the three gradients are compared with ``reference/attention.py`` over drawn lengths, heads, grouped heads,
head widths, causality, windows and soft caps, on each of the three paths through memory: probabilities kept,
recomputed, and recomputed in blocks of query rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.models import attention, packed_layout
from qlassify.models.attention import packed_attention
from qlassify.models.packed_layout import PackedLayout
from reference.attention import attend

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = settings(max_examples=30, deadline=None, derandomize=True, database=None)
"""No deadline because tests never time; derandomised because one failure must be everybody's failure."""

MEMORY = {
    "kept": {},
    "recomputed": {"KEPT_SCORES": 0},
    "blocks": {"KEPT_SCORES": 0, "MAX_SCORES": 300},
    "one row a block": {"KEPT_SCORES": 0, "MAX_SCORES": 1},
}
"""The limits that steer each path through memory; those not named keep their values."""


class _Module(torch.nn.Module):
    """What packed attention reads of an attention module."""

    def __init__(self, *, is_causal: bool | None) -> None:
        super().__init__()
        if is_causal is not None:
            self.is_causal = is_causal


@dataclass(frozen=True)
class Case:
    """One drawn attention problem."""

    lengths: tuple[int, ...]
    kv_heads: int
    groups: int
    dim: int
    value_dim: int
    causal: bool
    window: int | None
    softcap: float | None
    scaling: float | None
    slack: int
    seed: int
    prefix: int = 0

    @property
    def factor(self) -> float:
        """The scaling that applies."""
        return self.dim**-0.5 if self.scaling is None else self.scaling

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value, and the gradient of the output, (T, heads, D) in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        tokens = sum(self.lengths)
        heads = self.kv_heads * self.groups
        shapes = (
            (heads, self.dim),
            (self.kv_heads, self.dim),
            (self.kv_heads, self.value_dim),
            (heads, self.value_dim),
        )
        drawn = [torch.randn(tokens, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return drawn[0], drawn[1], drawn[2], drawn[3]

    def prefix_tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Keys (P, K, D) and values (P, K, V) before each text, in no narrower type than a method keeps; or nothing."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shapes = ((self.prefix, self.kv_heads, self.dim), (self.prefix, self.kv_heads, self.value_dim))
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        # Rounded first, so that both sides start from the same numbers.
        return tuple(t.to(dtype).to(torch.promote_types(dtype, torch.float32)) for t in drawn if self.prefix)


def cases() -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5).map(tuple),
        kv_heads=st.integers(1, 3),
        groups=st.integers(1, 3),
        dim=st.sampled_from([1, 3, 8, 16]),
        value_dim=st.sampled_from([2, 8]),
        causal=st.booleans(),
        window=st.one_of(st.none(), st.integers(1, 12), st.sampled_from([69, 70, 71, 1000])),
        softcap=st.one_of(st.none(), st.floats(0.5, 5)),
        scaling=st.one_of(st.none(), st.floats(0.1, 1)),
        slack=st.sampled_from([0, 3, 32]),
        seed=st.integers(0, 2**31),
        prefix=st.sampled_from([0, 0, 1, 5]),
    )


def packed(
    case: Case, query: Tensor, key: Tensor, value: Tensor, *prefix: Tensor, layout: PackedLayout | None = None
) -> Tensor:
    """Packed attention as transformers calls it, back in (T, heads, V)."""
    output, _ = packed_attention(
        _Module(is_causal=case.causal),
        query.transpose(0, 1).unsqueeze(0),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        None,
        packed_layout=layout or PackedLayout(np.array(case.lengths)),
        prefix=(prefix[0], prefix[1]) if prefix else None,
        scaling=case.scaling,
        sliding_window=case.window,
        softcap=case.softcap,
    )
    return output.squeeze(0)


def ours(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of query, key and value, and of the prefix where there is one."""
    query, key, value, grad = (tensor.to(dtype) for tensor in case.tensors())
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, *case.prefix_tensors(dtype))]
    output = packed(case, *leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def reference(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The same by the twin, in float64 on inputs rounded to ``dtype``."""
    query, key, value, grad = (tensor.to(dtype).double() for tensor in case.tensors())
    before = [tensor.double() for tensor in case.prefix_tensors(dtype)]
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, *before)]
    output = attend(
        *leaves[:3],
        case.lengths,
        scaling=case.factor,
        causal=case.causal,
        window=case.window,
        softcap=case.softcap,
        prefix=(leaves[3], leaves[4]) if case.prefix else None,
    )
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def named(tensors: list[Tensor]) -> dict[str, Tensor]:
    """What ``ours`` or ``reference`` gave, by name."""
    names = [
        "output",
        "query gradient",
        "key gradient",
        "value gradient",
        "prefix key gradient",
        "prefix value gradient",
    ]
    return dict(zip(names[: len(tensors)], tensors, strict=True))


def assert_near(case: Case, dtype: torch.dtype, *, rtol: float, atol_of_largest: float) -> None:
    """Output and gradients near the twin's; the absolute part is a share of each tensor's largest element."""
    twin = named(reference(case, dtype))
    for name, found in named(ours(case, dtype)).items():
        wanted = twin[name]
        assert found.dtype == dtype
        atol = atol_of_largest * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("memory", MEMORY)
@DRAWN
@given(case=cases())
def test_float64_equals_the_twin(memory: str, case: Case) -> None:
    # Both sides compute in float64 and differ in the order of at most 70 * 3 additions: 1e-11 is 200 * eps * slack for
    # gradients, in which differences of probabilities cancel.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_layout, "BUCKET_SLACK", case.slack)
        patch.setattr(packed_layout, "BUCKET_RATIO", 0.9)
        for name, value in MEMORY[memory].items():
            patch.setattr(attention, name, value)
        assert_near(case, torch.float64, rtol=1e-10, atol_of_largest=1e-11)


@DRAWN
@given(case=cases())
def test_float32_is_near_the_twin(case: Case) -> None:
    # The house tolerance of fp32 against float64. Its absolute part is per unit of the tensor's largest element,
    # because a gradient is a sum of up to 70 terms of that size and cancels.
    assert_near(case, torch.float32, rtol=1e-5, atol_of_largest=1e-6)


@DRAWN
@given(case=cases())
def test_bfloat16_is_near_the_twin(case: Case) -> None:
    # The scaled query, the scores and the probabilities are each rounded to bf16, by at most 2^-8 of themselves. Scores
    # of up to 4 then move their probabilities by up to 2 * 4 * 2^-8 = 3 %; sums and results are rounded on top.
    # Roundings are independent, so 5 % of a tensor's norm bounds them; a wrong mask or text moves it by its own norm.
    twin = named(reference(case, torch.bfloat16))
    for name, found in named(ours(case, torch.bfloat16)).items():
        wanted = twin[name]
        assert found.dtype == (torch.float32 if "prefix" in name else torch.bfloat16)
        error = float((found.double() - wanted).norm())
        assert error <= 0.05 * float(wanted.norm()) + 1e-6 * wanted.numel() ** 0.5, name


@pytest.mark.parametrize("memory", ["kept", "recomputed", "blocks"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "softcap", "prefix"), [(None, None, 0), (2, None, 3), (3, 1.5, 0), (None, 1.5, 2)])
def test_gradients_are_those_of_the_output(
    memory: str, causal: bool, window: int | None, softcap: float | None, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in MEMORY[memory].items():
        monkeypatch.setattr(attention, name, min(value, 16))
    monkeypatch.setattr(packed_layout, "BUCKET_SLACK", 1)
    monkeypatch.setattr(packed_layout, "BUCKET_RATIO", 1.0)
    case = Case((4, 1, 3), 1, 2, 2, 1, causal, window, softcap, None, 1, seed=7, prefix=prefix)
    inputs = (*case.tensors()[:3], *case.prefix_tensors(torch.float64))
    leaves = [tensor.requires_grad_() for tensor in inputs]
    layout = PackedLayout(np.array(case.lengths))
    assert len(layout.buckets) == 2
    # Central differences with the step 1e-6 are right to about 1e-9 in float64: gradcheck's own defaults.
    assert torch.autograd.gradcheck(lambda *tensors: packed(case, *tensors, layout=layout), leaves)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_one_gradient_alone_is_the_same(wanted: tuple[bool, ...]) -> None:
    case = Case((9, 4), 1, 2, 4, 4, True, None, None, None, 32, seed=1)
    together = ours(case, torch.float64)[1:]
    *inputs, grad = case.tensors()
    for tensor, needed in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(needed)
    leaf = next(tensor for tensor in inputs if tensor.requires_grad)
    (alone,) = torch.autograd.grad(packed(case, *inputs), [leaf], grad)
    assert torch.equal(alone, together[wanted.index(True)])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_nothing_of_a_neighbour_reaches_a_text(poison: float, causal: bool, window: int | None) -> None:
    """Bitwise: the other texts of the bucket are poisoned, and this text's output and gradients stay as they were."""
    lengths, mine = (12, 9, 12, 7), 1
    case = Case(lengths, 2, 2, 8, 8, causal, window, None, None, 32, seed=3)
    layout = PackedLayout(np.array(lengths))
    assert len(layout.buckets) == 1
    rows = slice(lengths[0], lengths[0] + lengths[mine])
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[rows] = False

    def run(*, poisoned: bool) -> list[Tensor]:
        query, key, value, grad = (tensor.float() for tensor in case.tensors())
        if poisoned:
            for tensor in (query, key, value, grad):
                tensor[others] = poison
        leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
        output = packed(case, *leaves, layout=layout)
        return [tensor[rows] for tensor in (output, *torch.autograd.grad(output, leaves, grad))]

    for clean, found in zip(run(poisoned=False), run(poisoned=True), strict=True):
        assert torch.equal(clean, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_two_calls_are_bitwise_equal(dtype: torch.dtype) -> None:
    case = Case((70, 33, 33, 5, 1), 2, 2, 16, 16, True, 6, None, None, 3, seed=11)
    for first, second in zip(ours(case, dtype), ours(case, dtype), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_path_through_memory_does_not_change_the_output(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((40, 21, 3), 1, 2, 8, 8, True, 9, softcap, None, 32, seed=2)
    whole = ours(case, torch.float64)
    monkeypatch.setattr(attention, "KEPT_SCORES", 0)
    for found, wanted in zip(ours(case, torch.float64), whole, strict=True):
        assert torch.equal(found, wanted)  # recomputing repeats the same arithmetic


def test_a_window_wider_than_every_text_is_no_window() -> None:
    without = Case((20, 11), 2, 1, 8, 8, True, None, None, None, 32, seed=5)
    within = Case((20, 11), 2, 1, 8, 8, True, 20, None, None, 32, seed=5)
    for found, wanted in zip(ours(within, torch.float64), ours(without, torch.float64), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_of_one_is_the_value_itself(causal: bool) -> None:
    case = Case((5, 3), 1, 1, 4, 4, causal, 1, None, None, 32, seed=5)
    query, key, value, _ = case.tensors()
    assert torch.equal(packed(case, query, key, value), value)  # softmax of one score is exactly 1


# A prefix


def test_a_window_of_one_sees_itself_and_the_prefix() -> None:
    """Whatever the window, and however far from the front."""
    case = Case((40, 3), 1, 1, 4, 4, True, 1, None, None, 32, seed=5, prefix=2)
    query, key, value, _ = case.tensors()
    front = case.prefix_tensors(torch.float64)
    keys = torch.cat([front[0].expand(2, 1, 4), key[39:40]]).squeeze(1)
    values = torch.cat([front[1], value[39:40]]).squeeze(1)
    wanted = torch.softmax(keys @ query[39, 0] / 2, dim=0) @ values
    # One softmax over three scores on both sides.
    torch.testing.assert_close(packed(case, query, key, value, *front)[39, 0], wanted, rtol=1e-12, atol=1e-14)


def test_a_text_does_not_depend_on_its_neighbours_with_a_prefix() -> None:
    """The output bitwise, whatever the others hold; the prefix's gradient is the sum over the texts."""
    case = Case((12, 9, 12, 7), 2, 2, 8, 8, True, None, None, None, 32, seed=3, prefix=3)
    query, key, value, grad = case.tensors()
    layout = PackedLayout(np.array(case.lengths))
    starts = np.cumsum((0, *case.lengths))
    summed = [torch.zeros_like(tensor) for tensor in case.prefix_tensors(torch.float64)]
    whole = ours(case, torch.float64)
    for start, end in itertools.pairwise(starts):
        alone = torch.zeros_like(grad)
        alone[start:end] = grad[start:end]
        leaves = [tensor.requires_grad_() for tensor in case.prefix_tensors(torch.float64)]
        others = torch.ones(len(query), 1, 1, dtype=torch.bool)
        others[start:end] = False
        inputs = [torch.where(others, torch.full_like(tensor, 1e30), tensor) for tensor in (query, key, value)]
        output = packed(case, *inputs, *leaves, layout=layout)
        assert torch.equal(output[start:end], whole[0][start:end])
        for total, part in zip(summed, torch.autograd.grad(output, leaves, alone), strict=True):
            total += part
    for total, found in zip(summed, whole[4:], strict=True):
        # Four numbers added in another order.
        torch.testing.assert_close(total, found, rtol=1e-12, atol=1e-13)


# Refusals


def call(**changes: Any) -> tuple[Tensor, None]:
    arguments: dict[str, Any] = {
        "module": _Module(is_causal=True),
        "query": torch.zeros(1, 2, 3, 4),
        "key": torch.zeros(1, 2, 3, 4),
        "value": torch.zeros(1, 2, 3, 4),
        "attention_mask": None,
        "packed_layout": PackedLayout(np.array([3])),
    }
    return packed_attention(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed_layout": None}, "packed batches"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "packed batches"),
        ({"query": torch.zeros(2, 2, 3, 4)}, "packed batches"),
        ({"dropout": 0.1}, "dropout"),
        ({"s_aux": torch.zeros(2)}, "sinks"),
        ({"position_bias": torch.zeros(1, 2, 3, 3)}, "position biases"),
        ({"module": _Module(is_causal=None)}, "causal"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call(**changes)


def test_the_call_overrides_the_module() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(1, 2, 3, 4, generator=generator) for name in ("query", "key", "value")}
    causal, _ = call(**tensors)
    both_ways, _ = call(**tensors, is_causal=False)
    assert not torch.equal(causal, both_ways)
    assert torch.equal(call(**tensors, module=_Module(is_causal=False))[0], both_ways)


# Layout


@DRAWN
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_a_layout_holds_every_token_once(lengths: list[int]) -> None:
    layout = PackedLayout(np.array(lengths))
    assert layout.num_tokens == sum(lengths)
    places = torch.cat([bucket.gather for bucket in layout.buckets])
    assert torch.equal(places[layout.scatter], torch.arange(sum(lengths)))
    beyond = sum(bucket.beyond.numel() for bucket in layout.buckets)
    assert places.numel() == sum(lengths) + beyond
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    assert layout.starts.tolist() == starts
    assert layout.last.tolist() == [start + length - 1 for start, length in zip(starts, lengths, strict=True)]


@DRAWN
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_a_bucket_holds_texts_of_similar_length(lengths: list[int]) -> None:
    for bucket in PackedLayout(np.array(lengths)).buckets:
        assert bucket.longest == int(bucket.lengths.max())
        shortest = int(bucket.lengths.min())
        close = bucket.longest - shortest <= packed_layout.BUCKET_SLACK
        assert close or shortest >= packed_layout.BUCKET_RATIO * bucket.longest
