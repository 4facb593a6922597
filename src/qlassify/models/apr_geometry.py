"""From an APR file's geometry to what transformers' ``config.json`` would say, for architectures that it suffices for.

Geometry is held against the tensors' shapes before anything is loaded. A layer more than the metadata says would be
ignored without a word, and fewer heads than there are would give weights of the right size in the wrong order. What no
key says is the architecture's default in transformers; where released models differ in such a thing (positions that are
scaled), they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlassify.errors import ModelError

CONFIG_KEY = "qlassify.config"
CONVERT = "Convert the model again from its directory: qlassify convert DIRECTORY FILE.apr."
UNSCALED_POSITIONS = {"llama": 8192, "phi3": 4096}
"""Most positions up to which an architecture's released models rotate without scaling, which no key describes."""
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def settings_of(geometry: Geometry, architecture: str) -> dict[str, Any]:
    """What ``config.json`` would say, but for ``model_type``.

    Args:
        geometry: the metadata and the shapes.
        architecture: one of ``BUILDERS``.

    Raises:
        ModelError: keys are missing, tensors have other shapes, or the architecture needs more than there are keys for.
    """
    settings = BUILDERS[architecture](geometry)
    _require_unscaled(geometry.path, architecture, settings)
    return settings


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the metadata says, to be held against the tensors.

    Attributes:
        path: the file.
        typed: its metadata's own keys.
        shapes: transformers' name -> shape.
    """

    path: Path
    typed: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def number(self, key: str, default: int | None = None) -> int:
        """A key that has to be there, or has a default."""
        value = self.typed.get(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 32:
            raise ModelError("the geometry is not complete", where=f"{self.path}: {key}", got=value, wanted="a number")
        return value

    def shape(self, ending: str) -> tuple[int, ...] | None:
        """The shape of the tensor of that name, whatever stands before it."""
        return next((shape for name, shape in self.shapes.items() if f".{name}".endswith(f".{ending}")), None)

    def require(self, ending: str, *wanted: int) -> None:
        """A tensor has the shape that the geometry gives it."""
        found = self.shape(ending)
        if found != wanted:
            raise ModelError(
                "a tensor has another shape than the geometry says",
                where=f"{self.path}: {ending}",
                got="no such tensor" if found is None else list(found),
                wanted=list(wanted),
            )

    def require_layers(self, layers: int) -> None:
        """There are as many layers as the geometry says."""
        found = {int(match.group(1)) for match in map(_LAYER.search, self.shapes) if match}
        # Not held against a set of that many numbers: how many is what a file says.
        if len(found) != layers or max(found) != layers - 1:
            raise ModelError(
                "the file has other layers than the geometry says",
                where=self.path,
                got=f"{len(found)}, the last {max(found, default='none')}",
                wanted=layers,
            )


def _common(geometry: Geometry) -> dict[str, Any]:
    """What all architectures share."""
    layers = geometry.number("num_layers")
    geometry.require_layers(layers)
    return {
        "hidden_size": geometry.number("hidden_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": geometry.number("num_heads"),
        "intermediate_size": geometry.number("intermediate_size"),
        "vocab_size": geometry.number("vocab_size"),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _decoder(geometry: Geometry, *, default_dim: int | None = None) -> dict[str, Any]:
    settings = _common(geometry)
    hidden, heads, ffn = (settings[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    groups = geometry.number("num_kv_heads", heads)
    dim = geometry.number("head_dim", default_dim or hidden // heads)
    for key in ("rope_theta", "rms_norm_eps"):
        if geometry.typed.get(key, 0) <= 0:
            raise ModelError(
                "the geometry is not complete", where=f"{geometry.path}: {key}", got=geometry.typed.get(key)
            )
    geometry.require("embed_tokens.weight", settings["vocab_size"], hidden)
    if geometry.shape("layers.0.self_attn.qkv_proj.weight") is not None:
        geometry.require("layers.0.self_attn.qkv_proj.weight", (heads + 2 * groups) * dim, hidden)
        geometry.require("layers.0.mlp.gate_up_proj.weight", 2 * ffn, hidden)
    else:
        geometry.require("layers.0.self_attn.q_proj.weight", heads * dim, hidden)
        geometry.require("layers.0.self_attn.k_proj.weight", groups * dim, hidden)
        geometry.require("layers.0.mlp.gate_proj.weight", ffn, hidden)
    return settings | {
        "num_key_value_heads": groups,
        "head_dim": dim,
        "max_position_embeddings": geometry.number("max_position_embeddings"),
        "rope_theta": geometry.typed["rope_theta"],
        "rms_norm_eps": geometry.typed["rms_norm_eps"],
    }


def _llama(geometry: Geometry) -> dict[str, Any]:
    return _decoder(geometry) | {
        "attention_bias": geometry.shape("layers.0.self_attn.q_proj.bias") is not None,
        "mlp_bias": geometry.shape("layers.0.mlp.gate_proj.bias") is not None,
    }


def _plain_heads(geometry: Geometry) -> dict[str, Any]:
    """Architectures whose heads share the hidden size out among them; their configuration has no other width."""
    settings = _decoder(geometry)
    if settings["head_dim"] * settings["num_attention_heads"] != settings["hidden_size"]:
        raise ModelError("heads that do not share out the hidden size", where=geometry.path, got=settings["head_dim"])
    del settings["head_dim"]
    return settings


def _qwen3(geometry: Geometry) -> dict[str, Any]:
    return _decoder(geometry, default_dim=128)


def _bert(geometry: Geometry) -> dict[str, Any]:
    settings = _common(geometry)
    hidden = settings["hidden_size"]
    positions, types = (geometry.shape(f"embeddings.{name}_embeddings.weight") for name in ("position", "token_type"))
    geometry.require("embeddings.word_embeddings.weight", settings["vocab_size"], hidden)
    geometry.require("layer.0.intermediate.dense.weight", settings["intermediate_size"], hidden)
    if not positions or not types:
        raise ModelError("no position or token type embeddings", where=geometry.path)
    return settings | {
        "max_position_embeddings": positions[0],
        "type_vocab_size": types[0],
        "layer_norm_eps": geometry.typed.get("rms_norm_eps", 1e-12),
        "pad_token_id": 0,
    }


def _require_unscaled(path: Path, architecture: str, settings: Mapping[str, Any]) -> None:
    """Refuse models whose long texts need a scaling of positions, for which the format has no key."""
    limit = UNSCALED_POSITIONS.get(architecture)
    if limit is not None and settings["max_position_embeddings"] > limit:
        raise ModelError(
            "a model of that many positions may scale them in a way that the file does not say",
            where=path,
            got=f"{architecture} with {settings['max_position_embeddings']} positions",
            wanted=f"at most {limit}, or transformers' config.json under {CONFIG_KEY}",
            do=CONVERT,
        )


BUILDERS: dict[str, Callable[[Geometry], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _plain_heads,
    "qwen3": _qwen3,
    "gemma": _decoder,
    "phi3": _plain_heads,
    "bert": _bert,
}
"""Architecture -> what makes its settings of geometry."""
