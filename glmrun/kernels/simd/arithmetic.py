"""Arithmetic lane by lane, sums and maxima over lanes."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glmrun.kernels.simd.types import F32, I32, V16F, V16I, V64B, call, constant, f32x8, f32x16, i32x16, shuffle, u8x64


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


@intrinsic
def absolute(context, x):
    """|x| in every lane."""
    return f32x16(f32x16), lambda c, b, s, a: call(b, "llvm.fabs.v16f32", V16F, [a[0]])


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
def shift_left(context, x, bits):
    """x * 2**bits in every lane of 16 int32."""
    n = bits.literal_value
    return i32x16(i32x16, bits), lambda c, b, s, a: b.shl(a[0], constant(V16I, n))


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
def total_i32(context, x):
    """The sum of 16 int32."""
    return types.int32(i32x16), lambda c, b, s, a: call(b, "llvm.vector.reduce.add.v16i32", I32, [a[0]])


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
