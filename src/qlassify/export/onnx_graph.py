"""``onnx``: token ids in, logits out, as one graph for onnxruntime and its like.

The graph is the merged model in fp32 with transformers' own attention on padded batches, pooling by the attention mask,
and our head itself: every architecture and every pooling has one, whatever its own classification head is like. Batch
and length are left open. The graph is traced by ``torch.export``, which follows the tensors; the older tracer records
the sizes that it happens to see in places.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.errors import ConfigError
from qlassify.export import snippets
from qlassify.export.check import Logits, PaddedBatch, Runner
from qlassify.export.merged import pool_padded
from qlassify.export.padding import ExportTokenizer
from qlassify.export.result import Written
from qlassify.export.weights import fill_low_bit
from qlassify.pipeline import ClassifyPipeline

GRAPH = "model.onnx"
_EXAMPLE_SHAPE = (2, 7)
"""A batch to trace with; sizes of 0 and 1 are special to the tracer."""


class PaddedClassifier(nn.Module):
    """Backbone, pooling and head on padded batches.

    Args:
        pipeline: the classifier, merged, with transformers' own attention.

    Attributes:
        pooling: how hidden states become one vector.
        takes_types: whether the tokeniser gives segments and the model reads them.
    """

    def __init__(self, pipeline: ClassifyPipeline) -> None:
        super().__init__()
        self.model = pipeline.backbone.model
        self.head = pipeline.trainable.classifier.head
        self.pooling = pipeline.pooling
        takes = inspect.signature(self.model.forward).parameters
        self._fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        self.takes_types = "token_type_ids" in takes and pipeline.encoder.wants_token_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(B, S) ids, mask and segments -> (B, C) logits."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self._fixed)
        logits: Tensor = self.head(pool_padded(hidden.last_hidden_state, attention_mask, self.pooling))
        return logits


def require_packages() -> None:
    """Refuse to begin without the packages.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "exporting to ONNX needs packages that are not installed",
            got=f"no {', '.join(missing)}",
            do="pip install 'qlassify[onnx]'",
        )


def write_onnx(pipeline: ClassifyPipeline, tokenizer: ExportTokenizer, directory: Path) -> Written:
    """Write the graph and the tokeniser; the pipeline's adapters are merged already and its weights are fp32."""
    model: Any = pipeline.backbone.model
    fill_low_bit(model, torch.float32)
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # an architecture whose attention is not one product (soft caps, relative positions)
        model.set_attn_implementation("eager")
    classifier = PaddedClassifier(pipeline).eval()
    ids = torch.full(_EXAMPLE_SHAPE, int(pipeline.encoder.fallback_token_id))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    ids[1, 4:] = tokenizer.pad_token_id
    arguments = (ids, mask, torch.zeros_like(ids)) if classifier.takes_types else (ids, mask)
    open_sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # The exporter reports its progress on standard output and warns of its own dependencies; what it makes is compared
    # with the classifier afterwards.
    with torch.no_grad(), warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            classifier,
            arguments,
            dynamo=True,
            dynamic_shapes=tuple(open_sizes for _ in arguments),
            input_names=["input_ids", "attention_mask", "token_type_ids"][: len(arguments)],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.save(str(directory / GRAPH))
    tokenizer.tokenizer.save_pretrained(str(directory))
    return Written("onnxruntime.InferenceSession", snippets.onnx(pipeline))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without its remarks on standard output and in the log, such as that torchvision is not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def load_onnx_runner(directory: Path) -> tuple[str, Runner]:
    """The graph in onnxruntime, on the CPU."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory / GRAPH), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(batch: PaddedBatch) -> Logits:
        arrays = {"token_type_ids": np.zeros_like(batch.input_ids), **batch.named()}
        logits: Logits = session.run(None, {name: arrays[name] for name in names})[0]
        return logits

    return "onnxruntime", run
