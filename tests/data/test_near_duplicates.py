"""Near duplicates against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data import near_duplicates as module
from qlassify.data.near_duplicates import BUCKET_WINDOW, SHINGLE_CHARS, THRESHOLD, near_duplicates
from qlassify.data.similar import SimilarPairs, components


def jaccard(one: str, other: str) -> float:
    sets = [
        {text[i : i + SHINGLE_CHARS] for i in range(max(1, len(text) - SHINGLE_CHARS + 1))} for text in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    found = {(i, j): jaccard(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)}
    return {pair: similarity for pair, similarity in found.items() if similarity >= THRESHOLD}


def as_dict(pairs: SimilarPairs) -> dict[tuple[int, int], float]:
    return dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.similarity, strict=True))


words = st.sampled_from(["card", "my", "is", "lost", "the", "bank", "transfer", "money", "abroad", "please", "when"])
sentences = st.lists(words, min_size=4, max_size=16).map(" ".join)
edits = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc .")), max_size=4)


def edited(text: str, changes: list[tuple[int, str]]) -> str:
    for place, letter in changes:
        text = text[:place] + letter + text[place + 1 :]
    return text


@settings(max_examples=60)
@given(st.lists(st.tuples(sentences, edits), min_size=2, max_size=12), st.integers(0, 3))
def test_the_pairs_of_brute_force(data: list[tuple[str, list[tuple[int, str]]]], seed: int) -> None:
    texts = list(dict.fromkeys(text for sentence, changes in data for text in (sentence, edited(sentence, changes))))
    pairs = near_duplicates(texts, seed=seed)
    wanted = brute_force(texts)
    # Nothing is there that brute force does not have, and similarities are those of its sets to the last bit; a pair
    # just above the threshold is missed with a chance of 3e-6 (the module says why), which no run of this test meets.
    assert as_dict(pairs) == wanted
    assert pairs.complete
    assert pairs.capped_buckets == 0


@pytest.mark.parametrize("kept", [0.80, 0.90])
def test_recall_at_the_threshold(kept: float) -> None:
    generator = np.random.default_rng(11)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    texts = []
    for _ in range(400):
        # With s shared and d own shingles on each side, J = s / (s + 2 d): equal beginnings and different ends.
        own = 40
        shared = int(np.ceil(2 * own * kept / (1 - kept)))
        common = "".join(generator.choice(letters, shared + SHINGLE_CHARS - 1))
        texts += [common + "".join(generator.choice(letters, own)) for _ in range(2)]
    found = as_dict(near_duplicates(texts, seed=7))
    wanted = [(i, i + 1) for i in range(0, len(texts), 2)]
    assert all(jaccard(texts[i], texts[j]) >= THRESHOLD for i, j in wanted)
    # 400 pairs, each missed with a chance of 3e-6 at most: one miss in a thousand such tests.
    assert sorted(found) == wanted


def test_a_thousand_near_copies_are_one_group_and_the_cap_is_told() -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away into the wood where it lives with ten others, no."
    texts = [f"{text} {number}" for number in range(1000)]
    pairs = near_duplicates(texts, seed=0)
    assert pairs.capped_buckets > 0
    assert set(components(len(texts), pairs).tolist()) == {0}
    # Far fewer than the half million of all pairs: at most a window's worth for each band.
    assert pairs.num_compared <= 1000 * BUCKET_WINDOW * module.NUM_BANDS
    assert pairs.num_compared < 1000 * 999 // 2


def test_a_search_that_stops_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the same old sentence in many rows of a file, again and again " + "x" * n for n in range(30)]
    whole = as_dict(near_duplicates(texts, seed=0))
    monkeypatch.setattr(module, "MAX_PAIRS", 5)
    cut = near_duplicates(texts, seed=0)
    assert not cut.complete
    assert cut.num_compared == 5
    assert as_dict(cut).items() <= whole.items()


@pytest.mark.parametrize("texts", [[], ["alone"], ["", "a"], ["a", "b", "ab"]])
def test_little_text(texts: list[str]) -> None:
    pairs = near_duplicates(texts, seed=0)
    assert len(pairs) == 0
    assert components(len(texts), pairs).tolist() == list(range(len(texts)))


def test_the_same_for_the_same_seed() -> None:
    texts = [f"row {n % 7} of a file with the number {n // 7} in its text" for n in range(60)]
    one, again = near_duplicates(texts, seed=4), near_duplicates(texts, seed=4)
    assert as_dict(one) == as_dict(again)
    assert one.num_compared == again.num_compared


@settings(max_examples=40)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_what_steps_lead_to(graph: tuple[int, list[tuple[int, int]]]) -> None:
    number, steps = graph
    first, second = (np.array([step[side] for step in steps], np.int64) for side in (0, 1))
    pairs = SimilarPairs(first, second, np.ones(len(steps)), 0, 0, True)
    group_of = list(range(number))
    for _ in range(number):
        for i, j in steps:
            group_of[i] = group_of[j] = min(group_of[i], group_of[j])
    assert components(number, pairs).tolist() == group_of
