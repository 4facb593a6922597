"""The tokeniser that goes into an export, and its padding token.

transformers' heads for causal models find the last token by looking for the rightmost id that is not the padding id.
Where padding is also what the tokeniser appends to every text (a common setting: padding equals end-of-text), they read
the token before. So the exported padding token is one that no text ends with: the tokeniser's own if it is such a one,
else end-of-text, else beginning-of-text, else a new token with an embedding row of its own.

A text that ends with the padding token written out letter by letter is still read one token too early.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from qlassify.data.tokenise import Encoded, TextEncoder
from qlassify.errors import ModelError

NEW_PADDING = "<|qlassify-padding|>"
"""The padding token that is added where no other will do."""
_PROBES = ("a", "the end")


@dataclass(frozen=True, slots=True)
class ExportTokenizer:
    """A tokeniser for an export.

    Attributes:
        tokenizer: a copy of the classifier's, with the maximal length and padding on the right.
        pad_token_id: its padding id.
        rows: rows that the token embedding must have.
        note: a sentence on the padding token if it is not the tokeniser's own.
    """

    tokenizer: Any
    pad_token_id: int
    rows: int
    note: str | None


def export_tokenizer(
    encoder: TextEncoder, *, vocab_size: int, by_padding: bool, pairs: bool, sample: Encoded, may_grow: bool
) -> ExportTokenizer:
    """A tokeniser with which the library finds the tokens that the classifier reads.

    Args:
        encoder: the classifier's.
        vocab_size: rows of the token embedding.
        by_padding: whether the library finds the last token by the padding id.
        pairs: whether texts are pairs.
        sample: texts whose last tokens padding must not be.
        may_grow: whether the embedding may get a row more.

    Raises:
        ModelError: no token will do and the embedding may not grow.
    """
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = encoder.max_length
    own = tokenizer.pad_token_id
    last = _last_tokens(encoder, sample, pairs=pairs) if by_padding else set()
    candidates = [own, tokenizer.eos_token_id, tokenizer.bos_token_id]
    # Where padding is masked and never looked for, any token is as good.
    candidates += [] if by_padding else [tokenizer.unk_token_id, 0]
    limit = None if may_grow else vocab_size
    known = [int(one) for one in candidates if one is not None and (limit is None or one < limit)]
    chosen = next((one for one in known if one not in last), None)
    note = None
    if chosen is None:
        if not may_grow:
            raise ModelError(
                "no token of the tokeniser can be padding: texts end with it, or the model has no row for it",
                got=", ".join(repr(tokenizer.convert_ids_to_tokens(one)) for one in known) or "no special token",
                do="Export merged: there a padding token with an embedding of its own is added.",
            )
        tokenizer.add_special_tokens({"pad_token": NEW_PADDING})
        chosen = int(tokenizer.pad_token_id)
        note = f"A padding token {NEW_PADDING} was added: every text ends with the tokeniser's own."
    elif chosen != own:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
        if own is None:
            reason = "the tokeniser had no padding token"
        else:
            reason = "texts end with the tokeniser's own" if own in last else "the model has no row for its own"
        note = f"Padding is {tokenizer.pad_token!r}: {reason}."
    return ExportTokenizer(tokenizer, chosen, max(vocab_size, chosen + 1), note)


def _last_tokens(encoder: TextEncoder, sample: Encoded, *, pairs: bool) -> set[int]:
    """Ids that texts end with: those of two short texts and of the sample."""
    probes = encoder.encode(_PROBES, _PROBES if pairs else None)
    return {int(ids[end - 1]) for ids, ends in ((e.token_ids, e.offsets[1:]) for e in (probes, sample)) for end in ends}
