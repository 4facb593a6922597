"""The tokeniser of a base model that is an APR file.

Programs that read the format look in different places. All are tried, the ones that name the model first:

    <name without .apr>.tokenizer.json
    <name up to its first dot>.tokenizer.json
    tokenizer.json                             in the same folder
    tokenizer.vocabulary and tokenizer.merges  in the file's metadata

How text is split before merges are applied, and what is put around it, is not in the metadata. Of the families in
``RULES`` it is known, and their tokeniser is built (``vocabulary_tokenizer``) if the vocabulary has the special tokens
of the family's own: a model that was made from Qwen's with other ones (DeepSeek-R1-Distill) puts one before each text.
Others share an architecture and not a tokeniser (Llama's), or lower-case or do not (BERT's): a guess would give other
tokens than the model was trained on, so their vocabulary is recognised and refused.

Settings come from ``<same prefix>tokenizer_config.json`` beside the tokeniser, else from the copy that our converter
puts into the metadata, else from the special tokens that the metadata names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlassify.data.tokenizer_files import SETTINGS, TOKENIZER, TokenizerFiles, read_settings
from qlassify.errors import ModelError
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.models.vocabulary_tokenizer import CONTROL, Vocabulary, build_tokenizer

SETTINGS_KEY = "qlassify.tokenizer_config"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
RULES = {
    "gpt2": ("gpt-2", ("<|endoftext|>",)),
    "qwen2": ("qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "qwen3": ("qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
}
"""Architecture -> how text is split, by GGUF's name, and special tokens of tokenisers that put nothing around it."""


def find_tokenizer(path: Path, metadata: AprMetadata) -> TokenizerFiles:
    """The tokeniser of the APR file ``path``.

    Raises:
        ModelError: there is none; names every place that was tried.
    """
    tried = candidates(path)
    for candidate in tried:
        if candidate.is_file():
            return TokenizerFiles(candidate, _settings(candidate, metadata))
    got = "none of " + ", ".join(str(one) for one in tried)
    if metadata.custom.get("tokenizer.vocabulary") is None:
        got += "; no vocabulary in the file"
    else:
        try:
            return _embedded(path, metadata)
        except ModelError as error:
            got += f"; of the vocabulary in the file: {error.what}, {error.got}"
    raise ModelError(
        "no tokeniser for the model",
        where=path,
        got=got,
        wanted="a tokenizer.json",
        do="Put it beside the file under one of these names, or name it: from_apr(path, tokenizer=...).",
    )


def _embedded(path: Path, metadata: AprMetadata) -> TokenizerFiles:
    """A tokeniser of the vocabulary and the merges in the metadata.

    Raises:
        ModelError: they do not say enough.
    """
    architecture = metadata.typed.get("architecture")
    rule, own = RULES.get(str(architecture).lower(), (None, ()))
    if rule is None:
        raise ModelError("how text is split before it is not known for this architecture", got=repr(architecture))
    tokens, merges = (metadata.custom.get(f"tokenizer.{name}") for name in ("vocabulary", "merges"))
    for name, values in (("vocabulary", tokens), ("merges", merges)):
        if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
            raise ModelError(f"tokenizer.{name} is no list of strings", got=type(values).__name__)
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    # What merges cannot come to is never cut into pieces: special tokens, which the metadata does not list.
    reached = {"".join(merge.split(" ")) for merge in merges}
    kinds = [1 if len(token) == 1 or token in reached else CONTROL for token in tokens]
    whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL}
    if not whole.issuperset(own):
        raise ModelError(
            "the special tokens are not those of the family's own tokeniser",
            got=f"no {', '.join(token for token in own if token not in whole)}",
        )
    lists = {"tokens": tokens, "merges": merges, "token_type": kinds}
    special = {name: token for name, token in _special(metadata).items() if token in tokens}
    built = build_tokenizer(Vocabulary("gpt2", rule, "phi3", lists, special, begins=False, ends=False), path)
    kept = metadata.custom.get(SETTINGS_KEY)
    return TokenizerFiles(path, kept if isinstance(kept, dict) else built.settings, built.content)


def given_tokenizer(given: Path, metadata: AprMetadata) -> Path | TokenizerFiles:
    """The tokeniser that a user names: a directory, or a ``tokenizer.json`` under any name.

    Raises:
        ModelError: there is nothing.
    """
    if given.is_dir():
        return given
    if not given.is_file():
        raise ModelError("no such tokeniser", where=given, wanted="a tokenizer.json, or a directory that holds one")
    return TokenizerFiles(given, _settings(given, metadata))


def candidates(path: Path) -> tuple[Path, ...]:
    """Where the tokeniser of a file is looked for, in order."""
    names = (f"{path.stem}.{TOKENIZER}", f"{path.name.partition('.')[0]}.{TOKENIZER}", TOKENIZER)
    return tuple(dict.fromkeys(path.with_name(name) for name in names))


def _settings(tokenizer: Path, metadata: AprMetadata) -> dict[str, Any]:
    beside = tokenizer.with_name(tokenizer.name.removesuffix(TOKENIZER) + SETTINGS)
    if tokenizer.name.endswith(TOKENIZER) and beside.is_file():
        return read_settings(beside)
    kept = metadata.custom.get(SETTINGS_KEY)
    if isinstance(kept, dict):
        return kept
    return {"tokenizer_class": "PreTrainedTokenizerFast", **_special(metadata)}  # takes tokenizer.json as it is


def _special(metadata: AprMetadata) -> dict[str, str]:
    """transformers' name -> token, for those that the metadata names."""
    special = metadata.typed.get("special_tokens", {})
    return {name: special[name] for name in SPECIAL_TOKENS if isinstance(special.get(name), str)}
