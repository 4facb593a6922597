"""Attention of one text after another in float64: slow, and plainly what the formula says.

Texts, heads and visibility are loops; nothing is padded, nothing is shared between texts, and the gradients are those
that torch derives from the formula itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def visible(query_index: int, key_index: int, *, causal: bool, window: int | None) -> bool:
    """Whether a query sees a key of its own text."""
    if causal and key_index > query_index:
        return False
    return window is None or abs(query_index - key_index) < window


def attend_one_head(
    query_LD: Tensor,
    key_SD: Tensor,
    value_SV: Tensor,
    seen_LS: Tensor,
    *,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """One head of one text: (L, D), (S, D), (S, V) and which key each query sees -> (L, V)."""
    scores = scaling * (query_LD @ key_SD.T)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # A text's own token is always visible, so no row is empty and the sum below is never zero.
    weights = torch.where(seen_LS, torch.exp(scores - scores.max()), torch.zeros_like(scores))
    return weights / weights.sum(dim=-1, keepdim=True) @ value_SV


def attend(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Packed texts of the given lengths: (T, heads, D), (T, K, D), (T, K, V) -> (T, heads, V).

    A prefix (P, K, D), (P, K, V) stands before each text and is seen by all of it.
    """
    heads, kv_heads = query_THD.shape[1], key_TKD.shape[1]
    before_PKD, before_PKV = (key_TKD[:0], value_TKD[:0]) if prefix is None else prefix
    texts: list[Tensor] = []
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        start += length
        seen = [
            [True] * len(before_PKD) + [visible(i, j, causal=causal, window=window) for j in range(length)]
            for i in range(length)
        ]
        key, value = torch.cat([before_PKD, key_TKD[rows]]), torch.cat([before_PKV, value_TKD[rows]])
        outputs = [
            attend_one_head(
                query_THD[rows, head],
                key[:, head * kv_heads // heads],
                value[:, head * kv_heads // heads],
                torch.tensor(seen),
                scaling=scaling,
                softcap=softcap,
            )
            for head in range(heads)
        ]
        texts.append(torch.stack(outputs, dim=1))
    return torch.cat(texts)
