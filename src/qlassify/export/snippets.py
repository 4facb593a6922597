"""Programs that load an export and predict. Each is what a README shows, and tests run it as it stands."""

from __future__ import annotations

from typing import Any

from qlassify.artifact import HEAD
from qlassify.models.backbone import has_optional_pooler
from qlassify.models.pooling import PoolingMode
from qlassify.pipeline import ClassifyPipeline

DIRECTORY = "{directory}"
"""What stands for the place of the export until that is known."""

_VECTORS: dict[PoolingMode, str] = {
    "cls": "vectors = hidden[:, 0]",
    "last": 'vectors = hidden[torch.arange(len(hidden)), batch["attention_mask"].sum(1) - 1]',
    "mean": 'mask = batch["attention_mask"].unsqueeze(-1)\n    vectors = (hidden * mask).sum(1) / mask.sum(1)',
}


def _texts(pipeline: ClassifyPipeline) -> str:
    return '["some text"], ["another"]' if pipeline.text_pair else '["some text", "another, longer text"]'


def _labels(pipeline: ClassifyPipeline) -> str:
    """The names as a Python list; one that has the sign for the directory in it is spelled so that it stays a name."""
    return repr(list(pipeline.labels.names)).replace(DIRECTORY, "\\x7b" + DIRECTORY[1:])


def _decision(pipeline: ClassifyPipeline, logits: str, names: str) -> str:
    if not pipeline.labels.multi_label:
        return f"print([{names}[index] for index in {logits}.argmax(1).tolist()])\n"
    return (
        f"given = ({logits}.sigmoid() >= torch.tensor({thresholds(pipeline)})).tolist()\n"
        f"print([[{names}[index] for index, on in enumerate(row) if on] for row in given])\n"
    )


def thresholds(pipeline: ClassifyPipeline) -> list[float]:
    """From which probability each label is given, to six digits."""
    return [round(one, 6) for one in pipeline.decision.label_thresholds(len(pipeline.labels)).tolist()]


def _tokens(pipeline: ClassifyPipeline, kind: str = "pt") -> str:
    return f'batch = tokenizer({_texts(pipeline)}, padding=True, truncation=True, return_tensors="{kind}")\n'


def sequence_classification(pipeline: ClassifyPipeline) -> str:
    """``AutoModelForSequenceClassification``."""
    return (
        "import torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({DIRECTORY})\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({DIRECTORY}).eval()\n"
        f"{_tokens(pipeline)}"
        "with torch.no_grad():\n"
        "    logits = model(**batch).logits\n" + _decision(pipeline, "logits", "model.config.id2label")
    )


def base_and_head(pipeline: ClassifyPipeline, model: Any) -> str:
    """``AutoModel`` and ``head.safetensors``."""
    extra = ", add_pooling_layer=False" if has_optional_pooler(model) else ""
    return (
        "import torch\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({DIRECTORY})\n"
        f"model = AutoModel.from_pretrained({DIRECTORY}{extra}).eval()\n"
        f'head = load_file({DIRECTORY} + "/{HEAD}")\n'
        f"{_tokens(pipeline)}"
        "with torch.no_grad():\n"
        "    hidden = model(**batch).last_hidden_state.float()\n"
        f"    {_VECTORS[pipeline.pooling]}\n"
        '    logits = torch.nn.functional.linear(vectors, head["weight"], head.get("bias"))\n'
        + _decision(pipeline, "logits", "model.config.id2label")
    )


def sentence_transformers(pipeline: ClassifyPipeline) -> str:
    """``SentenceTransformer.encode``, whose vectors are the logits."""
    texts = '[("some text", "another")]' if pipeline.text_pair else '["some text", "another, longer text"]'
    return (
        "from sentence_transformers import SentenceTransformer\n\n"
        f"labels = {_labels(pipeline)}\n"
        f"model = SentenceTransformer({DIRECTORY})\n"
        f"logits = model.encode({texts}, convert_to_tensor=True)\n" + _decision(pipeline, "logits", "labels")
    )


def adapter(pipeline: ClassifyPipeline, settings: str) -> str:
    """``PeftModel`` on ``AutoModelForSequenceClassification``."""
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"labels = {_labels(pipeline)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({DIRECTORY})\n"
        "base = AutoModelForSequenceClassification.from_pretrained(\n"
        f"    {str(pipeline.source.directory)!r}, num_labels=len(labels){settings}\n"
        ")\n"
        f"model = PeftModel.from_pretrained(base, {DIRECTORY}).eval()\n"
        f"{_tokens(pipeline)}"
        "with torch.no_grad():\n"
        "    logits = model(**batch).logits\n" + _decision(pipeline, "logits", "labels")
    )


def base_adapter(pipeline: ClassifyPipeline, model: Any) -> str:
    """``PeftModel`` on ``AutoModel``, and ``head.safetensors``."""
    extra = ", add_pooling_layer=False" if has_optional_pooler(model) else ""
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f"labels = {_labels(pipeline)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({DIRECTORY})\n"
        f"base = AutoModel.from_pretrained({str(pipeline.source.directory)!r}{extra})\n"
        f"model = PeftModel.from_pretrained(base, {DIRECTORY}).eval()\n"
        f'head = load_file({DIRECTORY} + "/{HEAD}")\n'
        f"{_tokens(pipeline)}"
        "with torch.no_grad():\n"
        "    hidden = model(**batch).last_hidden_state.float()\n"
        f"    {_VECTORS[pipeline.pooling]}\n"
        '    logits = torch.nn.functional.linear(vectors, head["weight"], head.get("bias"))\n'
        + _decision(pipeline, "logits", "labels")
    )


def onnx(pipeline: ClassifyPipeline) -> str:
    """onnxruntime."""
    decision = (
        "print([[labels[index] for index, one in enumerate(row) if one >= 0] for row in logits - shift])\n"
        if pipeline.labels.multi_label
        else "print([labels[index] for index in logits.argmax(1)])\n"
    )
    shift = (
        f"shift = np.log(1 / (1 / np.array({thresholds(pipeline)}) - 1))  # the logits from which labels are given\n"
        if pipeline.labels.multi_label
        else ""
    )
    return (
        ("import numpy as np\n" if pipeline.labels.multi_label else "") + "import onnxruntime\n"
        "from transformers import AutoTokenizer\n\n"
        f"labels = {_labels(pipeline)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({DIRECTORY})\n"
        f'session = onnxruntime.InferenceSession({DIRECTORY} + "/model.onnx")\n'
        f"{_tokens(pipeline, 'np')}"
        "logits = session.run(None, {one.name: batch[one.name] for one in session.get_inputs()})[0]\n"
        f"{shift}{decision}"
    )
