"""What an APR file says of its model: typed keys, and anything else beside them at the same level.

The text is JSON. Keys of the format have a type that is checked; absent and null are the same. All other keys are the
writers' own ("custom") and kept as they are.

Canonical text, which our writer makes: the format's keys in the order of ``TYPED``, absent ones left out, then custom
keys in the order of their UTF-8 bytes; no spaces; characters as they are. So the same metadata gives the same bytes,
and a file that is loaded and saved is the same file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlassify.errors import ModelError
from qlassify.formats.apr_header import MAX_METADATA_BYTES, damaged

TYPED: dict[str, type] = {
    "model_type": str, "name": str, "description": str, "author": str, "license": str, "version": str, "source": str,
    "original_format": str, "created_at": str, "total_size": int, "param_count": int, "quantization": dict,
    "sharding": dict, "chat_template": str, "chat_format": str, "special_tokens": dict, "architecture": str,
    "hidden_size": int, "num_layers": int, "num_heads": int, "num_kv_heads": int, "vocab_size": int,
    "intermediate_size": int, "max_position_embeddings": int, "rope_theta": float, "rope_type": int,
    "rms_norm_eps": float, "head_dim": int, "num_experts": int, "num_experts_per_tok": int,
    "moe_intermediate_size": int, "data_source": str, "data_license": str,
}  # fmt: skip
"""The format's own keys with the types of their values, in the order in which they are written."""
MAX_INTEGER = 1 << 63


@dataclass(frozen=True, slots=True)
class AprMetadata:
    """An APR file's metadata.

    Attributes:
        typed: the format's keys that are there and not null.
        custom: all others.
    """

    typed: Mapping[str, Any]
    custom: Mapping[str, Any]

    def text(self) -> bytes:
        """The canonical text.

        Raises:
            ModelError: a value that JSON has no form for, or more than an APR file may hold.
        """
        custom = sorted(self.custom.items(), key=lambda item: item[0].encode("utf-8", "surrogatepass"))
        ordered = {key: self.typed[key] for key in TYPED if key in self.typed} | dict(custom)
        try:
            raw = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
        except (ValueError, TypeError, RecursionError) as error:
            raise ModelError("metadata that cannot be written", got=error, wanted="what JSON can say") from None
        if len(raw) > MAX_METADATA_BYTES:
            raise ModelError("too much metadata", got=f"{len(raw)} bytes", wanted=f"at most {MAX_METADATA_BYTES}")
        return raw

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: object = "metadata") -> AprMetadata:
        """Metadata from all its keys, typed and custom ones alike.

        Raises:
            ModelError: a key of the format has a value of another type.
        """
        typed = {key: values[key] for key in TYPED if values.get(key) is not None}
        for key, value in typed.items():
            _require_type(key, value, where)
        return cls(typed, {key: value for key, value in values.items() if key not in TYPED})


def read_metadata(raw: bytes, *, where: object) -> AprMetadata:
    """Parse a file's metadata.

    Raises:
        ModelError: no JSON object, one that nests too deep, a key that occurs twice, or a value of another type.
    """
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_unrepeated, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"metadata that is not read: {error}") from None
    if not isinstance(values, dict):
        raise damaged(where, "metadata that is no object")
    return AprMetadata.of(values, where=where)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless a name stands in it twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant}, which is not JSON")


def _require_type(key: str, value: Any, where: object) -> None:
    wanted = TYPED[key]
    if wanted is int:
        good = type(value) is int and 0 <= value < MAX_INTEGER
    elif wanted is float:
        good = type(value) in (int, float) and abs(value) < MAX_INTEGER and math.isfinite(value)
    else:
        good = isinstance(value, wanted)
    if not good:
        names = {int: "a whole number", float: "a number", str: "a text", dict: "an object"}
        raise ModelError("metadata of another type", where=f"{where}: {key}", got=str(value)[:80], wanted=names[wanted])
