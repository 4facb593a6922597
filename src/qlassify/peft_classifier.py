"""A classifier that PEFT trained: an adapter of ``PeftModelForSequenceClassification``, read strictly.

Tensor names there begin below the whole model (``base_model.model.model.layers...``, ``base_model.model.bert...``) and
the head lies among them (``base_model.model.score.weight``). Which modules are adapted is read off the tensors
themselves and not off ``target_modules``: patterns, layer ranges and exclusions all come down to those.

Causal models have a linear head on the last token, as we have, and give the same logits here. The heads of encoders
have an activation between two layers: there the logits would be others, so such an adapter is refused unless it is one
of our own exports, which has our head beside it (``qlassify.json``, ``head.safetensors``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qlassify.artifact import HEAD, ClassifierRecord, LoadedClassifier
from qlassify.config.method import MethodConfig, positions_before_text
from qlassify.config.quant import QuantConfig
from qlassify.data.long_texts import LongTexts
from qlassify.data.tokenise import TextEncoder
from qlassify.errors import ConfigError, ModelError
from qlassify.methods import peft_format
from qlassify.methods.inject import attach
from qlassify.methods.prefix import TENSOR as VECTORS
from qlassify.methods.state import CONFIG_FILE, WEIGHTS_FILE, copy_tensors, read_settings, read_tensors
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.models.pooling import PoolingMode
from qlassify.models.source import ModelSource, resolve
from qlassify.training.precision import choose_placement

RECORD = "qlassify.json"
"""What our own exports say beside PEFT's files."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An adapter directory, read but not yet put on a model.

    Attributes:
        directory: where it lies.
        settings: its ``adapter_config.json``.
        tensors: all of its tensors, without PEFT's own prefix.
        record: what our own exports say, or nothing.
    """

    directory: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / CONFIG_FILE).is_file() and (directory / WEIGHTS_FILE).is_file()


def load_peft_classifier(
    directory: Path,
    *,
    base: str | None = None,
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    max_length: int = 512,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedClassifier:
    """Read a classification adapter and put it on its base model.

    Args:
        directory: ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: where the base model is; where the adapter says when None.
        labels: names of the classes, in the order of the logits; their numbers when None and the adapter has none.
        multi_label: whether a text may have several; no, unless our own export says so, when None.
        max_length: longest text in tokens.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``bf16`` or ``fp32``.

    Raises:
        ModelError: not such an adapter, another base model, or a head that does not compute what ours does.
        ConfigError: as many labels are given as the head has not.
    """
    found = _read(directory)
    source = _base(found, base)
    placement = choose_placement(device, precision)
    quant = found.record.get("quantization")
    low_bit = None if quant is None else QuantConfig.parse(quant, where=str(directory / RECORD))
    backbone = load_backbone(source.directory, placement.dtype, placement.device, quant=low_bit)
    pooling, head_tensors = _head(found, backbone)
    weight = head_tensors["weight"]
    names = _labels(found, labels, len(weight))
    prefix = _prefix(found, backbone)
    adapter = {
        name.removeprefix(prefix): value for name, value in found.tensors.items() if not _is_head(found, name, prefix)
    }
    config = _method(found, adapter, backbone.model)
    attachment = attach(backbone.model, config, seed=0)
    copy_tensors(attachment.parameters(), peft_format.from_tensors(attachment, adapter, directory), directory)
    head = ClassificationHead(backbone.hidden_size, len(names), seed=0, bias="bias" in head_tensors)
    copy_tensors(dict(head.named_parameters()), head_tensors, directory)
    limit = int(found.record.get("max_length", max_length))
    limit = backbone.longest_text(limit, behind=positions_before_text(config))
    long = _long(found)
    own_tokens = (directory / "tokenizer.json").is_file()
    encoder = TextEncoder.load(directory if own_tokens else source.tokenizer_files(), limit, long)
    record = ClassifierRecord(
        labels=names,
        multi_label=bool(found.record.get("multi_label", False)) if multi_label is None else multi_label,
        pooling=pooling,
        max_length=limit,
        text_pair=bool(found.record.get("text_pair", False)),
        base_model=str(source.directory) if source.kind == "path" else source.name,
        base_sha256=source.sha256(),
        precision=placement.precision,
        threshold=float(found.record.get("threshold", 0.5)),
        decision=found.record.get("decision"),
        quantization=None if backbone.quant is None else backbone.quant.model_dump(mode="json"),
        head_bias=head.bias is not None,
        long=encoder.long,
    )
    classifier = Classifier(backbone, head.to(placement.device), pooling).eval()
    return LoadedClassifier(record, classifier, attachment, encoder, source, placement)


def _method(found: _Found, adapter: Mapping[str, Tensor], model: nn.Module) -> MethodConfig:
    """The method that the adapter's tensors are of, with the modules that they name as its targets."""
    settings, path = found.settings, found.directory / CONFIG_FILE
    if VECTORS not in adapter:
        paths = peft_format.adapted_paths(adapter, found.directory)
        for one in paths:
            _require_module(model, one, found.directory)
        settings = peft_format.with_targets(settings, adapter, paths)
    return peft_format.from_settings(settings, path)


def _long(found: _Found) -> LongTexts:
    """What an export of ours says of longer texts; they are truncated where nothing is said."""
    try:
        return LongTexts(**found.record.get("long", {}))
    except (TypeError, ConfigError) as error:
        raise ModelError("cannot read what is done with long texts", where=found.directory, got=error) from None


def _read(directory: Path) -> _Found:
    """The files of an adapter for a classifier."""
    settings = read_settings(directory)
    if settings.get("task_type") != "SEQ_CLS" and not (directory / RECORD).is_file():
        raise ModelError(
            "not an adapter of a sequence classifier",
            where=directory / CONFIG_FILE,
            got=f"task_type {settings.get('task_type')}",
            wanted="SEQ_CLS, as PeftModelForSequenceClassification writes it",
            do="For a classifier that qlassify saved, use ClassifyPipeline.load on the folder with classifier.json.",
        )
    tensors = read_tensors(directory / WEIGHTS_FILE)
    record: Mapping[str, Any] = {}
    if (directory / RECORD).is_file():
        try:
            record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                "cannot read what the export says of itself", where=directory / RECORD, got=error
            ) from None
    # PEFT puts nothing into the model for a prefix: the names in it begin one level higher.
    below = peft_format.BARE_PREFIX if VECTORS in tensors else peft_format.PREFIX
    own = {name.removeprefix(below): value for name, value in tensors.items()}
    return _Found(directory, settings, own, record)


def _base(found: _Found, base: str | None) -> ModelSource:
    """The base model, which is the one that the adapter names.

    Raises:
        ModelError: it is another one, by its weights where those can be compared.
    """
    named = str(found.record.get("base_model") or found.settings.get("base_model_name_or_path") or "")
    if base is None and not named:
        raise ModelError(
            "the adapter does not say what its base model is", where=found.directory, do="Give it as base."
        )
    source = resolve(named if base is None else base)
    wanted = found.record.get("base_sha256")
    if wanted is None and base is not None and base != named:
        wanted = _hash_of(named)
    if wanted is not None and source.sha256() != wanted:
        raise ModelError(
            "the base model is not the one that the adapter was trained on",
            where=source.directory,
            got=f"{source.name} with SHA-256 {source.sha256()[:16]}...",
            wanted=f"{named} with SHA-256 {str(wanted)[:16]}...",
            do="Give the right one as base.",
        )
    return source


def _hash_of(name: str) -> str | None:
    """SHA-256 of a base model's weights if it is on this machine; None if it is not, and nothing can be compared."""
    try:
        return resolve(name, offline=True).sha256()
    except ModelError:
        return None


def _prefix(found: _Found, backbone: Backbone) -> str:
    """What stands before the base model's names: its attribute in the whole model, or nothing."""
    prefix = f"{backbone.model.base_model_prefix}."
    return prefix if found.settings.get("task_type") == "SEQ_CLS" else ""


def _is_head(found: _Found, name: str, prefix: str) -> bool:
    """Whether a tensor is the head's: outside the base model, or in a module that was saved whole (BERT's pooler)."""
    if name == VECTORS:
        return False
    whole = set(found.settings.get("modules_to_save") or ())
    return not name.startswith(prefix) or not whole.isdisjoint(name.split("."))


def _head(found: _Found, backbone: Backbone) -> tuple[PoolingMode, dict[str, Tensor]]:
    """How the classifier pools, and the tensors of a linear head.

    Raises:
        ModelError: there is no head, or it is not linear in the pooled vector.
    """
    if found.record and (found.directory / HEAD).is_file():
        pooling: PoolingMode = found.record["pooling"]
        return pooling, read_tensors(found.directory / HEAD)
    prefix = _prefix(found, backbone)
    tensors = {name: value for name, value in found.tensors.items() if _is_head(found, name, prefix)}
    if set(tensors) == {"score.weight"} and backbone.causal:
        return "last", {"weight": tensors["score.weight"]}
    kind = backbone.model_type
    if not tensors:
        raise ModelError(
            "the adapter has no classification head",
            where=found.directory / WEIGHTS_FILE,
            wanted="score.weight or classifier.weight among its tensors",
            do="Train it with the head in modules_to_save (task_type SEQ_CLS does that).",
        )
    raise ModelError(
        f"the classification head that transformers gives {kind} is not a linear layer on a token or an average",
        where=found.directory / WEIGHTS_FILE,
        got=", ".join(sorted(tensors)[:6]),
        wanted="a head on the last token of a causal model (score.weight)",
        do="Keep predicting with PEFT. To go on here, merge it there (merge_and_unload), save the model inside "
        f"(model.{backbone.model.base_model_prefix}.save_pretrained) with its tokeniser, and train a head on it with: "
        "qlassify train DATA --base DIRECTORY",
    )


def _labels(found: _Found, given: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names of the classes."""
    names = tuple(given or found.record.get("labels") or (str(index) for index in range(num_classes)))
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ConfigError(
            "the labels are not those of the adapter's head",
            got=f"{len(names)} labels: {', '.join(names[:10])}",
            wanted=f"{num_classes} different ones",
        )
    return names


def _require_module(model: nn.Module, path: str, where: Path) -> None:
    """Refuse an adapter of a module that the base model has not.

    Raises:
        ModelError: there is none.
    """
    try:
        model.get_submodule(path)
    except AttributeError:
        raise ModelError(
            "the adapter belongs to another architecture", where=where, got=f"no {path} in the base"
        ) from None
