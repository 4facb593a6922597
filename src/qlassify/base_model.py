"""A base model with its weights, or a sketch of it: every shape, on the meta device, and no weights.

Both are opened by the same settings, so that what is planned on the sketch is what is loaded.
"""

from __future__ import annotations

from qlassify.config.method import FullConfig, LoraConfig, MethodConfig
from qlassify.config.quant import QuantConfig
from qlassify.config.run import RunConfig
from qlassify.errors import ConfigError
from qlassify.methods.full import cannot_train_low_bit
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.source import ModelSource
from qlassify.training.precision import Placement


def load_base(source: ModelSource, placement: Placement, run: RunConfig) -> Backbone:
    """The pretrained model with its weights."""
    return load_backbone(
        source.directory, placement.dtype, placement.device, quant=run.quant, residual_rank=_residual_rank(run)
    )


def sketch_base(source: ModelSource, placement: Placement, run: RunConfig) -> Backbone:
    """The pretrained model without weights."""
    backbone = Backbone(load_skeleton(source.directory, placement.dtype), source.directory)
    backbone.quant = run.quant
    backbone.processor = placement.device
    return backbone


def attachable(method: MethodConfig, backbone: Backbone) -> MethodConfig:
    """The method, without what only loading finds out; PiSSA's factors have their shapes on a sketch, too.

    Raises:
        ConfigError: all weights are to be trained, and they are to be in few bits. A sketch has no such layers that
            would refuse.
    """
    if isinstance(method, FullConfig) and backbone.quant is not None:
        raise cannot_train_low_bit()
    if backbone.is_sketch and isinstance(method, LoraConfig) and method.start == "loftq":
        return method.replace(start="zero")
    return method


def weight_format(source: ModelSource, run: RunConfig) -> QuantConfig | None:
    """The format of the frozen weights: the base model's own, if it is quantised, else the one that is asked for.

    Raises:
        ConfigError: another format is asked for than the base model's own.
        ModelError: the base model is quantised and damaged.
    """
    record = source.quantized()
    if record is None:
        return run.wanted_quant
    source.sha256()  # also checks the bytes: a damaged directory is noticed now, not when the classifier is saved
    if run.quant is not None and run.quant != record.config:
        raise ConfigError(
            "the base model is quantised in another format",
            where=source.directory,
            got=str(record.config),
            wanted=f"{run.quant}, as quant says",
            do="Leave quant out, or give the model that it was made from.",
        )
    return record.config


def _residual_rank(run: RunConfig) -> int | None:
    """The rank of what LoftQ begins with, which only loading can find: the original weights are gone afterwards."""
    method = run.method
    return method.rank if isinstance(method, LoraConfig) and method.start == "loftq" else None
