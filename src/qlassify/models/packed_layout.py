"""Where the texts of a packed batch lie: buckets of similar length, and which key a query sees.

The texts, longest first, fall into buckets. One bucket for all would spend most of its work on places that hold no
token; one per text would launch a handful of kernels for each. Buckets are made when somebody asks for them: attention
that walks from text to text (``kernels.attention``) needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.kernels.texts import Texts

BUCKET_SLACK = 32
"""A text joins a bucket while it is at most this many tokens shorter than the bucket's longest, or ..."""
BUCKET_RATIO = 0.75
"""... at least this share of it. Scores are a small part of a layer's work, a bucket is several kernel launches."""


# Shape suffixes: T packed tokens, B texts, n texts of a bucket, L its longest length, K key/value heads,
# G query heads per key/value head, D head dimension, V that of the values, Q query rows of a block, P length of the
# prefix, S = P + L keys of a bucket's text.


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

    Attributes:
        lengths: (B,) tokens of each text.
        num_tokens: T.
        device: where the index tensors live.
        starts: (B,) first token of each text.
        last: (B,) last token of each text.
        processor: ``cpu`` or ``cuda``: what computes on these texts; for a sketch, what would.
        calls: attention module -> shape (K, D) of its keys and (K, V) of its values, of each that was called with this
            layout; None, and nothing is noted, unless somebody puts a dictionary here.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> None:
        self.lengths = lengths
        self.num_tokens = int(lengths.sum())
        self.device = torch.device(device)
        self.processor = "cuda" if self.device.type == "cuda" else "cpu"
        starts = np.cumsum(lengths) - lengths
        self.starts = torch.from_numpy(starts).to(self.device)
        self.last = torch.from_numpy(starts + lengths - 1).to(self.device)
        self.calls: dict[torch.nn.Module, tuple[torch.Size, torch.Size]] | None = None
        self._masks: dict[tuple[int, bool, int | None, int], Tensor | None] = {}

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The texts in rectangles of similar length."""
        return self._rectangles[0]

    @property
    def scatter(self) -> Tensor:
        """(T,) place of each token in the rectangles, one after another."""
        return self._rectangles[1]

    @cached_property
    def _rectangles(self) -> tuple[tuple[Bucket, ...], Tensor]:
        starts = np.cumsum(self.lengths) - self.lengths
        buckets: list[Bucket] = []
        scatter = np.empty(self.num_tokens, dtype=np.int64)
        offset = 0
        for members in _bucket_members(self.lengths):
            bucket, gather, places = _make_bucket(self.lengths[members], starts[members], self.device)
            scatter[gather[places]] = offset + places
            offset += len(gather)
            buckets.append(bucket)
        return tuple(buckets), torch.from_numpy(scatter).to(self.device)

    @cached_property
    def texts(self) -> Texts:
        """Where the texts lie, for the CPU's kernels."""
        return Texts.of(self.lengths)

    def mask(self, index: int, *, causal: bool, window: int | None, prefix: int = 0) -> Tensor | None:
        """Which keys a query sees in bucket ``index``, as bool that broadcasts to (n, K, G, L, S); None for all.

        Args:
            index: of the bucket.
            causal: whether later tokens are invisible.
            window: distance from which a token is invisible.
            prefix: P, keys before each text, which are always visible.
        """
        key = (index, causal, window, prefix)
        if key not in self._masks:
            mask = _visible(self.buckets[index], causal=causal, window=window)
            if mask is not None and prefix:
                mask = torch.nn.functional.pad(mask, (prefix, 0), value=True)
            self._masks[key] = mask
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
) -> tuple[Bucket, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A bucket, its ``gather`` as an array, and the places of its rectangle that hold real tokens."""
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
    return bucket, gather, np.flatnonzero(real)


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
