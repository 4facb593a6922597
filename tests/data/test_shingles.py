"""Shingles against Python's own sets of substrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlassify.data import shingles
from qlassify.data.shingles import code_points, minhash_signatures, sampled_shingles, shared_shingles

# Few letters, so that texts share shingles; one beyond 16 bits, so that a code point is not a UTF-16 unit.
texts_of_few_letters = st.lists(st.text("ab \U0001f600", max_size=30), min_size=2, max_size=8)


def sets_of(texts: list[str], width: int) -> list[set[str]]:
    """The reference: a text shorter than a window is one shingle, an empty text has none."""
    return [{text[i : i + width] for i in range(max(1, len(text) - width + 1))} if text else set() for text in texts]


@settings(max_examples=40)
@given(texts_of_few_letters, st.integers(1, 6))
@example(["", "a", "ab", "abcdefgh"], 3)
def test_shared_shingles_are_those_of_sets_of_substrings(texts: list[str], width: int) -> None:
    first, second = (np.array(side, np.int64) for side in np.triu_indices(len(texts)))
    shared, sizes_first, sizes_second = shared_shingles(texts, first, second, width, seed=3)
    sets = sets_of(texts, width)
    assert shared.tolist() == [len(sets[i] & sets[j]) for i, j in zip(first, second, strict=True)]
    assert sizes_first.tolist() == [len(sets[i]) for i in first]
    assert sizes_second.tolist() == [len(sets[j]) for j in second]


def test_a_short_text_is_not_the_shingle_of_a_longer_one() -> None:
    shared, _, _ = shared_shingles(["ab", "xabx", "\0ab"], np.array([0, 0]), np.array([1, 2]), 3, seed=0)
    assert shared.tolist() == [0, 0]


@settings(max_examples=25)
@given(texts_of_few_letters)
def test_chunks_change_nothing(texts: list[str]) -> None:
    first, second = (np.array(side, np.int64) for side in np.triu_indices(len(texts), 1))
    whole = shared_shingles(texts, first, second, 3, seed=1), minhash_signatures(texts, 3, 8, seed=1)
    whole_sample = sampled_shingles(texts, 3, 10, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shingles, "CHUNK_CHARS", 7)
        parts = shared_shingles(texts, first, second, 3, seed=1), minhash_signatures(texts, 3, 8, seed=1)
        sample = sampled_shingles(texts, 3, 10, seed=1)
    for one, other in zip(whole[0], parts[0], strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(whole[1], parts[1])
    assert np.array_equal(np.sort(whole_sample[0]), np.sort(sample[0]))
    assert whole_sample[2] == sample[2]


def test_code_points_are_characters() -> None:
    codes, offsets = code_points(["aé", "", "\U0001f600"])
    assert codes.tolist() == [0x61, 0xE9, 0x1F600]
    assert offsets.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize(("shared", "own"), [(300, 100), (200, 200), (100, 300)])
def test_signatures_agree_as_often_as_the_jaccard_index(shared: int, own: int) -> None:
    generator = np.random.default_rng(5)

    def drawn(length: int) -> str:
        return "".join(map(chr, generator.integers(0x4E00, 0x9000, length)))

    common = drawn(shared)
    texts = [common + drawn(own), common + drawn(own)]
    one, other = sets_of(texts, 5)
    jaccard = len(one & other) / len(one | other)
    num_values = 4096
    signatures = minhash_signatures(texts, 5, num_values, seed=2)
    agreeing = float((signatures[0] == signatures[1]).mean())
    # A share of 4096 draws has a standard deviation of at most 0.5 / 64; values are not quite independent of one
    # another, since each is one multiplication: five deviations instead of the usual three.
    assert abs(agreeing - jaccard) < 5 * 0.5 / 64


def test_equal_sets_have_equal_signatures_and_empty_texts_agree_with_nothing_else() -> None:
    signatures = minhash_signatures(["abcabcabc", "abcabc", "", "xyzzy"], 3, 16, seed=0)
    assert np.array_equal(signatures[0], signatures[1])
    assert (signatures[2] == np.iinfo(np.uint16).max).all()
    assert not (signatures[0] == signatures[3]).any()


def test_the_seed_decides() -> None:
    texts = ["some text or other", "and another one"]
    one, again, other = (minhash_signatures(texts, 5, 8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_sample_takes_a_shingle_from_all_texts_or_from_none() -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh"), 400)) for _ in range(20)]
    texts += [text[100:300] for text in texts]
    numbers, owners, every = sampled_shingles(texts, 8, limit=2_000, seed=0)
    everything, everyone, one = sampled_shingles(texts, 8, limit=100_000, seed=0)
    assert one == 1
    assert len(everything) == sum(len(text) - 7 for text in texts)
    assert every == -(-len(everything) // 2_000)
    # The sampled ones are all of those whose number is divisible, and nothing else.
    chosen = everything % np.uint64(every) == 0
    assert np.array_equal(numbers, everything[chosen])
    assert np.array_equal(owners, everyone[chosen])
    # Binomial(11,720, 1 / 6) has a standard deviation of 40; duplicates among the halves widen it by a half.
    assert abs(len(numbers) - len(everything) / every) < 5 * 60


def test_texts_shorter_than_a_run_have_none() -> None:
    numbers, owners, every = sampled_shingles(["abc", "abcd", ""], 4, limit=10, seed=0)
    assert (len(numbers), owners.tolist(), every) == (1, [1], 1)


@pytest.mark.parametrize("error", [RuntimeError("no locator"), OSError("no space"), ValueError("damaged")])
def test_without_a_cache_that_works_functions_are_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    njit = shingles.numba.njit

    def without_cache(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise error
        return njit(*arguments, **options)

    monkeypatch.setattr(shingles.numba, "njit", without_cache)
    twice = shingles.compiled(lambda number: 2 * number)
    assert (twice(3), twice(4)) == (6, 8)


def test_chunks_cover_all_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingles, "CHUNK_CHARS", 10)
    texts = ["x" * length for length in (3, 9, 30, 1, 1, 1, 8)]
    chunks = list(shingles._chunks(iter(texts)))
    assert [text for _, chunk in chunks for text in chunk] == texts
    assert [start for start, _ in chunks] == np.cumsum([0, *(len(chunk) for _, chunk in chunks)])[:-1].tolist()
    assert all(sum(map(len, chunk)) <= 10 for _, chunk in chunks if len(chunk) > 1)
    monkeypatch.setattr(shingles, "CHUNK_TEXTS", 2)
    assert [chunk for _, chunk in shingles._chunks(["a", "b", "c", "d", "e"])] == [["a", "b"], ["c", "d"], ["e"]]
