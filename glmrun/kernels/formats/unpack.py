"""Vector code that unpacks GGML's blocks: nibbles, 5-bit and 6-bit codes, scales spread over lanes, a transposition."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.tables import emit_look_up
from glmrun.kernels.simd.target import dot_bits, has_neon, signed_factors
from glmrun.kernels.simd.types import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    V8F,
    V8I,
    V16B,
    V16F,
    V16H,
    V16I,
    V32B,
    V32H,
    V64B,
    constant,
    f32x8,
    f32x16,
    i16x16,
    i16x32,
    pointer,
    shuffle,
    splat,
    u8x64,
)
from quant.blocks import iq4


def _twice(builder, half):
    """32 bytes in both halves of 64."""
    return shuffle(builder, half, half, list(range(32)) * 2)


def _shift(builder, vector, instruction, low, high):
    """Shift bytes by `low` bits in the low half and `high` bits in the high half; the caller masks what crosses a byte."""
    words = builder.bitcast(vector, V32H)
    return builder.bitcast(getattr(builder, instruction)(words, constant(V32H, low, high)), V64B)


@intrinsic(prefer_literal=True)
def nibbles(context, address, high):
    """64 bytes at the address -> their low nibbles (high = 0) or their high nibbles (1)."""
    upper = high.literal_value

    def generate(c, b, s, a):
        both = b.load(pointer(b, a[0], V64B), align=1)
        return b.and_(_shift(b, both, "lshr", 4, 4) if upper else both, constant(V64B, 15))

    return u8x64(types.int64, high), generate


@intrinsic
def packed_scales(context, address):
    """A Q4_K block's eight 6-bit s and eight m as int16: s_0..3 m_0..3 s_4..7 m_4..7.

    Bytes a_0..3 b_0..3 c_0..3 at 4 hold s_j = a_j & 63 and m_j = b_j & 63 for j < 4, then s_j = (c_j & 15) + 16 (a_j >> 6) and
    m_j = (c_j >> 4) + 16 (b_j >> 6) with j - 4 for j.
    """

    def generate(c, b, s, a):
        block = b.load(pointer(b, a[0], V16B), align=1)
        words, quads = ir.VectorType(I64, 2), ir.VectorType(I32, 4)
        upper = shuffle(b, block, block, [*range(4, 12), *range(4, 12)])
        upper = b.lshr(b.bitcast(upper, words), ir.Constant(words, [0, 2]))
        lower = shuffle(b, block, block, [*range(12, 16)] * 4)
        lower = b.lshr(b.bitcast(lower, quads), ir.Constant(quads, [0, 0, 0, 4]))
        upper = b.and_(b.bitcast(upper, V16B), ir.Constant(V16B, [0x3F] * 8 + [0x30] * 8))
        lower = b.and_(b.bitcast(lower, V16B), ir.Constant(V16B, [0] * 8 + [0x0F] * 8))
        return b.zext(b.or_(upper, lower), V16H)

    return i16x16(types.int64), generate


@intrinsic
def load_i8x16_as_i16(context, address):
    """16 int8 at the address as int16."""
    return i16x16(types.int64), lambda c, b, s, a: b.sext(b.load(pointer(b, a[0], V16B), align=1), V16H)


@intrinsic(prefer_literal=True)
def fours(context, x, i0, i1, i2, i3, i4, i5, i6, i7):
    """x[i0] four times, x[i1] four times, ..., of 16 int16."""
    picked = (i0, i1, i2, i3, i4, i5, i6, i7)
    lanes = [i.literal_value for i in picked for _ in range(4)]
    return i16x32(i16x16, *picked), lambda c, b, s, a: shuffle(b, a[0], a[0], lanes)


@intrinsic
def four_f16_times(context, address, factor):
    """The four float16 at the address times factor, in lanes 0 to 3 of 8 float32.

    Whoever wants one of them gets it sooner this way: LLVM loads a single float16 into a register that something else still fills.
    """

    def generate(c, b, s, a):
        wide = emit_widen(b, b.load(pointer(b, a[0], ir.VectorType(I16, 4)), align=2))
        product = b.fmul(wide, splat(b, a[1], 4))
        return shuffle(b, product, product, list(range(4)) * 2)

    return f32x8(types.int64, types.float32), generate


def emit_spaced(builder, address, element, n, stride):
    """LLVM code for the first n elements of 8, `stride` bytes apart in memory; zeros behind."""
    lanes = constant(ir.VectorType(element, 8), 0)
    for i in range(n):
        one = builder.load(pointer(builder, builder.add(address, ir.Constant(I64, i * stride)), element), align=1)
        lanes = builder.insert_element(lanes, one, ir.Constant(I32, i))
    return lanes


@intrinsic(prefer_literal=True)
def spaced_f16(context, address, count, stride):
    """`count` float16, `stride` bytes apart, in the first lanes of 8 float32; zeros behind."""
    n, step = count.literal_value, stride.literal_value

    def generate(c, b, s, a):
        return emit_widen(b, emit_spaced(b, a[0], I16, n, step))

    return f32x8(types.int64, count, stride), generate


@intrinsic(prefer_literal=True)
def first_f32(context, address, count):
    """`count` (1, 2 or 4) float32 in the first lanes of 8; zeros behind."""
    n = count.literal_value

    def generate(c, b, s, a):
        some = ir.VectorType(F32, n)
        lanes = [min(lane, n) for lane in range(8)]  # the n-th is the other operand's first
        return shuffle(b, b.load(pointer(b, a[0], some), align=4), constant(some, 0.0), lanes)

    return f32x8(types.int64, count), generate


@intrinsic(prefer_literal=True)
def splat_lane_x8(context, x, lane):
    """x[lane] in 8 lanes, of 8 float32."""
    return f32x8(f32x8, lane), lambda c, b, s, a: shuffle(b, a[0], a[0], [lane.literal_value] * 8)


@intrinsic(prefer_literal=True)
def six_bits(context, low_bits, high_bits, half):
    """64 of a Q6_K block's 6-bit codes: nibbles of 64 bytes at low_bits, pairs of bits of 32 bytes at high_bits.

    half = 0: elements 0 to 63 of 128 (low nibbles, bits 0-1 and 2-3); half = 1: the others (high nibbles, bits 4-5 and 6-7).
    """
    upper = half.literal_value

    def generate(c, b, s, a):
        nibbles = b.load(pointer(b, a[0], V64B), align=1)
        if upper:
            nibbles = _shift(b, nibbles, "lshr", 4, 4)
        pairs = _twice(b, b.load(pointer(b, a[1], V32B), align=1))
        pairs = _shift(b, pairs, "lshr", 0, 2) if upper else _shift(b, pairs, "shl", 4, 2)
        return b.or_(b.and_(nibbles, constant(V64B, 15)), b.and_(pairs, constant(V64B, 0x30)))

    return u8x64(types.int64, types.int64, half), generate


def _pairs_of_bits(builder, address, upper):
    """Bits 0-1 and 2-3 (upper = 0), or 4-5 and 6-7 (1), of 32 bytes at the address: 64 numbers."""
    both = _twice(builder, builder.load(pointer(builder, address, V32B), align=1))
    return builder.and_(_shift(builder, both, "lshr", 4 * upper, 4 * upper + 2), constant(V64B, 3))


@intrinsic(prefer_literal=True)
def two_bits(context, address, half):
    """64 of the 2-bit codes that a Q2_K block keeps in 32 bytes: elements 0 to 63 of 128, or the others."""
    upper = half.literal_value
    return u8x64(types.int64, half), lambda c, b, s, a: _pairs_of_bits(b, a[0], upper)


@intrinsic(prefer_literal=True)
def three_bits(context, low_bits, high_bits, quarter):
    """64 of a Q3_K block's 3-bit codes: pairs of bits of 32 bytes at low_bits, single bits of 32 bytes at high_bits.

    quarter    which 64 of the 256: of the low bits those of each half stand at an address of their own
    """
    half, upper = divmod(quarter.literal_value, 2)

    def generate(c, b, s, a):
        single, right = _twice(b, b.load(pointer(b, a[1], V32B), align=1)), 4 * half + 2 * upper - 2
        single = _shift(b, single, "lshr", right, right + 1) if right >= 0 else _shift(b, single, "shl", 2, 1)
        return b.or_(_pairs_of_bits(b, a[0], upper), b.and_(single, constant(V64B, 4)))

    return u8x64(types.int64, types.int64, quarter), generate


@intrinsic(prefer_literal=True)
def four_bit_scales(context, address, high):
    """The low (high = 0) or the high (1) nibbles of 16 bytes at the address as int16: a Q2_K block's s_j, or its m_j."""
    upper = high.literal_value

    def generate(c, b, s, a):
        both = b.zext(b.load(pointer(b, a[0], V16B), align=1), V16H)
        return b.lshr(both, constant(V16H, 4)) if upper else b.and_(both, constant(V16H, 15))

    return i16x16(types.int64, high), generate


@intrinsic
def six_bit_scales(context, address):
    """A Q3_K block's sixteen s_j - 32 as int16, from its last 16 bytes: two others, then the scales, then d.

    Byte j (j < 8) holds the lower 4 bits of s_j and of s_j+8, byte 8 + j (j < 4) the upper 2 of s_j, s_j+4, s_j+8 and s_j+12.
    """

    def generate(c, b, s, a):
        block = b.load(pointer(b, a[0], V16B), align=1)
        words, quads = ir.VectorType(I64, 2), ir.VectorType(I32, 4)
        lower = shuffle(b, block, block, [*range(2, 10), *range(2, 10)])
        lower = b.bitcast(b.lshr(b.bitcast(lower, words), ir.Constant(words, [0, 4])), V16B)
        upper = shuffle(b, block, block, [*range(10, 14)] * 4)
        upper = b.and_(b.lshr(b.bitcast(upper, quads), ir.Constant(quads, [0, 2, 4, 6])), constant(quads, 0x03030303))
        upper = b.bitcast(b.shl(upper, constant(quads, 4)), V16B)
        scales = b.or_(b.and_(lower, constant(V16B, 15)), upper)
        return b.sext(b.sub(scales, constant(V16B, 32)), V16H)

    return i16x16(types.int64), generate


def _bits(builder, word):
    """32 truth values from 32 bits: in one move where the CPU has registers of them, else each byte spread over its eight bits."""
    if dot_bits() == 512:
        return builder.bitcast(word, ir.VectorType(I1, 32))
    four = builder.bitcast(word, ir.VectorType(I8, 4))
    spread = shuffle(builder, four, four, [i // 8 for i in range(32)])
    bit = ir.Constant(V32B, [1 << i % 8 for i in range(32)])
    return builder.icmp_unsigned("!=", builder.and_(spread, bit), constant(V32B, 0))


@intrinsic(prefer_literal=True)
def five_bits(context, first, second, more):
    """The 5-bit codes of two blocks' (high bits, low bits) at two addresses, 32 each, plus 112 or 128."""
    high_bit, none = more.literal_value + 16, more.literal_value

    def generate(c, b, s, a):
        def block(address):
            high = _bits(b, b.load(pointer(b, address, I32), align=1))
            packed = b.load(pointer(b, b.add(address, ir.Constant(I64, 4)), V16B), align=1)
            both = shuffle(b, packed, packed, list(range(16)) * 2)
            words = ir.VectorType(I16, 16)
            shifted = b.bitcast(b.lshr(b.bitcast(both, words), constant(words, 0, 4)), V32B)
            low = b.and_(shifted, constant(V32B, 15))
            return b.or_(low, b.select(high, constant(V32B, high_bit), constant(V32B, none)))

        return shuffle(b, block(a[0]), block(a[1]), list(range(64)))

    return u8x64(types.int64, types.int64, more), generate


@intrinsic
def four_bits(context, first, second):
    """The 4-bit codes at two addresses, 16 bytes and 32 codes each, plus 128: low nibbles, then high ones."""

    def generate(c, b, s, a):
        def block(address):
            packed = b.load(pointer(b, address, V16B), align=1)
            both = shuffle(b, packed, packed, list(range(16)) * 2)
            shifted = b.lshr(b.bitcast(both, V16H), constant(V16H, 0, 4))
            return b.bitcast(shifted, V32B)

        codes = b.and_(shuffle(b, block(a[0]), block(a[1]), list(range(64))), constant(V64B, 15))
        return b.or_(codes, constant(V64B, 0x80))

    return u8x64(types.int64, types.int64), generate


def emit_values(builder, values, first, second):
    """LLVM code for what 4-bit codes stand for, plus 128: of 16 bytes at each of two addresses the low nibbles, then the high."""
    lower, upper = (builder.load(pointer(builder, address, V16B), align=1) for address in (first, second))
    packed = shuffle(builder, lower, upper, [*range(16), *range(16), *range(16, 32), *range(16, 32)])
    shifted = V64B if has_neon() else V16I  # the smallest that the CPU shifts, each by its own number
    codes = builder.bitcast(builder.lshr(builder.bitcast(packed, shifted), constant(shifted, 0, 4, 0, 4)), V64B)
    # Where dot_offset_128() takes 128 off again, LLVM sees two flips of a bit and leaves out both.
    flip = 0x80 if signed_factors() else 0
    found = emit_look_up(builder, [value & 0xFF ^ 0x80 ^ flip for value in values], builder.and_(codes, constant(V64B, 15)))
    return builder.xor(found, constant(V64B, flip))


@intrinsic
def iq4_values(context, first, second):
    """emit_values() of IQ4_XS codes at two addresses."""
    return u8x64(types.int64, types.int64), lambda c, b, s, a: emit_values(b, iq4.VALUES.tolist(), *a)


@intrinsic
def iq4_xs_scales(context, block):
    """d (s_j - 32) of an IQ4_XS block's eight sub-blocks, exact in float32 (layout: quant/blocks/iq4.py)."""

    def generate(c, b, s, a):
        d = emit_widen(b, splat(b, b.load(pointer(b, a[0], I16), align=1), 8))
        first, second = (b.load(pointer(b, b.add(a[0], ir.Constant(I64, i)), I32), align=1) for i in (0, 4))
        high = b.lshr(splat(b, first, 8), ir.Constant(V8I, [*range(12, 28, 2)]))
        low = b.lshr(splat(b, second, 8), ir.Constant(V8I, [*range(0, 32, 4)]))
        six = b.or_(b.and_(high, constant(V8I, 0x30)), b.and_(low, constant(V8I, 15)))
        return b.fmul(d, b.sitofp(b.sub(six, constant(V8I, 32)), V8F))

    return f32x8(types.int64), generate


@intrinsic
def upper_half(context, x):
    """Lanes 4 to 7 of 8 float32 twice."""
    return f32x8(f32x8), lambda c, b, s, a: shuffle(b, a[0], a[0], [*range(4, 8)] * 2)


@intrinsic(prefer_literal=True)
def five_bits_of_four(context, low_bits, high_bits, first, odd):
    """64 of a Q5_K block's 5-bit codes: 32 each of sub-blocks first + odd and first + odd + 2, `first` 0 or 4, `odd` 0 or 1.

    Nibbles, low ones or for odd = 1 high ones, of 64 bytes at low_bits; bit j of 32 bytes at high_bits belongs to sub-block j.
    """
    bit, upper = first.literal_value + odd.literal_value, odd.literal_value

    def generate(c, b, s, a):
        nibbles = b.load(pointer(b, a[0], V64B), align=1)
        if upper:
            nibbles = _shift(b, nibbles, "lshr", 4, 4)
        fifths = _twice(b, b.load(pointer(b, a[1], V32B), align=1))
        fifths = _shift(b, fifths, "shl", 4 - bit, 2 - bit) if bit < 2 else _shift(b, fifths, "lshr", bit - 4, bit - 2)
        return b.or_(b.and_(nibbles, constant(V64B, 15)), b.and_(fifths, constant(V64B, 16)))

    return u8x64(types.int64, types.int64, first, odd), generate


@intrinsic(prefer_literal=True)
def pick_two(context, x, low, high):
    """Lanes 0 to 7 = x[low], lanes 8 to 15 = x[high], of 8 float32."""
    lanes = [low.literal_value] * 8 + [high.literal_value] * 8
    return f32x16(f32x8, low, high), lambda c, b, s, a: shuffle(b, a[0], a[0], lanes)


@intrinsic
def load_i8x16_as_f32(context, address):
    """16 int8 at the address as float32."""
    return f32x16(types.int64), lambda c, b, s, a: b.sitofp(b.load(pointer(b, a[0], V16B), align=1), V16F)


@intrinsic
def transpose_words(context, source, out, stride):
    """out[j][i] = source[i][j] for 16 x 16 words of 4 bytes: source rows follow one another, out rows are `stride` bytes apart."""

    def generate(c, b, s, a):
        rows = [b.load(pointer(b, b.add(a[0], ir.Constant(I64, i * 64)), V16I), align=4) for i in range(16)]
        low = [lane for i in range(8) for lane in (i, i + 16)]
        high = [lane for i in range(8, 16) for lane in (i, i + 16)]
        for _ in range(4):  # four perfect shuffles of rows make a transposition
            pairs = [(rows[i], rows[i + 8]) for i in range(8)]
            rows = [shuffle(b, x, y, lanes) for x, y in pairs for lanes in (low, high)]
        for j, row in enumerate(rows):
            b.store(row, pointer(b, b.add(a[1], b.mul(a[2], ir.Constant(I64, j))), V16I), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
