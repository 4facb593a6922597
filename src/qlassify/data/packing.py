"""Batches without padding: the tokens of several texts in one row, and where each text ends.

A padded batch of texts of 5, 9 and 60 tokens computes 180 token positions to use 74. A packed batch is the 74 tokens
one after another, with positions that restart at each text; linear layers, norms and activations never look across
tokens and need nothing more, and attention is told the lengths (``models/attention.py``).

    ids        a a a a a b b c c c      three texts, packed
    positions  0 1 2 3 4 0 1 0 1 2
    lengths    5 2 3

Within a batch texts stand longest first, because attention groups texts of similar length. Which optimiser step a
text belongs to is decided elsewhere; here a step's rows are only cut into micro-batches of at most ``token_budget``
tokens, which changes how much memory a step needs and not what it computes.

The arrays are NumPy's, so that reading and packing data needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qlassify.data.tokenise import Encoded

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Texts packed into one row of T tokens.

    Attributes:
        rows: (B,) index of each text in the ``Encoded`` it came from, in packed order.
        token_ids: (T,) token ids.
        position_ids: (T,) positions, restarting at 0 with each text.
        token_type_ids: (T,) segment of a pair each token belongs to, or None.
        lengths: (B,) tokens of each text; they sum to T.
    """

    rows: IntArray
    token_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray | None
    lengths: IntArray

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens; all of them are real."""
        return int(self.token_ids.shape[0])

    @property
    def num_rows(self) -> int:
        """B, the number of texts."""
        return int(self.rows.shape[0])


def pack(encoded: Encoded, rows: Sequence[int] | IntArray) -> PackedBatch:
    """Pack the given rows of ``encoded``, longest first; rows of equal length keep their order."""
    chosen = np.asarray(rows, dtype=np.int64)
    lengths = encoded.lengths[chosen]
    return pack_in_order(encoded, chosen[np.argsort(-lengths, kind="stable")])


def pack_in_order(encoded: Encoded, rows: Sequence[int] | IntArray) -> PackedBatch:
    """Pack the given rows of ``encoded`` as they stand, for a caller who needs some of them side by side."""
    chosen = np.asarray(rows, dtype=np.int64)
    lengths = encoded.lengths[chosen]
    ends = np.cumsum(lengths)
    position_ids = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    source = np.repeat(encoded.offsets[chosen], lengths) + position_ids
    types = encoded.token_type_ids
    return PackedBatch(
        rows=chosen,
        token_ids=encoded.token_ids[source].astype(np.int64),
        position_ids=position_ids.astype(np.int64),
        token_type_ids=None if types is None else types[source].astype(np.int64),
        lengths=lengths.astype(np.int64),
    )


def micro_batches(
    encoded: Encoded, rows: Sequence[int] | IntArray, token_budget: int, *, max_rows: int | None = None
) -> Iterator[PackedBatch]:
    """Cut ``rows`` into packed batches of at most ``token_budget`` tokens (a longer text stands alone).

    Rows are taken longest first, so that texts of similar length share a micro-batch. Every row comes exactly once.

    Args:
        encoded: the tokenised texts.
        rows: indices into ``encoded``.
        token_budget: most tokens in one batch.
        max_rows: most texts in one batch; no bound when None.
    """
    chosen = np.asarray(rows, dtype=np.int64)
    lengths = encoded.lengths[chosen]
    order = np.argsort(-lengths, kind="stable")
    start, tokens = 0, 0
    for end, index in enumerate(order):
        length = int(lengths[index])
        full = tokens + length > token_budget or (max_rows is not None and end - start >= max_rows)
        if end > start and full:
            yield pack(encoded, chosen[order[start:end]])
            start, tokens = end, 0
        tokens += length
    if start < len(order):
        yield pack(encoded, chosen[order[start:]])
