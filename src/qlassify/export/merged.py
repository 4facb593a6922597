"""``merged``: one model directory for transformers, the method's change inside the weights.

Where the architecture's own classification head can say what ours says (``models.sequence_head``), the directory is an
``AutoModelForSequenceClassification``. Where it cannot, it is the base model with ``head.safetensors`` beside it, and
the directory's README says how to put the two together. Mean-pooled classifiers are also a sentence-transformers model
whose last module gives the logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.artifact import HEAD
from qlassify.errors import ModelError
from qlassify.export import snippets
from qlassify.export.check import Logits, PaddedBatch, Runner
from qlassify.export.padding import ExportTokenizer
from qlassify.export.result import Written
from qlassify.export.weights import fill, plain_tensors
from qlassify.methods.state import read_tensors, write_tensors
from qlassify.models.backbone import empty_model, load_config, load_finished, quiet_transformers
from qlassify.models.pooling import PoolingMode
from qlassify.models.sequence_head import LinearHead, NoSequenceHead, SequenceHead, express, last_layer_norm
from qlassify.pipeline import ClassifyPipeline

MULTI_LABEL, SINGLE_LABEL = "multi_label_classification", "single_label_classification"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A classifier's architecture as transformers has it, without memory.

    Attributes:
        config: its configuration, with our labels in it.
        base: the base model.
        classifier: the model with its classification head, or None when the architecture has no such model.
        head: our head in its words, or why that cannot be.
    """

    config: Any
    base: Any
    classifier: Any | None
    head: SequenceHead | NoSequenceHead

    @property
    def prefix(self) -> str:
        """What stands before the base model's names in those of the whole."""
        return f"{self.classifier.base_model_prefix}." if self.classifier is not None else ""


def architecture_of(pipeline: ClassifyPipeline, pad_token_id: int, rows: int, dtype: torch.dtype) -> Architecture:
    """The architecture of a classifier, and our head in its words.

    Args:
        pipeline: the classifier.
        pad_token_id: padding in the export.
        rows: rows of the token embedding.
        dtype: of the weights to come.
    """
    config = load_config(pipeline.source.directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    labels = pipeline.labels.names
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.problem_type = MULTI_LABEL if pipeline.labels.multi_label else SINGLE_LABEL
    if pipeline.pooling == "last" or config.pad_token_id is None:
        # Elsewhere it is the architecture's own business: RoBERTa's positions start behind it.
        config.pad_token_id = pad_token_id
    config.vocab_size = rows
    base: Any = empty_model(config, dtype, classifier=False)
    classifier = empty_model(config, dtype, classifier=True)
    if classifier is None:
        reason = NoSequenceHead(f"transformers has no classification head for {config.model_type}")
        return Architecture(config, base, None, reason)
    return Architecture(config, base, classifier, express(classifier, _linear_head(pipeline, base)))


def _linear_head(pipeline: ClassifyPipeline, base: nn.Module) -> LinearHead:
    """Our head with the last norm before it."""
    head = pipeline.trainable.classifier.head
    path = last_layer_norm(base)
    known = pipeline.backbone.model.state_dict()

    def norm(name: str) -> Tensor | None:
        found = None if path is None else known.get(f"{path}.{name}")
        return None if found is None else found.detach().float().cpu()

    bias = None if head.bias is None else head.bias.detach().float().cpu()
    weight = head.weight.detach().float().cpu()
    return LinearHead(weight, bias, pipeline.pooling, norm("weight"), norm("bias"))


def merged_tensors(
    pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, dtype: torch.dtype
) -> tuple[Architecture, dict[str, Tensor]]:
    """The architecture and the tensors of its base model, from a pipeline whose adapters are merged."""
    model: Any = pipeline.backbone.model
    embedding = model.get_input_embeddings()
    more = tokenizer.rows - pipeline.backbone.vocab_size
    if more > 0:
        # The rows are never read: nothing attends to padding.
        table = embedding.weight.detach()
        grown = torch.cat([table, table.new_zeros(more, table.shape[1])])
        embedding.weight, embedding.num_embeddings = nn.Parameter(grown, requires_grad=False), tokenizer.rows
    architecture = architecture_of(pipeline, tokenizer.pad_token_id, tokenizer.rows, dtype)
    return architecture, plain_tensors(model, architecture.base, dtype)


def write_merged(
    pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, directory: Path, dtype: torch.dtype
) -> Written:
    """Write the directory; the pipeline's adapters are merged already.

    Raises:
        ModelError: the merged model is not one of its architecture.
    """
    architecture, tensors = merged_tensors(pipeline, tokenizer, dtype)
    head = architecture.head
    if isinstance(head, SequenceHead) and architecture.classifier is not None:
        model = architecture.classifier
        for name, value in head.settings.items():
            setattr(model.config, name, value)
        whole = {f"{architecture.prefix}{name}": value for name, value in tensors.items()}
        fill(model, whole | {name: value.to(dtype) for name, value in head.tensors.items()})
        written = Written(
            "transformers.AutoModelForSequenceClassification.from_pretrained",
            snippets.sequence_classification(pipeline),
            (f"The head is the architecture's own ({head.form}). It predicts; it is not made for more training.",)
            if head.form != "the head itself"
            else (),
        )
    else:
        assert isinstance(head, NoSequenceHead)
        model = architecture.base
        fill(model, tensors)
        written = Written(
            f"transformers.AutoModel.from_pretrained, and {HEAD} on the pooled hidden states",
            snippets.base_and_head(pipeline, model),
            (
                f"AutoModelForSequenceClassification cannot load it: {head.reason}. It is the base model, and {HEAD} "
                f"holds the head for {pipeline.pooling} pooling.",
            ),
        )
        write_head(pipeline, directory)
    with quiet_transformers():
        model.save_pretrained(str(directory))
    tokenizer.tokenizer.save_pretrained(str(directory))
    if pipeline.pooling == "mean":
        write_sentence_transformers(pipeline, directory)
        written = Written(
            written.loads_with,
            written.snippet + "\n" + snippets.sentence_transformers(pipeline),
            (*written.notes, "sentence-transformers loads it too; encode gives the logits."),
        )
    return written


def write_head(pipeline: ClassifyPipeline, directory: Path) -> None:
    """Write ``head.safetensors``: weight (C, H) and, if there is one, bias (C,), fp32."""
    head = pipeline.trainable.classifier.head
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.named_parameters()}
    write_tensors(directory / HEAD, tensors)


def write_sentence_transformers(pipeline: ClassifyPipeline, directory: Path) -> None:
    """The files by which sentence-transformers knows the directory: transformer, pooling, and our head as ``Dense``."""
    head = pipeline.trainable.classifier.head
    classes, width = head.weight.shape
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")))
    ]
    pooling = {"word_embedding_dimension": width} | {
        f"pooling_mode_{name}": name == "mean_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")
    }
    dense = {
        "in_features": width,
        "out_features": classes,
        "bias": head.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_json(directory / "modules.json", modules)
    limit = {"max_seq_length": pipeline.encoder.max_length, "do_lower_case": False}
    _write_json(directory / "sentence_bert_config.json", limit)
    _write_json(directory / "1_Pooling" / "config.json", pooling)
    _write_json(directory / "2_Dense" / "config.json", dense)
    tensors = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in head.named_parameters()}
    write_tensors(directory / "2_Dense" / "model.safetensors", tensors)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load_runner(directory: Path, pooling: PoolingMode) -> tuple[str, Runner]:
    """The directory as anybody would load it."""
    whole = not (directory / HEAD).is_file()
    model = load_finished(directory, classifier=whole)
    if whole:
        return "transformers", sequence_runner(model)
    tensors = read_tensors(directory / HEAD)

    def run(batch: PaddedBatch) -> Logits:
        arguments = {name: torch.from_numpy(value) for name, value in batch.named().items()}
        with torch.inference_mode():
            hidden_BSH = model(**arguments).last_hidden_state.float()
            vectors_BH = pool_padded(hidden_BSH, arguments["attention_mask"], pooling)
            return nn.functional.linear(vectors_BH, tensors["weight"], tensors.get("bias")).numpy()

    return "transformers", run


def sequence_runner(model: Any) -> Runner:
    """A model with a classification head, in whatever library it was made."""

    def run(batch: PaddedBatch) -> Logits:
        arguments = {name: torch.from_numpy(value) for name, value in batch.named().items()}
        with torch.inference_mode():
            logits: Tensor = model(**arguments).logits
        return logits.float().numpy()

    return run


def pool_padded(hidden_BSH: Tensor, attention_mask_BS: Tensor, pooling: PoolingMode) -> Tensor:
    """(B, S, H) hidden states of texts padded on the right -> (B, H) vectors."""
    if pooling == "cls":
        return hidden_BSH[:, 0]
    if pooling == "last":
        last_B = attention_mask_BS.sum(dim=1) - 1
        index = last_B[:, None, None].expand(-1, 1, hidden_BSH.shape[-1])
        return hidden_BSH.gather(1, index)[:, 0]
    mask_BS1 = attention_mask_BS[:, :, None].to(hidden_BSH.dtype)
    return (hidden_BSH * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1)


def require_mergeable(pipeline: ClassifyPipeline) -> None:
    """Refuse a method whose change has no place in the weights.

    Raises:
        ModelError: it has none.
    """
    attachment = pipeline.trainable.attachment
    if not all(layer.mergeable for layer in attachment.layers.values()):
        raise ModelError(
            "this method cannot be merged into the base weights",
            got=str(attachment.config),
            do="Use the run itself: qlassify predict, or ClassifyPipeline.load.",
        )
