"""Dropout by a counter: whether element i is kept is a hash of i and of a key, so no mask is ever stored.

    y = keep(x)        y += keep(x)        keep sets to zero what the hash of its place puts below the threshold

Sixteen elements take about as long as reading and writing them. The same numbers are computed by plain torch in
``methods.dropout``, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from qlassify.kernels.compiling import OPTIONS
from qlassify.kernels.counter_hash import FIRST, SECOND, SHIFTS
from qlassify.kernels.llvm import I16, I32, I64, LANES, VF, VI, Builder, at, constant, load, splat, store
from qlassify.kernels.team import Kernel, edge, next_part, numbers_of, part_done, whole_at

PART = 1 << 15
"""Fewest elements that are worth a thread."""
_SHORT = ir.VectorType(I16, LANES)


def _kept(builder: Builder, index: Any, low: Any, high: Any, threshold: Any) -> Any:
    """Sixteen flags for elements ``index`` and on."""
    lanes = ir.Constant(VI, list(range(LANES)))
    place = builder.add(splat(builder, builder.trunc(index, I32)), lanes)
    value = builder.add(place, splat(builder, low))
    value = builder.xor(value, builder.lshr(value, constant(VI, SHIFTS[0])))
    value = builder.mul(value, constant(VI, FIRST))
    value = builder.xor(value, builder.lshr(value, constant(VI, SHIFTS[1])))
    value = builder.add(value, splat(builder, high))
    value = builder.mul(value, constant(VI, SECOND))
    value = builder.xor(value, builder.lshr(value, constant(VI, SHIFTS[2])))
    return builder.icmp_unsigned(">=", value, splat(builder, threshold))


def _pass(vector: ir.VectorType, adds: bool) -> Any:
    """The intrinsic over elements of one size: (source, target, low, high, threshold, first step, last step)."""
    size = (2 if vector is _SHORT else 4) * LANES

    def signature(
        typing_context: Any, source: Any, target: Any, low: Any, high: Any, threshold: Any, first: Any, last: Any
    ) -> Any:
        def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
            source, target, low, high, threshold, first, last = arguments
            with cgutils.for_range_slice(builder, first, last, ir.Constant(I64, 1), inc=True) as (step, _count):
                index = builder.mul(step, ir.Constant(I64, LANES))
                flags = _kept(builder, index, low, high, threshold)
                value = load(builder, at(builder, source, step, size), vector)
                value = builder.select(flags, value, ir.Constant(vector, [0] * LANES))
                address = at(builder, target, step, size)
                if adds:
                    value = builder.fadd(load(builder, address, vector), value)
                store(builder, value, address)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, *[types.uint32] * 3, types.intp, types.intp), generate

    return intrinsic(signature)


_keep_32, _keep_16, _add_32 = _pass(VF, False), _pass(_SHORT, False), _pass(VF, True)


@numba.njit(**OPTIONS)
def _keep_words(numbers, first, last):  # type: ignore[no-untyped-def]
    low, high, threshold = (
        np.uint32(whole_at(numbers, 2)),
        np.uint32(whole_at(numbers, 3)),
        np.uint32(whole_at(numbers, 4)),
    )
    _keep_32(whole_at(numbers, 0), whole_at(numbers, 1), low, high, threshold, first, last)


@numba.njit(**OPTIONS)
def _keep_shorts(numbers, first, last):  # type: ignore[no-untyped-def]
    low, high, threshold = (
        np.uint32(whole_at(numbers, 2)),
        np.uint32(whole_at(numbers, 3)),
        np.uint32(whole_at(numbers, 4)),
    )
    _keep_16(whole_at(numbers, 0), whole_at(numbers, 1), low, high, threshold, first, last)


@numba.njit(**OPTIONS)
def _add_words(numbers, first, last):  # type: ignore[no-untyped-def]
    low, high, threshold = (
        np.uint32(whole_at(numbers, 2)),
        np.uint32(whole_at(numbers, 3)),
        np.uint32(whole_at(numbers, 4)),
    )
    _add_32(whole_at(numbers, 0), whole_at(numbers, 1), low, high, threshold, first, last)


def _keep_words_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _keep_words(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


def _keep_shorts_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _keep_shorts(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


def _add_words_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _add_words(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


_KEEP = {
    torch.float32: Kernel(_keep_words, _keep_words_task),
    torch.bfloat16: Kernel(_keep_shorts, _keep_shorts_task),
}
_ADD = Kernel(_add_words, _add_words_task)


def suits(tensor: Tensor) -> bool:
    """Whether the kernels compute this: fp32 or bf16 on the CPU, contiguous, its size a multiple of 16.

    On the meta device they would, and do nothing.
    """
    return (
        tensor.device.type in ("cpu", "meta")
        and tensor.dtype in _KEEP
        and tensor.numel() % LANES == 0
        and tensor.is_contiguous()
    )


def keep(source: Tensor, target: Tensor, key: int, threshold: int) -> None:
    """``target`` = ``source`` with zeros where the hash is below the threshold; they may be the same tensor.

    Args:
        source: see ``suits``.
        target: the same shape and type.
        key: 64 bits.
        threshold: of the 32-bit hash; 2^32 times the probability of a zero.
    """
    _run(_KEEP[source.dtype], source, target, key, threshold)


def add(source: Tensor, target: Tensor, key: int, threshold: int) -> None:
    """``target`` += ``source`` where the hash reaches the threshold; fp32."""
    _run(_ADD, source, target, key, threshold)


def _run(kernel: Kernel, source: Tensor, target: Tensor, key: int, threshold: int) -> None:
    if source.is_meta:
        return
    steps = source.numel() // LANES
    parts = max(1, min(torch.get_num_threads(), source.numel() // PART))
    edges = [steps * part // parts for part in range(parts + 1)]
    halves = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    kernel.run((source.data_ptr(), target.data_ptr(), *halves, threshold), edges)
