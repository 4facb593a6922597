"""The exported padding token: never one that texts end with, never one that the model has no row for."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_worlds import TEXTS, Ends, save_words

from qlassify.data.tokenise import TextEncoder
from qlassify.errors import ModelError
from qlassify.export.padding import NEW_PADDING, ExportTokenizer, export_tokenizer

VOCABULARY = 34
"""Four special tokens and thirty words."""


def encoder_of(directory: Path, ends: Ends) -> TextEncoder:
    save_words(directory, ends)
    return TextEncoder.load(directory, 16)


def exported(encoder: TextEncoder, *, may_grow: bool = True, by_padding: bool = True) -> ExportTokenizer:
    return export_tokenizer(
        encoder,
        vocab_size=VOCABULARY,
        by_padding=by_padding,
        pairs=False,
        sample=encoder.encode(list(TEXTS)),
        may_grow=may_grow,
    )


@pytest.mark.parametrize(
    ("ends", "expected", "noted"),
    [
        (Ends(None, "[SEP]", pad="[PAD]", eos="[SEP]"), "[PAD]", False),
        (Ends(None, None, pad="[SEP]", eos="[SEP]"), "[SEP]", False),
        (Ends(None, None, pad=None, eos="[SEP]"), "[SEP]", True),
        (Ends(None, "[SEP]", pad="[SEP]", eos="[SEP]", bos="[CLS]"), "[CLS]", True),
        (Ends(None, "[SEP]", pad="[SEP]", eos="[SEP]"), NEW_PADDING, True),
    ],
)
def test_the_first_token_that_no_text_ends_with(ends: Ends, expected: str, noted: bool, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, ends)
    found = exported(encoder)
    assert found.tokenizer.pad_token == expected
    assert found.tokenizer.pad_token_id == found.pad_token_id
    assert found.rows == (VOCABULARY + 1 if expected == NEW_PADDING else VOCABULARY)
    assert (found.note is not None) is noted
    # The classifier's own tokeniser is left as it was.
    assert encoder.tokenizer.pad_token == ends.pad


def test_a_word_that_texts_end_with_is_found_in_the_sample(tmp_path: Path) -> None:
    """The tokeniser adds nothing; that padding will not do shows only in the texts."""
    encoder = encoder_of(tmp_path, Ends(None, None, pad="saw", eos="[SEP]"))
    assert TEXTS[-1].endswith("saw")
    assert exported(encoder).tokenizer.pad_token == "[SEP]"


def test_where_nothing_may_grow_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no token of the tokeniser can be padding") as caught:
        exported(encoder_of(tmp_path, Ends(None, "[SEP]", pad="[SEP]", eos="[SEP]")), may_grow=False)
    assert "[SEP]" in str(caught.value)


def test_a_token_beyond_the_models_table_is_not_taken_where_nothing_may_grow(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, Ends(None, None, pad=None, eos="[SEP]"))
    encoder.tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    assert exported(encoder, may_grow=False).tokenizer.pad_token == "[SEP]"
    assert exported(encoder).rows == VOCABULARY + 1


def test_where_padding_is_masked_any_token_will_do(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, Ends(None, "[SEP]", pad="[SEP]", eos="[SEP]"))
    assert exported(encoder, by_padding=False, may_grow=False).tokenizer.pad_token == "[SEP]"


def test_length_and_sides_are_those_of_the_classifier(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, Ends())
    encoder.tokenizer.padding_side = encoder.tokenizer.truncation_side = "left"
    tokenizer = exported(encoder).tokenizer
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == ("right", "right", 16)
    long = " ".join(TEXTS) + " the end"
    assert tokenizer(long, truncation=True)["input_ids"] == encoder.encode([long]).row(0).tolist()
