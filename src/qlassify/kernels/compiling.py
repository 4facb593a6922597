"""numba functions: compiled on first use, kept on disk; and plain threads for those that run long.

Compiled functions run without the interpreter's lock. numba's own parallel loops would bring a second pool of threads
beside torch's, with a second set of spinning workers; ``run_parts`` cuts a call into parts for threads of ours, and
only where the work repays the hand-over, as when weights become numbers. Short kernels, between torch's operations,
run on torch's own team (``team``).

The alternative, C++ extensions, needs a compiler on every user's machine or wheels for all of them.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
from numba.core import config

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""How every kernel, and every function that one calls, is compiled."""


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` compiled by numba on its first call, kept in numba's cache on disk wherever that can be written."""
    compiled: Callable[..., None] | None = None

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        nonlocal compiled
        if compiled is not None:
            compiled(*arguments)
            return
        compiled = _compile(function)
        try:
            compiled(*arguments)
        except Exception:
            # The cache cannot be read or written: a full disk, or a damaged file, which unpickling may answer with
            # anything. The code does not depend on it; whatever else is wrong is raised again here.
            compiled = numba.njit(**OPTIONS)(function)
            compiled(*arguments)

    return call


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder for the cache can be written
        compiled = numba.njit(**OPTIONS)(function)
    return compiled


def run_parts(kernel: Callable[..., None], arguments: Sequence[Any], edges: Sequence[int]) -> None:
    """``kernel(*arguments, first, last)`` for each pair of neighbouring edges, every part on a thread.

    Args:
        kernel: from ``kernel``; the parts must not write to the same places.
        arguments: the same for all parts.
        edges: at least two, ascending.
    """
    if len(edges) == 2:
        kernel(*arguments, *edges)
        return
    kernel(*arguments, edges[0], edges[0])  # compiled once, not once by each thread
    pool = _pool(os.getpid(), len(edges) - 1)
    waiting = [pool.submit(kernel, *arguments, low, high) for low, high in itertools.pairwise(edges)]
    for future in waiting:
        future.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads for the kernels; a forked process, which has none of its parent's, makes its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="qlassify-kernel")
