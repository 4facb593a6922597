"""Inner loops of attention on rows of fp32, sixteen lanes at a time.

    product      C = factor * A B (+ C)    a tile of a few rows by 16 or 32 columns, its sums held in registers
    row_*        what a softmax and its derivative need of one row of scores

LLVM does not find these by itself: it cannot know that C overlaps neither A nor B, so it writes every partial sum to
memory, and it leaves rows of sixteen to scalar code. Written out, a tile of 4 x 32 runs at about the rate of a large
matrix product.

Each function is a numba intrinsic over addresses and counts; it has no bounds to check, its caller has. A row's length
is a multiple of sixteen. Sums run in a fixed order that depends on nothing but the lengths.

numba's cache on disk knows the file of a kernel, not this one: after a change here, ``make clean``.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qlassify.kernels.llvm import F32, I32, I64, LANES, VF, VI, Builder, at, call, constant, load, splat, store

BYTES = 4 * LANES
LOWEST = -87.0
"""Below it exp is taken for zero: fp32's smallest normal number is exp(-87.3)."""
_EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Taylor's coefficients of exp, highest first: within +-ln(2) / 2 what is left out is below 6e-9 of the sum."""
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 as a short number whose multiples are exact, and the rest (Cody and Waite 1980)."""


def _product(rows: int, vectors: int, adds: bool) -> Any:
    """The intrinsic for a tile of ``rows`` by 16 * ``vectors``; ``adds`` to what is there, or replaces it.

    Arguments: addresses of A, B, C; elements from one row of A to the next and from one column to the next; elements
    from one row of B to the next; from one row of C to the next; the inner size; the factor.
    """

    def signature(
        typing_context: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any, c: Any, c_row: Any, depth: Any,
        factor: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
            a, a_row, a_column, b, b_row, c, c_row, depth, factor = arguments
            sums = [
                [cgutils.alloca_once_value(builder, constant(VF, 0.0)) for _ in range(vectors)] for _ in range(rows)
            ]
            # alloca_once_value stores where the function begins; in a loop the sums must start afresh.
            for line in sums:
                for place in line:
                    builder.store(constant(VF, 0.0), place)
            starts = [at(builder, a, builder.mul(a_row, ir.Constant(I64, row)), 4) for row in range(rows)]
            with cgutils.for_range(builder, depth) as loop:
                line = at(builder, b, builder.mul(b_row, loop.index), 4)
                right = [
                    load(builder, builder.add(line, ir.Constant(I64, BYTES * vector)), VF) for vector in range(vectors)
                ]
                step = builder.mul(a_column, loop.index)
                for row in range(rows):
                    left = splat(builder, load(builder, at(builder, starts[row], step, 4), F32))
                    for vector in range(vectors):
                        place = sums[row][vector]
                        known = builder.load(place)
                        builder.store(call(builder, "llvm.fmuladd.v16f32", left, right[vector], known), place)
            factors = splat(builder, factor)
            for row in range(rows):
                line = at(builder, c, builder.mul(c_row, ir.Constant(I64, row)), 4)
                for vector in range(vectors):
                    address = builder.add(line, ir.Constant(I64, BYTES * vector))
                    value = builder.fmul(builder.load(sums[row][vector]), factors)
                    if adds:
                        value = builder.fadd(load(builder, address, VF), value)
                    store(builder, value, address)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8, types.float32), generate

    return intrinsic(signature)


product_4x32, product_1x32 = _product(4, 2, False), _product(1, 2, False)
product_4x16, product_1x16 = _product(4, 1, False), _product(1, 1, False)
add_4x32, add_1x32 = _product(4, 2, True), _product(1, 2, True)
add_4x16, add_1x16 = _product(4, 1, True), _product(1, 1, True)


def _exp(builder: Builder, x: Any) -> Any:
    """exp of lanes that are at most zero: 2^n times a polynomial; zero below ``LOWEST``, NaN for NaN."""
    n = call(builder, "llvm.rint.v16f32", builder.fmul(x, constant(VF, 1 / math.log(2))))
    rest = call(builder, "llvm.fmuladd.v16f32", n, constant(VF, -_LN2_HIGH), x)
    rest = call(builder, "llvm.fmuladd.v16f32", n, constant(VF, -_LN2_LOW), rest)
    value = constant(VF, _EXP[0])
    for coefficient in _EXP[1:]:
        value = call(builder, "llvm.fmuladd.v16f32", value, rest, constant(VF, coefficient))
    low = builder.fcmp_ordered("<", x, constant(VF, LOWEST))
    # What has no exponent (below the bound, or NaN) must not be converted to an integer.
    usable = builder.fcmp_ordered(">=", x, constant(VF, LOWEST))
    whole = builder.fptosi(builder.select(usable, n, constant(VF, 0.0)), VI)
    power = builder.bitcast(builder.shl(builder.add(whole, constant(VI, 127)), constant(VI, 23)), VF)
    return builder.select(low, constant(VF, 0.0), builder.fmul(value, power))


def _sum_of_lanes(builder: Builder, lanes: Any) -> Any:
    """The sum over lanes, halves added to halves."""
    width = LANES
    while width > 1:
        width //= 2
        mask = ir.Constant(VI, [(lane + width) % LANES for lane in range(LANES)])
        lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, mask))
    return builder.extract_element(lanes, ir.Constant(I32, 0))


def _row_softmax(typing_context: Any, row: Any, steps: Any) -> Any:
    """A row of scores becomes its softmax, in place: (address, steps of sixteen). Minus infinity becomes zero."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        row, steps = arguments
        largest = cgutils.alloca_once_value(builder, constant(VF, -math.inf))
        builder.store(constant(VF, -math.inf), largest)
        with cgutils.for_range(builder, steps) as loop:
            lanes = load(builder, at(builder, row, loop.index, BYTES), VF)
            builder.store(call(builder, "llvm.maxnum.v16f32", builder.load(largest), lanes), largest)
        lanes, width = builder.load(largest), LANES
        while width > 1:
            width //= 2
            mask = ir.Constant(VI, [(lane + width) % LANES for lane in range(LANES)])
            lanes = call(builder, "llvm.maxnum.v16f32", lanes, builder.shuffle_vector(lanes, lanes, mask))
        total = cgutils.alloca_once_value(builder, constant(VF, 0.0))
        builder.store(constant(VF, 0.0), total)
        with cgutils.for_range(builder, steps) as loop:
            address = at(builder, row, loop.index, BYTES)
            value = _exp(builder, builder.fsub(load(builder, address, VF), lanes))
            store(builder, value, address)
            builder.store(builder.fadd(builder.load(total), value), total)
        whole = _sum_of_lanes(builder, builder.load(total))
        factor = splat(builder, builder.fdiv(ir.Constant(F32, 1.0), whole))
        with cgutils.for_range(builder, steps) as loop:
            address = at(builder, row, loop.index, BYTES)
            store(builder, builder.fmul(load(builder, address, VF), factor), address)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


row_softmax = intrinsic(_row_softmax)


def _row_softmax_backward(typing_context: Any, probabilities: Any, gradient: Any, steps: Any) -> Any:
    """The gradient of a row of probabilities becomes that of its scores, in place: p (g - sum(p g))."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        probabilities, gradient, steps = arguments
        total = cgutils.alloca_once_value(builder, constant(VF, 0.0))
        builder.store(constant(VF, 0.0), total)
        with cgutils.for_range(builder, steps) as loop:
            p = load(builder, at(builder, probabilities, loop.index, BYTES), VF)
            g = load(builder, at(builder, gradient, loop.index, BYTES), VF)
            builder.store(call(builder, "llvm.fmuladd.v16f32", p, g, builder.load(total)), total)
        mean = splat(builder, _sum_of_lanes(builder, builder.load(total)))
        with cgutils.for_range(builder, steps) as loop:
            address = at(builder, gradient, loop.index, BYTES)
            p = load(builder, at(builder, probabilities, loop.index, BYTES), VF)
            store(builder, builder.fmul(p, builder.fsub(load(builder, address, VF), mean)), address)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


row_softmax_backward = intrinsic(_row_softmax_backward)


def _transpose(typing_context: Any, source: Any, row: Any, rows: Any, zeros: Any, target: Any, target_row: Any) -> Any:
    """Sixteen columns of up to sixteen rows become sixteen rows of sixteen; missing rows are zeros.

    Arguments: address; elements from row to row; how many rows there are; address of sixteen zeros; address of the
    result; elements from one of its rows to the next.
    """

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        source, row, rows, zeros, target, target_row = arguments
        lines = []
        for index in range(LANES):
            there = builder.icmp_signed("<", ir.Constant(I64, index), rows)
            address = at(builder, source, builder.mul(row, ir.Constant(I64, index)), 4)
            lines.append(load(builder, builder.select(there, address, zeros), VF))
        for bit in (1, 2, 4, 8):
            # Swap, between rows that differ in this bit of their number, the lanes that differ in it.
            first = ir.Constant(VI, [lane if not lane & bit else LANES + (lane & ~bit) for lane in range(LANES)])
            second = ir.Constant(VI, [lane | bit if not lane & bit else LANES + lane for lane in range(LANES)])
            for index in range(LANES):
                if not index & bit:
                    a, b = lines[index], lines[index | bit]
                    lines[index] = builder.shuffle_vector(a, b, first)
                    lines[index | bit] = builder.shuffle_vector(a, b, second)
        for index, line in enumerate(lines):
            store(builder, line, at(builder, target, builder.mul(target_row, ir.Constant(I64, index)), 4))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


transpose_16 = intrinsic(_transpose)


def _fill(typing_context: Any, address: Any, first: Any, last: Any, value: Any) -> Any:
    """The same number in elements ``first`` to ``last`` of a row."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        address, first, last, value = arguments
        with cgutils.for_range_slice(builder, first, last, ir.Constant(I64, 1), inc=True) as (index, _count):
            builder.store(value, builder.inttoptr(at(builder, address, index, 4), F32.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.float32), generate


fill = intrinsic(_fill)
