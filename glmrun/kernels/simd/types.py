"""Vectors for Numba: 16 float32, 16 int32 or 64 bytes in one value that LLVM keeps in registers; what intrinsics are built from.

Addresses are plain int64 (no bounds, no reference counts). Everything is LLVM's portable vector code, so any CPU that Numba knows
runs it; the instructions that LLVM does not find by itself stand in dots.py, and target.py says which of them the CPU has.
"""

import operator

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from glmrun.kernels.simd.target import features

# Flags for kernels: NaN and infinity stay detectable, a product and a sum may fuse, sums keep their order: a row's product is the
# same number whatever else is computed beside it.
FAST = {"contract", "nsz", "arcp"}
I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
V16F, V16I, V64B = ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(I8, 64)
V8F, V32B, V16B = ir.VectorType(F32, 8), ir.VectorType(I8, 32), ir.VectorType(I8, 16)
V4I, V8I, V8H, V16H, V32H = ir.VectorType(I32, 4), ir.VectorType(I32, 8), *(ir.VectorType(I16, n) for n in (8, 16, 32))


class Vector(types.Type):
    """A Numba type whose values are LLVM vectors."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm_type)


f32x16, i32x16, u8x64, f32x8 = Vector("f32x16", V16F), Vector("i32x16", V16I), Vector("u8x64", V64B), Vector("f32x8", V8F)
i32x8, i16x16 = Vector("i32x8", V8I), Vector("i16x16", V16H)
u7x64 = Vector("u7x64", V64B)  # bytes up to 127


def pointer(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def behind(builder, address, n_bytes):
    """The address so many bytes further on."""
    return builder.add(address, ir.Constant(I64, n_bytes))


def constant(llvm_type, *values):
    """A vector constant: one value for every lane, or one run of equal lanes for each value."""
    return ir.Constant(llvm_type, [value for value in values for _ in range(llvm_type.count // len(values))])


def splat(builder, value, count):
    vector = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return shuffle(builder, one, one, [0] * count)


def shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def fold_in_fours(builder, rows, combine):
    """Of 4 or 8 vectors of 16 lanes 1 or 2: what combine() makes of each four neighbouring lanes of the first, the second, ..."""
    for lanes in (((0, 16, 1, 17), (2, 18, 3, 19)), ((0, 1, 16, 17), (2, 3, 18, 19))):
        pairs = zip(rows[::2], rows[1::2], strict=True)
        folded = [
            [shuffle(builder, x, y, [i + lane for i in range(0, 16, 4) for lane in some]) for some in lanes] for x, y in pairs
        ]
        rows = [combine(*parts) for parts in folded]
    return rows


def opaque(builder, value):
    """The same value, in no instruction; LLVM forgets where it came from: else it adds many products as a tree, and spills it.

    On ARM this takes one register of 128 bits; its byte dots add by themselves, and what is wider needs no such help. On x86 it
    takes one of AVX's; without them nothing is hidden.
    """
    arm = llvm.get_process_triple().startswith(("aarch64", "arm64"))
    if value.type.count * value.type.element.width != 128 if arm else not {"avx", "avx2"} & features():
        return value
    register = "w" if arm else "v"
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", f"={register},0", [value], False)


def call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [value.type for value in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _operator(python_operator, float_instruction, integer_instruction):
    @infer_global(python_operator)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(python_operator, Vector, Vector)
    def lower(context, builder, sig, args):
        is_float = sig.args[0] in (f32x16, f32x8)
        return getattr(builder, float_instruction if is_float else integer_instruction)(*args)


_operator(operator.add, "fadd", "add")
_operator(operator.sub, "fsub", "sub")
_operator(operator.mul, "fmul", "mul")
_operator(operator.truediv, "fdiv", "sdiv")
