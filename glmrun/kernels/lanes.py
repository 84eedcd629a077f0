"""Attention's products with 32 queries in the lanes: scores of 8 positions, or 8 latent values, in registers at a time.

Because queries lie side by side, the softmax between the two products needs no sum or maximum across lanes.

    query panel    int8 (latent / 4, 2, 16, 4) codes, queries 0 to 15, then 16 to 31, and int16 (rope / 2, 2, 16, 2);
                   float32 (row / BLOCK, 2, 16) what a block's dot product is worth;
                   int32 (latent / BLOCK, 2, 16) -128 times the sums of a block's int8 codes: those of keys carry +128
    weight panel   uint8 (positions / 4, 2, 16, 4); float32 (positions / BLOCK, 2, 16)
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.simd import (
    F16,
    F32,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    V64B,
    call,
    constant,
    emit_dot,
    f32x16,
    has_vnni,
    i32x16,
    pointer,
    shuffle,
    splat,
    u8x64,
)

BLOCK = 64  # values that share a scale
QUERIES, COLUMNS = 32, 8
_CELLS = 2 * COLUMNS
_floats = types.UniTuple(f32x16, _CELLS)


def _at(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _load(builder, address, llvm_type):
    return builder.load(pointer(builder, address, llvm_type), align=4)


def _columns(builder, first, stride):
    return [builder.add(first, builder.mul(stride, ir.Constant(I64, c))) for c in range(COLUMNS)]


def _broadcast(builder, address, llvm_type):
    return splat(builder, _load(builder, address, llvm_type), 16)


@intrinsic
def zeros(context):
    """A tile of float32 zeros."""
    return _floats(), lambda c, b, s, a: c.make_tuple(b, _floats, [constant(V16F, 0.0)] * _CELLS)


V32H = ir.VectorType(I16, 32)


def _dot_i16(builder, start, x, y):
    """start + the sum of two neighbouring products of int16, in every lane of int32."""
    if has_vnni():
        return call(builder, "llvm.x86.avx512.vpdpwssd.512", V16I, [start, x, y])
    wide = ir.VectorType(I32, 32)
    products = builder.mul(builder.sext(x, wide), builder.sext(y, wide))
    even, odd = (shuffle(builder, products, products, list(range(j, 32, 2))) for j in range(2))
    return builder.add(start, builder.add(even, odd))


def _u8_s8(builder, start, codes, x):
    return emit_dot(builder, start, codes, builder.bitcast(x, V64B))


def _s8_u8(builder, start, codes, x):
    return emit_dot(builder, start, builder.bitcast(x, V64B), codes)


def _s16_s16(builder, start, codes, x):
    return _dot_i16(builder, start, builder.bitcast(codes, V32H), builder.bitcast(x, V32H))


def _block(dot, words, has_starts):
    @intrinsic
    def add(context, tile, codes, factors, starts, column, stride, scale, scale_stride):
        """tile[c, q] += factors[q] * scale[c] * (starts[q] + codes[q] . column[c]) over one block; c = 0 to 7, q = 0 to 31.

        codes, factors, starts   of the panel's block
        column, stride           address of the first column's codes, bytes to the next column's
        scale, scale_stride      address of the first column's scale, bytes to the next
        """

        def generate(c, b, s, a):
            tiles = [b.extract_value(a[0], i) for i in range(_CELLS)]
            codes, factors, starts, column, stride, scale, scale_stride = a[1:]
            addresses, scales = _columns(b, column, stride), _columns(b, scale, scale_stride)
            dots = [_load(b, _at(b, starts, i % 2 * 64), V16I) if has_starts else constant(V16I, 0) for i in range(_CELLS)]
            for word in range(words):
                rows = [_load(b, _at(b, codes, (word * 2 + r) * 64), V64B) for r in range(2)]
                for i, address in enumerate(addresses):
                    x = _broadcast(b, _at(b, address, word * 4), I32)
                    for r in range(2):
                        dots[i * 2 + r] = dot(b, dots[i * 2 + r], rows[r], x)
            factor = [_load(b, _at(b, factors, r * 64), V16F) for r in range(2)]
            for i in range(_CELLS):
                both = b.fmul(factor[i % 2], _broadcast(b, scales[i // 2], F32))
                tiles[i] = call(b, "llvm.fma.v16f32", V16F, [b.sitofp(dots[i], V16F), both, tiles[i]])
            return c.make_tuple(b, _floats, tiles)

        return _floats(_floats, int64, int64, int64, int64, int64, int64, int64), generate

    return add


add_latent_scores = _block(_s8_u8, BLOCK // 4, True)
add_rope_scores = _block(_s16_s16, BLOCK // 2, False)
add_values = _block(_u8_s8, BLOCK // 4, False)


@intrinsic
def load_scaled(context, address, factors):
    """The tile float32 (8, 32) at the address times factors[q], float32 (32,) at an address."""

    def generate(c, b, s, a):
        factor = [_load(b, _at(b, a[1], r * 64), V16F) for r in range(2)]
        return c.make_tuple(b, _floats, [b.fmul(_load(b, _at(b, a[0], i * 64), V16F), factor[i % 2]) for i in range(_CELLS)])

    return _floats(int64, int64), generate


@intrinsic
def store(context, tile, address):
    """Write a tile as float32 (8, 32)."""

    def generate(c, b, s, a):
        for i in range(_CELLS):
            b.store(b.extract_value(a[0], i), pointer(b, _at(b, a[1], i * 64), V16F), align=4)
        return c.get_dummy_value()

    return types.void(_floats, int64), generate


_MAGIC = 12582912.0  # 1.5 * 2**23: a sum with it is rounded to a whole number, half to even, which stands in the lowest bits


def _rounded(b, x, factor, offset):
    return b.bitcast(call(b, "llvm.fma.v16f32", V16F, [x, factor, constant(V16F, _MAGIC + offset)]), V16I)


@intrinsic(prefer_literal=True)
def round_in_turn(context, x0, x1, x2, x3, factor, offset):
    """The low bytes of round(x * factor) + offset: lane by lane x0, x1, x2, x3 of that lane."""
    added = offset.literal_value

    def generate(c, b, s, a):
        word = constant(V16I, 0)
        for i in range(4):
            byte = _rounded(b, a[i], a[4], added)
            if i < 3:
                byte = b.and_(byte, constant(V16I, 255))
            word = b.or_(word, b.shl(byte, constant(V16I, 8 * i)))
        return b.bitcast(word, V64B)

    return u8x64(f32x16, f32x16, f32x16, f32x16, f32x16, offset), generate


@intrinsic(prefer_literal=True)
def round_in_order(context, x0, x1, x2, x3, factor, offset):
    """The low bytes of round(x * factor) + offset: all of x0, then x1, x2, x3."""
    added = offset.literal_value

    def generate(c, b, s, a):
        parts = [b.bitcast(_rounded(b, a[i], a[4], added), V64B) for i in range(4)]
        low, high = (shuffle(b, x, y, list(range(0, 128, 4))) for x, y in (parts[:2], parts[2:]))
        return shuffle(b, low, high, list(range(64)))

    return u8x64(f32x16, f32x16, f32x16, f32x16, f32x16, offset), generate


@intrinsic
def round_two_bytes(context, x0, x1, factor):
    """round(x * factor) as int16: all of x0, then x1; up to 2**15 in size."""

    def generate(c, b, s, a):
        parts = [b.bitcast(_rounded(b, x, a[2], 0), V32H) for x in a[:2]]
        return b.bitcast(shuffle(b, parts[0], parts[1], list(range(0, 64, 2))), V64B)

    return u8x64(f32x16, f32x16, f32x16), generate


def _magnitude(b, x):
    return b.and_(b.bitcast(x, V16I), constant(V16I, 0x7FFFFFFF))


def _larger(b, x, y):
    return call(b, "llvm.umax.v16i32", V16I, [x, y])


@intrinsic
def larger_magnitude(context, x, y):
    """max(|x|, |y|) in every lane; NaN counts as the largest."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: b.bitcast(_larger(b, _magnitude(b, a[0]), _magnitude(b, a[1])), V16F)


@intrinsic
def largest_of_magnitudes(context, x):
    """The largest of 16 numbers that are not negative; NaN counts as the largest."""

    def generate(c, b, s, a):
        return b.bitcast(call(b, "llvm.vector.reduce.umax.v16i32", I32, [b.bitcast(a[0], V16I)]), F32)

    return types.float32(f32x16), generate


@intrinsic
def maximum_or_nan(context, x, y):
    """The larger one in every lane; NaN if one is NaN."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: call(b, "llvm.maximum.v16f32", V16F, [a[0], a[1]])


@intrinsic
def where_less(context, x, y, then, otherwise):
    """then in lanes where x < y, otherwise in the others."""

    def generate(c, b, s, a):
        return b.select(b.fcmp_ordered("<", a[0], a[1]), a[2], a[3])

    return f32x16(f32x16, f32x16, f32x16, f32x16), generate


@intrinsic
def store_f16(context, address, value):
    """Write one float32 rounded to float16."""

    def generate(c, b, s, a):
        b.store(b.fptrunc(a[1], F16), pointer(b, a[0], F16), align=2)
        return c.get_dummy_value()

    return types.void(int64, types.float32), generate


@intrinsic
def store_i32x16(context, address, value):
    """Write 16 int32."""

    def generate(c, b, s, a):
        b.store(a[1], pointer(b, a[0], V16I), align=4)
        return c.get_dummy_value()

    return types.void(int64, i32x16), generate


@intrinsic
def zero_i32x16(context):
    """16 zeros."""
    return i32x16(), lambda c, b, s, a: constant(V16I, 0)
