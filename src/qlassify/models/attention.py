"""Attention over packed texts: the one operation that sees where a text ends.

Hidden states arrive as (1, T, H), T tokens of B texts one after another. Everything else in the model runs on them as
they are. There are two ways to attend, with the same results up to rounding.

On the CPU, compiled loops walk from text to text and head to head (``kernels.attention``): nothing is padded and
nothing is copied. On 32 questions of 13 tokens this takes a fifth of the time of the other way, on texts of 256 tokens
a quarter.

Elsewhere, and for what those loops do not compute (float64, soft caps, prefixes, head dimensions that are no multiple
of 16, batches with a text beyond ``LONGEST``), the texts fall into buckets of similar length (``packed_layout``); a
bucket is gathered into (n, L), computed with three batched matrix products, and scattered back. Positions beyond a
text's end exist only inside a bucket and are masked, so what another text holds never reaches a token.

Forward and backward are written out as one autograd function either way, because torch's CPU backward of
``scaled_dot_product_attention`` took 37 % of a training step of a 6-layer encoder, and because autograd's own graph of
gather, product, mask, softmax, product and scatter allocates and visits three times as many tensors. The softmax is
computed and differentiated in fp32 (float64 for float64): on CPU that is also three times faster than torch's bf16
softmax. Probabilities are kept for backward while they are small and recomputed otherwise; texts beyond ``LONGEST``
are computed in blocks of query rows, so memory grows with L, not with L squared.

The architecture's own choices are honoured: causal or not, grouped key/value heads, a sliding window (a key is
visible at a distance below ``sliding_window``, on both sides when not causal), and logit soft-capping. Attention
sinks and dropout are refused, never ignored.

A prefix is keys and values that stand before those of every text (prefix tuning). Every query sees all of it, also
beyond a sliding window, which is about distances within a text: a prefix that long texts lose sight of would be trained
on their first tokens alone. It is put into the bucket's rectangle, so that all else is computed as ever, and its
gradient is the sum over texts.

transformers calls ``packed_attention`` through its attention registry; the layout travels as a keyword argument
through the model's own forward, and the prefix from the attention module on, so nothing is stored in global state.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.kernels.texts import LANES
from qlassify.models.packed_layout import Bucket, PackedLayout

IMPLEMENTATION = "qlassify_packed"
"""The name under which transformers knows packed attention."""

MAX_SCORES = 2**23
"""Most attention scores computed at once: 32 MiB in fp32. More are computed in blocks of query rows."""
KEPT_SCORES = 2**22
"""Most probabilities of one bucket that are kept for backward; beyond it they are recomputed."""
LONGEST = {torch.float32: 2048, torch.bfloat16: 128}
"""Longest text that compiled loops take. They hold all scores of a text and head at once, twice in backward, on each
thread: 32 MiB for 2048 tokens. In bf16 they compute in fp32, so for longer texts the products weigh more than the
copies, and they are faster in bf16 where bf16 is chosen at all."""


# Shape suffixes: T packed tokens, B texts, n texts of a bucket, L its longest length, K key/value heads,
# G query heads per key/value head, D head dimension, V that of the values, Q query rows of a block, P length of the
# prefix, S = P + L keys of a bucket's text.


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the architecture asks of its attention."""

    scaling: float
    causal: bool
    window: int | None
    softcap: float | None


class _Inputs(NamedTuple):
    """What attention is computed from: (T, heads, D), (T, K, D), (T, K, V); the prefix (P, K, D), (P, K, V) or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    prefix_key: Tensor | None
    prefix_value: Tensor | None

    @property
    def prefix(self) -> int:
        """P."""
        return 0 if self.prefix_key is None else len(self.prefix_key)

    def rectangles(self, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (n, K, G, L, D), keys (n, K, S, D) and values (n, K, S, V) of a bucket, contiguous."""
        kv_heads, dim = self.key.shape[1:]
        query = _rectangle(self.query, bucket).view(len(bucket.lengths), kv_heads, -1, bucket.longest, dim)
        key, value = _rectangle(self.key, bucket), _rectangle(self.value, bucket)
        return query, _behind(self.prefix_key, key), _behind(self.prefix_value, value)


def _behind(prefix: Tensor | None, own: Tensor) -> Tensor:
    """(P, K, D) or None before each text's own (n, K, L, D): (n, K, S, D)."""
    if prefix is None:
        return own
    same = prefix.to(own.dtype).transpose(0, 1).expand(own.shape[0], -1, -1, -1)
    return torch.cat([same, own], dim=2)


def _rectangle(tensor: Tensor, bucket: Bucket) -> Tensor:
    """(T, heads, D) -> (n, heads, L, D), contiguous."""
    heads, dim = tensor.shape[1:]
    rows = tensor.reshape(tensor.shape[0], heads * dim).index_select(0, bucket.gather)
    return rows.view(-1, bucket.longest, heads, dim).transpose(1, 2).contiguous()


def _probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None, rule: _Rule, *, rows: slice
) -> tuple[Tensor, Tensor | None]:
    """Softmax of one block of query rows, and the derivative of the soft cap where there is one.

    Args:
        query: (n, K, G, L, D).
        key: (n, K, S, D).
        mask: what ``PackedLayout.mask`` gave.
        rule: scaling, soft cap.
        rows: the block's query rows.

    Returns:
        (n, K, G, Q, S) probabilities in fp32 or float64, and a tensor of the same shape or None.
    """
    n, kv_heads, groups, _, dim = query.shape
    block = query[:, :, :, rows].reshape(n * kv_heads, -1, dim)
    scores = torch.bmm(block * rule.scaling, key.reshape(n * kv_heads, -1, dim).transpose(1, 2))
    scores = scores.view(n, kv_heads, groups, -1, key.shape[2])
    wide = scores.double() if scores.dtype == torch.float64 else scores.float()
    slope: Tensor | None = None
    if rule.softcap is not None:
        squashed = torch.tanh(wide / rule.softcap)
        slope = 1 - squashed * squashed
        wide = squashed * rule.softcap
    if mask is not None:
        part = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        wide = wide.masked_fill(~part, -math.inf)
    return torch.softmax(wide, dim=-1), slope


def _blocks(query: Tensor, keys: int) -> list[slice]:
    """Query rows in blocks whose scores, one per key each, stay within ``MAX_SCORES``."""
    n, kv_heads, groups, longest, _ = query.shape
    step = max(1, min(longest, MAX_SCORES // (n * kv_heads * groups * keys)))
    return [slice(start, min(start + step, longest)) for start in range(0, longest, step)]


class _PackedAttention(torch.autograd.Function):
    """softmax(scaling * Q K^T + mask) V for each text of a packed batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        layout: PackedLayout,
        rule: _Rule,
    ) -> Tensor:
        """(T, heads, D), (T, K, D), (T, K, V), (P, K, D), (P, K, V) -> (T, heads, V)."""
        inputs = _Inputs(query, key, value, prefix_key, prefix_value)
        value_dim = value.shape[2]
        needs_grad = any(ctx.needs_input_grad[:5])
        outputs: list[Tensor] = []
        kept: list[Tensor | None] = []
        for index, bucket in enumerate(layout.buckets):
            q, k, v = inputs.rectangles(bucket)
            mask = layout.mask(index, causal=rule.causal, window=rule.window, prefix=inputs.prefix)
            flat_v = v.view(-1, v.shape[2], value_dim)
            blocks = _blocks(q, v.shape[2])
            pieces: list[Tensor] = []
            saved: Tensor | None = None
            for rows in blocks:
                probabilities, _ = _probabilities(q, k, mask, rule, rows=rows)
                p = probabilities.to(value.dtype)
                piece = torch.bmm(p.view(flat_v.shape[0], -1, v.shape[2]), flat_v)
                pieces.append(piece.view(*q.shape[:3], -1, value_dim))
                if needs_grad and len(blocks) == 1 and p.numel() <= KEPT_SCORES and rule.softcap is None:
                    saved = p
            kept.append(saved)
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)
            whole = whole.view(q.shape[0], -1, bucket.longest, value_dim).transpose(1, 2)
            outputs.append(whole.reshape(-1, query.shape[1] * value_dim))
        stacked = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        ctx.save_for_backward(*inputs, *kept)
        ctx.layout, ctx.rule = layout, rule
        return stacked.index_select(0, layout.scatter).view(-1, query.shape[1], value_dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, value and the prefix."""
        inputs = _Inputs(*ctx.saved_tensors[:5])
        kept: tuple[Tensor | None, ...] = ctx.saved_tensors[5:]
        layout: PackedLayout = ctx.layout
        grads: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        prefix_grads: list[tuple[Tensor, Tensor]] = []
        for index, bucket in enumerate(layout.buckets):
            mask = layout.mask(index, causal=ctx.rule.causal, window=ctx.rule.window, prefix=inputs.prefix)
            whole_q, whole_k, whole_v = _bucket_backward(grad, inputs, bucket, mask, ctx.rule, kept[index])
            for collected, whole in zip(grads, (whole_q, whole_k, whole_v), strict=True):
                own = whole[:, :, whole.shape[2] - bucket.longest :]
                collected.append(own.transpose(1, 2).reshape(-1, own.shape[1] * own.shape[3]))
            if inputs.prefix_key is not None:
                prefix_grads.append((_summed(whole_k, inputs.prefix_key), _summed(whole_v, inputs.prefix_key)))
        scattered = [
            (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, layout.scatter).view(like.shape)
            for parts, like in zip(grads, inputs[:3], strict=True)
        ]
        if not prefix_grads:
            return *scattered, None, None, None, None
        prefix_k, prefix_v = (torch.stack(parts).sum(dim=0) for parts in zip(*prefix_grads, strict=True))
        return *scattered, prefix_k, prefix_v, None, None


class _TextAttention(torch.autograd.Function):
    """The same by ``kernels.attention``, on the CPU, in fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: _Rule) -> Tensor:
        """(T, heads, D), (T, K, D), (T, K, V) -> (T, heads, V), in the type of the query."""
        kernels = _text_kernels()
        assert kernels is not None
        keep = any(ctx.needs_input_grad[:3]) and int(layout.texts.places[-1]) * query.shape[1] <= KEPT_SCORES
        mask = kernels.Mask(rule.causal, rule.window or 0)
        out: Tensor
        out, kept = kernels.forward(
            query.float(), key.float(), value.float(), layout.texts, mask, rule.scaling, keep=keep
        )
        ctx.save_for_backward(query, key, value, kept)
        ctx.layout, ctx.rule, ctx.mask = layout, rule, mask
        return out.to(query.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        kernels = _text_kernels()
        assert kernels is not None
        query, key, value, kept = ctx.saved_tensors
        grads = kernels.backward(
            grad.float(),
            (query.float(), key.float(), value.float()),
            kept,
            ctx.layout.texts,
            ctx.mask,
            ctx.rule.scaling,
        )
        return *(part.to(query.dtype) for part in grads), None, None


@functools.cache
def _text_kernels() -> ModuleType | None:
    """The compiled loops, or None with one warning where numba cannot be used."""
    try:
        return importlib.import_module("qlassify.kernels.attention")
    except ImportError as error:
        warnings.warn(
            f"attention is computed by plain torch, several times slower, because numba cannot be used: {error}",
            stacklevel=2,
        )
        return None


@functools.cache
def warm_up() -> None:
    """Attend once, on the CPU, so that the loops are compiled, and so that whatever is wrong with them is raised.

    Where packing is only tried, an error would look like an architecture that cannot be packed.
    """
    kernels = _text_kernels()
    if kernels is None:
        return
    one, texts = torch.ones(2, 1, LANES), PackedLayout(np.array([2])).texts
    mask = kernels.Mask(causal=False, window=0)
    _, kept = kernels.forward(one, one, one, texts, mask, 1.0, keep=True)
    kernels.backward(one, (one, one, one), kept, texts, mask, 1.0)


def _by_text(query: Tensor, value: Tensor, layout: PackedLayout, rule: _Rule) -> bool:
    """Whether compiled loops compute this: (T, heads, D), (T, K, V)."""
    if layout.processor != "cpu" or rule.softcap is not None or query.shape[2] % LANES or value.shape[2] % LANES:
        return False
    if query.dtype not in LONGEST or value.dtype != query.dtype:
        return False
    if int(layout.lengths.max()) > LONGEST[query.dtype]:
        return False
    return _text_kernels() is not None


def _summed(grad: Tensor, prefix: Tensor) -> Tensor:
    """The prefix's part (P, K, D), in its type, of a gradient (n, K, S, D), summed over the texts."""
    return grad[:, :, : len(prefix)].to(prefix.dtype).sum(dim=0).transpose(0, 1)


def _bucket_backward(
    grad: Tensor, inputs: _Inputs, bucket: Bucket, mask: Tensor | None, rule: _Rule, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one bucket's rectangles: (n, heads, L, D), (n, K, S, D), (n, K, S, V)."""
    q, k, v = inputs.rectangles(bucket)
    longest, keys, dim, value_dim = bucket.longest, k.shape[2], k.shape[3], v.shape[3]
    flat_k, flat_v = k.view(-1, keys, dim), v.view(-1, keys, value_dim)
    rows_grad = grad.reshape(grad.shape[0], -1).index_select(0, bucket.gather)
    rows_grad.index_fill_(0, bucket.beyond, 0)  # places beyond a text's end have no output
    g = rows_grad.view(len(q), longest, -1, value_dim).transpose(1, 2).reshape(*q.shape[:3], longest, value_dim)
    grad_q = torch.empty_like(q)
    grad_k: Tensor | None = None
    grad_v: Tensor | None = None
    for rows in _blocks(q, keys) if kept is None else [slice(0, longest)]:
        slope: Tensor | None = None
        if kept is None:
            wide, slope = _probabilities(q, k, mask, rule, rows=rows)
            p = wide.to(v.dtype)
        else:
            p, wide = kept, kept.double() if kept.dtype == torch.float64 else kept.float()
        flat_p = p.view(flat_k.shape[0], -1, keys)
        flat_g = g[:, :, :, rows].reshape(flat_k.shape[0], -1, value_dim)
        block_v = torch.bmm(flat_p.transpose(1, 2), flat_g)
        grad_p = torch.bmm(flat_g, flat_v.transpose(1, 2)).view(wide.shape).to(wide.dtype)
        grad_s = torch._softmax_backward_data(grad_p, wide, -1, wide.dtype)
        if slope is not None:
            grad_s = grad_s * slope
        flat_s = grad_s.to(q.dtype).view(flat_p.shape) * rule.scaling
        block_q = torch.bmm(flat_s, flat_k)
        grad_q[:, :, :, rows] = block_q.view(*q.shape[:3], -1, dim)
        block_k = torch.bmm(flat_s.transpose(1, 2), q[:, :, :, rows].reshape(flat_k.shape[0], -1, dim))
        grad_k = block_k if grad_k is None else grad_k + block_k
        grad_v = block_v if grad_v is None else grad_v + block_v
    assert grad_k is not None
    assert grad_v is not None
    return grad_q.view(len(q), -1, longest, dim), grad_k.view(k.shape), grad_v.view(v.shape)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over a packed batch.

    Args:
        module: the attention module; its ``is_causal`` decides the mask.
        query: (1, heads, T, D).
        key: (1, K, T, D), where K divides heads.
        value: (1, K, T, D).
        attention_mask: None, or the mark of a window that ``sliding_window`` repeats; the layout says what is visible.
        packed_layout: lengths of the packed texts.
        prefix: keys (P, K, D) and values (P, K, V) before those of each text, seen by every query; any floating-point
            type, in which their gradients come back.
        scaling: factor on the scores; 1 / sqrt(D) when None.
        dropout: must be 0.
        sliding_window: distance from which a key is invisible.
        softcap: scores become softcap * tanh(score / softcap).
        is_causal: overrides ``module.is_causal``.
        kwargs: what other implementations take and this one need not know.

    Returns:
        (1, T, heads, D), and None for the attention weights.

    Raises:
        ModelError: the architecture asks for something that this attention does not compute.
    """
    name = type(module).__name__
    windowed = attention_mask is _WINDOWED and sliding_window is not None
    if packed_layout is None or query.shape[0] != 1 or not (attention_mask is None or windowed):
        raise ModelError("the architecture does not pass packed batches through to its attention", where=name)
    if dropout:
        raise ModelError("packed attention has no dropout", where=name, got=dropout, wanted="0")
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise ModelError("attention sinks and position biases are not computed by packed attention", where=name)
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if causal is None:
        raise ModelError("the attention does not say whether it is causal", where=name)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = _Rule(scale, bool(causal), sliding_window, softcap)
    # squeeze and not [0]: the gradient of an index is zeros that are then written over.
    queries, keys, values = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if packed_layout.calls is not None:
        packed_layout.calls[module] = (keys.shape[1:], values.shape[1:])
    output: Tensor
    if prefix is None and _by_text(queries, values, packed_layout, rule):
        output = _TextAttention.apply(queries, keys, values, packed_layout, rule)  # type: ignore[no-untyped-call]
    else:
        output = _PackedAttention.apply(  # type: ignore[no-untyped-call]
            queries, keys, values, *(prefix or (None, None)), packed_layout, rule
        )
    return output.unsqueeze(0), None


def register() -> None:
    """Make packed attention known to transformers, with a mask function that makes no mask. Safe to call again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


_WINDOWED = torch.zeros(())
"""Stands where a mask with a window would: an architecture that keeps its window in the mask alone, and does not hand
it to its attention as ``sliding_window``, must be noticed and not run without it."""


def _no_mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """No mask, because the mask of a packed batch is its layout; a mark where the mask would have had a window."""
    return None if local_size is None else _WINDOWED
