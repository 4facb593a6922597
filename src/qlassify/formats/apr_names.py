"""Names of tensors: those of transformers' checkpoints, and those of GGUF, which files that came from GGUF may keep.

    blk.3.attn_q.weight  <->  model.layers.3.self_attn.q_proj.weight

The mapping is one to one within an architecture, so nothing is lost on the way there and back. Names that have no
counterpart are left as they are and shown where a tensor is then missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{n}.attn_norm": "model.layers.{n}.input_layernorm",
    "blk.{n}.attn_q": "model.layers.{n}.self_attn.q_proj",
    "blk.{n}.attn_k": "model.layers.{n}.self_attn.k_proj",
    "blk.{n}.attn_v": "model.layers.{n}.self_attn.v_proj",
    "blk.{n}.attn_output": "model.layers.{n}.self_attn.o_proj",
    "blk.{n}.ffn_norm": "model.layers.{n}.post_attention_layernorm",
    "blk.{n}.ffn_gate": "model.layers.{n}.mlp.gate_proj",
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.up_proj",
    "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj",
}
_QWEN3 = _LLAMA | {
    "blk.{n}.attn_q_norm": "model.layers.{n}.self_attn.q_norm",
    "blk.{n}.attn_k_norm": "model.layers.{n}.self_attn.k_norm",
}
_GEMMA = {key: value for key, value in _LLAMA.items() if key != "output"}  # its output is its embedding
_GEMMA2 = _GEMMA | {
    "blk.{n}.post_attention_norm": "model.layers.{n}.post_attention_layernorm",
    "blk.{n}.ffn_norm": "model.layers.{n}.pre_feedforward_layernorm",
    "blk.{n}.post_ffw_norm": "model.layers.{n}.post_feedforward_layernorm",
}
_GEMMA3 = _GEMMA2 | {key: value for key, value in _QWEN3.items() if key not in _LLAMA}
_FUSED = ("blk.{n}.attn_q", "blk.{n}.attn_k", "blk.{n}.attn_v", "blk.{n}.ffn_gate")
_PHI3 = {key: value for key, value in _LLAMA.items() if key not in _FUSED} | {
    "blk.{n}.attn_qkv": "model.layers.{n}.self_attn.qkv_proj",
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.gate_up_proj",
}
_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk.{n}.attn_q": "encoder.layer.{n}.attention.self.query",
    "blk.{n}.attn_k": "encoder.layer.{n}.attention.self.key",
    "blk.{n}.attn_v": "encoder.layer.{n}.attention.self.value",
    "blk.{n}.attn_output": "encoder.layer.{n}.attention.output.dense",
    "blk.{n}.attn_output_norm": "encoder.layer.{n}.attention.output.LayerNorm",
    "blk.{n}.ffn_up": "encoder.layer.{n}.intermediate.dense",
    "blk.{n}.ffn_down": "encoder.layer.{n}.output.dense",
    "blk.{n}.layer_output_norm": "encoder.layer.{n}.output.LayerNorm",
}
TABLES = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "phi3": _PHI3,
    "bert": _BERT,
}
"""Architecture -> GGUF's name of a module -> transformers' name, ``{n}`` standing for the layer."""
_LAYER = re.compile(r"(?<=\.)(0|[1-9]\d*)(?=\.)")
_GGUF = re.compile(r"token_embd\.weight|blk\.\d+\..+")


def in_gguf_style(names: Iterable[str]) -> bool:
    """Whether tensors are named as in GGUF."""
    return any(_GGUF.fullmatch(name) for name in names)


def hf_name(name: str, architecture: str) -> str:
    """transformers' name of a tensor that GGUF names; other names as they are."""
    return _translated(name, TABLES.get(architecture, {}))


def gguf_name(name: str, architecture: str) -> str:
    """GGUF's name of a tensor that transformers names; other names as they are."""
    return _translated(name, {theirs: ours for ours, theirs in TABLES.get(architecture, {}).items()})


def _translated(name: str, table: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    number = _LAYER.search(f"{module}.")
    pattern = module if number is None else f"{module[: number.start()]}{{n}}{module[number.end() :]}"
    if kind not in ("weight", "bias") or pattern not in table:
        return name
    found = table[pattern] if number is None else table[pattern].replace("{n}", number.group(1))
    return f"{found}.{kind}"
