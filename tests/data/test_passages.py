"""Shared passages against brute force over all pairs and all runs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qlassify.data import passages as module
from qlassify.data.passages import MIN_CONTAINMENT, MIN_RUNS, RUN_CHARS, RUN_WINDOW, Passages, shared_passages

LETTERS = list("abcdefghijklmnopqrstuvwxyz ")


def drawn(generator: np.random.Generator, length: int) -> str:
    return "".join(generator.choice(LETTERS, length))


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    runs = [{text[i : i + RUN_CHARS] for i in range(len(text) - RUN_CHARS + 1)} for text in texts]
    found = {}
    for i, j in combinations(range(len(texts)), 2):
        shared = len(runs[i] & runs[j])
        if shared >= MIN_RUNS and shared >= MIN_CONTAINMENT * min(len(runs[i]), len(runs[j])):
            found[i, j] = shared / min(len(runs[i]), len(runs[j]))
    return found


def as_dict(found: Passages) -> dict[tuple[int, int], float]:
    pairs = found.pairs
    return dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.similarity, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_of_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sources = [drawn(generator, 600) for _ in range(4)]
    texts = []
    for n in range(24):
        source = sources[n % 4]
        start, length = int(generator.integers(200)), int(generator.integers(20, 250))
        own = [drawn(generator, int(generator.integers(0, 250))) for _ in range(2)]
        texts.append(own[0] + source[start : start + length] + own[1])
    found = shared_passages(texts, seed=seed)
    wanted = brute_force(texts)
    assert found.every == 1
    # Six texts of a source are fewer than a run's window, so that every pair with a run in common is a candidate.
    assert as_dict(found) == wanted
    assert 3 < len(wanted) < 50, "a case that decides nothing"


def test_the_limits_are_those_that_are_documented() -> None:
    generator = np.random.default_rng(9)
    passage = drawn(generator, RUN_CHARS + MIN_RUNS - 1)
    one, other = drawn(generator, 40), drawn(generator, 40)
    assert as_dict(shared_passages([one + passage, passage + other], seed=0))
    # One character less is one run less.
    assert not as_dict(shared_passages([one + passage[1:], passage[1:] + other], seed=0))
    # The passage is a quarter of the shorter text's runs, and then less.
    runs = int(MIN_RUNS / MIN_CONTAINMENT)
    for extra, wanted in ((0, 1), (1, 0)):
        sides = [drawn(generator, runs - MIN_RUNS + extra) for _ in range(2)]
        assert len(as_dict(shared_passages([sides[0] + passage, passage + sides[1] + one], seed=0))) == wanted


def test_boilerplate_makes_no_pairs_and_hides_none() -> None:
    generator = np.random.default_rng(2)
    footer = drawn(generator, 80)
    texts = [drawn(generator, 900) + footer for _ in range(60)]
    article = drawn(generator, 500)
    texts[3] = article + drawn(generator, 200) + footer
    texts[50] = drawn(generator, 200) + article + footer
    found = shared_passages(texts, seed=0)
    assert list(as_dict(found)) == [(3, 50)]
    assert found.pairs.capped_buckets > 0
    # All 60 texts share the footer's runs, but each was compared with those of its window only, and with the few that
    # by chance have one more letter before the footer in common.
    assert 60 * RUN_WINDOW - RUN_WINDOW**2 <= found.pairs.num_compared < 60 * 59 // 2 // 3


def test_a_large_corpus_is_sampled_and_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    texts = [drawn(generator, 2000) for _ in range(40)]
    texts += [drawn(generator, 700) + texts[n][:1300] for n in range(10)]
    whole = as_dict(shared_passages(texts, seed=0))
    assert sorted(whole) == [(n, 40 + n) for n in range(10)]
    monkeypatch.setattr(module, "MAX_RUNS", 5_000)
    sampled = shared_passages(texts, seed=0)
    assert sampled.every == 20
    # 1,269 shared runs, one in 20 sampled: a pair is missed with a chance of 0.95 ** 1269 = 5e-29. What is found is
    # decided by all runs, so similarities are the same.
    assert as_dict(sampled) == whole


@pytest.mark.parametrize("texts", [[], ["short"], ["a" * 500, "b" * 500], ["x" * 31, "x" * 32]])
def test_texts_without_passages(texts: list[str]) -> None:
    assert as_dict(shared_passages(texts, seed=0)) == {}
