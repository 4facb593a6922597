"""A tokeniser built of a vocabulary: where a model file holds one instead of a ``tokenizer.json``.

A vocabulary with its merges or scores is not a whole tokeniser. How text is split before merges are applied, what is
done to it before that, and which tokens are never cut into pieces, follow from what the file says beside it and from
the family. transformers knows these rules by the names that GGUF gives them, and builds the tokeniser; what it leaves
out is added here:

- Where it does not know the rule for splitting, it takes GPT-2's, which gives other tokens than the model was trained
  on. Such a vocabulary is refused.
- Qwen's tokenisers compose characters first (Unicode NFC): a letter and its accent are one character or two, and the
  model has seen one.
- Llama 3's take a word that is in the vocabulary as its token, whatever the merges say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlassify.data.tokenizer_files import TokenizerFiles
from qlassify.errors import ModelError

GPT2_RULES = ("gpt-2", "gpt2", "default")
LLAMA3_RULES = ("llama3", "llama-v3", "llama-bpe")
COMPOSING_RULES = ("qwen2", "deepseek-r1-qwen")
CONTROL = 3
"""GGUF's kind of a token that is never cut into pieces."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says of its tokeniser, in GGUF's words.

    Attributes:
        kind: ``gpt2`` for byte-pair merges of bytes, ``llama`` for SentencePiece.
        rule: how text is split before merges are applied; of no meaning for SentencePiece.
        family: an architecture that transformers has a rule of its own for; ``phi3`` for all others.
        lists: ``tokens``, and ``merges`` or ``scores``, and ``token_type`` where there is one.
        special: transformers' name of a special token -> the token.
        begins: whether texts begin with ``bos_token``.
        ends: whether they end with ``eos_token``.
    """

    kind: str
    rule: str
    family: str
    lists: Mapping[str, Sequence[Any]]
    special: Mapping[str, str]
    begins: bool
    ends: bool


def build_tokenizer(vocabulary: Vocabulary, path: Path) -> TokenizerFiles:
    """A tokeniser of what the file ``path`` holds.

    Raises:
        ModelError: it does not say enough, or contradicts itself.
    """
    try:
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise ModelError("a newer transformers is needed to build it", got=error) from None
    kind, rule, tokens = vocabulary.kind, vocabulary.rule, vocabulary.lists["tokens"]
    if kind == "gpt2" and rule not in GGUF_PRE_TOKENIZER_SPLITS and rule not in GPT2_RULES:
        raise ModelError("a rule for splitting text that is not known", got=repr(rule))
    said = {"tokenizer_type": kind, "pre_tokenizer_type": rule, **vocabulary.lists}
    try:
        backend, _ = convert_gguf_tokenizer(vocabulary.family, said)
        _complete(backend, rule)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            add_bos_token=vocabulary.begins,
            add_eos_token=vocabulary.ends,
            **vocabulary.special,
        )
        content = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # of whatever kind: the vocabulary comes from outside, and tokenizers raises bare ones
        raise ModelError(
            "a vocabulary of which no tokeniser can be built", got=" ".join(str(error).split())[:200]
        ) from None
    if len(tokenizer) != len(tokens):
        raise ModelError("the tokeniser came out with another vocabulary", got=f"{len(tokenizer)}, not {len(tokens)}")
    return TokenizerFiles(path, {"tokenizer_class": "PreTrainedTokenizerFast", **vocabulary.special}, content)


def _complete(backend: Any, rule: str) -> None:
    """What transformers leaves out of a tokeniser of this rule."""
    from tokenizers import normalizers

    if rule in LLAMA3_RULES:
        backend.model.ignore_merges = True
    if rule in COMPOSING_RULES:
        backend.normalizer = normalizers.NFC()
