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

from qlassify.config.method import MethodConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.formats.finite import require_finite
from qlassify.methods import peft_format
from qlassify.methods.inject import Attachment

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(attachment: Attachment, directory: Path, *, base_model: str) -> None:
    """Write the adapter's configuration and weights into ``directory``."""
    settings = peft_format.to_settings(attachment, base_model)
    (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tensors(directory / WEIGHTS_FILE, peft_format.to_tensors(attachment))


def read_adapter_config(directory: Path) -> MethodConfig:
    """The method configuration that ``save_adapter`` or PEFT wrote.

    Raises:
        ModelError: missing, unreadable, or a kind of adapter that is not supported.
    """
    return peft_format.from_settings(read_settings(directory), directory / CONFIG_FILE)


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings in an adapter's ``adapter_config.json``.

    Raises:
        ModelError: missing or unreadable.
    """
    path = directory / CONFIG_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("cannot read the adapter's configuration", where=path, got=error) from None
    if not isinstance(settings, dict):
        raise ModelError("not an adapter's configuration", where=path, got=type(settings).__name__)
    return settings


def load_adapter(attachment: Attachment, directory: Path) -> None:
    """Fill an attachment's parameters from ``directory``.

    Raises:
        ModelError: names the tensors that are missing, unknown or of another shape.
    """
    tensors = read_tensors(directory / WEIGHTS_FILE)
    copy_tensors(attachment.parameters(), peft_format.from_tensors(attachment, tensors, directory), directory)


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
        ModelError: a name or a shape differs, or a number is not finite.
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
        do = "The files of a saved model belong together: restore them, or train anew."
        raise ModelError("the saved tensors are not those of this model", where=where, got=shown, do=do)
    for name, tensor in tensors.items():
        require_finite(tensor, where=f"{where}: {name}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def merge(attachment: Attachment) -> None:
    """Put one plain module in the place of each adapted one.

    Logits differ from the unmerged model's by the rounding of the merged weights, which are formed in fp32 and rounded
    once to the type that the model computes in. A low-bit layer becomes an unquantised one where its weight changes:
    quantising the sum again would undo part of what was learned. The base weights are changed: this cannot be undone
    by ``detach``.

    Raises:
        ConfigError: the method's layers are not such that one plain module could compute the same.
    """
    if not all(layer.mergeable for layer in attachment.layers.values()):
        raise ConfigError("this method cannot be merged into the base weights", got=str(attachment.config))
    frozen = (p.dtype for p in attachment.model.parameters() if p.is_floating_point() and not p.requires_grad)
    dtype = next(frozen, torch.float32)
    for layer in attachment.layers.values():
        layer.base = layer.merged(dtype)
    attachment.detach()
