"""Sixteen float32 side by side as one Numba value, so that a search written for one sub-block runs on sixteen at once.

LLVM lowers a vector of sixteen to whatever the CPU has: one AVX-512 register, two of AVX2, four of NEON.
Lanes are made by load() and splat(), combined with + - * /, and left by store(); comparisons choose with where_less().
"""

import operator

from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

WIDTH = 16
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


lanes = _Lanes()


def _arithmetic(operation, method: str) -> None:
    @type_callable(operation)
    def type_of(context):
        return lambda a, b: lanes if a is lanes and b is lanes else None

    @lower_builtin(operation, lanes, lanes)
    def lower(context, builder, signature, arguments):
        # "contract" lets LLVM fuse a product and a sum, as every CPU of the last decade can; nothing else is relaxed.
        return getattr(builder, method)(*arguments, flags=("contract",))


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, index):
    """array[index : index + 16] of a contiguous 1-D float32 array."""

    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return lanes(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, value):
    """array[index : index + 16] = value."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def splat(typingctx, x):
    """The same float32 in every lane."""

    def generate(context, builder, signature, arguments):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(_INT, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH))

    return lanes(types.float32), generate


@intrinsic
def where_less(typingctx, a, b, yes, no):
    """Lane by lane: yes where a < b, else no (also where a or b is not a number)."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])

    return lanes(lanes, lanes, lanes, lanes), generate


@intrinsic
def nearest(typingctx, a):
    """Each lane rounded to a whole number, halves to even."""

    def generate(context, builder, signature, arguments):
        name, kind = f"llvm.rint.v{WIDTH}f32", ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(get_or_insert_function(builder.module, kind, name), arguments)

    return lanes(lanes), generate


@njit(forceinline=True)
def minimum(a, b):
    """The smaller lane of each pair."""
    return where_less(a, b, a, b)


@njit(forceinline=True)
def maximum(a, b):
    """The larger lane of each pair."""
    return where_less(b, a, a, b)
