"""``config.json`` of a model directory, looked at before transformers reads it.

transformers meets a damaged file, a list or a missing ``model_type`` with exceptions of many kinds, whose first lines
speak of its own functions. What can be wrong with the file itself is few things, and each has its sentence here. What
is wrong with the architecture's values is left to transformers, which knows the architectures.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from qlassify.errors import ModelError

NAME = "config.json"
_REFETCH = "Fetch the model again, or save it with save_pretrained."


def read_config_file(directory: Path, known: Container[str]) -> dict[str, Any]:
    """The settings in a model directory's ``config.json``.

    Args:
        directory: of the model.
        known: names of the architectures that transformers has.

    Raises:
        ModelError: missing, not JSON, not an object, without the architecture's name, or one that would need code from
            the directory to be run.
    """
    path = directory / NAME
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("cannot read the model's configuration", where=path, got=error) from None
    except (ValueError, RecursionError) as error:
        raise ModelError("the model's configuration is not valid JSON", where=path, got=error, do=_REFETCH) from None
    if not isinstance(settings, dict):
        raise ModelError(
            "the model's configuration is no JSON object", where=path, got=type(settings).__name__, do=_REFETCH
        )
    if not isinstance(settings.get("model_type"), str):
        raise ModelError(
            "the model's configuration names no architecture",
            where=path,
            got=f"model_type {settings['model_type']!r}" if "model_type" in settings else "no model_type",
            wanted='"model_type": "bert", or another that transformers has',
            do=_REFETCH,
        )
    if "auto_map" in settings and settings["model_type"] not in known:
        raise ModelError(
            "the model needs code that it brings along, which is never run",
            where=path,
            got=f"model_type {settings['model_type']!r} with auto_map",
            wanted="an architecture that transformers has",
            do="Take another base model.",
        )
    return settings
