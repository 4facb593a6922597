"""Whether ``classifier.json`` says what a saved classifier has to say, before anything is built from it.

The file is small and people edit it. A name of a class that is a number, a limit that is a word or a list in place of
an object would otherwise show as an exception of some library, or as an answer that means something else. Loading it
through pydantic was the alternative; the record is a plain frozen dataclass, like all data between rooms, and twelve
keys need no second description.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, get_args

from qlassify.models.pooling import PoolingMode

MIN_LENGTH = 4
"""As ``ModelConfig.max_length``."""
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("labels", list, "a list of names"),
    ("multi_label", bool, "true or false"),
    ("pooling", str, "a word"),
    ("max_length", int, "a whole number"),
    ("text_pair", bool, "true or false"),
    ("base_model", str, "a name"),
    ("base_sha256", str, "64 hexadecimal digits"),
    ("precision", str, "a word"),
    ("threshold", (int, float), "a number"),
)
_OPTIONAL: tuple[tuple[str, Any, str], ...] = (
    ("quantization", (dict, type(None)), "an object or null"),
    ("decision", (dict, type(None)), "an object or null"),
    ("head_bias", bool, "true or false"),
    ("long", dict, "an object"),
)


def checked_record(document: object, format: int, known: Collection[str]) -> dict[str, Any]:
    """The settings in a record, each of its kind.

    Args:
        document: what was read.
        format: the newest format that is known.
        known: names of all settings.

    Raises:
        ValueError: says what is wrong.
    """
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__}, not an object")
    if document.get("format") != format:
        raise ValueError(_other_format(document.get("format"), format))
    settings = {name: value for name, value in document.items() if name not in ("format", "qlassify")}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name!r}, which is none of its settings{meant}")
    for name, kind, words in _KINDS:
        if name not in settings:
            raise ValueError(f"no {name}")
        _require_kind(settings, name, kind, words)
    for name, kind, words in _OPTIONAL:
        if name in settings:
            _require_kind(settings, name, kind, words)
    _require_values(settings)
    return settings


def _other_format(found: object, format: int) -> str:
    if isinstance(found, int) and not isinstance(found, bool) and found > format:
        return f"format {found}, which a newer qlassify wrote; this one reads format {format}"
    return f"format {found!r}; wanted {format}"


def _require_kind(settings: Mapping[str, Any], name: str, kind: Any, words: str) -> None:
    value = settings[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {value!r}; wanted {words}")


def _require_values(settings: Mapping[str, Any]) -> None:
    """Values that are of their kind and still cannot be."""
    labels = settings["labels"]
    odd = next((label for label in labels if not isinstance(label, str) or not label.strip()), None)
    if odd is not None:
        raise ValueError(f"{odd!r} among the labels; wanted names")
    twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if len(labels) < 2 or twice is not None:
        raise ValueError(f"{len(labels)} labels; wanted 2 or more" if twice is None else f"the label {twice!r} twice")
    if settings["pooling"] not in get_args(PoolingMode):
        raise ValueError(f"pooling is {settings['pooling']!r}; wanted {', '.join(get_args(PoolingMode))}")
    if settings["max_length"] < MIN_LENGTH:
        raise ValueError(f"max_length is {settings['max_length']}; wanted {MIN_LENGTH} or more")
    digest = settings["base_sha256"]
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"base_sha256 is {digest!r}; wanted 64 hexadecimal digits")
    if not 0 < settings["threshold"] < 1:
        raise ValueError(f"threshold is {settings['threshold']}; wanted above 0 and below 1")
