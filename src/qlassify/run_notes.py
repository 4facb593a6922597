"""Sentences on what a run does that its settings alone do not say: for terminal, report and ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping

from qlassify.config import recommend
from qlassify.config.method import ProbeConfig
from qlassify.config.run import RunConfig
from qlassify.data.dataset import Dataset
from qlassify.data.long_reading import long_reading, wording
from qlassify.data.tokenise import Encoded
from qlassify.pipeline import ClassifyPipeline


def model_notes(pipeline: ClassifyPipeline) -> tuple[str, ...]:
    """Sentences on a model that cannot be packed, or whose weights are kept in few bits."""
    backbone = pipeline.backbone
    notes: list[str] = []
    if not backbone.packed:
        notes.append(f"The architecture {backbone.model_type} cannot be packed; it ran on padded batches.")
    if backbone.quant is not None and backbone.quant_error is not None:
        notes.append(
            f"The weights of the linear layers are kept in {backbone.quant.bits_per_weight:.3f} bits each, which "
            f"changes them by {100 * backbone.quant_error:.1f} % of their size (root mean square)."
        )
    return tuple(notes)


SOLVED_WITH = frozenset({"class_weights", "label_smoothing", "selection_metric"})
"""Settings of the section ``training`` that a probe uses too."""


def unused_notes(pipeline: ClassifyPipeline, dataset: Dataset) -> tuple[str, ...]:
    """A sentence if settings were chosen that the method has no use for."""
    if not isinstance(pipeline.run.method, ProbeConfig):
        return ()
    usual = RunConfig.parse(recommend.recommended_settings(pipeline.facts(dataset), pipeline.run.method)).training
    chosen = [
        f"training.{name}"
        for name, value in pipeline.run.training.model_dump().items()
        if value != getattr(usual, name) and name not in SOLVED_WITH
    ]
    if not chosen:
        return ()
    return (f"A probe is solved for, not trained in steps: {', '.join(chosen)} had no effect.",)


def token_notes(encoded: Mapping[str, Encoded], pipeline: ClassifyPipeline) -> tuple[str, ...]:
    """Sentences for each part in which texts are longer than the limit or came to nothing."""
    encoder, notes = pipeline.encoder, list[str]()
    for name, part in encoded.items():
        reading = long_reading(part, encoder, pair=pipeline.text_pair)
        if reading.longer:
            notes.append(wording(name, reading, encoder.long, encoder.max_length))
        if part.num_empty:
            notes.append(f"{part.num_empty} {name} texts came to no token and were read as one unknown token.")
    return tuple(notes)
