"""A base model that is an APR file: its architecture, and its tensors under transformers' names.

Files that our converter wrote carry transformers' ``config.json`` whole, under ``qlassify.config``. The format's own
keys were made for decoders; an encoder's activation, its token types or the kind of its norms have no key, and a model
rebuilt without them would load and answer nonsense. Where that key is missing, the configuration is built from the
geometry, for the architectures in ``_BUILDERS``, for which the keys say all that differs between models.

Geometry is held against the tensors' shapes before anything is loaded. A layer more than the metadata says would be
ignored without a word, and fewer heads than there are would give weights of the right size in the wrong order.

GGUF keeps queries and keys of Llama models in another order (pairs that turn together lie side by side); files that
came from there say so by ``rope_type`` 0, and the rows are put back when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr import AprFile, is_apr, open_apr
from qlassify.formats.apr_checkpoint import ADAPTER_SUFFIX, inference_names
from qlassify.formats.apr_index import AprEntry
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_names import hf_name, in_gguf_style
from qlassify.formats.apr_shards import AprShards, is_manifest, open_shards
from qlassify.formats.finite import require_finite

CONFIG_KEY = "qlassify.config"
POOLING_KEY = "qlassify.pooling"
CONVERT = "Convert the model again from its directory: qlassify convert DIRECTORY FILE.apr."
ADJACENT_PAIRS, SPLIT_HALVES = 0, 2
"""Values of ``rope_type``."""
UNSCALED_POSITIONS = {"llama": 8192, "phi3": 4096}
"""Most positions up to which an architecture's released models rotate without scaling, which no key describes."""
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_QUERY_OR_KEY = re.compile(r"(?:^|\.)self_attn\.([qk])_proj\.(weight|bias)$")


def is_apr_base(path: Path) -> bool:
    """Whether a path is an APR file or a manifest of such files."""
    return is_apr(path) or is_manifest(path)


@dataclass(frozen=True, slots=True, eq=False)
class AprBase:
    """An APR file as a base model.

    Attributes:
        file: the file or its shards.
        settings: what transformers' ``config.json`` would say, ``model_type`` among it.
        names: transformers' name -> the file's.
        entries: transformers' name -> the tensor.
        paired_heads: heads of queries and of keys that are stored in adjacent pairs; None when none are.
    """

    file: AprFile | AprShards
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    entries: Mapping[str, AprEntry]
    paired_heads: Mapping[str, int] | None = None

    def read(self, name: str) -> Tensor:
        """One tensor as transformers wants it.

        Raises:
            ModelError: it holds NaN or infinity (F-CKPT-013), or the file was cut short.
        """
        tensor = self.file.read(self.names[name])
        require_finite(tensor, where=f"{self.file.path}: {self.names[name]}")
        found = _QUERY_OR_KEY.search(name) if self.paired_heads is not None else None
        if found is None or self.paired_heads is None:
            return tensor
        return in_halves(tensor, self.paired_heads[found.group(1)])


def open_apr_base(path: Path, *, verify: bool = False) -> AprBase:
    """Open an APR file as a base model.

    Args:
        path: the file, or a manifest.
        verify: compute the checksum of the whole file, too.

    Raises:
        ModelError: damaged, of an architecture that is not known, or with tensors that its geometry denies.
    """
    if path.name.endswith(ADAPTER_SUFFIX):
        raise ModelError("an adapter, not a base model", where=path, wanted="the .apr file that it was trained on")
    file = open_shards(path, verify=verify) if is_manifest(path) else open_apr(path, verify=verify)
    stored = inference_names(file.entries)
    kept = file.metadata.custom.get(CONFIG_KEY)
    if kept is not None:
        if not isinstance(kept, dict) or not isinstance(kept.get("model_type"), str):
            raise ModelError("no configuration of a model", where=f"{path}: {CONFIG_KEY}", wanted="with model_type")
        return AprBase(file, kept, {name: name for name in stored}, {name: file.entries[name] for name in stored})
    architecture = _architecture(path, file.metadata)
    names = {hf_name(name, architecture): name for name in stored}
    if len(names) != len(stored):
        raise ModelError("two tensors have one name", where=path, got="names of GGUF and transformers mixed")
    if architecture == "gemma" and in_gguf_style(stored):
        raise ModelError("a Gemma from GGUF, whose norms are stored plus one", where=path, do=CONVERT)
    entries = {name: file.entries[old] for name, old in names.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    settings = _BUILDERS[architecture](_Geometry(path, file.metadata.typed, shapes))
    _require_unscaled(path, architecture, settings)
    heads = _paired_heads(path, file.metadata, architecture, stored, settings)
    return AprBase(file, {"model_type": architecture, **settings}, names, entries, heads)


def read_apr_metadata(path: Path) -> AprMetadata:
    """The metadata of an APR file, or of the first of several.

    Raises:
        ModelError: damaged.
    """
    return (open_shards(path) if is_manifest(path) else open_apr(path)).metadata


def in_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of adjacent pairs (x0, y0, x1, y1, ...) of each head -> in halves (x0, x1, ..., y0, y1, ...)."""
    rows = tensor.shape[0]
    split = tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape).contiguous()


def _architecture(path: Path, metadata: AprMetadata) -> str:
    """The architecture that the metadata names.

    Raises:
        ModelError: none, or one whose configuration cannot be built from geometry.
    """
    named = str(metadata.typed.get("architecture") or metadata.typed.get("model_type", "")).lower()
    if named not in _BUILDERS:
        raise ModelError(
            "the file does not say enough of its architecture",
            where=path,
            got=f"architecture {named!r}" if named else "no architecture",
            wanted=f"one of {', '.join(_BUILDERS)}, or transformers' config.json under {CONFIG_KEY}",
            do=CONVERT,
        )
    return named


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


def _paired_heads(
    path: Path, metadata: AprMetadata, architecture: str, names: list[str], settings: Mapping[str, Any]
) -> dict[str, int] | None:
    """Heads of queries and keys that lie in adjacent pairs.

    Raises:
        ModelError: it cannot be told whether they do.
    """
    rope, gguf = metadata.typed.get("rope_type"), in_gguf_style(names)
    if architecture == "bert" or rope == SPLIT_HALVES or (rope is None and not (gguf and architecture == "llama")):
        return None
    if rope not in (None, ADJACENT_PAIRS) or not (gguf and architecture == "llama"):
        raise ModelError(
            "it cannot be told in which order queries and keys are stored",
            where=path,
            got=f"rope_type {rope}, architecture {architecture}, {'GGUF' if gguf else 'transformers'} names",
            wanted="rope_type 2, or 0 with a Llama that has GGUF's names",
            do=CONVERT,
        )
    return {"q": settings["num_attention_heads"], "k": settings["num_key_value_heads"]}


@dataclass(frozen=True, slots=True)
class _Geometry:
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
        if found != set(range(layers)):
            raise ModelError(
                "the file has other layers than the geometry says",
                where=self.path,
                got=f"{len(found)}, the last {max(found, default='none')}",
                wanted=layers,
            )


def _common(geometry: _Geometry) -> dict[str, Any]:
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


def _decoder(geometry: _Geometry, *, default_dim: int | None = None) -> dict[str, Any]:
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


def _llama(geometry: _Geometry) -> dict[str, Any]:
    return _decoder(geometry) | {
        "attention_bias": geometry.shape("layers.0.self_attn.q_proj.bias") is not None,
        "mlp_bias": geometry.shape("layers.0.mlp.gate_proj.bias") is not None,
    }


def _plain_heads(geometry: _Geometry) -> dict[str, Any]:
    """Architectures whose heads share the hidden size out among them; their configuration has no other width."""
    settings = _decoder(geometry)
    if settings["head_dim"] * settings["num_attention_heads"] != settings["hidden_size"]:
        raise ModelError("heads that do not share out the hidden size", where=geometry.path, got=settings["head_dim"])
    del settings["head_dim"]
    return settings


def _qwen3(geometry: _Geometry) -> dict[str, Any]:
    return _decoder(geometry, default_dim=128)


def _bert(geometry: _Geometry) -> dict[str, Any]:
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


_BUILDERS: dict[str, Callable[[_Geometry], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _plain_heads,
    "qwen3": _qwen3,
    "gemma": _decoder,
    "phi3": _plain_heads,
    "bert": _bert,
}
