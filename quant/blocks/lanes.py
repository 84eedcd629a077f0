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
def weigh(typingctx, weights, index, a):
    """weights[index : index + 16] * a; where weights is None, a itself and no instruction at all."""
    if weights is types.none:
        return lanes(weights, types.intp, lanes), lambda context, builder, signature, arguments: arguments[2]

    def generate(context, builder, signature, arguments):
        found = builder.load(_address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return builder.fmul(found, arguments[2], flags=("contract",))

    return lanes(weights, types.intp, lanes), generate


@intrinsic
def splat(typingctx, x):
    """The same float32 in every lane."""

    def generate(context, builder, signature, arguments):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(_INT, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH))

    return lanes(types.float32), generate


@intrinsic(prefer_literal=True)
def swap(typingctx, a, distance):
    """Lane i of the result is lane i ^ distance of a; distance is a literal 1, 2, 4 or 8."""

    def generate(context, builder, signature, arguments):
        mask = ir.Constant(ir.VectorType(_INT, WIDTH), [i ^ distance.literal_value for i in range(WIDTH)])
        return builder.shuffle_vector(arguments[0], arguments[0], mask)

    return lanes(lanes, distance), generate


@intrinsic
def transpose(typingctx, source, source_index, source_step, target, target_index, target_step):
    """target[target_index + target_step i + j] = source[source_index + source_step j + i], i, j = 0 .. 15; 1-D float32.

    Four rounds of perfect shuffles: each interleaves the first eight vectors with the last eight.
    """

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(_INT, WIDTH)
        masks = [ir.Constant(kind, [half + i // 2 + WIDTH * (i % 2) for i in range(WIDTH)]) for half in (0, 8)]

        def addresses(k):  # of the array in argument k
            kind, array, (first, step) = signature.args[k], arguments[k], arguments[k + 1 : k + 3]
            at = [builder.add(first, builder.mul(step, ir.Constant(step.type, j))) for j in range(WIDTH)]
            return [_address(context, builder, kind, array, index) for index in at]

        rows = [builder.load(address, align=4) for address in addresses(0)]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i // 2], rows[i // 2 + 8], masks[i % 2]) for i in range(WIDTH)]
        for row, address in zip(rows, addresses(3), strict=True):
            builder.store(row, address, align=4)
        return context.get_dummy_value()

    return types.none(source, types.intp, types.intp, target, types.intp, types.intp), generate


@intrinsic
def store_bytes(typingctx, array, index, value):
    """array[index : index + 16] = value, whole numbers -128 .. 255, two's complement; a contiguous 1-D uint8 array."""

    def generate(context, builder, signature, arguments):
        array, index, value = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        kind = ir.VectorType(ir.IntType(8), WIDTH)
        whole = builder.trunc(builder.fptosi(value, ir.VectorType(_INT, WIDTH)), kind)
        builder.store(whole, builder.bitcast(builder.gep(data, [index]), kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def halves(typingctx, low, high):
    """low in lanes 0 to 7, high in lanes 8 to 15."""

    def generate(context, builder, signature, arguments):
        both = ir.Constant(_VECTOR, ir.Undefined)
        for i in range(2):
            both = builder.insert_element(both, arguments[i], ir.Constant(_INT, i))
        return builder.shuffle_vector(both, both, ir.Constant(ir.VectorType(_INT, WIDTH), [i // 8 for i in range(WIDTH)]))

    return lanes(types.float32, types.float32), generate


@intrinsic
def lane(typingctx, a, i):
    """One lane as a float32."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(*arguments)

    return types.float32(lanes, types.intp), generate


@intrinsic
def power_of_two(typingctx, a):
    """The power of two at or below the magnitude of each lane; 0 where that is subnormal."""

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(_INT, WIDTH)
        exponent = builder.and_(builder.bitcast(arguments[0], kind), ir.Constant(kind, [0x7F800000] * WIDTH))
        return builder.bitcast(exponent, _VECTOR)

    return lanes(lanes), generate


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


@njit(forceinline=True)
def total_of_eight(a):
    """Each lane: the sum of its half, lanes 0 to 7 or 8 to 15."""
    a = a + swap(a, 1)
    a = a + swap(a, 2)
    return a + swap(a, 4)


@njit(forceinline=True)
def largest_of_eight(a):
    """Each lane: the largest of its half, lanes 0 to 7 or 8 to 15."""
    a = maximum(a, swap(a, 1))
    a = maximum(a, swap(a, 2))
    return maximum(a, swap(a, 4))


@njit(forceinline=True)
def total_of_all(a):
    """Each lane: the sum of all."""
    a = total_of_eight(a)
    return a + swap(a, 8)


@njit(forceinline=True)
def largest_of_all(a):
    """Each lane: the largest of all."""
    a = largest_of_eight(a)
    return maximum(a, swap(a, 8))
