"""Parts of a kernel on the threads that torch has already.

torch's operations run on a team of OpenMP threads that spin for a while after each operation, waiting for the next. A
second pool of threads beside them gets no core until they give up: on two cores, handing half of a kernel to a thread
of our own took longer than doing it alone. So the team itself is asked, through ``GOMP_parallel`` of the very library
that torch has loaded: the call by which compilers start a parallel region. Every thread takes parts until none is
left; which thread computes a part changes nothing.

Where that library is not found (macOS, Windows, unusual builds) kernels run on one thread, and nothing else changes.
What holds for torch's operations holds here: in a process that was forked after the team had worked, with GNU's
library, asking for it never returns. Fork before, or set one thread.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qlassify.kernels.compiling import OPTIONS, kernel
from qlassify.kernels.llvm import F32, I32, I64, Builder, at, load

_LIBRARIES = ("libgomp", "libiomp", "libomp")


def _take(typing_context: Any, address: Any) -> Any:
    """The number at an address, which is one higher afterwards, whoever else takes it at the same time."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "monotonic")

    return types.int64(types.intp), generate


take = intrinsic(_take)


def _whole_at(typing_context: Any, address: Any, index: Any) -> Any:
    """Element ``index`` of int64 numbers at an address."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        return load(builder, at(builder, arguments[0], arguments[1], 8), I64)

    return types.int64(types.intp, types.intp), generate


def _fp32_of(typing_context: Any, whole: Any) -> Any:
    """The fp32 number whose bits these are."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], I32), F32)

    return types.float32(types.int64), generate


whole_at, fp32_of = intrinsic(_whole_at), intrinsic(_fp32_of)


# What a task gets is the address of int64 numbers: the next part; how many there are; how many are done; the edges
# between them; then what its kernel gets.


@numba.njit(**OPTIONS)
def next_part(data):  # type: ignore[no-untyped-def]
    """A part that nobody has taken yet, or -1."""
    part = take(data)
    return part if part < whole_at(data, 1) else -1


@numba.njit(**OPTIONS)
def edge(data, index):  # type: ignore[no-untyped-def]
    """Where a part begins, and the one before it ends."""
    return whole_at(data, 3 + index)


@numba.njit(**OPTIONS)
def numbers_of(data):  # type: ignore[no-untyped-def]
    """The address of what the kernel gets."""
    return data + 8 * (4 + whole_at(data, 1))


@numba.njit(**OPTIONS)
def part_done(data):  # type: ignore[no-untyped-def]
    """Count a part that was computed to its end."""
    take(data + 16)


class Kernel:
    """A kernel over a range that can be cut into parts.

    Args:
        body: numba's ``body(numbers, first, last)``; ``numbers`` is the address of int64 numbers: addresses, counts,
            strides, and the bits of fp32 numbers.
        task: ``task(data)``, which calls the body for one ``next_part`` after the other, and ``part_done`` behind
            each; compiled when there are parts. Each kernel writes this loop out for its own body: numba keeps no
            function on disk that gets another one as an argument.
    """

    def __init__(self, body: Any, task: Callable[..., None]) -> None:
        # Compiled apart from the one that the task calls, to be kept on disk.
        self._whole = kernel(body.py_func)
        self._task = task
        self._address: int | None = None

    def run(self, numbers: Sequence[int], edges: Sequence[int]) -> None:
        """Compute what lies between neighbouring edges, in as many parts.

        Args:
            numbers: as the body takes them.
            edges: at least two, ascending; parts must not write to the same places.

        Raises:
            MemoryError: there is none for what a part works in.
        """
        region = _region() if len(edges) > 2 else None
        if region is None:
            packed = np.array(numbers, dtype=np.int64)
            self._whole(packed.ctypes.data, edges[0], edges[-1])
            return
        if self._address is None:
            self._address = _compiled(self._task)
        parts = len(edges) - 1
        data = np.array((0, parts, 0, *edges, *numbers), dtype=np.int64)
        region(self._address, data.ctypes.data, torch.get_num_threads(), 0)
        if data[2] != parts:
            # An error cannot leave a C function: numba prints it and returns. Allocating is all that can fail there.
            raise MemoryError(f"a kernel finished {data[2]} of its {parts} parts")


_TASKS: list[Any] = []
"""Compiled tasks, kept as long as the process: only their addresses are used."""


def _compiled(task: Callable[..., None]) -> int:
    """The address of a task as a C function."""
    # A C function of one address: as an integer it comes in the same register as a pointer would.
    signature = types.void(types.int64)
    try:
        compiled = numba.cfunc(signature, nopython=True, cache=True, **OPTIONS)(task)
    except Exception:
        # As in ``compiling``: a cache that cannot be read or written; whatever else is wrong is raised again here.
        compiled = numba.cfunc(signature, nopython=True, **OPTIONS)(task)
    _TASKS.append(compiled)
    return int(compiled.address)


def bits(number: float) -> int:
    """The bits of an fp32 number, as a kernel takes it."""
    return int(np.float32(number).view(np.int32))


@functools.cache
def _region() -> Any | None:
    """``GOMP_parallel`` of torch's OpenMP library, or None."""
    path = _library()
    if path is None:
        return None
    try:
        function = ctypes.CDLL(path).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def _library() -> str | None:
    """The OpenMP library that this process has loaded for torch; None where that cannot be told."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    loaded = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    found = sorted(path for path in loaded if Path(path).name.startswith(_LIBRARIES))
    home = str(Path(torch.__file__).resolve().parent)  # the system lists files without links
    own = [path for path in found if path.startswith((f"{home}/", f"{home}.libs/"))]
    if len(own) == 1:
        return own[0]
    return found[0] if len(found) == 1 else None
