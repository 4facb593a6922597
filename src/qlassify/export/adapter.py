"""``peft``: the adapter as PEFT saves it for a classifier, with the head as ``modules_to_save``.

A run's own folder holds the adapter for the base model without a head. Here names begin below the whole model
(``base_model.model.bert.encoder...``) and the architecture's classification head comes along, so that PEFT on
``AutoModelForSequenceClassification`` gives the logits. Where that head cannot say what ours says, the adapter stays
one for the base model and ``head.safetensors`` lies beside it.

PEFT knows its base model by name only. ``qlassify.json`` keeps what it has no place for: the hash of the base weights,
the labels, the pooling.
"""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qlassify.errors import ModelError
from qlassify.export import snippets
from qlassify.export.check import Logits, PaddedBatch, Runner
from qlassify.export.merged import Architecture, architecture_of, pool_padded, sequence_runner, write_head
from qlassify.export.padding import ExportTokenizer
from qlassify.export.result import Written
from qlassify.methods import peft_format
from qlassify.methods.state import CONFIG_FILE, WEIGHTS_FILE, read_tensors, write_tensors
from qlassify.models.backbone import has_optional_pooler, load_finished
from qlassify.models.file_base import is_file_base
from qlassify.models.sequence_head import SequenceHead
from qlassify.peft_classifier import RECORD
from qlassify.pipeline import ClassifyPipeline


def write_adapter(pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, directory: Path) -> Written:
    """Write the adapter directory; the pipeline's adapters are not merged.

    Raises:
        ModelError: PEFT has no such method.
    """
    attachment = pipeline.trainable.attachment
    if is_file_base(pipeline.source.directory):
        raise ModelError(
            "PEFT cannot load a base model that is a single file",
            where=pipeline.source.directory,
            do="Export merged, or convert the base model first: qlassify convert FILE DIRECTORY.",
        )
    base = str(pipeline.source.directory) if pipeline.source.kind == "path" else pipeline.source.name
    settings = peft_format.to_settings(attachment, base)
    if settings.get("peft_type") not in ("LORA", "IA3", "PREFIX_TUNING"):
        raise ModelError(
            "PEFT has no such method for a classifier",
            got=str(attachment.config),
            wanted="lora, qlora, dora, qdora, ia3, or a prefix that shifts positions",
            do="Export merged, if the method can be merged, or keep the run's own format.",
        )
    architecture = architecture_of(pipeline, tokenizer.pad_token_id, tokenizer.rows, torch.float32)
    if settings["peft_type"] == "PREFIX_TUNING" and not _takes_keys_and_values(architecture.base):
        raise ModelError(
            "PEFT has no prefix for this architecture",
            got=f"{pipeline.backbone.model_type}, whose forward pass takes no past_key_values",
            do="Keep the run's own format, or train with another method.",
        )
    tensors = peft_format.to_tensors(attachment)
    notes: tuple[str, ...] = ()
    if isinstance(architecture.head, SequenceHead) and architecture.classifier is not None:
        head, prefix = architecture.head, architecture.prefix
        settings = peft_format.for_classifier(settings, attachment, architecture.classifier, prefix, head.modules)
        tensors = peft_format.classifier_tensors(attachment, prefix, head.tensors)
        loads_with = "peft.PeftModel.from_pretrained on AutoModelForSequenceClassification"
        snippet = snippets.adapter(pipeline, loading_settings(architecture, tokenizer.pad_token_id))
        if head.form != "the head itself":
            notes = (
                f"The head is the architecture's own ({head.form}). It predicts; it is not made for more training.",
            )
    else:
        assert not isinstance(architecture.head, SequenceHead)
        loads_with = "peft.PeftModel.from_pretrained on AutoModel, and head.safetensors on the pooled hidden states"
        snippet = snippets.base_adapter(pipeline, architecture.base)
        notes = (
            f"PEFT cannot load it on AutoModelForSequenceClassification: {architecture.head.reason}. It is an adapter "
            f"of the base model, and head.safetensors holds the head for {pipeline.pooling} pooling.",
        )
    if pipeline.backbone.quant is not None:
        notes += (
            f"The adapter was trained on weights in {pipeline.backbone.quant}; on the unquantised ones it gives other "
            "logits.",
        )
    write_head(pipeline, directory)
    (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tensors(directory / WEIGHTS_FILE, tensors)
    tokenizer.tokenizer.save_pretrained(str(directory))
    (directory / RECORD).write_text(json.dumps(_record(pipeline, base), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return Written(loads_with, snippet, notes)


def _takes_keys_and_values(model: nn.Module) -> bool:
    """Whether keys and values can be handed to a model beside a text, which is what PEFT does with a prefix."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def _record(pipeline: ClassifyPipeline, base: str) -> dict[str, Any]:
    """What PEFT's own files have no place for."""
    quant = pipeline.backbone.quant
    return {
        "base_model": base,
        "base_sha256": pipeline.source.sha256(),
        "labels": list(pipeline.labels.names),
        "multi_label": pipeline.labels.multi_label,
        "pooling": pipeline.pooling,
        "max_length": pipeline.encoder.max_length,
        "long": asdict(pipeline.encoder.long),
        "text_pair": pipeline.text_pair,
        "threshold": pipeline.decision.threshold,
        "decision": pipeline.decision.model_dump(mode="json"),
        "quantization": None if quant is None else quant.model_dump(mode="json"),
    }


def loading_settings(architecture: Architecture, pad_token_id: int) -> str:
    """What ``from_pretrained`` of the base model has to be told beside the number of labels, as source text."""
    assert isinstance(architecture.head, SequenceHead)
    pad = {"pad_token_id": pad_token_id} if architecture.config.pad_token_id == pad_token_id else {}
    settings: dict[str, Any] = {**pad, **architecture.head.settings}
    return "".join(f", {name}={value!r}" for name, value in settings.items())


def load_adapter_runner(
    pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, directory: Path
) -> tuple[str, Runner] | None:
    """The adapter as anybody would load it, on the unquantised base model in fp32; None without PEFT or such a base."""
    try:
        from peft import PeftModel
    except ImportError:
        return None
    if pipeline.source.quantized() is not None:
        return None
    architecture = architecture_of(pipeline, tokenizer.pad_token_id, tokenizer.rows, torch.float32)
    head, source = architecture.head, pipeline.source.directory
    whole = isinstance(head, SequenceHead)
    settings: dict[str, Any] = {"dtype": torch.float32}
    if isinstance(head, SequenceHead):
        settings |= {"num_labels": len(pipeline.labels), **head.settings}
        settings |= {"pad_token_id": architecture.config.pad_token_id}
    elif has_optional_pooler(architecture.base):
        settings |= {"add_pooling_layer": False}
    with warnings.catch_warnings():
        # PEFT asks transformers by old names; what it loads is compared with the classifier.
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_finished(source, classifier=whole, **settings), str(directory)).eval()
    if whole:
        return "peft", sequence_runner(model)
    tensors, pooling = read_tensors(directory / "head.safetensors"), pipeline.pooling

    def run(batch: PaddedBatch) -> Logits:
        arguments = {name: torch.from_numpy(value) for name, value in batch.named().items()}
        with torch.inference_mode():
            hidden_BSH = model(**arguments).last_hidden_state
            vectors_BH = pool_padded(hidden_BSH, arguments["attention_mask"], pooling)
            return nn.functional.linear(vectors_BH, tensors["weight"], tensors.get("bias")).numpy()

    return "peft", run
