"""The inner loops that LLVM does not find by itself, written out as its code on vectors of 512 bits.

A table of sixteen numbers fits a register, and AVX-512 has an instruction that looks up all lanes in it at once: fp32
lanes sixteen at a time, 16-bit lanes thirty-two at a time, in which bf16 travels as bits. Going to codes is the same
instruction four times, a binary search over the fifteen midpoints. Products and sums are LLVM's plain ``fmul`` and
``fadd``, which it must not fuse.

Each function here is a numba intrinsic over addresses: it has no bounds to check, its caller has.

numba's cache on disk knows the file of a kernel, not this one: after a change here, ``make clean`` or touch ``cpu.py``.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from qlassify.kernels.llvm import F32, I8, I16, I32, I64, Builder, at, constant, load, splat, store


def has_avx512() -> bool:
    """Whether numba generates code with AVX-512 (F and BW) here."""
    if config.CPU_NAME or config.CPU_FEATURES or not config.ENABLE_AVX:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512f") and features.get("avx512bw"))


def _look_up(builder: Builder, name: str, table: Any, index: Any) -> Any:
    """AVX-512's permutation: table[index] for all lanes; of an index only the bits that a table needs are used."""
    signature = ir.FunctionType(table.type, [table.type, index.type])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.avx512.permvar.{name}.512")
    return builder.call(function, [table, index])


def _table(builder: Builder, levels: Any, scale: Any, offset: Any) -> Any:
    """levels * scale + offset, sixteen fp32; offset None leaves the sum out."""
    scaled = builder.fmul(load(builder, levels, ir.VectorType(F32, 16)), splat(builder, scale, 16))
    return scaled if offset is None else builder.fadd(scaled, splat(builder, offset, 16))


def _as_bf16_pairs(builder: Builder, table: Any) -> Any:
    """Sixteen fp32 rounded to bf16 (nearest, ties to even), twice in a row: thirty-two 16-bit lanes."""
    v32 = ir.VectorType(I32, 16)
    bits = builder.bitcast(table, v32)
    odd = builder.and_(builder.lshr(bits, constant(v32, 16)), constant(v32, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, constant(v32, 0x7FFF)), odd), constant(v32, 16))
    short = builder.trunc(rounded, ir.VectorType(I16, 16))
    return builder.shuffle_vector(short, short, ir.Constant(ir.VectorType(I32, 32), list(range(32))))


def _expand_group(builder: Builder, table: Any, name: str, out: Any, codes: Any, steps: Any) -> None:
    """Look a group's codes up in a register: 64 bytes of output for each of ``steps``.

    A byte's high half is the first code, its low half the second. Spread to a lane of twice the output's width, the
    byte shifted right by four is the index of the first and the byte shifted up by the output's width that of the
    second, whose bits above the fourth do not count or point into the table's second copy.
    """
    width = 32 if name == "sf" else 16
    count = 512 // width // 2
    lanes = ir.VectorType(ir.IntType(2 * width), count)
    with cgutils.for_range(builder, steps) as loop:
        packed = load(builder, at(builder, codes, loop.index, count), ir.VectorType(I8, count))
        byte = builder.zext(packed, lanes)
        both = builder.or_(builder.lshr(byte, constant(lanes, 4)), builder.shl(byte, constant(lanes, width)))
        index = builder.bitcast(both, ir.VectorType(ir.IntType(width), 2 * count))
        store(builder, _look_up(builder, name, table, index), at(builder, out, loop.index, 64))


def _group_to(name: str, affine: bool) -> Any:
    """The intrinsic that dequantises one group: (out, codes, levels, scale, offset, steps of 64 bytes)."""

    def signature(typing_context: Any, out: Any, codes: Any, levels: Any, scale: Any, offset: Any, steps: Any) -> Any:
        def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
            out, codes, levels, scale, offset, steps = arguments
            table = _table(builder, levels, scale, offset if affine else None)
            table = table if name == "sf" else _as_bf16_pairs(builder, table)
            _expand_group(builder, table, name, out, codes, steps)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 3, types.float32, types.float32, types.intp), generate

    return intrinsic(signature)


group_to_fp32, group_to_bf16 = _group_to("sf", False), _group_to("hi", False)
affine_group_to_fp32, affine_group_to_bf16 = _group_to("sf", True), _group_to("hi", True)


def _nearest_levels(
    typing_context: Any, weight: Any, codes: Any, midpoints: Any, order: Any, factor: Any, steps: Any
) -> Any:
    """Codes of one group, sixteen weights and eight bytes at a time: a binary search over the midpoints."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        weight, codes, midpoints, order, factor, steps = arguments
        v32, vf = ir.VectorType(I32, 16), ir.VectorType(F32, 16)
        v64 = ir.VectorType(I64, 8)
        table, ranks = load(builder, midpoints, vf), load(builder, order, v32)
        factors = splat(builder, factor, 16)
        with cgutils.for_range(builder, steps) as loop:
            x = builder.fmul(load(builder, at(builder, weight, loop.index, 64), vf), factors)
            rank = constant(v32, 0)
            for step in (8, 4, 2, 1):
                middle = _look_up(builder, "sf", table, builder.add(rank, constant(v32, step - 1)))
                above = builder.zext(builder.fcmp_ordered(">", x, middle), v32)
                rank = builder.add(rank, builder.mul(above, constant(v32, step)))
            pairs = builder.bitcast(_look_up(builder, "si", ranks, rank), v64)
            both = builder.or_(builder.shl(pairs, constant(v64, 4)), builder.lshr(pairs, constant(v64, 32)))
            store(builder, builder.trunc(both, ir.VectorType(I8, 8)), at(builder, codes, loop.index, 8))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32, types.intp), generate


group_to_codes = intrinsic(_nearest_levels)


def _largest_magnitude(typing_context: Any, bits: Any, steps: Any) -> Any:
    """The largest of (bits & 0x7fffffff), sixteen at a time; any processor's vectors will do."""

    def generate(context: Any, builder: Builder, _: Any, arguments: Any) -> Any:
        bits, steps = arguments
        v32 = ir.VectorType(I32, 16)
        largest = cgutils.alloca_once_value(builder, constant(v32, 0))
        with cgutils.for_range(builder, steps) as loop:
            lanes = builder.and_(load(builder, at(builder, bits, loop.index, 64), v32), constant(v32, 0x7FFFFFFF))
            known = builder.load(largest)
            builder.store(builder.select(builder.icmp_signed(">", lanes, known), lanes, known), largest)
        signature = ir.FunctionType(I32, [v32])
        reduce = cgutils.get_or_insert_function(builder.module, signature, "llvm.vector.reduce.smax.v16i32")
        return builder.call(reduce, [builder.load(largest)])

    return types.int32(types.intp, types.intp), generate


largest_of_lanes = intrinsic(_largest_magnitude)
