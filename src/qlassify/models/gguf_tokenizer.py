"""The tokeniser of a base model that is a GGUF file: beside it as for APR files, else built from its metadata.

Beside the file the same names are tried as for APR (``apr_tokenizer``). A GGUF file also holds a vocabulary, merges or
scores, special tokens and the name of a rule for splitting text, of which a tokeniser is built
(``vocabulary_tokenizer``). Files of Llama 3 do not always say that a text begins with a token of its own, which the
model was trained with. And for Llama's SentencePiece transformers adds no space before a text that begins with one, as
the model's own tokeniser does; its rule for Phi-3 is that tokeniser's, and is taken for both.

WordPiece vocabularies (BERT) are not built: whether text is lower-cased first is not in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlassify.data.tokenizer_files import TokenizerFiles
from qlassify.errors import ModelError
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.gguf import GgufFile, open_gguf
from qlassify.models.apr_tokenizer import candidates, given_tokenizer
from qlassify.models.vocabulary_tokenizer import LLAMA3_RULES, Vocabulary, build_tokenizer

PREFIX = "tokenizer.ggml."
KINDS = ("gpt2", "llama")
"""``tokenizer.ggml.model`` of the kinds that are built: BPE of bytes, and SentencePiece."""
OWN_PREFIX = ("gemma", "gemma2", "gemma3", "phi3")
"""Architectures that transformers has a rule for, whatever a file says of the space before a text."""
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # as the format spells it
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
"""transformers' name of a special token -> the format's key."""


def find_gguf_tokenizer(path: Path, given: Path | None = None) -> Path | TokenizerFiles:
    """The tokeniser of the GGUF file ``path``.

    Args:
        path: the file.
        given: what the user names: a directory or a ``tokenizer.json``; None to look beside the file and in it.

    Raises:
        ModelError: there is none; names every place that was tried.
    """
    file = open_gguf(path)
    tokens = file.array(f"{PREFIX}tokens") or []
    special = AprMetadata({"special_tokens": _special(file, tokens)}, {})
    if given is not None:
        return given_tokenizer(given, special)
    tried = candidates(path)
    for candidate in tried:
        if candidate.is_file():
            return given_tokenizer(candidate, special)
    try:
        return _built(file, tokens)
    except ModelError as error:
        raise ModelError(
            "no tokeniser for the model",
            where=path,
            got="none of " + ", ".join(str(one) for one in tried) + f"; in the file itself: {error.what}, {error.got}",
            wanted="a tokenizer.json",
            do="Put it beside the file under one of these names, or name it: from_gguf(path, tokenizer=...).",
        ) from None


def _special(file: GgufFile, tokens: list[Any]) -> dict[str, str]:
    """transformers' name -> token, for those that the metadata names and the vocabulary has."""
    found = {name: file.metadata.get(PREFIX + key) for name, key in SPECIAL.items()}
    good = {name: tokens[at] for name, at in found.items() if type(at) is int and 0 <= at < len(tokens)}
    return {name: token for name, token in good.items() if isinstance(token, str)}


def _built(file: GgufFile, tokens: list[Any]) -> TokenizerFiles:
    """A tokeniser of what the metadata holds.

    Raises:
        ModelError: it does not say enough, or contradicts itself.
    """
    kind = file.metadata.get(f"{PREFIX}model")
    if kind not in KINDS or not tokens or not all(isinstance(one, str) for one in tokens):
        raise ModelError("a vocabulary that is not built", got=f"{len(tokens)} tokens of kind {kind!r}")
    rule = str(file.metadata.get(f"{PREFIX}pre"))
    architecture = str(file.metadata.get("general.architecture"))
    if kind == "llama" and architecture not in OWN_PREFIX and file.metadata.get(f"{PREFIX}add_space_prefix") is False:
        raise ModelError("no space before a text, which is not built", got=f"{PREFIX}add_space_prefix False")
    lists: dict[str, list[Any]] = {"tokens": tokens}
    for key in ("merges", "scores", "token_type"):
        values = file.array(PREFIX + key)
        if values is not None:
            lists[key] = values
    begins = file.metadata.get(f"{PREFIX}add_bos_token", kind != "gpt2" or rule in LLAMA3_RULES)
    ends = file.metadata.get(f"{PREFIX}add_eos_token", False)
    family = architecture if architecture in OWN_PREFIX else "phi3"
    built = build_tokenizer(
        Vocabulary(str(kind), rule, family, lists, _special(file, tokens), bool(begins), bool(ends)), file.path
    )
    template = file.metadata.get("tokenizer.chat_template")
    settings = {**built.settings, "chat_template": template} if isinstance(template, str) else built.settings
    return TokenizerFiles(built.path, settings, built.content)
