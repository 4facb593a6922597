"""Whether a run's tokens go through a store on disk, and where that is.

A store repays itself where tokenising takes longer than reading back, and memory matters: from ten million characters
on, which a hundred thousand short texts have and which take some five seconds to tokenise. Below that, hashing, writing
and a folder in somebody's home are not worth it. Characters decide and not rows, because time and memory go by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qlassify.data.corpus import Corpus
from qlassify.data.token_store import TokenStore

AUTO_CHARS = 10_000_000
"""Characters of all texts of a run from which ``auto`` means a store."""


def token_cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the user's store: ``qlassify/tokens`` in ``XDG_CACHE_HOME``, which is ``~/.cache`` by default."""
    cache = environment.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path in the variable is to be ignored.
    folder = Path(cache) if Path(cache).is_absolute() else Path("~/.cache").expanduser()
    return folder / "qlassify" / "tokens"


def chosen_store(setting: str, corpora: Iterable[Corpus]) -> TokenStore | None:
    """The store that ``data.token_cache`` means for these corpora; None to keep tokens in memory.

    Args:
        setting: ``auto``, ``off``, or a folder.
        corpora: everything that is to be tokenised.
    """
    if setting == "off":
        return None
    if setting != "auto":
        return TokenStore(Path(setting).expanduser().absolute())
    chars = sum(sum(map(len, corpus.texts)) + sum(map(len, corpus.pairs or ())) for corpus in corpora)
    return TokenStore(token_cache_folder()) if chars >= AUTO_CHARS else None
