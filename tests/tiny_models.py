"""Real architectures at toy size, with random weights large enough that every difference shows.

Each family's configuration is the published ``config.json`` shrunk to 4 layers of width 64. Where the file is not at
hand, the architecture's own defaults take its place and the suite runs all the same. What makes a family special
(sliding windows, soft caps, grouped heads, layer patterns, rotary scaling) is kept and made small enough to bite on
texts of forty tokens.

Weights are normal with standard deviation 0.15 and norms are perturbed. With an initialisation of 0.02 attention is
almost uniform and hidden states almost do not depend on what is attended to: a broken mask would pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from qlassify.data.tokenise import Encoded

VOCABULARY = 200
WIDTH = 64
WEIGHT_STD = 0.15

_ENCODER = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": WIDTH, "intermediate_size": 96}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "head_dim": 16}
_LOCAL_GLOBAL = ["sliding_attention", "full_attention"] * 2


@dataclass(frozen=True)
class Family:
    """An architecture, where its published configuration lies, and what shrinks it.

    Attributes:
        model_type: transformers' name of the architecture.
        folder: of the published ``config.json`` below the shared models.
        small: settings that shrink it.
        causal: whether a token sees only what precedes it.
        packed: whether it can run without padding.
        pad_token_id: used by the padded peer; never drawn as a token of a text.
        has_token_types: whether it distinguishes the texts of a pair.
    """

    model_type: str
    folder: str
    small: dict[str, Any] = field(default_factory=dict)
    causal: bool = True
    packed: bool = True
    pad_token_id: int = 0
    has_token_types: bool = False


FAMILIES = {
    "bert": Family("bert", "bert-base-uncased", _ENCODER, causal=False, has_token_types=True),
    "distilbert": Family(
        "distilbert", "distilbert-base-uncased", {"n_layers": 4, "n_heads": 4, "dim": WIDTH, "hidden_dim": 96}, False
    ),
    "roberta": Family("roberta", "roberta-base", _ENCODER | {"pad_token_id": 1}, causal=False, pad_token_id=1),
    "modernbert": Family(
        "modernbert",
        "modernbert-base",
        # local_attention counts both sides: a distance of at most 4 is visible.
        _ENCODER | {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention", *_LOCAL_GLOBAL[:2]]},
        causal=False,
    ),
    "gpt2": Family("gpt2", "gpt2", {"n_layer": 4, "n_head": 4, "n_embd": WIDTH}),
    "llama": Family("llama", "llama-3.2-1b", _DECODER),
    "qwen2": Family("qwen2", "qwen2-0.5b", _ENCODER | {"num_key_value_heads": 2}),
    "qwen3": Family("qwen3", "qwen3-0.6b", _DECODER | {"layer_types": ["full_attention"] * 4}),
    "mistral": Family("mistral", "mistral-7b-instruct-v0.3", _DECODER | {"sliding_window": 5}),
    "gemma2": Family(
        "gemma2",
        "gemma-2-9b",
        # Scores of these weights reach a few units: a cap of 3 bends them, the published 50 would not.
        _DECODER
        | {
            "sliding_window": 4,
            "attn_logit_softcapping": 3.0,
            "layer_types": _LOCAL_GLOBAL,
            "query_pre_attn_scalar": 14,
        },
    ),
    "gemma3": Family("gemma3_text", "gemma-3-270m", _DECODER | {"sliding_window": 5, "layer_types": _LOCAL_GLOBAL}),
    "phi3": Family("phi3", "phi-3-mini", _ENCODER | {"num_key_value_heads": 4, "sliding_window": 5}),
    "phi4": Family("phi3", "phi-4", _ENCODER | {"num_key_value_heads": 2, "sliding_window": None}),
    "deberta": Family(
        "deberta-v2",
        "deberta-v3-base",
        # As published, with 8 buckets of relative positions in place of 256 so that texts of forty tokens share them.
        _ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "type_vocab_size": 0,
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "max_relative_positions": -1,
            "pooler_hidden_size": _ENCODER["hidden_size"],
        },
        causal=False,
        packed=False,
    ),
}


def shared_root() -> Path:
    """Where published configurations and data sets lie beside the repository."""
    return Path(__file__).resolve().parents[2] / "shared"


def tiny_config(name: str, **changes: Any) -> Any:
    """The shrunken configuration of a family."""
    family = FAMILIES[name]
    path = shared_root() / "models" / family.folder / "config.json"
    published = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Class names and token ids of the full vocabulary mean nothing here.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    dropped = ("architectures", "id2label", "label2id", "transformers_version")
    settings = {key: value for key, value in published.items() if key not in dropped}
    settings |= family.small | ids | {"vocab_size": VOCABULARY, "pad_token_id": family.pad_token_id}
    settings |= {"model_type": family.model_type} | changes
    return transformers.CONFIG_MAPPING[family.model_type].from_dict(settings)


def randomise(model: nn.Module, seed: int) -> None:
    """Normal matrices, norms and biases shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * WEIGHT_STD
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)


def save_tiny_model(name: str, directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model of the family, safetensors and ``config.json``, without a tokeniser."""
    model = transformers.AutoModel.from_config(tiny_config(name, **changes))
    randomise(model, seed)
    model.save_pretrained(directory)
    return directory


def random_texts(lengths: Sequence[int], family: Family, *, seed: int) -> Encoded:
    """Texts of the given lengths without padding ids; pairs with a boundary at random where the family knows pairs."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Ids start above every family's padding id, so that the peer, which counts positions by it, reads no padding.
    ids = generator.integers(2, VOCABULARY, size=int(offsets[-1])).astype(np.int32)
    types = None
    if family.has_token_types:
        boundaries = [int(generator.integers(1, length + 1)) for length in lengths]
        types = np.concatenate(
            [(np.arange(length) >= first).astype(np.int8) for length, first in zip(lengths, boundaries, strict=True)]
        )
    return Encoded(ids, offsets, types, np.zeros(len(lengths), np.int32), 0)
