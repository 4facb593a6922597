"""A quantised copy of a base model, made once so that later runs start from a quarter of the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.durable import is_free, require_place, whole_folder
from qlassify.errors import ConfigError
from qlassify.models.backbone import load_model
from qlassify.models.file_base import is_file_base
from qlassify.models.quantized import save_quantized
from qlassify.models.source import resolve
from qlassify.models.whole import require_whole
from qlassify.quant.linear import low_bit_layers


@dataclass(frozen=True, slots=True)
class QuantizationResult:
    """What quantising a model came to.

    Attributes:
        directory: where the quantised model lies.
        format: its format, in words.
        layers: low-bit layers.
        num_low_bit: numbers in them.
        num_other: numbers in everything else (embeddings, norms, biases), which is kept as it was.
        source_bytes: of the base model's weights as they were.
        bytes: of the quantised model's.
        relative_error: root mean square of what quantising changed, over that of the weights.
    """

    directory: Path
    format: str
    layers: int
    num_low_bit: int
    num_other: int
    source_bytes: int
    bytes: int
    relative_error: float

    def as_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return {**asdict(self), "directory": str(self.directory)}


def quantize_model(base: str, directory: Path, config: QuantConfig | None = None) -> QuantizationResult:
    """Quantise the linear layers of a base model into a new directory, which is a base model itself.

    Args:
        base: a directory, a packaged model or a Hugging Face id.
        directory: where to write; empty or not there.
        config: the format; NF4 with double quantisation when None.

    Raises:
        ModelError: the base model cannot be found or loaded.
        ConfigError: the directory is not empty, or the base model is quantised already.
    """
    config = config or QuantConfig()
    source = resolve(base)
    if source.quantized() is not None:
        raise ConfigError("the base model is quantised already", where=source.directory)
    if is_file_base(source.directory):
        raise ConfigError(
            "a model file is not quantised into a directory",
            where=source.directory,
            do="Convert it first: qlassify convert FILE DIRECTORY. Training quantises it as it is: --method qlora.",
        )
    _require_free(directory)
    model, info, error = load_model(source.directory, None, config)
    require_whole(model, info, source.directory)
    layers = low_bit_layers(model)
    tensors = unshared(model.state_dict())
    relative = 0.0 if error is None else error.relative
    try:
        with whole_folder(directory) as scratch:
            save_quantized(
                scratch,
                tensors,
                config=config,
                layers={path: (layer.out_features, layer.in_features) for path, layer in layers.items()},
                source=source.directory,
                source_sha256=source.sha256(),
                relative_error=relative,
            )
    except OSError as failure:
        raise ConfigError("cannot write the quantised model", where=directory, got=failure) from None
    return QuantizationResult(
        directory=directory,
        format=str(config),
        layers=len(layers),
        num_low_bit=sum(layer.out_features * layer.in_features for layer in layers.values()),
        num_other=sum(parameter.numel() for parameter in model.parameters()),
        source_bytes=sum(path.stat().st_size for path in source.weight_files()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        relative_error=relative,
    )


def _require_free(directory: Path) -> None:
    """Refuse to write over anything, or where nothing can be written."""
    try:
        if not is_free(directory):
            raise ConfigError("the directory is not empty", where=directory, do="Give a new one.")
        require_place(directory)
    except OSError as failure:
        raise ConfigError("cannot write the quantised model", where=directory, got=failure) from None


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each storage once, under its first name: tied weights are tied again by the architecture on loading."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in tensors.items():
        seen.setdefault((tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (0, (len(seen),)), name)
    return {name: tensors[name] for name in seen.values()}
