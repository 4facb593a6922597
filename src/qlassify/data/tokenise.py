"""Texts to token ids, once: a flat array of ids and where each text starts.

Ragged int32 ids cost 4 bytes a token and slice without copying; a list of lists costs 28 bytes a token and a padded
matrix costs the longest text for every text. Truncation is counted row by row, because a classifier that never sees
the end of its documents looks like a weak model, not like a setting. What is read of a text that is longer than the
limit is a setting (``long_texts``); under ``windows`` one row is several sequences, which stand one after another.

Rows go through in chunks, which ``chunks`` gives one by one: ``encode`` puts them together in memory, ``token_store``
writes them to disk. The tokeniser works on the rows of a chunk in threads of its own, one for each core, unless
``TOKENIZERS_PARALLELISM`` or ``RAYON_NUM_THREADS`` says otherwise; what it gives does not depend on their number.

Pairs are cut at the longer side first (``longest_first``), so that a short question is not lost to a long passage.
A text of which the tokeniser makes nothing (control characters only) becomes one fallback token and is counted: an
empty sequence has no hidden state to pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qlassify.data.long_texts import LongTexts
from qlassify.data.token_chunk import TokenChunk
from qlassify.data.tokenizer_files import TokenizerFiles, staged
from qlassify.errors import DataError, ModelError

if TYPE_CHECKING:
    import tokenizers

CHUNK_ROWS = 4096
"""Rows handed to the tokeniser at once; bounds the memory of its intermediate objects."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Where rows that are read in several windows are split; W windows of N rows in all.

    Attributes:
        offsets: (N + 1,) int64; the windows of row i are ``lengths[offsets[i]:offsets[i + 1]]``, at least one.
        lengths: (W,) int64 tokens of each window, special ones included; those of a row sum to the row's.
        repeated_tokens: (N,) int32 tokens of each row that stand in it a second time: overlaps and special tokens.
    """

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    repeated_tokens: npt.NDArray[np.int32]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(N,) windows of each row."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]], repeated_tokens: npt.NDArray[np.int32]) -> Windows | None:
        """The windows of N rows, from the tokens of each; None if every row is one window."""
        if all(len(row) == 1 for row in lengths):
            return None
        flat = np.array([length for row in lengths for length in row], dtype=np.int64)
        return cls(_offsets(np.array([len(row) for row in lengths], np.int32)), flat, repeated_tokens)

    def counts_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(B,) windows of the given (B,) rows; costs nothing for the others."""
        return self.offsets[rows + 1] - self.offsets[rows]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised texts, N rows and T tokens in all.

    Attributes:
        token_ids: (T,) int32 ids of all rows, one after another.
        offsets: (N + 1,) int64; row i is ``token_ids[offsets[i]:offsets[i + 1]]``.
        token_type_ids: (T,) int8 segment ids for pairs, or None.
        lost_tokens: (N,) int32 tokens cut off each row; 0 where nothing was cut.
        num_empty: rows that came to no token and got the fallback token.
        windows: how rows are split into windows; None where every row is one sequence.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int8] | None
    lost_tokens: npt.NDArray[np.int32]
    num_empty: int
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens of each row after truncation, those of all its windows together."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(B,) tokens of the given (B,) rows after truncation; costs nothing for the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    @property
    def whole_lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens of each text before anything was cut off or repeated, special ones included."""
        whole = self.lengths + self.lost_tokens
        return whole if self.windows is None else whole - self.windows.repeated_tokens

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
    def of(cls, chunks: Iterable[TokenChunk]) -> Encoded:
        """All rows of all chunks, in their order; every chunk has segments, or none has."""
        every = list(chunks)

        def joined(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
            return np.concatenate([np.zeros(0, dtype), *(getattr(chunk, name) for chunk in every)])

        with_types = any(chunk.token_type_ids is not None for chunk in every)
        counts = joined("windows_of_row", np.int32)
        windows = None
        if (counts > 1).any():
            lengths = joined("window_lengths", np.int32).astype(np.int64)
            windows = Windows(_offsets(counts), lengths, joined("repeated_tokens", np.int32))
        return cls(
            token_ids=joined("token_ids", np.int32),
            offsets=_offsets(joined("lengths", np.int32)),
            token_type_ids=joined("token_type_ids", np.int8) if with_types else None,
            lost_tokens=joined("lost_tokens", np.int32),
            num_empty=sum(chunk.num_empty for chunk in every),
            windows=windows,
        )

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
        max_length: most tokens in a sequence, special tokens included.
        long: what is read of longer texts.

    Attributes:
        long: the same, settled for this tokeniser and limit.

    Raises:
        ConfigError: the limit leaves no room for what ``long`` asks for.
    """

    def __init__(self, tokenizer: Any, max_length: int, long: LongTexts | None = None) -> None:
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
        self.long = (long or LongTexts()).settled(max_length, self.num_special_tokens(pair=False))

    def num_special_tokens(self, *, pair: bool) -> int:
        """Tokens that stand in every text, or pair of texts, whatever it says."""
        return int(self.tokenizer.num_special_tokens_to_add(pair=pair))

    @classmethod
    def load(
        cls, directory: str | Path | TokenizerFiles, max_length: int, long: LongTexts | None = None
    ) -> TextEncoder:
        """The tokeniser files of a model directory, or those that lie elsewhere; other arguments as the class.

        Raises:
            ConfigError: the limit leaves no room for what ``long`` asks for.
            ModelError: there is no tokeniser, or it has no fast version.
        """
        if isinstance(directory, TokenizerFiles):
            with staged(directory) as folder:
                try:
                    return cls.load(folder, max_length, long)
                except ModelError as error:
                    raise ModelError(error.what, where=directory.path, got=error.got, wanted=error.wanted) from None
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            if _replaced(tokenizer, Path(directory)):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:  # what the tokenizers library raises for a damaged file has no class of its own
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
        return cls(tokenizer, max_length, long)

    def save(self, directory: str | Path) -> tuple[Path, ...]:
        """Write the tokeniser's files, as they were loaded, into ``directory``.

        Returns:
            The files that were written.

        Raises:
            OSError: they cannot be written.
        """
        try:
            written = self.tokenizer.save_pretrained(str(directory))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the tokenizers library's own, without a class of its own
            raise OSError(f"{directory}: {error}") from None
        named = {Path(path) for path in written if path is not None}
        return tuple(sorted(path for path in named if path.is_file()))  # it names some that it had no use for

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

        Raises:
            ConfigError: pairs, and longer texts are not to be truncated.
        """
        found, done = [], 0
        for chunk in self.chunks(texts, pairs):
            found.append(chunk)
            done += len(chunk.lengths)
            if progress is not None:
                progress(done)
        return Encoded.of(found)

    def chunks(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Iterator[TokenChunk]:
        """The same rows ``CHUNK_ROWS`` at a time, in order; nothing is kept of a chunk that has been given.

        Raises:
            ConfigError: pairs, and longer texts are not to be truncated.
        """
        self.long.require_single(pair=pairs is not None)
        for start in range(0, len(texts), CHUNK_ROWS):
            batch: Any = list(texts[start : start + CHUNK_ROWS])
            if pairs is not None:
                batch = list(zip(batch, pairs[start : start + CHUNK_ROWS], strict=True))
            yield self._chunk(batch, with_types=self.wants_token_types and pairs is not None)

    def settings(self) -> dict[str, Any]:
        """Everything beside the texts that token ids depend on, for a name of what was made with it."""
        import tokenizers

        return {
            "library": tokenizers.__version__,
            "tokenizer": self._whole.to_str(),
            "max_length": self.max_length,
            "long": [self.long.policy, self.long.window_overlap, self.long.max_windows],
            "fallback_token_id": self.fallback_token_id,
            "wants_token_types": self.wants_token_types,
        }

    def _chunk(self, batch: list[Any], *, with_types: bool) -> TokenChunk:
        """The tokens of some rows: texts, or pairs of texts."""
        cuts = self.long.policy == "truncate"
        encodings = (self._backend if cuts else self._whole).encode_batch_fast(batch, add_special_tokens=True)
        lost, repeated = np.zeros(len(batch), np.int32), np.zeros(len(batch), np.int32)
        if cuts:
            rows = [[encoding.ids] for encoding in encodings]
            self._count_lost(batch, encodings, lost)
        else:
            rows = []
            for place, encoding in enumerate(encodings):
                sequences, lost[place] = self._cut(encoding)
                rows.append(sequences)
                if len(sequences) > 1:
                    repeated[place] = sum(map(len, sequences)) + lost[place] - len(encoding.ids)
        empty = [place for place, sequences in enumerate(rows) if not sequences[0]]
        for place in empty:
            rows[place] = [[self.fallback_token_id]]
        types = None
        if with_types:
            segments = [encoding.type_ids or [0] for encoding in encodings]
            types = np.fromiter(chain.from_iterable(segments), np.int8, sum(map(len, segments)))
        lengths = np.array([sum(map(len, sequences)) for sequences in rows], np.int32)
        flat = chain.from_iterable(chain.from_iterable(rows))
        return TokenChunk(
            token_ids=np.fromiter(flat, np.int32, int(lengths.sum())),
            token_type_ids=types,
            lengths=lengths,
            windows_of_row=np.array([len(sequences) for sequences in rows], np.int32),
            window_lengths=np.array([len(sequence) for sequences in rows for sequence in sequences], np.int32),
            repeated_tokens=repeated,
            lost_tokens=lost,
            num_empty=len(empty),
        )

    def _cut(self, encoding: tokenizers.Encoding) -> tuple[list[list[int]], int]:
        """The sequences that are read of a whole text, and how many of its tokens are in none."""
        ids: list[int] = encoding.ids
        if len(ids) <= self.max_length:
            return [ids], 0
        # The mask marks what the tokeniser added, not special tokens that are written out in the text.
        inner = [index for index, added in enumerate(encoding.special_tokens_mask) if not added]
        before, behind = ids[: inner[0]], ids[inner[-1] + 1 :]
        text = ids[inner[0] : inner[-1] + 1]
        special = len(before) + len(behind)
        ranges = self.long.sequences(len(text), self.max_length, special)
        sequences = [[*before, *(token for a, b in parts for token in text[a:b]), *behind] for parts in ranges]
        if self.long.policy == "head_tail":
            return sequences, len(ids) - self.max_length
        return sequences, len(text) - ranges[-1][-1][1]

    def _count_lost(
        self, batch: list[Any], encodings: Sequence[tokenizers.Encoding], lost: npt.NDArray[np.int32]
    ) -> None:
        """Tokens that truncation cut off each row, into ``lost``, by tokenising those rows again without a limit."""
        cut = [place for place, encoding in enumerate(encodings) if encoding.overflowing]
        whole = self._whole.encode_batch_fast([batch[place] for place in cut], add_special_tokens=True)
        for place, encoding in zip(cut, whole, strict=True):
            lost[place] = len(encoding.ids) - len(encodings[place].ids)


def _offsets(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(N + 1,) where each of N rows starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _replaced(tokenizer: Any, directory: Path) -> bool:
    """Whether transformers built the tokeniser of the model's kind in place of the one that the files describe.

    For some kinds of model (Qwen2 among them) it does so whatever ``tokenizer.json`` holds, and a text may then come to
    no token at all, or to single letters. Files that name the class that takes ``tokenizer.json`` as it is mean it; and
    a tokeniser of another algorithm than the file's is not the file's.
    """
    file = _json(directory / "tokenizer.json")
    if file is None:
        return False
    as_it_is = ("TokenizersBackend", "PreTrainedTokenizerFast")
    named = (_json(directory / "tokenizer_config.json") or {}).get("tokenizer_class")
    if named in as_it_is:
        return type(tokenizer).__name__ not in as_it_is
    model = file.get("model")
    algorithm = model.get("type") if isinstance(model, dict) else None
    built = getattr(tokenizer, "backend_tokenizer", None)
    return algorithm is not None and built is not None and type(built.model).__name__ != algorithm


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object of a file; None if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _fallback_token_id(tokenizer: Any) -> int:
    """The id that stands for a text without tokens: unknown, else end, else padding, else 0."""
    for name in ("unk_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0
