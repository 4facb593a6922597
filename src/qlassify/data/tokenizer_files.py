"""The files of a tokeniser where there is no model directory that holds them.

A tokeniser beside a model file is ``tokenizer.json`` under a name of its own, and its settings (which tokens are
special, what it gives beside ids) are elsewhere or nowhere. ``staged`` puts them side by side under the names that
transformers looks for, so that there is one way to load a tokeniser.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlassify.errors import ModelError

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokeniser that does not lie in a directory of its own.

    Attributes:
        path: its ``tokenizer.json``, whatever it is called; or the file that it was made from.
        settings: what ``tokenizer_config.json`` would say.
        content: what ``tokenizer.json`` would say, if it is no file; None when it is ``path``.
    """

    path: Path
    settings: Mapping[str, Any]
    content: str | None = None


@contextmanager
def staged(files: TokenizerFiles) -> Iterator[Path]:
    """A directory with the files under the names that transformers knows, while the context is open.

    Raises:
        ModelError: the file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="qlassify-tokenizer-") as folder:
        directory = Path(folder)
        try:
            if files.content is None:
                shutil.copyfile(files.path, directory / TOKENIZER)
            else:
                (directory / TOKENIZER).write_text(files.content, encoding="utf-8")
        except OSError as error:
            raise ModelError("cannot read the tokeniser", where=files.path, got=error) from None
        (directory / SETTINGS).write_text(json.dumps(dict(files.settings)), encoding="utf-8")
        yield directory


def read_settings(path: Path) -> dict[str, Any]:
    """A ``tokenizer_config.json``.

    Raises:
        ModelError: it is not a JSON object.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("cannot read the tokeniser's settings", where=path, got=error) from None
    if not isinstance(settings, dict):
        raise ModelError("the tokeniser's settings are no object", where=path)
    return settings
