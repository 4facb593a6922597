"""Texts that come from one source: they share passages, though as wholes they may differ.

An article at three reading levels, mails of one thread, phrases of one sentence: their texts have too little in common
to be near duplicates, and yet a model that has seen one of them knows more about the others than it will know about a
new text. If they have different labels, a random split does harm in the other direction: what the model remembers of
a source points to the wrong class.

Two texts share passages if at least a quarter of the shorter one's runs of 32 characters, and no fewer than 32 of them,
stand in the other one too (containment, Broder 1997). 32 characters are five or six words; so many in a row are seldom
equal by chance, and 32 such runs are at least 63 characters. A shorter text shares no passage by this definition.

Candidates are texts that share a run. A run that many texts have (a greeting, a footer) proposes each with the
``RUN_WINDOW`` ones before it only; texts of one source share other, rarer runs. Every candidate is decided by all runs
of both texts, so a reported pair is one. Where a corpus has more runs than ``MAX_RUNS``, candidates are sought among
those of which the number is divisible by ``every``: a pair is then missed if none of its runs is, with a chance of
about (1 - 1 / every) ** shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlassify.data.shingles import compiled, sampled_shingles, shared_shingles
from qlassify.data.similar import SimilarPairs

RUN_CHARS = 32
"""Characters of a run."""
MIN_CONTAINMENT = 0.25
"""Least share of the shorter text's runs that the longer one has too."""
MIN_RUNS = 32
"""Least number of runs in common."""
RUN_WINDOW = 8
"""Texts with a run in common with which each is compared, for each run."""
MAX_RUNS = 4_000_000
"""Runs among which candidates are sought; 16 bytes each, and up to 64 for the candidates."""


@dataclass(frozen=True, slots=True, eq=False)
class Passages:
    """Pairs of texts that share passages.

    Attributes:
        pairs: the pairs; the similarity is the share of the shorter text's runs that both have.
        every: candidates were sought among every so-manieth run; 1 means all.
    """

    pairs: SimilarPairs
    every: int


def shared_passages(texts: Sequence[str], *, seed: int) -> Passages:
    """The pairs of ``texts`` that share passages.

    Args:
        texts: normalised texts, each once.
        seed: of the hash functions.
    """
    numbers, owners, every = sampled_shingles(texts, RUN_CHARS, MAX_RUNS, seed)
    order = np.lexsort((owners, numbers))
    numbers, owners = numbers[order], owners[order]
    proposed = np.empty(len(numbers) * RUN_WINDOW, np.int64)
    count, capped = _run_pairs(numbers, owners, len(texts), RUN_WINDOW, proposed)
    found = np.unique(proposed[:count])
    first, second = np.divmod(found, max(1, len(texts)))
    shared, sizes_first, sizes_second = shared_shingles(texts, first, second, RUN_CHARS, seed)
    containment = shared / np.maximum(1, np.minimum(sizes_first, sizes_second))
    alike = (containment >= MIN_CONTAINMENT) & (shared >= MIN_RUNS)
    pairs = SimilarPairs(first[alike], second[alike], containment[alike], len(found), int(capped), True)
    return Passages(pairs, every)


@compiled
def _run_pairs(numbers, owners, num_texts, window, pairs):  # type: ignore[no-untyped-def]
    """Pairs i * N + j, i < j, of texts that share a run; runs stand together, the texts of each in ascending order."""
    found = 0
    capped = 0
    first_of_run = 0
    for i in range(numbers.size):
        if numbers[i] != numbers[first_of_run]:
            first_of_run = i
        capped += i - first_of_run == window + 1
        for j in range(max(first_of_run, i - window), i):
            if owners[j] != owners[i]:
                pairs[found] = owners[j] * num_texts + owners[i]
                found += 1
    return found, capped
