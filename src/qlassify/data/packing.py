"""Batches without padding: the tokens of several texts in one row, and where each text ends.

A padded batch of texts of 5, 9 and 60 tokens computes 180 token positions to use 74. A packed batch is the 74 tokens
one after another, with positions that restart at each text; linear layers, norms and activations never look across
tokens and need nothing more, and attention is told the lengths (``models/attention.py``).

    ids        a a a a a b b c c c      three texts, packed
    positions  0 1 2 3 4 0 1 0 1 2
    lengths    5 2 3

A text that is read in windows is as many sequences, which stand side by side and count as one row.

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
    """Texts packed into one row of T tokens: B texts, which are S sequences.

    Attributes:
        rows: (B,) index of each text in the ``Encoded`` it came from, in packed order.
        token_ids: (T,) token ids.
        position_ids: (T,) positions, restarting at 0 with each sequence.
        token_type_ids: (T,) segment of a pair each token belongs to, or None.
        lengths: (S,) tokens of each sequence; they sum to T.
        windows: (B,) sequences of each text; they sum to S. None where every text is one, and S = B.
    """

    rows: IntArray
    token_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray | None
    lengths: IntArray
    windows: IntArray | None = None

    @property
    def row_lengths(self) -> IntArray:
        """(B,) tokens of each text, those of all its windows together; they sum to T."""
        if self.windows is None:
            return self.lengths
        return np.add.reduceat(self.lengths, np.cumsum(self.windows) - self.windows)

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
    lengths = encoded.lengths_of(chosen)
    return pack_in_order(encoded, chosen[np.argsort(-lengths, kind="stable")])


def pack_in_order(encoded: Encoded, rows: Sequence[int] | IntArray) -> PackedBatch:
    """Pack the given rows of ``encoded`` as they stand, for a caller who needs some of them side by side."""
    chosen = np.asarray(rows, dtype=np.int64)
    lengths = encoded.lengths_of(chosen)
    place = _within(lengths)
    source = np.repeat(encoded.offsets[chosen], lengths) + place
    sequences, counts = _sequences(encoded, chosen, lengths)
    position_ids = place if counts is None else _within(sequences)
    types = encoded.token_type_ids
    return PackedBatch(
        rows=chosen,
        token_ids=encoded.token_ids[source].astype(np.int64),
        position_ids=position_ids.astype(np.int64),
        token_type_ids=None if types is None else types[source].astype(np.int64),
        lengths=sequences.astype(np.int64),
        windows=counts,
    )


def _within(lengths: IntArray) -> IntArray:
    """0, 1, 2 ... for each of the given lengths, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _sequences(encoded: Encoded, rows: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray | None]:
    """(S,) lengths of the rows' sequences, and (B,) how many each row has, or None if each has one."""
    if encoded.windows is None:
        return lengths, None
    counts = encoded.windows.counts_of(rows)
    if (counts == 1).all():
        return lengths, None
    return encoded.windows.lengths[np.repeat(encoded.windows.offsets[rows], counts) + _within(counts)], counts


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
    lengths = encoded.lengths_of(chosen)
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
