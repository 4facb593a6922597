"""A whole small world for training tests: a tiny BERT with a tokeniser of its own, and texts that can be learned.

The vocabulary is forty words. A text is a handful of filler words with one or two words of its class among them, so a
classifier that learns at all gets nearly everything right and one that does not stays at chance. The weights are those
of ``tiny_models``: random, but large enough that every difference in a batch shows in the logits.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from qlassify.artifact import HEAD
from qlassify.config.method import LoraConfig
from qlassify.data.tokenise import Encoded, TextEncoder
from qlassify.methods.inject import Attachment, attach
from qlassify.methods.state import CONFIG_FILE, WEIGHTS_FILE
from qlassify.models.backbone import load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.training.loss import Objective
from qlassify.training.optimizer import Optimizer
from qlassify.training.step import Stepper, head_parameters
from tiny_models import save_tiny_model

FILLERS = ("the", "a", "one", "some", "is", "was", "near", "under", "over", "with", "and", "or", "very", "quite", "not")
CLASS_WORDS = {
    "beast": ("dog", "cat", "horse", "cow", "goat"),
    "fruit": ("apple", "pear", "plum", "grape", "fig"),
    "tool": ("hammer", "saw", "drill", "rake", "axe"),
}
LABELS = tuple(CLASS_WORDS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MODEL_FILES = (WEIGHTS_FILE, HEAD, CONFIG_FILE, "classifier.json", "tokenizer.json")
"""What makes two trained classifiers the same one."""


def save_tiny_base(directory: Path, *, seed: int = 0) -> Path:
    """Write a base model directory that ``qlassify`` takes: two layers of width 64, 64 positions, a word tokeniser."""
    save_tiny_model("bert", directory, seed=seed, num_hidden_layers=2, max_position_embeddings=64)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """Write the word tokeniser: one id per known word, classification and separation tokens, segments for pairs."""
    words = SPECIAL + FILLERS + tuple(word for group in CLASS_WORDS.values() for word in group)
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(str(directory))


def make_rows(count: int, *, seed: int = 0, longest: int = 9) -> list[tuple[str, str]]:
    """``count`` different (text, label), the labels in turn; the same for the same arguments."""
    generator = np.random.default_rng(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = LABELS[len(rows) % len(LABELS)]
        words = list(generator.choice(FILLERS, size=int(generator.integers(2, longest))))
        for _ in range(int(generator.integers(1, 3))):
            words.insert(int(generator.integers(0, len(words) + 1)), str(generator.choice(CLASS_WORDS[label])))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def make_pair_rows(count: int, *, seed: int = 0) -> list[tuple[str, str, str]]:
    """``count`` different (text, second text, label): ``same`` when both speak of one class of things."""
    generator = np.random.default_rng(seed)
    rows: dict[tuple[str, str], str] = {}
    while len(rows) < count:
        same = len(rows) % 2 == 0
        first = int(generator.integers(0, len(LABELS)))
        second = first if same else (first + int(generator.integers(1, len(LABELS)))) % len(LABELS)
        texts = [
            f"{generator.choice(FILLERS)} {generator.choice(CLASS_WORDS[LABELS[index]])} {generator.choice(FILLERS)}"
            for index in (first, second)
        ]
        rows.setdefault((texts[0], texts[1]), "same" if same else "other")
    return [(first, second, label) for (first, second), label in rows.items()]


def make_multi_label_rows(count: int, *, seed: int = 0) -> list[tuple[str, list[str]]]:
    """``count`` different (text, labels): all classes of which the text has a word, from none to three."""
    generator = np.random.default_rng(seed)
    rows: dict[str, list[str]] = {}
    while len(rows) < count:
        labels = [label for label in LABELS if generator.random() < 0.5]
        words = list(generator.choice(FILLERS, size=int(generator.integers(2, 6))))
        words += [str(generator.choice(CLASS_WORDS[label])) for label in labels]
        rows.setdefault(" ".join(generator.permutation(words)), labels)
    return list(rows.items())


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write rows as CSV, TSV, JSONL or Parquet, by the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import polars

        polars.DataFrame([dict(zip(header, row, strict=True)) for row in rows]).write_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(header)
            writer.writerows(rows)
    return path


def job_settings(base: Path, data: Path, **training: Any) -> dict[str, Any]:
    """Settings of a run of a second or two: fp32 on the CPU, rank 4."""
    return {
        "data": {"train": str(data), "eval_fraction": 0.25},
        "model": {"base": str(base), "precision": "fp32", "device": "cpu"},
        "method": {"rank": 4, "alpha": 8.0},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "head_learning_rate": 1e-2, **training},
        "seed": 3,
    }


def model_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a run's or a save's model folder that have to be equal when two classifiers are."""
    return {name: (folder / name).read_bytes() for name in MODEL_FILES}


class TinyTraining:
    """A stepper over a tiny classifier, with everything it is made of at hand.

    Args:
        base: a directory from ``save_tiny_base``.
        num_classes: classes of the head.
        objective: the loss; plain cross-entropy when None.
        clip_norm: largest gradient norm.
        dropout: of the adapters.
        dtype: fp32, or float64 for numerical comparisons.
        learning_rate: of everything.
        warm: whether to give ``lora_B`` and the head values away from their start, so that every gradient is nonzero.
    """

    def __init__(
        self,
        base: Path,
        *,
        num_classes: int = 3,
        objective: Objective | None = None,
        clip_norm: float | None = 1.0,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        learning_rate: float = 5e-3,
        warm: bool = False,
    ) -> None:
        backbone = load_backbone(base, dtype)
        config = LoraConfig(rank=4, alpha=8.0, dropout=dropout)
        self.attachment: Attachment = attach(backbone.model, config, seed=1)
        head = ClassificationHead(backbone.hidden_size, num_classes, seed=1, dtype=dtype)
        self.classifier = Classifier(backbone, head, "cls")
        self.optimizer = Optimizer(
            self.attachment.parameters(),
            head_parameters(self.classifier),
            learning_rate=learning_rate,
            head_learning_rate=learning_rate,
            weight_decay=0.01,
        )
        self.stepper = Stepper(self.classifier, self.optimizer, objective or Objective(), clip_norm)
        self.encoder = TextEncoder.load(base, 64)
        if warm:
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for parameter in self.optimizer.parameters.values():
                    parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.1)

    def encode(self, rows: Sequence[tuple[str, str]]) -> tuple[Encoded, np.ndarray]:
        """Token ids and class numbers of (text, label) rows."""
        encoded = self.encoder.encode([text for text, _ in rows])
        return encoded, np.array([LABELS.index(label) for _, label in rows], dtype=np.int64)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Copies of the gradients that are summed so far."""
        return {
            name: parameter.grad.clone()
            for name, parameter in self.optimizer.parameters.items()
            if parameter.grad is not None
        }
