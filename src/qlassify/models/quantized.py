"""A quantised base model as a directory: loaded without quantising again.

    config.json, tokeniser files, 1_Pooling/    as in the directory that it was made from
    model.safetensors                           the model; a linear layer <path> is there as

        <path>.weight_codes          uint8; two 4-bit codes to a byte, the first in the high half
        <path>.weight_scales         fp32, one per group; or, doubly quantised,
        <path>.weight_scale_codes    uint8, one per group
        <path>.weight_scale_maxima   fp32, one per 256 groups
        <path>.weight_scale_mean     fp32, one number
        <path>.weight_offsets        fp32, one per group, with zero points only
        <path>.bias                  as it was

and everything else under its own name in its own type. The header's text under ``qlassify_quantized`` is JSON: the
version of this layout, the format, path -> shape of each low-bit layer, what quantising lost, the SHA-256 of the
weights that it was made from, and the SHA-256 of the tensors' bytes, by which damage is noticed.

Which model this is, is said by the first of the two hashes together with the format: quantising is a function of them,
bit for bit, so a classifier trained on this directory also loads on the original one, and the reverse.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.formats.safetensors import SafetensorsFile, open_safetensors, tensor_bytes, write_safetensors

KEY = "qlassify_quantized"
VERSION = 1
WEIGHTS = "model.safetensors"
COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "added_tokens.json", "*.model", "modules.json", "1_Pooling/config.json",
)  # fmt: skip
"""What a model directory holds beside its weights that a classifier needs."""


@dataclass(frozen=True, slots=True)
class QuantizedBase:
    """What a quantised checkpoint says of itself.

    Attributes:
        config: the format.
        layers: path -> (out, in) of each low-bit layer.
        source_sha256: of the weights that it was made from.
        sha256: of its tensors' bytes.
        relative_error: root mean square of what quantising changed, over that of the weights.
    """

    config: QuantConfig
    layers: Mapping[str, tuple[int, int]]
    source_sha256: str
    sha256: str
    relative_error: float


def read_quantized(file: SafetensorsFile) -> QuantizedBase | None:
    """What a file says of its low-bit layers; None when it is an ordinary checkpoint.

    Raises:
        ModelError: it is of another version, or cannot be understood.
    """
    text = file.metadata.get(KEY)
    if text is None:
        return None
    try:
        record = json.loads(text)
        if record["version"] != VERSION:
            raise ValueError(f"version {record['version']}")
        layers = {str(path): (int(rows), int(columns)) for path, (rows, columns) in record["layers"].items()}
        config = QuantConfig.parse(record["format"])
        return QuantizedBase(
            config, layers, str(record["source_sha256"]), str(record["sha256"]), float(record["relative_error"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise ModelError(
            "cannot read the quantised checkpoint",
            where=file.path,
            got=error,
            wanted=f"version {VERSION} of the layout",
            do="Quantise the model again with: qlassify quantize MODEL DIRECTORY.",
        ) from None


def quantized_base(directory: Path) -> QuantizedBase | None:
    """What a model directory says of its low-bit layers; None when its weights are ordinary."""
    path = directory / WEIGHTS
    return read_quantized(open_safetensors(path)) if path.is_file() else None


def verify(file: SafetensorsFile, record: QuantizedBase) -> None:
    """Hash a quantised checkpoint's bytes.

    Raises:
        ModelError: they are not those that were written.
    """
    digest = hashlib.sha256()
    with file.path.open("rb") as stream:
        stream.seek(file.data_start)
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != record.sha256:
        raise ModelError(
            "the quantised checkpoint is damaged",
            where=file.path,
            got=f"SHA-256 {digest.hexdigest()[:16]}...",
            wanted=f"{record.sha256[:16]}...",
            do="Quantise the model again with: qlassify quantize MODEL DIRECTORY.",
        )


def save_quantized(
    directory: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: QuantConfig,
    layers: Mapping[str, tuple[int, int]],
    source: Path,
    source_sha256: str,
    relative_error: float,
) -> QuantizedBase:
    """Write a quantised checkpoint with its companions from ``source``.

    Raises:
        OSError: a file cannot be written.
    """
    digest = hashlib.sha256()
    for chunk in tensor_bytes(tensors):
        digest.update(chunk)
    record = QuantizedBase(config, layers, source_sha256, digest.hexdigest(), relative_error)
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            target = directory / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    text = {
        "version": VERSION,
        "format": config.model_dump(mode="json"),
        "layers": {path: list(shape) for path, shape in layers.items()},
        "source_sha256": source_sha256,
        "sha256": record.sha256,
        "relative_error": relative_error,
    }
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt", KEY: json.dumps(text)})
    return record
