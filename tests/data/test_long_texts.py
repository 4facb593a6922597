"""Texts longer than the limit: windows are those of transformers' own tokeniser, everything else is counted by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.long_reading import long_reading, wording
from qlassify.data.long_texts import LongTexts
from qlassify.data.merge import merge_rows
from qlassify.data.packing import micro_batches, pack, pack_in_order
from qlassify.data.stats import DataStats
from qlassify.data.tokenise import Encoded, TextEncoder
from qlassify.errors import ConfigError
from tiny_jobs import FILLERS, save_tokenizer

NAMES = ["bert-base-uncased", "roberta-base", "gpt2", "tinyllama-1.1b", "modernbert-base"]
LONG = " ".join(f"[CLS] number {n} of naïve 東京 words, 👍🏽" for n in range(40))
SPECIAL = 2
"""Special tokens of the word tokeniser: one before and one behind a text."""


@functools.cache
def words_of(count: int) -> str:
    """A text of so many words, each of them one token; no two neighbours are the same."""
    return " ".join(FILLERS[n % len(FILLERS)] for n in range(count))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return TextEncoder.load(directory, 64).tokenizer


def windows_of(encoded: Encoded, row: int) -> list[list[int]]:
    """The sequences of a row."""
    ids = encoded.row(row).tolist()
    if encoded.windows is None:
        return [ids]
    lengths = encoded.windows.lengths[encoded.windows.offsets[row] : encoded.windows.offsets[row + 1]]
    ends = np.cumsum(lengths)
    return [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]


# Against transformers


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("limit", "overlap"), [(16, 0), (16, 5), (40, 10), (40, 30)])
def test_windows_are_transformers_overflowing_tokens(name: str, limit: int, overlap: int, shared_folder: Path) -> None:
    """All but the last, which theirs leaves short and ours moves back until it is full."""
    folder = shared_folder / "models" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("published without a tokenizer.json")
    encoder = TextEncoder.load(folder, limit, LongTexts("windows", overlap, 1000))
    theirs = encoder.tokenizer(LONG, truncation=True, max_length=limit, stride=overlap, return_overflowing_tokens=True)[
        "input_ids"
    ]
    encoded = encoder.encode([LONG, "short"])
    ours = windows_of(encoded, 0)
    assert len(ours) == len(theirs) > 2
    assert ours[:-1] == theirs[:-1]
    whole = encoder.tokenizer(LONG)["input_ids"]
    text = encoder.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    before = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    room = limit - (len(whole) - len(text))
    assert ours[-1] == [*whole[:before], *text[-room:], *whole[before + len(text) :]]
    assert encoded.lost_tokens.tolist() == [0, 0]
    assert encoded.whole_lengths.tolist() == [len(whole), len(encoder.tokenizer("short")["input_ids"])]


# Against a plain walk along the text


def plain_windows(text: list[int], limit: int, overlap: int, most: int) -> list[list[int]]:
    """Walk along the text; a window that would reach beyond its end is moved back."""
    room = limit - SPECIAL
    found, start = [], 0
    while True:
        if start + room >= len(text):
            return ([*found, text[-room:] if len(text) > room else text])[:most]
        found.append(text[start : start + room])
        start += room - overlap


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    limit=st.integers(4, 30),
    overlap=st.none() | st.integers(0, 27),
    most=st.integers(1, 8),
)
def test_windows_of_any_texts(tokenizer: Any, lengths: list[int], limit: int, overlap: int | None, most: int) -> None:
    long = LongTexts("windows", overlap, most)
    if overlap is not None and overlap >= limit - SPECIAL:
        with pytest.raises(ConfigError, match="overlap"):
            TextEncoder(tokenizer, limit, long)
        return
    shared = min(limit // 4, limit - SPECIAL - 1) if overlap is None else overlap
    encoder = TextEncoder(tokenizer, limit, long)
    assert encoder.long.window_overlap == shared
    encoded = encoder.encode([words_of(length) for length in lengths])
    several = False
    for row, length in enumerate(lengths):
        first, *text, last = tokenizer(words_of(length))["input_ids"]
        wanted = plain_windows(text, limit, shared, most)
        several |= len(wanted) > 1
        assert windows_of(encoded, row) == [[first, *window, last] for window in wanted]
        # Neighbouring words differ, so what is read can be counted as the part of the text up to the last window's end.
        read = min(length, (len(wanted) - 1) * (limit - SPECIAL - shared) + limit - SPECIAL)
        assert encoded.lost_tokens[row] == length - read
        assert encoded.whole_lengths[row] == length + SPECIAL
    assert (encoded.windows is not None) == several
    assert encoder.long.unread(encoded.whole_lengths, limit, SPECIAL) == encoded.lost_tokens.sum()


@settings(deadline=None, max_examples=60)
@given(length=st.integers(0, 90), limit=st.integers(4, 40))
def test_head_and_tail_of_any_text(tokenizer: Any, length: int, limit: int) -> None:
    encoder = TextEncoder(tokenizer, limit, LongTexts("head_tail"))
    encoded = encoder.encode([words_of(length)])
    first, *text, last = tokenizer(words_of(length))["input_ids"]
    if length > limit - SPECIAL:
        head = min(limit // 4, limit - SPECIAL - 1)
        text = text[:head] + text[length - (limit - SPECIAL - head) :]
    assert encoded.row(0).tolist() == [first, *text, last]
    assert encoded.windows is None
    assert encoded.lost_tokens.tolist() == [max(0, length + SPECIAL - limit)]


def test_head_and_tail_are_sun_and_others_128_and_382() -> None:
    """arXiv:1905.05583, section 5.3.1, of 510 tokens beside BERT's two special ones."""
    assert LongTexts("head_tail").sequences(2000, 512, 2) == [((0, 128), (2000 - 382, 2000))]


@pytest.mark.parametrize("policy", ["head_tail", "windows"])
def test_texts_that_fit_are_untouched(policy: Any, tokenizer: Any) -> None:
    texts = ["", "dog", words_of(5), words_of(14)]
    wanted = TextEncoder(tokenizer, 16).encode(texts)
    found = TextEncoder(tokenizer, 16, LongTexts(policy)).encode(texts)
    assert found.token_ids.tobytes() == wanted.token_ids.tobytes()
    assert found.offsets.tobytes() == wanted.offsets.tobytes()
    assert found.windows is None
    assert found.lost_tokens.tolist() == wanted.lost_tokens.tolist() == [0] * 4


def test_one_window_is_truncation(tokenizer: Any) -> None:
    texts = [words_of(40), "dog", words_of(15)]
    wanted = TextEncoder(tokenizer, 16).encode(texts)
    found = TextEncoder(tokenizer, 16, LongTexts("windows", None, 1)).encode(texts)
    assert found.token_ids.tolist() == wanted.token_ids.tolist()
    assert found.lost_tokens.tolist() == wanted.lost_tokens.tolist() == [26, 0, 1]


# Pairs


def plain_longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """One token at a time off the longer side; where both are as long, off the one that was shorter to begin with."""
    sides = [first, second]
    shorter = 1 if second < first else 0
    while sum(sides) > room:
        longer = shorter if sides[0] == sides[1] else int(sides[1] > sides[0])
        sides[longer] -= 1
    return sides[0], sides[1]


@settings(deadline=None, max_examples=80)
@given(first=st.integers(0, 40), second=st.integers(0, 40), limit=st.integers(5, 60))
def test_pairs_are_cut_at_their_longer_side(tokenizer: Any, first: int, second: int, limit: int) -> None:
    encoded = TextEncoder(tokenizer, limit).encode([words_of(first)], [words_of(second)])
    special = 3
    kept = plain_longest_first(first, second, limit - special)
    start, *one, middle = tokenizer(words_of(first))["input_ids"]
    _, *two, end = tokenizer(words_of(second))["input_ids"]
    assert encoded.row(0).tolist() == [start, *one[: kept[0]], middle, *two[: kept[1]], end]
    assert encoded.lost_tokens.tolist() == [first + second - sum(kept)]


@pytest.mark.parametrize("policy", ["head_tail", "windows"])
def test_pairs_are_refused(policy: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.long") as caught:
        TextEncoder(tokenizer, 16, LongTexts(policy)).encode(["a dog"], ["a cat"])
    assert "model.long=truncate" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "where"),
    [(("all",), "model.long"), (("windows", -1), "model.window_overlap"), (("windows", 1, 0), "model.max_windows")],
)
def test_values_out_of_range_are_refused(values: Any, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LongTexts(*values)
    assert caught.value.where == where


def test_a_limit_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.max_length"):
        LongTexts("windows").settled(4, 4)


# Rows of several sequences


def windowed(tokenizer: Any, lengths: list[int]) -> Encoded:
    return TextEncoder(tokenizer, 12, LongTexts("windows", 3)).encode([words_of(length) for length in lengths])


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8), budget=st.integers(5, 90))
def test_micro_batches_keep_a_texts_windows_together(tokenizer: Any, lengths: list[int], budget: int) -> None:
    encoded = windowed(tokenizer, lengths)
    seen: list[int] = []
    for batch in micro_batches(encoded, range(len(lengths)), budget):
        assert batch.num_tokens <= budget or batch.num_rows == 1
        assert batch.row_lengths.tolist() == encoded.lengths[batch.rows].tolist()
        sequences = [window for row in batch.rows for window in windows_of(encoded, int(row))]
        assert batch.lengths.tolist() == [len(window) for window in sequences]
        assert batch.token_ids.tolist() == [token for window in sequences for token in window]
        assert batch.position_ids.tolist() == [place for window in sequences for place in range(len(window))]
        counts = [len(windows_of(encoded, int(row))) for row in batch.rows]
        assert (counts if max(counts) > 1 else None) == (None if batch.windows is None else batch.windows.tolist())
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_rows_from_several_tokenisers_keep_their_windows(tokenizer: Any) -> None:
    one = windowed(tokenizer, [30, 4, 11])
    other = TextEncoder(tokenizer, 8).encode([words_of(3), words_of(20)])
    merged = merge_rows([(np.array([4, 0, 2]), one), (np.array([1, 3]), other)], 5)
    wanted = {4: (one, 0), 0: (one, 1), 2: (one, 2), 1: (other, 0), 3: (other, 1)}
    for row, (part, index) in wanted.items():
        assert windows_of(merged, row) == windows_of(part, index)
    assert merged.whole_lengths.tolist() == [6, 5, 13, 22, 32]
    assert pack_in_order(merged, [4, 1]).windows is not None
    assert pack(merged, [0, 1, 3]).windows is None


def test_statistics_are_of_texts_and_not_of_windows(tokenizer: Any) -> None:
    encoded = windowed(tokenizer, [30, 4, 11])
    assert encoded.whole_lengths.tolist() == [32, 6, 13]
    assert DataStats.from_corpus(encoded, np.array([2, 1])).p99_token_length == 32


# What is read, in numbers


def test_how_much_each_policy_reads(tokenizer: Any) -> None:
    texts = [words_of(length) for length in (3, 40, 100)]
    encoder = TextEncoder(tokenizer, 12, LongTexts("windows", 3, 5))
    encoded = encoder.encode(texts)
    found = long_reading(encoded, encoder, pair=False)
    # Ten words a window, seven further on each time: five windows read 38 words.
    assert found.unread == {"truncate": 30 + 90, "head_tail": 30 + 90, "windows": 2 + 62}
    assert (found.rows, found.longer, found.tokens) == (3, 2, 3 + 40 + 100 + 3 * SPECIAL)
    assert found.computed == encoded.num_tokens == 5 + 5 * 12 + 5 * 12
    said = wording("train", found, encoder.long, 12)
    assert "2 of 3 train texts (66.7 %) are longer than 12 tokens" in said
    assert "does not read 64 tokens (43.0 %)" in said
    assert "truncate would leave out 120 tokens" in said
    for policy in ("truncate", "head_tail"):
        other = TextEncoder(tokenizer, 12, LongTexts(policy, 3, 5))
        assert long_reading(other.encode(texts), other, pair=False).unread == found.unread


def test_what_windows_would_read_with_an_overlap_that_they_would_refuse(tokenizer: Any) -> None:
    """The setting is not in use, so it is not refused; a window then has one token of its own."""
    encoder = TextEncoder(tokenizer, 12, LongTexts("truncate", 50, 5))
    found = long_reading(encoder.encode([words_of(40)]), encoder, pair=False)
    assert found.unread["windows"] == 40 - (10 + 4)


def test_of_pairs_only_what_was_cut_is_said(tokenizer: Any) -> None:
    encoder = TextEncoder(tokenizer, 12)
    found = long_reading(encoder.encode([words_of(9)], [words_of(9)]), encoder, pair=True)
    assert found.unread == {"truncate": 9}
    assert wording("test", found, encoder.long, 12).endswith("model.long=truncate does not read 9 tokens (42.9 %).")
