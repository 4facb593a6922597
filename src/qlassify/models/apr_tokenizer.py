"""The tokeniser of a base model that is an APR file.

Programs that read the format look in different places. All are tried, the ones that name the model first:

    <name without .apr>.tokenizer.json
    <name up to its first dot>.tokenizer.json
    tokenizer.json                             in the same folder
    tokenizer.vocabulary and tokenizer.merges  in the file's metadata

The last is not enough to tokenise with: how text is split before merges are applied, and what stands around it, is not
in it, and a guess would give other tokens than the model was trained on. It is therefore recognised and refused.

Settings come from ``<same prefix>tokenizer_config.json`` beside the tokeniser, else from the copy that our converter
puts into the metadata, else from the special tokens that the metadata names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlassify.data.tokenizer_files import SETTINGS, TOKENIZER, TokenizerFiles, read_settings
from qlassify.errors import ModelError
from qlassify.formats.apr_metadata import AprMetadata

SETTINGS_KEY = "qlassify.tokenizer_config"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def find_tokenizer(path: Path, metadata: AprMetadata) -> TokenizerFiles:
    """The tokeniser of the APR file ``path``.

    Raises:
        ModelError: there is none; names every place that was tried.
    """
    tried = candidates(path)
    for candidate in tried:
        if candidate.is_file():
            return TokenizerFiles(candidate, _settings(candidate, metadata))
    embedded = "tokenizer.vocabulary" in metadata.custom
    raise ModelError(
        "no tokeniser for the model",
        where=path,
        got="none of " + ", ".join(str(one) for one in tried)
        + ("; the file holds a vocabulary, but not how text is split before it" if embedded else ""),
        wanted="a tokenizer.json",
        do="Put it beside the file under one of these names, or name it: from_apr(path, tokenizer=...).",
    )  # fmt: skip


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
    # The class that takes tokenizer.json as it is.
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    special = metadata.typed.get("special_tokens", {})
    return settings | {name: special[name] for name in SPECIAL_TOKENS if isinstance(special.get(name), str)}
