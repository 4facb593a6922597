"""From a GGUF file's metadata to what transformers' ``config.json`` would say.

The format's keys are translated into those of ``apr_geometry``, whose builders hold them against the tensors' shapes.
What follows is what only GGUF says: windows, caps, and how positions are scaled. Keys that change what a model computes
in a way that is not built here are refused by name; ignoring them would give a model that loads and is another one.

Llama 3.1 and later scale their positions, and the file holds only the resulting factors (``rope_freqs.weight``), not
the four settings they were computed from. Three of the settings are the same in all released models; the fourth is the
largest factor. The factors that follow are computed again and have to be the file's. transformers' own loader drops
this tensor without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlassify.errors import ModelError
from qlassify.formats.apr_names import TABLES
from qlassify.formats.gguf import GgufFile
from qlassify.formats.gguf_header import GgufArray
from qlassify.models.apr_geometry import BUILDERS, Geometry

ARCHITECTURE = "general.architecture"
ROPE_FACTORS = "rope_freqs.weight"
DEFAULT_THETA = 10000.0
"""Of the format where a file says nothing; also of Gemma 3's layers with a window."""
GEMMA3_PATTERN = 6
MOST_LAYERS = 1 << 16
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1, 3.2 and 3.3 have in common."""
_SIZES = {
    "hidden_size": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
"""Key of ``apr_geometry`` -> GGUF's, after the architecture. Every file has to have them."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "rope.scale_linear": (1.0,),
}
"""Keys that change what a model computes, and the values with which they do not."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a file's architecture.

    Attributes:
        file: the file.
        architecture: what it names.
    """

    file: GgufFile
    architecture: str

    def where(self, key: str) -> str:
        """File and key, for errors."""
        return f"{self.file.path}: {self.architecture}.{key}"

    def values(self, key: str, default: Any = None) -> Any:
        """The value of a key, a list as it is.

        Raises:
            ModelError: a list for more layers than a model has.
        """
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, GgufArray):
            return value
        if value.count > MOST_LAYERS:
            raise ModelError("a list for more layers than a model has", where=self.where(key), got=value)
        return self.file.array(f"{self.architecture}.{key}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; a list of equal values, one for each layer, is that value.

        Raises:
            ModelError: it differs between layers.
        """
        value = self.values(key, default)
        if not isinstance(value, list):
            return value
        if not value or any(one != value[0] for one in value):
            raise ModelError("a model whose layers are not alike", where=self.where(key), got=value[:8])
        return value[0]

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            ModelError: it is not there, or is something else.
        """
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise ModelError("the metadata is not complete", where=self.where(key), got=value, wanted="a whole number")
        return value

    def window(self) -> int:
        """Tokens that a layer with a window sees; 0 when nothing is said of windows.

        Raises:
            ModelError: something else than a whole number.
        """
        return self.whole("attention.sliding_window") if self.get("attention.sliding_window", 0) != 0 else 0

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; one of 32 bits is the shortest decimal that it stands for.

        Raises:
            ModelError: it is not there, or is something else.
        """
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ModelError(
                "the metadata is not complete", where=self.where(key), got=value, wanted="a number above 0"
            )
        with np.errstate(over="ignore"):
            short = np.float32(value)
        return float(str(short)) if float(short) == value else float(value)


def architecture_of(file: GgufFile) -> str:
    """The architecture that a file names.

    Raises:
        ModelError: none, or one that is not built.
    """
    named = file.metadata.get(ARCHITECTURE)
    if not isinstance(named, str) or named not in _BUILDERS:
        raise ModelError(
            "an architecture of GGUF that is not read",
            where=f"{file.path}: {ARCHITECTURE}",
            got=named,
            wanted=", ".join(_BUILDERS),
            do="Take the model's directory of safetensors.",
        )
    return named


def gguf_settings(file: GgufFile, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What ``config.json`` would say.

    Args:
        file: the file.
        architecture: from ``architecture_of``.
        shapes: transformers' name -> shape.

    Raises:
        ModelError: keys are missing, tensors have other shapes, or the model computes in a way that is not built.
    """
    keys = Keys(file, architecture)
    _require_plain(keys)
    if "embed_tokens" not in TABLES[architecture]["token_embd"]:
        return _bert(keys, shapes)
    return _BUILDERS[architecture](keys, _decoder(keys, shapes))


def _require_plain(keys: Keys) -> None:
    """Refuse what changes a model's computation and is not built."""
    for key, neutral in _NEUTRAL.items():
        value = keys.get(key, neutral[0])
        if value not in neutral:
            raise ModelError("a model that computes in a way that is not built", where=keys.where(key), got=value)
    causal = keys.architecture != "bert"
    if keys.get("attention.causal", causal) is not causal:
        raise ModelError(
            "a model that attends in another direction than its architecture",
            where=keys.where("attention.causal"),
            got=not causal,
        )
    for name in keys.file.entries:
        if name.startswith("rope_") and name != ROPE_FACTORS:
            raise ModelError(
                "positions scaled by two sets of factors, which is not built", where=f"{keys.file.path}: {name}",
                do="Take the model's directory of safetensors.",
            )  # fmt: skip


def _typed(keys: Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The keys that all architectures share, under the names of ``apr_geometry``."""
    typed: dict[str, Any] = {ours: keys.whole(theirs) for ours, theirs in _SIZES.items()}
    embedding = keys.file.entries.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
    return typed | {"vocab_size": keys.whole("vocab_size", rows)}


def _decoder(keys: Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    typed = _typed(keys, shapes)
    heads = typed["num_heads"]
    typed["num_kv_heads"] = keys.whole("attention.head_count_kv", heads)
    typed["head_dim"] = keys.whole("attention.key_length", max(typed["hidden_size"] // heads, 1))
    if keys.whole("attention.value_length", typed["head_dim"]) != typed["head_dim"]:
        raise ModelError("values of another width than keys", where=keys.where("attention.value_length"))
    typed["rope_theta"] = keys.number("rope.freq_base", DEFAULT_THETA)
    typed["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon")
    builder = BUILDERS.get(keys.architecture, BUILDERS["gemma"])
    settings = builder(Geometry(keys.file.path, typed, shapes))
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    settings["tie_word_embeddings"] = "output.weight" not in keys.file.entries
    rotated = keys.whole("rope.dimension_count", typed["head_dim"])
    if rotated != typed["head_dim"]:
        if keys.architecture != "phi3":
            raise ModelError(
                "heads of which only a part turns with positions",
                where=keys.where("rope.dimension_count"),
                got=rotated,
                wanted=typed["head_dim"],
            )
        settings["rope_parameters"]["partial_rotary_factor"] = rotated / typed["head_dim"]
    return settings


def _bert(keys: Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    epsilon = keys.number("attention.layer_norm_epsilon")
    typed = _typed(keys, shapes) | {"rms_norm_eps": epsilon}
    return {"model_type": "bert", **BUILDERS["bert"](Geometry(keys.file.path, typed, shapes))}


def _plain(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Llama, Qwen2, Qwen3 and Gemma: full attention in every layer."""
    window = keys.window()
    if window and window < settings["max_position_embeddings"]:
        raise ModelError(
            "an architecture that has no windows, with a window",
            where=keys.where("attention.sliding_window"),
            got=window,
        )
    settings["rope_parameters"] |= _scaling(keys, settings)
    return {"model_type": keys.architecture, **settings}


def _phi3(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    if _scaling(keys, settings):
        raise ModelError("a Phi-3 with scaled positions, which is not built", where=keys.file.path)
    return {"model_type": "phi3", "sliding_window": keys.window() or None, **settings}


def _gemma2(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    if _scaling(keys, settings):
        raise ModelError("a Gemma 2 with scaled positions, which is not built", where=keys.file.path)
    return {
        "model_type": "gemma2",
        "sliding_window": keys.whole("attention.sliding_window"),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(settings, largest_layers=46),
        **settings,
    }


def _gemma3(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    pattern = keys.values("attention.sliding_window_pattern", GEMMA3_PATTERN)
    layers = settings["num_hidden_layers"]
    if type(pattern) is int and pattern > 0:
        local = [bool((layer + 1) % pattern) for layer in range(layers)]
    elif isinstance(pattern, list) and len(pattern) == layers:
        local = [bool(one) for one in pattern]
    else:
        raise ModelError(
            "it cannot be told which layers have a window", where=keys.where("attention.sliding_window_pattern"),
            got=pattern, wanted=f"a number, or {layers} truths",
        )  # fmt: skip
    everywhere = settings["rope_parameters"] | _scaling(keys, settings)
    near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", DEFAULT_THETA)}
    return {
        "model_type": "gemma3_text",
        **settings,
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in local],
        "query_pre_attn_scalar": _query_scalar(settings, largest_layers=62),
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": near},
    }


def _query_scalar(settings: Mapping[str, Any], *, largest_layers: int) -> int:
    """What scores are divided by the root of. No key says it; llama.cpp goes by the number of layers, and so do we.

    The largest model of each generation takes the hidden size by heads, all others the width of a head.
    """
    if settings["num_hidden_layers"] == largest_layers:
        return int(settings["hidden_size"]) // int(settings["num_attention_heads"])
    return int(settings["head_dim"])


def _scaling(keys: Keys, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are scaled, in transformers' words; empty when they are not."""
    kind = keys.get("rope.scaling.type", "none")
    if ROPE_FACTORS in keys.file.entries:
        if kind != "none" or keys.architecture != "llama":
            raise ModelError("positions scaled in two ways", where=keys.where("rope.scaling.type"), got=kind)
        return _llama3(keys, settings)
    if kind == "linear":
        factor = keys.number("rope.scaling.factor", 1.0)
        return {} if factor == 1 else {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise ModelError(
            "positions scaled in a way that is not built", where=keys.where("rope.scaling.type"), got=kind,
            wanted="none or linear", do="Take the model's directory of safetensors.",
        )  # fmt: skip
    return {}


def _llama3(keys: Keys, settings: Mapping[str, Any]) -> dict[str, Any]:
    entry, where = keys.file.entries[ROPE_FACTORS], f"{keys.file.path}: {ROPE_FACTORS}"
    if entry.shape != (settings["head_dim"] // 2,):
        raise ModelError("factors of positions of another shape", where=where, got=list(entry.shape))
    found = keys.file.read(ROPE_FACTORS).double().numpy()
    largest = float(found.max())
    if not np.isfinite(found).all() or largest < 1:
        raise ModelError("factors of positions that are none", where=where, got=found[:4])
    if (found == 1).all():
        return {}
    theta = settings["rope_parameters"]["rope_theta"]
    # fp32 keeps seven digits, and the file's factors were computed in it.
    if not np.allclose(found, llama3_factors(largest, theta, settings["head_dim"]), rtol=1e-5):
        raise ModelError(
            "factors of positions that are not those of Llama 3", where=where, got=found[:4],
            do="Take the model's directory of safetensors.",
        )  # fmt: skip
    return {"rope_type": "llama3", "factor": largest, **LLAMA3}


def llama3_factors(factor: float, theta: float, head_dim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(head_dim / 2,) by how much each frequency is divided in Llama 3.1 and later (Meta 2024, arXiv:2407.21783).

    Waves longer than the original context by ``low_freq_factor`` are stretched by ``factor``, those shorter than it by
    ``high_freq_factor`` not at all, and the rest in between.
    """
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    turns = LLAMA3["original_max_position_embeddings"] / (2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: np.ndarray[Any, np.dtype[np.float64]] = 1 / ((1 - smooth) / factor + smooth)
    return factors


_BUILDERS: dict[str, Callable[[Keys, dict[str, Any]], dict[str, Any]]] = {
    "llama": _plain,
    "qwen2": _plain,
    "qwen3": _plain,
    "gemma": _plain,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "bert": lambda keys, settings: settings,
}
"""Architecture -> what makes its settings of those that all decoders share."""
