"""Texts that are nearly the same: every pair whose shingles have a Jaccard index of at least 0.8, and their groups.

The search has two steps. MinHash signatures (Broder 1997) of 24 bands of 4 values propose pairs (Indyk and Motwani
1998): two texts are compared if they agree in one whole band, and in at least 56 of the 96 values. Each proposed pair
is then decided by the sets of shingles themselves, so a reported pair is one; there are no false alarms. A pair can be
missed: at a Jaccard index of 0.8, no band agrees with a chance of (1 - 0.8 ** 4) ** 24 = 3e-6, and fewer than 56 values
agree with one of 4e-7; at 0.9 both are below 1e-11.

Comparing all pairs is quadratic, and so is any search where everything resembles everything. Each text of a band's
bucket is therefore compared with the ``BUCKET_WINDOW`` ones before it and no others. A corpus of thousands of near
copies still falls into one group, by steps; buckets that were larger are counted and the result says so.

Exact set joins (Bayardo et al. 2007) were the alternative: they miss nothing, but have to hold every shingle of the
corpus at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qlassify.data.shingles import compiled, minhash_signatures, shared_shingles
from qlassify.data.similar import SimilarPairs

SHINGLE_CHARS = 5
"""Characters of a shingle: about a word."""
THRESHOLD = 0.8
"""Least Jaccard index of near duplicates."""
NUM_BANDS = 24
BAND_VALUES = 4
MIN_EQUAL_VALUES = 56
"""Signature values in which a proposed pair has to agree, of 96."""
BUCKET_WINDOW = 32
"""Texts of a bucket with which each is compared."""
MAX_PAIRS = 4_000_000
"""Pairs that are compared at most."""


def near_duplicates(
    texts: Sequence[str], *, seed: int, threshold: float = THRESHOLD, width: int = SHINGLE_CHARS
) -> SimilarPairs:
    """The pairs of ``texts`` with a Jaccard index of at least ``threshold``.

    Args:
        texts: normalised texts, each once.
        seed: of the hash functions; it decides nothing but which rare pairs are missed.
        threshold: 0.8 or more; the search is laid out for that.
        width: characters of a shingle.
    """
    signatures = minhash_signatures(texts, width, NUM_BANDS * BAND_VALUES, seed)
    proposed, capped, complete = _proposals(signatures)
    first, second = np.divmod(proposed, max(1, len(texts)))
    shared, sizes_first, sizes_second = shared_shingles(texts, first, second, width, seed)
    similarity = shared / np.maximum(1, sizes_first + sizes_second - shared)
    alike = similarity >= threshold
    return SimilarPairs(first[alike], second[alike], similarity[alike], len(proposed), capped, complete)


def _proposals(signatures: NDArray[np.uint16]) -> tuple[NDArray[np.int64], int, bool]:
    """Pairs i * N + j, i < j, ascending; the number of capped buckets; whether all were taken."""
    num_texts = len(signatures)
    found = np.zeros(0, np.int64)
    capped = 0
    for band in range(NUM_BANDS):
        values = np.ascontiguousarray(signatures[:, band * BAND_VALUES : (band + 1) * BAND_VALUES])
        keys = values.view(np.uint64).ravel()  # four values of 16 bits are one number
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        new_bucket = np.ones(num_texts, bool)
        new_bucket[1:] = ordered[1:] != ordered[:-1]
        starts = np.flatnonzero(new_bucket)
        sizes = np.diff(np.append(starts, num_texts))
        capped += int(np.count_nonzero(sizes > BUCKET_WINDOW + 1))
        room = int(np.sum(np.minimum(sizes - 1, BUCKET_WINDOW) * sizes))
        pairs = np.empty(min(room, MAX_PAIRS + 1), np.int64)  # one more than is wanted tells that there are more
        count = _bucket_pairs(order, starts, sizes, signatures, BUCKET_WINDOW, MIN_EQUAL_VALUES, pairs)
        found = np.union1d(found, pairs[:count])
        if len(found) > MAX_PAIRS:
            return found[:MAX_PAIRS], capped, False
    return found, capped, True


@compiled
def _bucket_pairs(order, starts, sizes, signatures, window, min_equal, pairs):  # type: ignore[no-untyped-def]
    """Pairs i * N + j, i < j, of texts in one bucket whose signatures agree in enough values; as many as there is room
    for."""
    num_texts, num_values = signatures.shape
    found = 0
    for bucket in range(starts.size):
        for later in range(1, sizes[bucket]):
            one = order[starts[bucket] + later]
            for earlier in range(max(0, later - window), later):
                other = order[starts[bucket] + earlier]
                equal = 0
                for k in range(num_values):
                    equal += signatures[one, k] == signatures[other, k]
                if equal >= min_equal:
                    if found == pairs.size:
                        return found
                    pairs[found] = min(one, other) * num_texts + max(one, other)
                    found += 1
    return found
