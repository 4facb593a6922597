"""GGUF files of tiny models, written with the ``gguf`` package as llama.cpp's converter lays them out.

Names come from the package's own table, not from ours; rows of Llama's queries and keys are rearranged and Gemma's
norms stored plus one, as that converter does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

ARCHITECTURES = {"bert": "bert", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
                 "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3"}  # fmt: skip
"""transformers' ``model_type`` -> GGUF's architecture."""


def metadata_of(config: Any) -> dict[str, Any]:
    """The keys of the architecture that llama.cpp's converter would write, without its prefix."""
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "context_length": config.max_position_embeddings,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "bert":
        return said | {"attention.layer_norm_epsilon": config.layer_norm_eps, "attention.causal": False}
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    said |= {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
    }
    if config.model_type in ("llama", "phi3"):
        said |= {"rope.dimension_count": dim, "vocab_size": config.vocab_size}
    if config.model_type.startswith("gemma") and config.model_type != "gemma":
        said |= {"attention.sliding_window": config.sliding_window}
    if config.model_type == "gemma2":
        said |= {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    if config.model_type == "phi3" and config.sliding_window:
        said |= {"attention.sliding_window": config.sliding_window}
    return said


def tensors_of(directory: Path, config: Any) -> dict[str, np.ndarray]:
    """GGUF's name -> the numbers as they lie in such a file."""
    named = ARCHITECTURES[config.model_type]
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == named)
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, tensor in load_file(str(directory / "model.safetensors")).items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":  # dropped by the converter
            continue
        full = name if named == "bert" or name.startswith("model.") else f"model.{name}"
        new = table.get_name(full, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        if named == "llama" and ".attn_q." in new:
            tensor = adjacent(tensor, config.num_attention_heads)
        if named == "llama" and ".attn_k." in new:
            tensor = adjacent(tensor, config.num_key_value_heads)
        if named.startswith("gemma") and new.endswith("norm.weight"):
            tensor = tensor + 1
        found[new] = tensor.numpy()
    return found


def adjacent(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in halves of each head -> rows in pairs that lie side by side."""
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape).contiguous()


def add_value(writer: Any, key: str, value: Any) -> None:
    """A key of the type that its value has: u32 for whole numbers, f32 for others but those of numpy."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, np.float64):
        writer.add_float64(key, float(value))
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_gguf(
    directory: Path,
    path: Path,
    *,
    kind: str = "F32",
    said: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """The model of a directory as a GGUF file.

    Args:
        directory: the model.
        path: the file.
        kind: the type of matrices, as the package names it; vectors are F32.
        said: keys of the architecture in place of, or beside, the converter's; None takes one away.
        more: whole keys, such as those of a tokeniser.
        tensors: tensors in place of, or beside, the model's; None takes one away.
    """
    config = AutoConfig.from_pretrained(str(directory))
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in (metadata_of(config) | (said or {})).items():
        if value is not None:
            add_value(writer, f"{architecture}.{key}", value)
    for key, value in (more or {}).items():
        add_value(writer, key, value)
    for name, numbers in (tensors_of(directory, config) | (tensors or {})).items():
        if numbers is None:
            continue
        wanted = gguf.GGMLQuantizationType[kind]
        if numbers.ndim < 2 or wanted == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, numbers)
        elif wanted == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, numbers.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(numbers, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
