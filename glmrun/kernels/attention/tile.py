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

from glmrun.kernels.simd.dots import emit_dot, emit_dot_i16
from glmrun.kernels.simd.types import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    V64B,
    call,
    constant,
    f32x8,
    f32x16,
    i32x16,
    pointer,
    shuffle,
    splat,
    u8x64,
)

BLOCK = 64  # values that share a scale
QUERIES, COLUMNS = 32, 8
FEW = 24  # queries that a panel's second vector holds in half of its lanes: the 20 heads of a single token
_CELLS = 2 * COLUMNS


def _tile(lanes):
    """Numba's type of a tile: 2 vectors for each column."""
    return types.UniTuple(f32x16, _CELLS) if lanes == QUERIES else types.Tuple([f32x16, f32x8] * COLUMNS)


def _at(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _load(builder, address, llvm_type):
    return builder.load(pointer(builder, address, llvm_type), align=4)


def _columns(builder, first, stride):
    return [builder.add(first, builder.mul(stride, ir.Constant(I64, c))) for c in range(COLUMNS)]


def _cells(lanes):
    """LLVM types of a tile's cells, queries 0 to 15 and the others of each column."""
    return [V16F, ir.VectorType(F32, lanes - 16)] * COLUMNS


def _of(llvm_type, element, per_lane=1):
    return ir.VectorType(element, llvm_type.count * per_lane)


V32H = ir.VectorType(I16, 32)


def _u8_s8(builder, start, codes, x):
    return emit_dot(builder, start, codes, builder.bitcast(x, codes.type))


def _s8_u8(builder, start, codes, x):
    return emit_dot(builder, start, builder.bitcast(x, codes.type), codes)


def _s16_s16(builder, start, codes, x):
    halves = _of(start.type, I16, 2)
    return emit_dot_i16(builder, start, builder.bitcast(codes, halves), builder.bitcast(x, halves))


def _block(dot, words, has_starts, lanes):
    cells = _cells(lanes)

    @intrinsic
    def add(context, tile, codes, factors, starts, column, stride, scale, scale_stride):
        """tile[c, q] += factors[q] * scale[c] * (starts[q] + codes[q] . column[c]) over one block; c = 0 to 7, q = 0 to lanes - 1.

        codes, factors, starts   of the panel's block
        column, stride           address of the first column's codes, bytes to the next column's
        scale, scale_stride      address of the first column's scale, bytes to the next
        """

        def generate(c, b, s, a):
            codes, factors, starts, column, stride, scale, scale_stride = a[1:]
            addresses, scales = _columns(b, column, stride), _columns(b, scale, scale_stride)
            numbers = [_of(cell, I32) for cell in cells]
            dots = [constant(kind, 0) for kind in numbers]
            if has_starts:
                dots = [_load(b, _at(b, starts, i % 2 * 64), kind) for i, kind in enumerate(numbers)]
            for word in range(words):
                rows = [_load(b, _at(b, codes, (word * 2 + r) * 64), _of(cells[r], I8, 4)) for r in range(2)]
                for i, address in enumerate(addresses):
                    x = _load(b, _at(b, address, word * 4), I32)
                    for r in range(2):
                        dots[i * 2 + r] = dot(b, dots[i * 2 + r], rows[r], splat(b, x, cells[r].count))
            factor = [_load(b, _at(b, factors, r * 64), cells[r]) for r in range(2)]
            out = []
            for i, cell in enumerate(cells):
                both = b.fmul(factor[i % 2], splat(b, _load(b, scales[i // 2], F32), cell.count))
                operands = [b.sitofp(dots[i], cell), both, b.extract_value(a[0], i)]
                out.append(call(b, f"llvm.fma.v{cell.count}f32", cell, operands))
            return c.make_tuple(b, tile, out)

        return tile(tile, int64, int64, int64, int64, int64, int64, int64), generate

    return add


add_latent_scores, add_latent_scores_few = (_block(_s8_u8, BLOCK // 4, True, lanes) for lanes in (QUERIES, FEW))
add_rope_scores, add_rope_scores_few = (_block(_s16_s16, BLOCK // 2, False, lanes) for lanes in (QUERIES, FEW))
add_values, add_values_few = (_block(_u8_s8, BLOCK // 4, False, lanes) for lanes in (QUERIES, FEW))


def _zeros(lanes):
    @intrinsic
    def make(context):
        """A tile of float32 zeros."""
        return _tile(lanes)(), lambda c, b, s, a: c.make_tuple(b, _tile(lanes), [constant(kind, 0.0) for kind in _cells(lanes)])

    return make


def _load_scaled(lanes):
    @intrinsic
    def load(context, address, factors):
        """The tile float32 (8, 32) at the address times factors[q], float32 (32,) at an address."""

        def generate(c, b, s, a):
            cells = _cells(lanes)
            factor = [_load(b, _at(b, a[1], r * 64), cells[r]) for r in range(2)]
            values = [b.fmul(_load(b, _at(b, a[0], i * 64), cell), factor[i % 2]) for i, cell in enumerate(cells)]
            return c.make_tuple(b, _tile(lanes), values)

        return _tile(lanes)(int64, int64), generate

    return load


zeros, zeros_few = _zeros(QUERIES), _zeros(FEW)
load_scaled, load_scaled_few = _load_scaled(QUERIES), _load_scaled(FEW)


@intrinsic
def store(context, tile, address):
    """Write a tile as float32 (8, 32); of few queries, what it has."""

    def generate(c, b, s, a):
        for i in range(_CELLS):
            cell = b.extract_value(a[0], i)
            b.store(cell, pointer(b, _at(b, a[1], i * 64), cell.type), align=4)
        return c.get_dummy_value()

    return types.void(tile, int64), generate


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
def larger_f16_magnitude(context, x, address):
    """max(|x|, |y|) of 32 float16, x in 64 bytes and y at the address; NaN counts as the largest."""

    def generate(c, b, s, a):
        y = b.and_(_load(b, a[1], V32H), constant(V32H, 0x7FFF))
        return b.bitcast(call(b, "llvm.umax.v32i16", V32H, [b.bitcast(a[0], V32H), y]), V64B)

    return u8x64(u8x64, int64), generate


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
