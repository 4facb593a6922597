"""``export_classifier``: from a run to a directory that another library loads.

    load the classifier -> its logits on the validation rows -> merge (not for peft) -> write into a scratch folder
    -> load that with the library it is for -> compare -> README -> rename to its place

The directory appears whole or not at all, and what did not give the same logits does not appear. The run's files are
read only: merging happens in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from qlassify.data.long_texts import SHARE
from qlassify.data.tokenise import Encoded
from qlassify.durable import is_free, require_place, whole_folder
from qlassify.errors import ConfigError
from qlassify.evaluation.predict import predict_logits
from qlassify.export import adapter, merged, onnx_graph, readme
from qlassify.export.check import (
    Logits,
    Runner,
    Sample,
    compare,
    require_equal,
    require_same_tokens,
    run_logits,
    take_sample,
)
from qlassify.export.padding import ExportTokenizer, export_tokenizer
from qlassify.export.result import Check, ExportResult, Written
from qlassify.export.snippets import DIRECTORY
from qlassify.methods.inject import attach
from qlassify.methods.state import copy_tensors
from qlassify.models.backbone import load_backbone
from qlassify.models.classifier import Classifier
from qlassify.pipeline import ClassifyPipeline

ExportFormat = Literal["merged", "peft", "onnx"]
ExportPrecision = Literal["fp32", "bf16"]
MergeInto = Literal["own", "original"]
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export_classifier(
    run: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    format: ExportFormat = "merged",
    *,
    base: str | None = None,
    precision: ExportPrecision = "fp32",
    into: MergeInto = "own",
) -> ExportResult:
    """Write a trained classifier in another library's format.

    Args:
        run: a run folder or a model folder; only read.
        directory: where to write; empty or not there.
        format: ``merged`` for transformers, ``peft``, or ``onnx``.
        base: where the base model is, if it is not where it was.
        precision: type of the merged weights; adapters and graphs are fp32.
        into: which weights a low-bit classifier is merged into: its ``own``, as numbers, or the ``original`` ones that
            were quantised, which it was not trained on.

    Raises:
        ConfigError: the directory is not empty, options do not go together, or a package is missing.
        ModelError: the classifier cannot be loaded, merged or expressed, or the export gives other logits.
    """
    target, path = Path(directory), Path(run)
    _require_options(format, precision, into)
    _require_free(target)
    if format == "onnx":
        onnx_graph.require_packages()
    pipeline = ClassifyPipeline.load(path, base=base, device="cpu", precision=precision)
    if format != "peft":
        merged.require_mergeable(pipeline)
    sample = take_sample(path, pipeline)
    tokenizer = export_tokenizer(
        pipeline.encoder,
        vocab_size=pipeline.backbone.vocab_size,
        by_padding=pipeline.pooling == "last" and format != "onnx",
        pairs=pipeline.text_pair,
        sample=sample.encoded,
        may_grow=format == "merged",
    )
    require_same_tokens(tokenizer.tokenizer, pipeline, sample)
    reference = _logits(pipeline, sample.encoded)
    notes: tuple[str, ...] = () if tokenizer.note is None else (tokenizer.note,)
    notes += _long_notes(pipeline) + _merge_notes(pipeline, format, into)
    with _scratch(target) as scratch:
        expected = reference
        if format != "peft":
            if into == "original":
                pipeline = _on_original(pipeline)
            pipeline.merge_adapters()
            expected = _logits(pipeline, sample.encoded) if into == "original" or precision == "bf16" else reference
        written = _write(pipeline, tokenizer, scratch, format, _TYPES[precision])
        check = _check(pipeline, tokenizer, scratch, format, sample, reference, expected, precision)
        snippet = written.snippet.replace(DIRECTORY, repr(str(target.resolve())))
        result = ExportResult(target, format, written.loads_with, {}, snippet, (*written.notes, *notes), check)
        (scratch / "README.md").write_text(readme.render(pipeline, result), encoding="utf-8")
        files = {
            one.relative_to(scratch).as_posix(): one.stat().st_size
            for one in sorted(scratch.rglob("*"))
            if one.is_file()
        }
    return replace(result, files=files)


def _require_options(format: str, precision: str, into: str) -> None:
    for name, value, known in (
        ("format", format, get_args(ExportFormat)),
        ("precision", precision, get_args(ExportPrecision)),
        ("into", into, get_args(MergeInto)),
    ):
        if value not in known:
            raise ConfigError("not a value of this option", where=name, got=value, wanted=", ".join(known))
    if format != "merged" and precision != "fp32":
        raise ConfigError("adapters and graphs are written in fp32", where="precision", got=precision)
    if format == "peft" and into != "own":
        raise ConfigError("an adapter is not merged into anything", where="into", got=into)


def _require_free(directory: Path) -> None:
    """Refuse to write over anything, or where nothing can be written."""
    try:
        if not is_free(directory):
            raise ConfigError("the directory is not empty", where=directory, do="Give a new one.")
        require_place(directory)
    except OSError as error:
        raise ConfigError("cannot write the export", where=directory, got=error) from None


def _long_notes(pipeline: ClassifyPipeline) -> tuple[str, ...]:
    """What other libraries do with longer texts, where the classifier does something else."""
    long, limit = pipeline.encoder.long, pipeline.encoder.max_length
    if long.policy == "truncate":
        return ()
    ours = (
        f"the first {limit // SHARE} of its {limit} tokens from the beginning and the rest from the end"
        if long.policy == "head_tail"
        else f"windows of {limit} tokens, of which each shares {long.window_overlap} with the one before it and the "
        f"last is full, at most {long.max_windows}, and takes the mean of their logits"
    )
    return (
        f"Warning: of a text of more than {limit} tokens the classifier reads {ours}. The weights here are the same, "
        "but other libraries cut the end of such a text and give other logits; only texts that fit were compared.",
    )


def _merge_notes(pipeline: ClassifyPipeline, format: str, into: str) -> tuple[str, ...]:
    """What merging does to a low-bit classifier, in words.

    Raises:
        ConfigError: the original weights are asked for and there are no others, or they are not at hand.
    """
    quant = pipeline.backbone.quant
    if into == "original":
        if quant is None:
            raise ConfigError("the classifier was not trained on low-bit weights", where="into", got="original")
        if pipeline.source.quantized() is not None:
            raise ConfigError(
                "the base model here is the quantised one",
                where=pipeline.source.directory,
                do="Give the model that it was made from with --base.",
            )
        return (
            f"Warning: merged into the original weights. The adapters were trained on them in {quant} and may have "
            "learned around what that lost; the comparison says how far the logits have moved.",
        )
    if quant is None or format == "peft":
        return ()
    return (f"Merged into the numbers that the weights in {quant} stand for, on which the adapters were trained.",)


def _on_original(pipeline: ClassifyPipeline) -> ClassifyPipeline:
    """The same adapters and head on the weights that were quantised."""
    trainable = pipeline.trainable
    backbone = load_backbone(pipeline.source.directory, pipeline.placement.dtype, pipeline.placement.device)
    attachment = attach(backbone.model, trainable.attachment.config, seed=0)
    values = {name: parameter.detach() for name, parameter in trainable.attachment.parameters().items()}
    copy_tensors(attachment.parameters(), values, pipeline.source.directory)
    classifier = Classifier(backbone, trainable.classifier.head, pipeline.pooling).eval()
    original = ClassifyPipeline(
        pipeline.source, pipeline.placement, backbone, pipeline.encoder, pipeline.pooling, pipeline.run
    )
    original.text_pair = pipeline.text_pair
    original.adopt(trainable.labels, classifier, attachment)
    return original


def _write(
    pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, scratch: Path, format: ExportFormat, dtype: torch.dtype
) -> Written:
    if format == "merged":
        return merged.write_merged(pipeline, tokenizer, scratch, dtype)
    if format == "peft":
        return adapter.write_adapter(pipeline, tokenizer, scratch)
    return onnx_graph.write_onnx(pipeline, tokenizer, scratch)


def _check(
    pipeline: ClassifyPipeline,
    tokenizer: ExportTokenizer,
    scratch: Path,
    format: ExportFormat,
    sample: Sample,
    reference: Logits,
    expected: Logits,
    precision: str,
) -> Check | None:
    """Load what was written with its library and compare; None when the library, or a base for it, is not here."""
    loaded: tuple[str, Runner] | None
    if format == "merged":
        loaded = merged.load_runner(scratch, pipeline.pooling)
    elif format == "peft":
        loaded = adapter.load_adapter_runner(pipeline, tokenizer, scratch)
    else:
        loaded = onnx_graph.load_onnx_runner(scratch)
    if loaded is None:
        return None
    library, runner = loaded
    found = run_logits(runner, sample.encoded, tokenizer.pad_token_id, len(pipeline.labels))
    # An adapter trained on low-bit weights meets unquantised ones in PEFT: its difference is reported, not judged.
    if format != "peft" or pipeline.backbone.quant is None:
        require_equal(library, expected, found, precision)
    return compare(library, pipeline, sample, reference, found)


def _logits(pipeline: ClassifyPipeline, encoded: Encoded) -> Logits:
    return np.asarray(predict_logits(pipeline.trainable.classifier, encoded), np.float32)


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place at the end, or is gone if anything was wrong."""
    try:
        with whole_folder(target) as scratch:
            yield scratch
            _open_modes(scratch)
    except OSError as error:
        raise ConfigError("cannot write the export", where=target, got=error) from None


def _open_modes(folder: Path) -> None:
    """The permissions that any new file gets; some writers make theirs private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
