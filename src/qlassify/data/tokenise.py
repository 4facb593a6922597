"""Texts to token ids, once: a flat array of ids and where each text starts.

Ragged int32 ids cost 4 bytes a token and slice without copying; a list of lists costs 28 bytes a token and a padded
matrix costs the longest text for every text. Truncation is counted row by row, because a classifier that never sees
the end of its documents looks like a weak model, not like a setting.

Pairs are cut at the longer side first (``longest_first``), so that a short question is not lost to a long passage.
A text of which the tokeniser makes nothing (control characters only) becomes one fallback token and is counted: an
empty sequence has no hidden state to pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qlassify.errors import DataError, ModelError

if TYPE_CHECKING:
    import tokenizers

CHUNK_ROWS = 4096
"""Rows handed to the tokeniser at once; bounds the memory of its intermediate objects."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised texts, N rows and T tokens in all.

    Attributes:
        token_ids: (T,) int32 ids of all rows, one after another.
        offsets: (N + 1,) int64; row i is ``token_ids[offsets[i]:offsets[i + 1]]``.
        token_type_ids: (T,) int8 segment ids for pairs, or None.
        lost_tokens: (N,) int32 tokens cut off each row; 0 where nothing was cut.
        num_empty: rows that came to no token and got the fallback token.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int8] | None
    lost_tokens: npt.NDArray[np.int32]
    num_empty: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens of each row after truncation."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together."""
        return int(self.offsets[-1])

    @property
    def num_truncated(self) -> int:
        """Rows that lost at least one token."""
        return int(np.count_nonzero(self.lost_tokens))

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """The token ids of one row."""
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> Encoded:
        """Token ids that come from elsewhere, row by row, without segments.

        Raises:
            DataError: a row is empty.
        """
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        if len(lengths) and lengths.min() == 0:
            raise DataError("a row of token ids is empty", where=f"row {int(lengths.argmin())}", wanted="at least one")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = [token for row in rows for token in row]
        return cls(np.array(flat, dtype=np.int32), offsets, None, np.zeros(len(rows), np.int32), 0)


class TextEncoder:
    """A Hugging Face tokeniser with our truncation and counting.

    Args:
        tokenizer: a fast tokeniser from transformers; its own padding and truncation settings are not used.
        max_length: most tokens in a row, special tokens included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        import tokenizers

        self.tokenizer = tokenizer
        self.max_length = max_length
        # A copy: enabling truncation would otherwise change the user's object.
        self._backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._whole = tokenizers.Tokenizer.from_str(self._backend.to_str())
        self._whole.no_truncation()
        self._backend.enable_truncation(max_length, strategy="longest_first")
        self.fallback_token_id = _fallback_token_id(tokenizer)
        self.wants_token_types = "token_type_ids" in tokenizer.model_input_names

    def num_special_tokens(self, *, pair: bool) -> int:
        """Tokens that stand in every text, or pair of texts, whatever it says."""
        return int(self.tokenizer.num_special_tokens_to_add(pair=pair))

    @classmethod
    def load(cls, directory: str | Path, max_length: int) -> TextEncoder:
        """The tokeniser files of a model directory.

        Raises:
            ModelError: there is no tokeniser, or it has no fast version.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            if _replaced(tokenizer, Path(directory)):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise ModelError(
                "no usable tokeniser",
                where=directory,
                got=" ".join(str(error).split())[:300],
                wanted="tokenizer.json, or the vocabulary files of a known tokeniser",
                do="Save the model's tokeniser into that directory with tokenizer.save_pretrained.",
            ) from None
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "the tokeniser has no fast version",
                where=directory,
                got=type(tokenizer).__name__,
                wanted="a tokenizer.json",
                do="Convert it with transformers' convert_slow_tokenizer and save it.",
            )
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            # Without vocabulary files transformers builds an empty tokeniser of the model's kind and says nothing.
            raise ModelError(
                "the tokeniser has no vocabulary",
                where=directory,
                got=f"{len(tokenizer)} tokens, all of them special",
                wanted="tokenizer.json, or the vocabulary files of a known tokeniser",
                do="Put the model's tokeniser files into that directory.",
            )
        return cls(tokenizer, max_length)

    def save(self, directory: str | Path) -> None:
        """Write the tokeniser's files, as they were loaded, into ``directory``."""
        self.tokenizer.save_pretrained(str(directory))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Encoded:
        """Tokenise ``texts`` (or text pairs).

        Args:
            texts: one text per row.
            pairs: the second text of each row, or None.
            progress: called with the number of rows done after each chunk.
        """
        ids: list[npt.NDArray[np.int32]] = []
        types: list[npt.NDArray[np.int8]] = []
        lengths: list[int] = []
        lost: list[int] = []
        num_empty = 0
        for start in range(0, len(texts), CHUNK_ROWS):
            stop = start + CHUNK_ROWS
            batch: Any = list(texts[start:stop])
            if pairs is not None:
                batch = list(zip(batch, pairs[start:stop], strict=True))
            for source, encoding in zip(batch, self._backend.encode_batch(batch, add_special_tokens=True), strict=True):
                row = encoding.ids
                if not row:
                    num_empty += 1
                    row = [self.fallback_token_id]
                ids.append(np.array(row, dtype=np.int32))
                lengths.append(len(row))
                lost.append(self._lost_tokens(source, encoding))
                if self.wants_token_types and pairs is not None:
                    types.append(np.array(encoding.type_ids or [0], dtype=np.int8))
            if progress is not None:
                progress(min(stop, len(texts)))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])
        return Encoded(
            token_ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
            offsets=offsets,
            token_type_ids=np.concatenate(types) if types else None,
            lost_tokens=np.array(lost, dtype=np.int32),
            num_empty=num_empty,
        )

    def _lost_tokens(self, source: Any, encoding: tokenizers.Encoding) -> int:
        """Tokens that truncation cut off a text or a pair, by tokenising it again without a limit."""
        if not encoding.overflowing:
            return 0
        first, second = source if isinstance(source, tuple) else (source, None)
        return len(self._whole.encode(first, second, add_special_tokens=True).ids) - len(encoding.ids)


def _replaced(tokenizer: Any, directory: Path) -> bool:
    """Whether transformers built the tokeniser of the model's kind in place of the one that the files describe.

    For some kinds of model (Qwen2 among them) it does so whatever ``tokenizer.json`` holds, and a text may then come to
    no token at all. Files that name the class that takes ``tokenizer.json`` as it is mean it.
    """
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    named = settings.get("tokenizer_class") if isinstance(settings, dict) else None
    as_it_is = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return named in as_it_is and type(tokenizer).__name__ not in as_it_is and (directory / "tokenizer.json").is_file()


def _fallback_token_id(tokenizer: Any) -> int:
    """The id that stands for a text without tokens: unknown, else end, else padding, else 0."""
    for name in ("unk_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0
