"""Texts as sets of short windows of characters, and the three things that compiled code does with such sets.

A *shingle* is every run of ``width`` characters of a normalised text (Broder 1997); a shorter text is one shingle. Two
texts are alike as far as they share shingles. Characters are used and not words, because blanks separate words in some
languages only, and because a misspelt word should cost a text a few shingles and not its neighbours' as well.

A shingle is a 64-bit number: a polynomial of its characters with a multiplier drawn from the seed, so that the window
slides in constant time, and then a mixing step that is one to one (the finaliser of SplitMix64, Steele et al. 2014).
Two different shingles have one number with a chance of about 2 ** -64. Sets are compared as sorted numbers, so what is
said about a pair of texts is exact but for that.

Nothing here holds the shingles of a whole corpus: texts go through in chunks of ``CHUNK_CHARS`` characters. The
functions are compiled by numba at their first call and kept on disk where a folder for that can be written. The
alternative, Python sets of substrings, takes 40 times as long and 50 times the memory; it is what the tests compare
with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from qlassify.seeding import numpy_generator

CHUNK_CHARS = 4_000_000
"""Characters that are looked at together; a longer text is a chunk of its own."""
CHUNK_TEXTS = 50_000
"""Texts that are looked at together."""

_OPTIONS = {"nogil": True, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled by numba on its first call, from numba's cache on disk where there is one that works."""
    kernel: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal kernel
        if kernel is not None:
            return kernel(*arguments)
        try:
            kernel = numba.njit(cache=True, **_OPTIONS)(function)
            return kernel(*arguments)
        except Exception:
            # No folder for the cache can be written, or a file in it is damaged. The code does not depend on it;
            # whatever else is wrong is raised again here.
            kernel = numba.njit(**_OPTIONS)(function)
            return kernel(*arguments)

    return call


@numba.njit(**_OPTIONS)
def _mixed(number):  # type: ignore[no-untyped-def]
    """The finaliser of SplitMix64: one to one, and every bit of the result depends on every bit of the number."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@numba.njit(**_OPTIONS)
def _shingles(codes, width, multiplier, out):  # type: ignore[no-untyped-def]
    """The number of each window of one text, in order, into ``out``; returns how many there are, 0 for no text."""
    size = codes.size
    if size == 0:
        return 0
    width = min(width, size)
    leaving = np.uint64(1)
    number = np.uint64(0)
    for i in range(width):
        # One more than the character, so that none of them is zero and length counts.
        number = number * multiplier + np.uint64(codes[i]) + np.uint64(1)
        leaving *= multiplier
    out[0] = _mixed(number)
    for i in range(width, size):
        number = number * multiplier + np.uint64(codes[i]) + np.uint64(1)
        number -= leaving * (np.uint64(codes[i - width]) + np.uint64(1))
        out[i - width + 1] = _mixed(number)
    return size - width + 1


@compiled
def _signatures(codes, offsets, width, multiplier, factors, signatures):  # type: ignore[no-untyped-def]
    longest = 1
    for text in range(offsets.size - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    buffer = np.empty(longest, np.uint64)
    for text in range(offsets.size - 1):
        count = _shingles(codes[offsets[text] : offsets[text + 1]], width, multiplier, buffer)
        row = signatures[text]
        for i in range(count):
            low = np.uint32(buffer[i])
            high = np.uint32(buffer[i] >> np.uint64(32))
            for k in range(row.size):
                row[k] = min(row[k], np.uint32(low * factors[k] + high))


@compiled
def _sample(codes, offsets, width, multiplier, every, numbers, owners):  # type: ignore[no-untyped-def]
    longest = 1
    for text in range(offsets.size - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    buffer = np.empty(longest, np.uint64)
    found = 0
    for text in range(offsets.size - 1):
        if offsets[text + 1] - offsets[text] < width:
            continue
        count = _shingles(codes[offsets[text] : offsets[text + 1]], width, multiplier, buffer)
        for i in range(count):
            if buffer[i] % every == 0:
                numbers[found] = buffer[i]
                owners[found] = text
                found += 1
    return found


@compiled
def _overlaps(codes, offsets, width, multiplier, first, second, shared, sizes):  # type: ignore[no-untyped-def]
    num_texts = offsets.size - 1
    sets = np.empty(max(1, codes.size), np.uint64)
    for text in range(num_texts):
        start = offsets[text]
        count = _shingles(codes[start : offsets[text + 1]], width, multiplier, sets[start:])
        ordered = np.sort(sets[start : start + count])
        kept = 0
        for i in range(count):
            if i == 0 or ordered[i] != ordered[i - 1]:
                sets[start + kept] = ordered[i]
                kept += 1
        sizes[text] = kept
    for pair in range(first.size):
        i, j = offsets[first[pair]], offsets[second[pair]]
        end_i, end_j = i + sizes[first[pair]], j + sizes[second[pair]]
        common = 0
        while i < end_i and j < end_j:
            if sets[i] == sets[j]:
                common += 1
                i += 1
                j += 1
            elif sets[i] < sets[j]:
                i += 1
            else:
                j += 1
        shared[pair] = common


def code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All characters of ``texts`` one after another, (T,) uint32, and where each text starts, (N + 1,) int64."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    return codes, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _multiplier(seed: int, width: int) -> np.uint64:
    """An odd 64-bit number."""
    return np.uint64(int(numpy_generator(seed, "shingles", width).integers(0, 2**63)) * 2 + 1)


def _chunks(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Texts of about ``CHUNK_CHARS`` characters at a time, and the index of the first; each is asked for once."""
    chunk: list[str] = []
    start = chars = 0
    for text in texts:
        if chars and (chars + len(text) > CHUNK_CHARS or len(chunk) == CHUNK_TEXTS):
            yield start, chunk
            start, chars, chunk = start + len(chunk), 0, []
        chunk.append(text)
        chars += len(text)
    if chunk:
        yield start, chunk


def minhash_signatures(texts: Sequence[str], width: int, num_values: int, seed: int) -> NDArray[np.uint16]:
    """MinHash signatures (N, num_values) uint16: two texts agree in each value with the chance of their Jaccard index.

    Value k is the least of ``low * factor_k + high`` over the shingles, in 32 bits, low and high being the halves of
    the shingle's number: one multiplication a value where a hash function for each would take several. The lower half
    of the least value is kept, which halves what signatures take (Li and Koenig 2010, arXiv:0910.3349): values that
    are equal stay equal, and different ones become so with a chance of 2 ** -16.
    """
    factors = numpy_generator(seed, "minhash").integers(0, 2**32, num_values, dtype=np.uint32) | np.uint32(1)
    signatures = np.empty((len(texts), num_values), dtype=np.uint16)
    multiplier = _multiplier(seed, width)
    for start, chunk in _chunks(texts):
        codes, offsets = code_points(chunk)
        least = np.full((len(chunk), num_values), np.iinfo(np.uint32).max, dtype=np.uint32)
        _signatures(codes, offsets, width, multiplier, factors, least)
        signatures[start : start + len(chunk)] = least  # the lower halves
    return signatures


def sampled_shingles(
    texts: Sequence[str], width: int, limit: int, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], int]:
    """Shingles of all texts of at least ``width`` characters, and whose they are; at most about ``limit`` of them.

    Where there are more, those are taken whose number is divisible by the returned ``every``, so that a shingle that
    two texts share is taken from both or from neither (Manber 1994).

    Returns:
        numbers (S,) uint64, indices of their texts (S,) int64, and ``every``.
    """
    total = sum(max(0, len(text) - width + 1) for text in texts)
    every = max(1, -(-total // limit))
    multiplier = _multiplier(seed, width)
    numbers, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for start, chunk in _chunks(texts):
        codes, offsets = code_points(chunk)
        found_numbers, found_owners = np.empty(len(codes), np.uint64), np.empty(len(codes), np.int64)
        found = _sample(codes, offsets, width, multiplier, np.uint64(every), found_numbers, found_owners)
        numbers.append(found_numbers[:found].copy())
        owners.append(found_owners[:found] + start)
    return np.concatenate(numbers), np.concatenate(owners), every


def shared_shingles(
    texts: Sequence[str], first: NDArray[np.int64], second: NDArray[np.int64], width: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How many different shingles the texts of each pair share.

    Args:
        texts: N texts.
        first: (P,) index of the one text of each pair; pairs that share it should stand together.
        second: (P,) index of the other.
        width: characters of a shingle.
        seed: of the multiplier.

    Returns:
        (P,) shared by both, (P,) different ones of the first, (P,) of the second; int64.
    """
    num_pairs = len(first)
    shared, sizes_first, sizes_second = (np.zeros(num_pairs, np.int64) for _ in range(3))
    multiplier = _multiplier(seed, width)
    start = 0
    while start < num_pairs:
        stop = _pairs_of_chunk(texts, first, second, start)
        used, positions = np.unique(np.concatenate([first[start:stop], second[start:stop]]), return_inverse=True)
        codes, offsets = code_points([texts[index] for index in used])
        sizes = np.zeros(len(used), np.int64)
        of_first, of_second = positions[: stop - start], positions[stop - start :]
        _overlaps(codes, offsets, width, multiplier, of_first, of_second, shared[start:stop], sizes)
        sizes_first[start:stop], sizes_second[start:stop] = sizes[of_first], sizes[of_second]
        start = stop
    return shared, sizes_first, sizes_second


def _pairs_of_chunk(texts: Sequence[str], first: NDArray[np.int64], second: NDArray[np.int64], start: int) -> int:
    """Where the chunk of pairs that begins at ``start`` ends: its texts have about ``CHUNK_CHARS`` characters."""
    seen: set[int] = set()
    chars = 0
    for pair in range(start, len(first)):
        for index in (int(first[pair]), int(second[pair])):
            if index not in seen:
                seen.add(index)
                chars += len(texts[index])
        if chars > CHUNK_CHARS and pair > start:
            return pair
    return len(first)
