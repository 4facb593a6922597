"""Small tokenisers of bytes, as decoders have them, trained on the texts of ``tiny_jobs``."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tiny_jobs import make_rows

TEXTS = [text for text, _ in make_rows(60, seed=4)] + [
    "The DOG, 12345 times!",
    "größer\n\n als  das",
    "don't ½ 你好",
    "cafe\u0301 an A\u030a",
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(vocabulary: int, split: str, *, composing: bool = False) -> tokenizers.Tokenizer:
    """A tokeniser of bytes with three special tokens behind its vocabulary.

    Args:
        vocabulary: its size without the special tokens.
        split: the pattern by which text is split before merges.
        composing: whether letters and their accents are made one character first, as Qwen's do.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if composing:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    return tokenizer


def tokens_of(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """All tokens in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def merges_of(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The merges in their order, as model files write them."""
    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
