"""YAML files and ``--set a.b=c`` as nested settings, and the layering of settings.

Settings are plain nested mappings until ``RunConfig.parse`` validates them, because layers (recommended values, a
file, overrides, flags) must be merged key by key before a default fills what none of them names. PyYAML follows
YAML 1.1, in which ``1e-4`` is a string; learning rates are written that way, so a resolver for such floats is added
to a private loader (the global one is left alone).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from qlassify.durable import write_text
from qlassify.errors import ConfigError

Settings = dict[str, Any]
MAX_VALUES = 10_000
"""Values of a settings file, each alias counted as often as it is used. A run has about a hundred settings."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and refuses a key that stands twice, of which YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of different keys."""
        places: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line = key.start_mark.line + 1
                if key.value in places:
                    raise yaml.YAMLError(f"{key.value!r} stands twice, in line {places[key.value]} and line {line}")
                places[key.value] = line
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_settings(path: str | Path) -> Settings:
    """The settings of a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, holds a key twice, or is not a mapping at its top.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        do = "Give a YAML file in UTF-8."
        raise ConfigError("cannot read the configuration file", where=path, got=error, do=do) from None
    try:
        settings = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits
        raise ConfigError("not valid YAML", where=path, got=_in_short(error)) from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(
            "the top of a configuration file is a mapping of sections",
            where=path,
            got=type(settings).__name__,
            wanted="lines such as training: and below it, indented, epochs: 5",
        )
    if _size(settings, {}) > MAX_VALUES:
        raise ConfigError(
            "the settings are too many, or hold themselves through an alias",
            where=path,
            got=f"more than {MAX_VALUES} values",
            do="Write the values out, without aliases.",
        )
    return settings


def _in_short(error: Exception) -> str:
    """A parser's complaint in one line."""
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    if not isinstance(error, yaml.YAMLError):
        return "a number of thousands of digits"
    return " ".join(str(error).replace('in "<unicode string>", ', "").split())[:300]


def _size(value: Any, known: dict[int, float]) -> float:
    """How many values there are once aliases are written out; infinite where one leads back to itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is counted: who meets it before then is inside of it
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, known) for one in inner)
    return known[id(value)]


def parse_override(text: str) -> Settings:
    """``training.epochs=5`` as ``{"training": {"epochs": 5}}``; the value is read as YAML.

    Raises:
        ConfigError: there is no ``=`` or a part of the name is empty.
    """
    name, separator, value = text.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(
            "an override is NAME=VALUE", where="--set", got=repr(text), do="Write for example training.epochs=5."
        )
    try:
        settings: Any = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        settings = value
    for key in reversed(keys):
        settings = {key: settings}
    result: Settings = settings
    return result


def layer(*layers: Mapping[str, Any]) -> Settings:
    """Merge nested settings; a later layer wins key by key, and nothing is changed in place.

    A layer that says nothing of a section (an empty mapping) leaves there what is, also what is no section: whoever
    wrote it is to be told, and not to believe that it holds.
    """
    merged: Settings = {}
    for settings in layers:
        for key, value in settings.items():
            below = merged.get(key)
            if isinstance(value, Mapping) and not value and below is not None:
                continue
            if isinstance(value, Mapping):
                merged[key] = layer(below if isinstance(below, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def gather_settings(path: str | Path | None, overrides: Iterable[str] = ()) -> Settings:
    """A file's settings with ``--set`` overrides on top."""
    base = read_settings(path) if path is not None else {}
    return layer(base, *(parse_override(text) for text in overrides))


def write_settings(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Write settings as YAML that ``read_settings`` reads back equal, whole or not at all.

    Raises:
        OSError: they cannot be written; nothing of them is left then.
    """
    write_text(Path(path), yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Mappings and tuples as the dicts and lists that YAML has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
