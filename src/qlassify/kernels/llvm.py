"""The vocabulary in which vector loops are written out: a few words over llvmlite's builder.

Vectors of sixteen fp32 are used throughout: one register with AVX-512, two with AVX2, four with NEON. LLVM cuts them to
what the processor has, so the code is the same everywhere.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
LANES = 16
VF, VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
Builder = Any


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """The same number in all lanes."""
    return ir.Constant(vector, [value] * vector.count)


def load(builder: Builder, address: Any, vector: ir.Type) -> Any:
    """A vector (or number) from an address that need not be aligned."""
    value = builder.load(builder.inttoptr(address, vector.as_pointer()))
    value.align = 1 if isinstance(vector, ir.VectorType) else 4
    return value


def store(builder: Builder, value: Any, address: Any) -> None:
    """A vector to an address that need not be aligned."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def splat(builder: Builder, value: Any, count: int = LANES) -> Any:
    """A number in all lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count))


def at(builder: Builder, address: Any, index: Any, size: int) -> Any:
    """The address of element ``index`` of elements of ``size`` bytes."""
    return builder.add(address, builder.mul(index, ir.Constant(I64, size)))


def call(builder: Builder, name: str, *arguments: Any, result: ir.Type | None = None) -> Any:
    """One of LLVM's intrinsic functions; its result has the first argument's type unless said."""
    signature = ir.FunctionType(result or arguments[0].type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)
