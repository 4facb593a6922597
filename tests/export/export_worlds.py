"""Classifiers to export: every tiny architecture with a word tokeniser, a method, and a head that shows.

Adapters and head are random and large, so that a lost adapter, another token or another head changes every logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing

from qlassify import ClassifyPipeline, RunConfig
from qlassify.evaluation.predict import predict_logits
from tiny_jobs import CLASS_WORDS, FILLERS, LABELS
from tiny_models import FAMILIES, save_tiny_model

WORDS = FILLERS + tuple(word for group in CLASS_WORDS.values() for word in group)
TEXTS = (
    "the dog was near a horse and a cow",
    "apple",
    "some hammer is under the plum or the pear with one fig and one grape very near",
    "not a saw",
)
SECOND_TEXTS = ("a cat", "the drill is quite very near the axe", "goat", "and a rake")
OURS_TO_THEIRS = {"rtol": 1e-4, "atol": 1e-4}
"""The same fp32 arithmetic on packed and on padded texts, four layers deep: a few units of rounding of logits of
order one to ten, as the parity of the backbones has it."""


@dataclass(frozen=True)
class Ends:
    """What a tokeniser puts around a text, and its special tokens.

    Attributes:
        before: token before a text, or none.
        after: token behind a text, or none.
        pad: padding token, or none.
        eos: end-of-text token, or none.
        bos: beginning-of-text token, or none.
    """

    before: str | None = "[CLS]"
    after: str | None = "[SEP]"
    pad: str | None = "[PAD]"
    eos: str | None = None
    bos: str | None = None


ENCODER, DECODER = Ends(), Ends(before=None, after=None, pad=None, eos="[SEP]")


def save_words(directory: Path, ends: Ends, *, pad_first: bool = True, types: bool = False) -> None:
    """Write a tokeniser of the forty words; the padding token has id 0, or 1 as RoBERTa's has."""
    special = ("[PAD]", "[UNK]") if pad_first else ("[UNK]", "[PAD]")
    numbers = {word: number for number, word in enumerate((*special, "[CLS]", "[SEP]", *WORDS))}
    backend = tokenizers.Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    before, after = ends.before or "", ends.after or ""
    named = [name for name in (ends.before, ends.after) if name]
    if named:
        backend.post_processor = TemplateProcessing(
            single=f"{before} $A {after}".strip(),
            pair=f"{before} $A {after} $B:1 {after}:1".replace(" :1", "").strip(),
            special_tokens=[(name, numbers[name]) for name in dict.fromkeys(named)],
        )
    given = {"pad_token": ends.pad, "eos_token": ends.eos, "bos_token": ends.bos, "unk_token": "[UNK]"}
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=names,
        **{name: value for name, value in given.items() if value},
    ).save_pretrained(str(directory))


def save_letters(directory: Path) -> None:
    """Write a tokeniser of letters, in the byte-level kind that transformers makes of any Qwen2 directory's."""
    numbers = {
        token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ġ", *ascii_lowercase))
    }
    backend = tokenizers.Tokenizer(BPE(numbers, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(str(directory))


def save_base(name: str, directory: Path, ends: Ends | None = None, **changes: Any) -> Path:
    """Write a tiny base model of a family with its tokeniser."""
    family = FAMILIES[name]
    save_tiny_model(name, directory, **changes)
    if name == "qwen2":
        save_letters(directory)
        return directory
    save_words(
        directory,
        ends or (DECODER if family.causal else ENCODER),
        pad_first=family.pad_token_id == 0,
        types=family.has_token_types,
    )
    return directory


def make_pipeline(
    base: Path,
    *,
    pooling: str = "auto",
    method: dict[str, Any] | None = None,
    labels: Sequence[str] = LABELS,
    precision: str = "fp32",
    text_pair: bool = False,
    head_bias: bool | str = "auto",
) -> ClassifyPipeline:
    """A classifier whose adapters and head are random and large."""
    run = RunConfig.parse(
        {
            "model": {
                "base": str(base),
                "pooling": pooling,
                "max_length": 64,
                "precision": precision,
                "device": "cpu",
                "head_bias": head_bias,
            },
            "method": method or {"rank": 4, "alpha": 8.0},
        }
    )
    pipeline = ClassifyPipeline.from_pretrained(base, run, labels=labels)
    # Texts that all came to unknown tokens would show nothing.
    assert len(set(pipeline.encoder.encode(list(TEXTS)).token_ids.tolist())) > 15
    pipeline.text_pair = text_pair
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in pipeline.trainable_parameters().items():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if name.startswith("head.") else 0.1))
    return pipeline


def our_logits(
    pipeline: ClassifyPipeline, texts: Sequence[str] = TEXTS, pairs: Sequence[str] | None = None
) -> npt.NDArray[np.float32]:
    """(N, C) logits of texts, packed."""
    encoded = pipeline.encoder.encode(list(texts), None if pairs is None else list(pairs))
    return predict_logits(pipeline.trainable.classifier, encoded)


@torch.no_grad()
def their_logits(
    model: Any, directory: Path, texts: Sequence[str] = TEXTS, pairs: Sequence[str] | None = None
) -> npt.NDArray[np.float32]:
    """(N, C) logits of texts through an exported tokeniser and a model of transformers' kind, in one padded batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        list(texts), None if pairs is None else list(pairs), padding=True, truncation=True, return_tensors="pt"
    )
    assert batch["attention_mask"].min() == 0, "the batch has to be padded to show anything"
    logits: npt.NDArray[np.float32] = model(**batch).logits.float().numpy()
    return logits
