"""The base of every configuration section: frozen, keyword-only, closed, and its errors in our own words.

Pydantic does the checking, because declaring a field's type, bounds and default once, beside its docstring, is worth
more than hand-written ``if`` ladders; its error text is translated here, once, so that a user reads a
``ConfigError`` with the dotted name of the option, the value that was given and the values that are accepted.
An unknown key is an error that names the nearest known one: an option that is silently ignored is an option that
the user believes in.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pydantic

from qlassify.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelMetaclass
else:
    _ModelMetaclass = type(pydantic.BaseModel)


class _Translating(_ModelMetaclass):
    """Makes ``SectionClass(...)`` raise a ``ConfigError``.

    In the metaclass and not in ``__init__``: pydantic calls an overridden ``__init__`` for nested sections too, and the
    dotted name of the option would be lost.
    """

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        try:
            return super().__call__(*args, **settings)
        except pydantic.ValidationError as error:
            raise _translate(cls, error, None) from None


class Section(pydantic.BaseModel, metaclass=_Translating):
    """A closed, frozen group of options. Build one from keywords, or from a mapping with ``parse``."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, settings: Mapping[str, Any], *, where: str | None = None) -> Self:
        """Validate ``settings`` (nested mappings) into a section.

        Raises:
            ConfigError: names every option that is wrong, what was given and what is accepted.
        """
        try:
            return cls.model_validate(dict(settings))
        except pydantic.ValidationError as error:
            raise _translate(cls, error, where) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes`` applied and everything validated again."""
        return self.parse({**self.model_dump(), **changes})


def _translate(cls: type, error: pydantic.ValidationError, where: str | None) -> ConfigError:
    """All of pydantic's findings as one ``ConfigError``, the first one in full and the others listed."""
    findings = [_describe(cls, item) for item in error.errors(include_url=False)]
    what = "; ".join(finding for finding, _ in findings)
    remedies = [remedy for _, remedy in findings if remedy]
    return ConfigError(what, where=where, do=" ".join(dict.fromkeys(remedies)) or None)


def _describe(cls: type, item: Any) -> tuple[str, str | None]:
    name = _option_name(cls, item["loc"]) or cls.__name__
    if item["type"] == "extra_forbidden":
        assert issubclass(cls, pydantic.BaseModel)
        known = _known_keys(cls)
        if name in known and len(item["loc"]) > 2:
            section, kind, option = (str(part) for part in item["loc"][:3])
            return f"{name} is no option of {section}.kind={kind}", f"Leave {option} out, or take another kind."
        near = _nearest(name, known)
        return f"unknown option {name}", None if near is None else f"Did you mean {near}?"
    if item["type"] == "invalid_key":
        return f"unknown option {name}: names of options are words", None
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} is {item['input']!r}: it should be a section with options of its own", None
    if item["type"] == "union_tag_invalid":
        return _wrong_kind(name, item)
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return message, None  # about several options of a section, which it names itself
    return f"{name} is {item['input']!r}: {message}", None


def _nearest(name: str, known: list[str]) -> str | None:
    """The option that may have been meant: of that name in another section, or begun like that, or spelled alike."""
    last = name.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == last]
    longer = [other for other in known if other.startswith(name.rstrip("s"))]
    alike = elsewhere or longer or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return alike[0] if alike else None


def _wrong_kind(name: str, item: Any) -> tuple[str, str | None]:
    """A section whose kind is none that there is."""
    option = str(item["ctx"]["discriminator"]).strip("'")
    given, known = item["input"].get(option), str(item["ctx"]["expected_tags"])
    close = difflib.get_close_matches(str(given), known.replace("'", "").split(", "), n=1)
    finding = f"{name}.{option} is {given!r}: it should be one of {known}"
    return finding, f"Did you mean {close[0]}?" if close else None


def _option_name(cls: type, where: tuple[int | str, ...]) -> str:
    """The dotted name of an option; the kind that pydantic puts after a section with kinds is left out."""
    parts = [str(part) for part in where]
    assert issubclass(cls, pydantic.BaseModel)
    field = cls.model_fields.get(parts[0]) if parts else None
    if field is not None and field.discriminator and len(parts) > 1:
        del parts[1]
    return ".".join(parts)


def sections_of(annotation: Any) -> tuple[type[pydantic.BaseModel], ...]:
    """The sections of which a field holds one, also if it may be None; empty for a field of another kind."""
    kinds = (annotation, *typing.get_args(annotation))
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel))


def _known_keys(cls: type[pydantic.BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of every option and section below ``cls``."""
    keys: list[str] = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        for section in sections_of(field.annotation):
            keys += _known_keys(section, f"{prefix}{name}.")
    return keys
