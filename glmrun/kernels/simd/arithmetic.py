"""Arithmetic lane by lane, sums and maxima over lanes."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glmrun.kernels.simd.types import (
    F32,
    I32,
    I64,
    V8F,
    V8I,
    V16F,
    V16H,
    V16I,
    V64B,
    call,
    constant,
    f32x8,
    f32x16,
    fold_in_fours,
    i16x16,
    i32x8,
    i32x16,
    pointer,
    shuffle,
    splat,
    u8x64,
)

MAGIC = 12582912.0  # 1.5 * 2**23: a sum with it is rounded to a whole number, half to even, which stands in the lowest bits


@intrinsic
def fma(context, x, y, z):
    """x * y + z in every lane, rounded once; 16 or 8 float32."""

    def generate(c, b, s, a):
        return call(b, f"llvm.fma.v{x.llvm_type.count}f32", x.llvm_type, list(a))

    return x(x, x, x), generate


@intrinsic
def maximum(context, x, y):
    """The larger one in every lane."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


def _magnitude(b, x):
    return b.and_(b.bitcast(x, V16I), constant(V16I, 0x7FFFFFFF))


@intrinsic
def larger_magnitude(context, x, y):
    """max(|x|, |y|) in every lane; NaN counts as the largest."""

    def generate(c, b, s, a):
        return b.bitcast(call(b, "llvm.umax.v16i32", V16I, [_magnitude(b, x) for x in a]), V16F)

    return f32x16(f32x16, f32x16), generate


@intrinsic
def largest_of_magnitudes(context, x):
    """The largest of 16 or 8 numbers that are not negative; NaN counts as the largest."""

    def generate(c, b, s, a):
        n = x.llvm_type.count
        bits = b.bitcast(a[0], ir.VectorType(I32, n))
        return b.bitcast(call(b, f"llvm.vector.reduce.umax.v{n}i32", I32, [bits]), F32)

    return types.float32(x), generate


@intrinsic
def largest_of_eight(context, address):
    """Of eight vectors of 16 numbers that are not negative, one behind the other at the address, the largest of each."""

    def generate(c, b, s, a):
        rows = [b.load(pointer(b, b.add(a[0], ir.Constant(I64, i * 64)), V16I), align=64) for i in range(8)]
        rows = fold_in_fours(b, rows, lambda x, y: call(b, "llvm.umax.v16i32", V16I, [x, y]))
        halves = [shuffle(b, rows[0], rows[1], [*range(i, i + 8), *range(16 + i, 24 + i)]) for i in (0, 8)]
        x = call(b, "llvm.umax.v16i32", V16I, halves)
        quarters = [shuffle(b, x, x, [*range(i, i + 4), *range(8 + i, 12 + i)]) for i in (0, 4)]
        return b.bitcast(call(b, "llvm.umax.v8i32", V8I, quarters), V8F)

    return f32x8(types.int64), generate


@intrinsic
def round_up_to(context, x, most):
    """The whole numbers that 8 float32 from 0 on, rounded up, are, and at most that many; NaN is as many. int32 (8,)."""

    def generate(c, b, s, a):
        up, limit = call(b, "llvm.ceil.v8f32", V8F, [a[0]]), splat(b, b.sitofp(a[1], F32), 8)
        return b.fptosi(b.select(b.fcmp_ordered("<", up, limit), up, limit), V8I)

    return i32x8(f32x8, types.int64), generate


@intrinsic
def inverse_or_zero(context, x):
    """1 / x in every lane of 8, 0 where x is 0."""

    def generate(c, b, s, a):
        return b.select(b.fcmp_ordered("==", a[0], constant(V8F, 0.0)), constant(V8F, 0.0), b.fdiv(constant(V8F, 1.0), a[0]))

    return f32x8(f32x8), generate


@intrinsic
def add_neighbours(context, x):
    """Lane i = x[2 i] + x[2 i + 1] of 16 int32."""

    def generate(c, b, s, a):
        return b.add(*(shuffle(b, a[0], a[0], list(range(i, 16, 2))) for i in range(2)))

    return i32x8(i32x16), generate


@intrinsic
def total(context, x):
    """The sum of 16 or 8 float32, always in the same order (a tree)."""

    def generate(c, b, s, a):
        name = f"llvm.vector.reduce.fadd.v{x.llvm_type.count}f32"
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(F32, [F32, x.llvm_type]), name)
        return b.call(function, [ir.Constant(F32, -0.0), a[0]], fastmath=("reassoc",))

    return types.float32(x), generate


@intrinsic
def add_halves(context, x):
    """Lane i = x[i] + x[i + 8] of 16 float32."""

    def generate(c, b, s, a):
        return b.fadd(shuffle(b, a[0], a[0], list(range(8))), shuffle(b, a[0], a[0], list(range(8, 16))))

    return f32x8(f32x16), generate


@intrinsic
def largest(context, x):
    """The largest of the 16 lanes; NaN is ignored."""

    def generate(c, b, s, a):  # LLVM's own reduction heeds NaN at every step, one lane at a time
        x = b.select(b.fcmp_ordered("ord", a[0], a[0]), a[0], constant(V16F, float("-inf")))
        for half in (8, 4, 2, 1):
            low, high = (shuffle(b, x, x, list(range(first, first + half))) for first in (0, half))
            x = b.select(b.fcmp_ordered(">", low, high), low, high)
        return b.extract_element(x, ir.Constant(I32, 0))

    return types.float32(f32x16), generate


@intrinsic(prefer_literal=True)
def times(context, x, factor):
    """x * factor, a constant, in every lane of 16 or 8 int32."""
    n = factor.literal_value
    return x(x, factor), lambda c, b, s, a: b.mul(a[0], constant(x.llvm_type, n))


@intrinsic
def narrow(context, x):
    """The low 16 bits of 16 int32."""
    return i16x16(i32x16), lambda c, b, s, a: b.trunc(a[0], V16H)


@intrinsic(prefer_literal=True)
def round_64(context, address, factors, first):
    """The low bytes of 64 float32 at the address, the first 32 times factors[first], the others times the next, rounded to even."""

    def generate(c, b, s, a):
        words = []
        for i in range(4):
            factor = shuffle(b, a[1], a[1], [first.literal_value + i // 2] * 16)
            x = b.load(pointer(b, b.add(a[0], ir.Constant(I64, i * 64)), V16F), align=4)
            words.append(b.bitcast(b.fadd(b.fmul(x, factor), constant(V16F, MAGIC)), V16I))
        low, high = (shuffle(b, x, y, list(range(32))) for x, y in (words[:2], words[2:]))
        return b.trunc(shuffle(b, low, high, list(range(64))), V64B)

    return u8x64(types.int64, f32x8, first), generate


@intrinsic
def to_f32(context, x):
    """16 or 8 int32 as float32."""
    wide = f32x16 if x == i32x16 else f32x8
    return wide(x), lambda c, b, s, a: b.sitofp(a[0], wide.llvm_type)


@intrinsic
def round_to_i32(context, x):
    """16 float32 that int32 holds, rounded, halves to even; of others and of NaN any number."""
    return i32x16(f32x16), lambda c, b, s, a: b.fptosi(call(b, "llvm.rint.v16f32", V16F, [a[0]]), V16I)


@intrinsic
def exp(context, x):
    """e**x in every lane, within 2 units in the last place; 0 below -87, e**88 above 88, NaN for NaN.

    2**n * p(f) with x = (n + f) ln 2 and |f| <= 1/2; p is the Taylor polynomial of 2**f to the seventh power.
    """
    ln2 = 0.6931471805599453
    coefficients, term = [], 1.0
    for power in range(8):
        coefficients.append(term)
        term *= ln2 / (power + 1)

    def generate(c, b, s, a):
        def fused(x, y, z):
            return call(b, "llvm.fma.v16f32", V16F, [x, y, z])

        x = b.select(b.fcmp_unordered("<", a[0], constant(V16F, -87.0)), constant(V16F, -87.0), a[0])
        x = b.select(b.fcmp_ordered(">", x, constant(V16F, 88.0)), constant(V16F, 88.0), x)
        n = call(b, "llvm.rint.v16f32", V16F, [b.fmul(x, constant(V16F, 1 / ln2))])
        # f * ln 2 = x - n ln 2, with ln 2 in two parts so that nothing is lost
        r = fused(n, constant(V16F, -0.693359375), x)
        r = fused(n, constant(V16F, 2.12194440e-4), r)
        f = b.fmul(r, constant(V16F, 1 / ln2))
        p = constant(V16F, coefficients[7])
        for coefficient in coefficients[6::-1]:
            p = fused(p, f, constant(V16F, coefficient))
        bits = b.shl(b.add(b.fptosi(n, V16I), constant(V16I, 127)), constant(V16I, 23))
        value = b.fmul(p, b.bitcast(bits, V16F))
        tiny = b.fcmp_ordered("<=", a[0], constant(V16F, -87.0))
        value = b.select(tiny, constant(V16F, 0.0), value)
        return b.select(b.fcmp_unordered("uno", a[0], a[0]), a[0], value)  # NaN in, NaN out

    return f32x16(f32x16), generate


@intrinsic
def flip_sign_bit(context, x):
    """int8 -> uint8 with 128 added, 64 at once."""
    return u8x64(u8x64), lambda c, b, s, a: b.xor(a[0], constant(V64B, 0x80))
