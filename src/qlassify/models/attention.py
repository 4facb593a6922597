"""Attention over packed texts: the one operation that sees where a text ends.

Hidden states arrive as (1, T, H), T tokens of B texts one after another. The texts, longest first, fall into buckets
of similar length; a bucket is gathered into (n, L), computed with three batched matrix products, and scattered back.
Positions beyond a text's end exist only inside a bucket and are masked, so what another text holds never reaches a
token. Everything else in the model runs on the T real tokens.

Forward and backward are written out as one autograd function, because torch's CPU backward of
``scaled_dot_product_attention`` took 37 % of a training step of a 6-layer encoder, and because autograd's own graph of
gather, product, mask, softmax, product and scatter allocates and visits three times as many tensors. The softmax is
computed and differentiated in fp32 (float64 for float64): on CPU that is also three times faster than torch's bf16
softmax. Probabilities are kept for backward while they are small and recomputed otherwise; long texts are computed in
blocks of query rows, so memory grows with L, not with L squared.

The architecture's own choices are honoured: causal or not, grouped key/value heads, a sliding window (a key is
visible at a distance below ``sliding_window``, on both sides when not causal), and logit soft-capping. Attention
sinks and dropout are refused, never ignored.

transformers calls ``packed_attention`` through its attention registry; the layout travels as a keyword argument
through the model's own forward, so nothing is stored in global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.errors import ModelError

IMPLEMENTATION = "qlassify_packed"
"""The name under which transformers knows packed attention."""

MAX_SCORES = 2**23
"""Most attention scores computed at once: 32 MiB in fp32. More are computed in blocks of query rows."""
KEPT_SCORES = 2**22
"""Most probabilities of one bucket that are kept for backward; beyond it they are recomputed."""
BUCKET_SLACK = 32
"""A text joins a bucket while it is at most this many tokens shorter than the bucket's longest, or ..."""
BUCKET_RATIO = 0.75
"""... at least this share of it. Scores are a small part of a layer's work, a bucket is several kernel launches."""


# Shape suffixes: T packed tokens, B texts, n texts of a bucket, L its longest length, K key/value heads,
# G query heads per key/value head, D head dimension, Q query rows of a block.


@dataclass(frozen=True, slots=True)
class Bucket:
    """Texts of similar length, padded to a rectangle inside attention only.

    Attributes:
        gather: (n * L,) token index of each place; places beyond a text's end repeat its last token.
        beyond: places of ``gather`` that lie beyond their text's end.
        lengths: (n,) tokens of each text.
        longest: L.
    """

    gather: Tensor
    beyond: Tensor
    lengths: Tensor
    longest: int


class PackedLayout:
    """Where the texts of a packed batch begin and end, grouped into buckets.

    Args:
        lengths: (B,) tokens of each text in packed order.
        device: where the index tensors live.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> None:
        self.lengths = lengths
        self.num_tokens = int(lengths.sum())
        self.device = torch.device(device)
        starts = np.cumsum(lengths) - lengths
        self.starts = torch.from_numpy(starts).to(self.device)
        self.last = torch.from_numpy(starts + lengths - 1).to(self.device)
        buckets: list[Bucket] = []
        scatter = np.empty(self.num_tokens, dtype=np.int64)
        offset = 0
        for members in _bucket_members(lengths):
            bucket, places = _make_bucket(lengths[members], starts[members], self.device)
            gather = bucket.gather.cpu().numpy()
            scatter[gather[places]] = offset + places
            offset += len(gather)
            buckets.append(bucket)
        self.buckets = tuple(buckets)
        self.scatter = torch.from_numpy(scatter).to(self.device)
        self._masks: dict[tuple[int, bool, int | None], Tensor | None] = {}

    def mask(self, index: int, *, causal: bool, window: int | None) -> Tensor | None:
        """Which keys a query sees in bucket ``index``, as bool that broadcasts to (n, K, G, L, L); None for all."""
        key = (index, causal, window)
        if key not in self._masks:
            self._masks[key] = _visible(self.buckets[index], causal=causal, window=window)
        return self._masks[key]


def _bucket_members(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of the texts of each bucket, longest bucket first."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        longest = lengths[order[start]]
        if end < len(order):
            length = lengths[order[end]]
            if length >= longest - BUCKET_SLACK or length >= BUCKET_RATIO * longest:
                continue
        yield order[start:end]
        start = end


def _make_bucket(
    lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], device: torch.device
) -> tuple[Bucket, npt.NDArray[np.int64]]:
    """A bucket, and the places of its rectangle that hold real tokens."""
    longest = int(lengths.max())
    steps = np.arange(longest)
    gather = (starts[:, None] + np.minimum(steps, lengths[:, None] - 1)).reshape(-1)
    real = (steps < lengths[:, None]).reshape(-1)
    bucket = Bucket(
        gather=torch.from_numpy(gather).to(device),
        beyond=torch.from_numpy(np.flatnonzero(~real)).to(device),
        lengths=torch.from_numpy(lengths.copy()).to(device),
        longest=longest,
    )
    return bucket, np.flatnonzero(real)


def _visible(bucket: Bucket, *, causal: bool, window: int | None) -> Tensor | None:
    steps = torch.arange(bucket.longest, device=bucket.lengths.device)
    mask: Tensor | None = None
    if bucket.beyond.numel():
        mask = (steps < bucket.lengths[:, None]).view(-1, 1, 1, 1, bucket.longest)
    distance = steps[:, None] - steps
    if causal:
        past = distance >= 0
        mask = past if mask is None else mask & past
    if window is not None and window <= bucket.longest - 1:
        near = distance.abs() < window
        mask = near if mask is None else mask & near
    # A query beyond its text's end sees what remains of the mask; its own key is always near and past, but it is not
    # real. Letting it see key 0 keeps its softmax finite; its output and its gradient are discarded.
    if mask is not None and mask.dim() == 5 and bucket.beyond.numel() and (window is not None):
        empty = ~mask.any(dim=-1, keepdim=True)
        mask = mask | (empty & (steps == 0))
    return mask


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the architecture asks of its attention."""

    scaling: float
    causal: bool
    window: int | None
    softcap: float | None


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
        key: (n, K, L, D).
        mask: what ``PackedLayout.mask`` gave.
        rule: scaling, soft cap.
        rows: the block's query rows.

    Returns:
        (n, K, G, Q, L) probabilities in fp32 or float64, and a tensor of the same shape or None.
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


def _blocks(query: Tensor, longest: int) -> list[slice]:
    """Query rows in blocks whose scores stay within ``MAX_SCORES``."""
    per_row = query.shape[0] * query.shape[1] * query.shape[2] * longest
    step = max(1, min(longest, MAX_SCORES // per_row))
    return [slice(start, min(start + step, longest)) for start in range(0, longest, step)]


class _PackedAttention(torch.autograd.Function):
    """softmax(scaling * Q K^T + mask) V for each text of a packed batch."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: _Rule) -> Tensor:
        """(T, heads, D), (T, K, D), (T, K, D) -> (T, heads, D)."""
        kv_heads, dim = key.shape[1:]
        value_dim = value.shape[2]
        needs_grad = any(ctx.needs_input_grad[:3])
        outputs: list[Tensor] = []
        kept: list[Tensor | None] = []
        for index, bucket in enumerate(layout.buckets):
            q = _rectangle(query, bucket)
            q = q.view(q.shape[0], kv_heads, -1, bucket.longest, dim)
            k, v = _rectangle(key, bucket), _rectangle(value, bucket)
            mask = layout.mask(index, causal=rule.causal, window=rule.window)
            flat_v = v.view(-1, bucket.longest, value_dim)
            blocks = _blocks(q, bucket.longest)
            pieces: list[Tensor] = []
            saved: Tensor | None = None
            for rows in blocks:
                probabilities, _ = _probabilities(q, k, mask, rule, rows=rows)
                p = probabilities.to(value.dtype)
                piece = torch.bmm(p.view(flat_v.shape[0], -1, bucket.longest), flat_v)
                pieces.append(piece.view(*q.shape[:3], -1, value_dim))
                if needs_grad and len(blocks) == 1 and p.numel() <= KEPT_SCORES and rule.softcap is None:
                    saved = p
            kept.append(saved)
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)
            whole = whole.view(q.shape[0], -1, bucket.longest, value_dim).transpose(1, 2)
            outputs.append(whole.reshape(-1, query.shape[1] * value_dim))
        stacked = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.rule = layout, rule
        return stacked.index_select(0, layout.scatter).view(-1, query.shape[1], value_dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors
        layout: PackedLayout = ctx.layout
        grads: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for index, bucket in enumerate(layout.buckets):
            mask = layout.mask(index, causal=ctx.rule.causal, window=ctx.rule.window)
            parts = _bucket_backward(grad, query, key, value, bucket, mask, ctx.rule, kept[index])
            for collected, part in zip(grads, parts, strict=True):
                collected.append(part)
        scattered = [
            (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, layout.scatter).view(like.shape)
            for parts, like in zip(grads, (query, key, value), strict=True)
        ]
        return scattered[0], scattered[1], scattered[2], None, None


def _bucket_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bucket: Bucket,
    mask: Tensor | None,
    rule: _Rule,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one bucket's places: (n * L, heads * D), (n * L, K * D), (n * L, K * D)."""
    kv_heads, dim = key.shape[1:]
    longest = bucket.longest
    q = _rectangle(query, bucket)
    q = q.view(q.shape[0], kv_heads, -1, longest, dim)
    k, v = _rectangle(key, bucket), _rectangle(value, bucket)
    flat_k, flat_v = k.view(-1, longest, dim), v.view(-1, longest, v.shape[-1])
    rows_grad = grad.reshape(grad.shape[0], -1).index_select(0, bucket.gather)
    rows_grad.index_fill_(0, bucket.beyond, 0)  # places beyond a text's end have no output
    g = rows_grad.view(-1, longest, query.shape[1], v.shape[-1]).transpose(1, 2)
    g = g.reshape(*q.shape[:3], longest, v.shape[-1])
    grad_q = torch.empty_like(q)
    grad_k: Tensor | None = None
    grad_v: Tensor | None = None
    for rows in _blocks(q, longest) if kept is None else [slice(0, longest)]:
        slope: Tensor | None = None
        if kept is None:
            wide, slope = _probabilities(q, k, mask, rule, rows=rows)
            p = wide.to(value.dtype)
        else:
            p, wide = kept, kept.double() if kept.dtype == torch.float64 else kept.float()
        flat_p = p.view(flat_k.shape[0], -1, longest)
        flat_g = g[:, :, :, rows].reshape(flat_k.shape[0], -1, v.shape[-1])
        block_v = torch.bmm(flat_p.transpose(1, 2), flat_g)
        grad_p = torch.bmm(flat_g, flat_v.transpose(1, 2)).view(wide.shape).to(wide.dtype)
        grad_s = torch._softmax_backward_data(grad_p, wide, -1, wide.dtype)
        if slope is not None:
            grad_s = grad_s * slope
        flat_s = grad_s.to(query.dtype).view(flat_p.shape) * rule.scaling
        block_q = torch.bmm(flat_s, flat_k)
        grad_q[:, :, :, rows] = block_q.view(*q.shape[:3], -1, dim)
        block_k = torch.bmm(flat_s.transpose(1, 2), q[:, :, :, rows].reshape(flat_k.shape[0], -1, dim))
        grad_k = block_k if grad_k is None else grad_k + block_k
        grad_v = block_v if grad_v is None else grad_v + block_v
    assert grad_k is not None
    assert grad_v is not None
    return (
        grad_q.view(q.shape[0], -1, longest, dim).transpose(1, 2).reshape(-1, query.shape[1] * dim),
        grad_k.view(k.shape).transpose(1, 2).reshape(-1, kv_heads * dim),
        grad_v.view(v.shape).transpose(1, 2).reshape(-1, kv_heads * v.shape[-1]),
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
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
    output = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), packed_layout, rule
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
