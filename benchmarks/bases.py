"""The base models of the comparisons: MiniLM itself, and published shapes with random weights.

How long a step takes and what it needs in memory do not depend on what the weights are, only on their shapes; so where
no weights are at hand, or where they would not fit a repository, random ones in the published shape serve. What such a
model learns means nothing, and no accuracy is printed for it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # Devlin et al. 2019, arXiv:1810.04805: the defaults of the architecture.
    "bert-base": {"model_type": "bert"},
    # Yang et al. 2024, arXiv:2407.10671, table 1.
    "qwen2-0.5b": {
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    # Yang et al. 2025, arXiv:2505.09388, table 1.
    "qwen3-0.6b": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
PACKAGED = "minilm"
VOCABULARY_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
NAMES = (PACKAGED, *SHAPES)


def make_base(name: str, folder: Path, *, layers: int | None = None, config: Path | None = None) -> Path:
    """A directory with configuration, weights and tokeniser that every side can load.

    Args:
        name: of ``NAMES``, or a model directory, which is taken as it is.
        folder: where to write a model with random weights.
        layers: hidden layers of such a model; as published when None.
        config: a folder with another config.json and, perhaps, the tokeniser files for it.
    """
    from qlassify.models.source import resolve

    if config is None and name not in SHAPES:
        return resolve(name).directory
    import torch
    from transformers import CONFIG_MAPPING, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    settings = json.loads((config / "config.json").read_text(encoding="utf-8")) if config else dict(SHAPES[name])
    settings = {key: value for key, value in settings.items() if key not in ("architectures", "id2label", "label2id")}
    if layers is not None:
        settings["num_hidden_layers"] = layers
        settings.pop("layer_types", None)  # follows from the number of layers
    decoder = settings["model_type"] != "bert"
    # Special tokens are those of the tokeniser that is put beside the model.
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[settings["model_type"]].from_dict(settings))
    # Decoders are published in bf16, BERT in fp32.
    model.to(torch.bfloat16 if decoder else torch.float32).save_pretrained(folder)
    if config is None or not _copy_tokenizer(config, folder):
        _copy_tokenizer(resolve(PACKAGED).directory, folder)
    return folder


def _copy_tokenizer(source: Path, folder: Path) -> bool:
    """Put a folder's tokeniser beside the model; whether it has one."""
    if not any((source / name).is_file() for name in ("tokenizer.json", "merges.txt")):
        return False
    for name in (*VOCABULARY_FILES, "tokenizer.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    return True


def longest_text(directory: Path) -> int:
    """Tokens that the model has positions for; the peers check nothing and fail beyond it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    # RoBERTa and its descendants count positions from behind the padding id.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return int(getattr(config, "max_position_embeddings", 1 << 30)) - offset


def linear_shapes(directory: Path) -> list[tuple[int, int, int]]:
    """(out, in, how many) of the linear layers that every token goes through; a pooler reads one token of a text."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(directory))
    shapes = Counter(
        (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    )
    return [(rows, columns, count) for (rows, columns), count in shapes.items()]


def linear_parameters(directory: Path) -> int:
    """Weights of those layers."""
    return sum(rows * columns * count for rows, columns, count in linear_shapes(directory))
