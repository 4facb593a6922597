"""Adapters on disk, in PEFT's own format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Tensor names are PEFT's (``base_model.model.<path>.lora_A.weight``), so an adapter saved here is loaded by
``peft.PeftModel.from_pretrained`` on the same base model. The head has a file of its own (``head.safetensors``),
because it belongs to the classifier and not to the method.

Loading is strict: every missing, unknown or misshapen tensor is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.base_layer import dense_layer, dense_weight
from qlassify.methods.inject import Attachment

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_adapter(attachment: Attachment, directory: Path, *, base_model: str) -> None:
    """Write the adapter's configuration and weights into ``directory``."""
    config = attachment.config
    targets = sorted({path.rsplit(".", 1)[-1] for path in attachment.layers})
    exact = _only_these(attachment, targets)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets if exact else sorted(attachment.layers),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": any(not isinstance(layer.base, nn.Linear) for layer in attachment.layers.values()),
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in attachment.parameters().items()}
    write_tensors(directory / WEIGHTS_FILE, tensors)


def _only_these(attachment: Attachment, endings: list[str]) -> bool:
    """Whether the endings alone name exactly the wrapped layers."""
    model = attachment.model
    named = {path for path, module in model.named_modules() if path.rsplit(".", 1)[-1] in endings}
    return named == set(attachment.layers)


def read_adapter_config(directory: Path) -> LoraConfig:
    """The method configuration that ``save_adapter`` (or PEFT, for plain LoRA) wrote.

    Raises:
        ModelError: missing, unreadable, or a kind of adapter that is not supported.
    """
    path = directory / CONFIG_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("cannot read the adapter's configuration", where=path, got=error) from None
    if not isinstance(settings, dict):
        raise ModelError("not an adapter's configuration", where=path, got=type(settings).__name__)
    _refuse_what_would_be_misread(settings, path)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            "this kind of adapter is not supported", where=path, got=settings.get("peft_type"), wanted="LORA"
        )
    targets = settings.get("target_modules")
    try:
        return LoraConfig.parse(
            {
                "kind": "dora" if settings.get("use_dora") else "lora",
                "rank": settings["r"],
                "alpha": settings["lora_alpha"],
                "dropout": settings.get("lora_dropout", 0.0),
                "target_modules": targets if isinstance(targets, str) else tuple(targets or ()),
                "rslora": bool(settings.get("use_rslora", False)),
            }
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelError("the adapter's configuration cannot be used", where=path, got=error) from None


def _refuse_what_would_be_misread(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of PEFT that change what the tensors mean: other scalings per layer, another base."""
    patterns = [name for name in ("alpha_pattern", "rank_pattern") if settings.get(name)]
    if patterns:
        raise ModelError("an adapter with a rank or alpha per layer is not supported", where=path, got=patterns[0])
    initial = settings.get("init_lora_weights")
    if initial not in (None, True, False, "gaussian", "orthogonal", "eva"):
        raise ModelError(
            "the adapter was initialised in a way that changed the base weights",
            where=path,
            got=f"init_lora_weights {initial!r}",
            do="Convert it with PEFT (path_initial_model_for_weight_conversion) first.",
        )


def load_adapter(attachment: Attachment, directory: Path) -> None:
    """Fill an attachment's parameters from ``directory``.

    Raises:
        ModelError: names the tensors that are missing, unknown or of another shape.
    """
    tensors = read_tensors(directory / WEIGHTS_FILE)
    copy_tensors(
        attachment.parameters(), {name.removeprefix(PREFIX): value for name, value in tensors.items()}, directory
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ModelError("cannot read the tensors", where=path, got=error) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with the permissions that any new file gets; ``save_file`` would make it private.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def copy_tensors(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], where: object) -> None:
    """Copy ``tensors`` into ``parameters`` of the same names and shapes, all or nothing.

    Raises:
        ModelError: a name or a shape differs.
    """
    problems = [f"missing {name}" for name in parameters if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in parameters]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ModelError("the saved tensors are not those of this model", where=where, got=shown)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def merge(attachment: Attachment) -> None:
    """Put one plain layer in the place of each adapted one.

    The merged weight is formed in fp32 and rounded once to the type that the model computes in, so a bf16 base loses
    what bf16 cannot hold; logits differ from the unmerged model's by that rounding. A low-bit layer becomes an
    unquantised one: quantising the sum again would undo part of what was learned. The base weights are changed: this
    cannot be undone by ``detach``.
    """
    frozen = (p.dtype for p in attachment.model.parameters() if p.is_floating_point() and not p.requires_grad)
    dtype = next(frozen, torch.float32)
    for layer in attachment.layers.values():
        merged = layer.merged_weight()
        layer.base = dense_layer(layer.base, dtype)
        weight = dense_weight(layer.base, dtype)
        with torch.no_grad():
            weight.copy_(merged)
    attachment.detach()
