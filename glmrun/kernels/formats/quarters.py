"""Vector code that unpacks blocks of 256: 64 codes at a time, and their scales; and activations in the same order.

Where bytes meet in 16 bits (IN_TURNS), a quarter of a block is 32 codes of its lower half of 128 and the same 32 of its upper half,
two and two in turns: what vpmaddubsw makes of its two registers is added before it meets scales, and vpmaddwd multiplies what is in
it of each half by a scale of its own. Elsewhere a quarter's codes follow each other as they do in the block's bytes.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.formats.unpack import load_at
from glmrun.kernels.simd.dots import emit_sum_products
from glmrun.kernels.simd.target import sums_in_16_bits
from glmrun.kernels.simd.types import (
    I32,
    I64,
    V8F,
    V8H,
    V8I,
    V16B,
    V16H,
    V32B,
    V32H,
    V64B,
    call,
    constant,
    f32x8,
    i16x16,
    i32x8,
    i32x16,
    shuffle,
    u8x64,
)

IN_TURNS = sums_in_16_bits()
# Of 32 words, 16 of each half: in turns, as two registers of 256 bits are made of two others.
_TURNS = [start + lane + i + half for start in (0, 4) for lane in (0, 8) for i in range(4) for half in (0, 16)]
# The order of sub-blocks of 32: those of the same place in both halves are neighbours. Of 16: besides, those whose codes are in the
# lower lanes of registers come first.
_EIGHT = [0, 4, 1, 5, 2, 6, 3, 7]
_SIXTEEN = [2 * i + odd for odd in (0, 1) for i in _EIGHT] if IN_TURNS else list(range(16))


def _shift(builder, vector, low, high):
    """Bytes moved left by `low` bits in the low half and `high` in the high half, below 0 right; the caller masks what crosses."""
    words, bits = builder.bitcast(vector, V32H), constant(V32H, abs(low), abs(high))
    return builder.bitcast(builder.lshr(words, bits) if min(low, high) < 0 else builder.shl(words, bits), V64B)


def _in_turns(builder, lower, upper):
    """32 bytes of each half, two and two in turns."""
    lower, upper = (builder.bitcast(value, V16H) for value in (lower, upper))
    return builder.bitcast(shuffle(builder, lower, upper, _TURNS), V64B)


def _load_in_turns(builder, block, at, apart):
    """32 bytes at `at` and 32 bytes `apart` from them."""
    return _in_turns(builder, *(load_at(builder, block, i, V32B) for i in (at, at + apart)))


def _nibbles(builder, block, at, upper):
    """The low nibbles (upper = 0) or the high (1) of 64 bytes, not yet masked."""
    return _shift(builder, load_at(builder, block, at, V64B), -4 * upper, -4 * upper)


def _bits(builder, block, at, low, high):
    """32 bytes twice, shifted, not yet masked."""
    once = load_at(builder, block, at, V32B)
    return _shift(builder, shuffle(builder, once, once, list(range(32)) * 2), low, high)


def _quarter_of_bits(builder, block, at, quarter, left):
    """Bits `quarter` of 32 bytes, in turns with bits 4 + quarter, at bit `left`; not yet masked."""
    once = load_at(builder, block, at, V32B)
    upper = builder.bitcast(builder.lshr(builder.bitcast(once, V16H), constant(V16H, 4)), V32B)
    return _shift(builder, _in_turns(builder, once, upper), left - quarter, left - quarter)


def _masked(builder, codes, mask):
    return builder.and_(codes, constant(V64B, mask))


def _of_32(builder, block, at, quarter):
    """Nibbles of 32 bytes after 32 bytes: the low ones are a sub-block's codes, the high ones the next one's."""
    half, upper = divmod(quarter, 2)
    if not IN_TURNS:
        return _masked(builder, _nibbles(builder, block, at + 64 * half, upper), 15)
    return _masked(builder, _shift(builder, _load_in_turns(builder, block, at + 32 * half, 64), -4 * upper, -4 * upper), 15)


def _pairs_of_bits(builder, block, at, quarter, left):
    """Pairs of bits, the lowest of 32 bytes, then the next, ..., and those of 32 bytes more; at bit `left`, not yet masked."""
    if IN_TURNS:
        return _shift(builder, _load_in_turns(builder, block, at, 32), left - 2 * quarter, left - 2 * quarter)
    half, upper = divmod(quarter, 2)
    return _bits(builder, block, at + 32 * half, left - 4 * upper, left - 2 - 4 * upper)


def emit_q4_k_codes(builder, block, quarter):
    """LLVM code for 64 codes of a Q4_K block: elsewhere those of the first and third, or second and fourth sub-block of a half."""
    return _of_32(builder, block, 16, quarter)


def emit_q5_k_codes(builder, block, quarter):
    """The same of a Q5_K block; bit j of 32 bytes belongs to sub-block j."""
    half, upper = divmod(quarter, 2)
    bit = 4 * half + upper
    fifths = _quarter_of_bits(builder, block, 16, quarter, 4) if IN_TURNS else _bits(builder, block, 16, 4 - bit, 2 - bit)
    return builder.or_(_of_32(builder, block, 48, quarter), _masked(builder, fifths, 16))


def emit_q6_k_codes(builder, block, quarter):
    """LLVM code for the codes of a quarter of a Q6_K block: nibbles of 64 bytes after 64 bytes, and pairs of bits of 32."""
    if IN_TURNS:
        upper, second = divmod(quarter, 2)
        nibbles = _shift(builder, _load_in_turns(builder, block, 32 * second, 64), -4 * upper, -4 * upper)
    else:
        half, upper = divmod(quarter, 2)
        nibbles = _nibbles(builder, block, 64 * half, upper)
    pairs = _pairs_of_bits(builder, block, 128, quarter, 4)
    return builder.or_(_masked(builder, nibbles, 15), _masked(builder, pairs, 0x30))


def emit_q2_k_codes(builder, block, quarter):
    """The same of a Q2_K block: pairs of bits."""
    return _masked(builder, _pairs_of_bits(builder, block, 16, quarter, 0), 3)


def emit_q3_k_codes(builder, block, quarter):
    """The same of a Q3_K block: pairs of bits, and single bits of 32 bytes."""
    if IN_TURNS:
        single = _quarter_of_bits(builder, block, 0, quarter, 2)
    else:
        single = _bits(builder, block, 0, 2 - 2 * quarter, 1 - 2 * quarter)
    pairs = _masked(builder, _pairs_of_bits(builder, block, 32, quarter, 0), 3)
    return builder.or_(pairs, _masked(builder, single, 4))


@intrinsic
def packed_scales(context, address):
    """A Q4_K block's eight 6-bit s and eight m as int16: s_0..3 m_0..3 s_4..7 m_4..7; or, IN_TURNS, s_0 s_4 s_1 s_5 ..., then m.

    Bytes a_0..3 b_0..3 c_0..3 at 4 hold s_j = a_j & 63 and m_j = b_j & 63 for j < 4, then s_j = (c_j & 15) + 16 (a_j >> 6) and
    m_j = (c_j >> 4) + 16 (b_j >> 6) with j - 4 for j.
    """

    def generate(c, b, s, a):
        block = load_at(b, a[0], 0, V16B)
        words, quads = ir.VectorType(I64, 2), ir.VectorType(I32, 4)
        upper = shuffle(b, block, block, [*range(4, 12), *range(4, 12)])
        upper = b.lshr(b.bitcast(upper, words), ir.Constant(words, [0, 2]))
        lower = shuffle(b, block, block, [*range(12, 16)] * 4)
        lower = b.lshr(b.bitcast(lower, quads), ir.Constant(quads, [0, 0, 0, 4]))
        upper = b.and_(b.bitcast(upper, V16B), ir.Constant(V16B, [0x3F] * 8 + [0x30] * 8))
        lower = b.and_(b.bitcast(lower, V16B), ir.Constant(V16B, [0] * 8 + [0x0F] * 8))
        both = b.or_(upper, lower)
        if not IN_TURNS:
            return b.zext(both, V16H)
        s, m = (b.zext(shuffle(b, both, both, [half + i for i in range(4) for half in at]), V8H) for at in ((0, 8), (4, 12)))
        return shuffle(b, s, m, list(range(16)))

    return i16x16(types.int64), generate


@intrinsic
def times_multiples(context, scales, address):
    """packed_scales() times the k_j at the address, in int16."""

    def generate(c, b, s, a):
        if not IN_TURNS:
            return b.mul(a[0], load_at(b, a[1], 0, V16H))
        multiples = load_at(b, a[1], 0, V8H)  # for s and m the same
        s, m = (b.mul(half, multiples) for half in _halves(b, a[0]))
        return shuffle(b, s, m, list(range(16)))

    return i16x16(i16x16, types.int64), generate


@intrinsic
def add_minimums(context, minus, products, address, factors):
    """minus with the m of times_multiples() times the sums of 32 codes at the address, times factors[1]: 8 float32, some unused."""

    def generate(c, b, s, a):
        minus, products, address, factors = a
        sums = load_at(b, address, 0, V16H)
        if not IN_TURNS:
            dots = b.sitofp(emit_sum_products(b, products, sums), V8F)
            return call(b, "llvm.fma.v8f32", V8F, [dots, shuffle(b, factors, factors, [1] * 8), minus])
        (_, m), (_, sums), (lanes, _) = (_halves(b, value) for value in (products, sums, minus))
        dots = b.sitofp(emit_sum_products(b, m, sums), lanes.type)
        lanes = call(b, "llvm.fma.v4f32", lanes.type, [dots, shuffle(b, factors, factors, [1] * 4), lanes])
        return shuffle(b, lanes, constant(lanes.type, 0.0), list(range(8)))

    return f32x8(f32x8, i16x16, types.int64, f32x8), generate


def _halves(builder, value):
    n = value.type.count
    return [shuffle(builder, value, value, list(range(at, at + n // 2))) for at in (0, n // 2)]


def _sixteen(builder, block, at):
    """16 bytes, one for each sub-block of 16, in order."""
    scales = load_at(builder, block, at, V16B)
    return shuffle(builder, scales, scales, _SIXTEEN)


def emit_q6_k_scales(builder, block):
    """LLVM code for a Q6_K block's sixteen s_j as int16."""
    return builder.sext(_sixteen(builder, block, 192), V16H)


def emit_q2_k_scales(builder, block):
    """LLVM code for a Q2_K block's sixteen s_j as int16: low nibbles."""
    return builder.and_(builder.zext(_sixteen(builder, block, 0), V16H), constant(V16H, 15))


def emit_q2_k_minimums(builder, block):
    """LLVM code for a Q2_K block's sixteen m_j as int16: high nibbles."""
    return builder.lshr(builder.zext(_sixteen(builder, block, 0), V16H), constant(V16H, 4))


def emit_q3_k_scales(builder, block):
    """LLVM code for a Q3_K block's sixteen s_j - 32 as int16, from its last 16 bytes: two others, then the scales, then d.

    Byte j (j < 8) holds the lower 4 bits of s_j and of s_j+8, byte 8 + j (j < 4) the upper 2 of s_j, s_j+4, s_j+8 and s_j+12.
    """
    block = load_at(builder, block, 94, V16B)
    words, quads = ir.VectorType(I64, 2), ir.VectorType(I32, 4)
    lower = shuffle(builder, block, block, [*range(2, 10), *range(2, 10)])
    lower = builder.bitcast(builder.lshr(builder.bitcast(lower, words), ir.Constant(words, [0, 4])), V16B)
    upper = builder.bitcast(shuffle(builder, block, block, [*range(10, 14)] * 4), quads)
    upper = builder.and_(builder.lshr(upper, ir.Constant(quads, [0, 2, 4, 6])), constant(quads, 0x03030303))
    upper = builder.bitcast(builder.shl(upper, constant(quads, 4)), V16B)
    scales = builder.or_(builder.and_(lower, constant(V16B, 15)), upper)
    scales = shuffle(builder, scales, scales, _SIXTEEN)
    return builder.sext(builder.sub(scales, constant(V16B, 32)), V16H)


@intrinsic(prefer_literal=True)
def load_quarter(context, address, quarter):
    """64 of 256 int8 at the address, in the order of a Q4_K block's quarter."""
    half, upper = divmod(quarter.literal_value, 2)

    def generate(c, b, s, a):
        if IN_TURNS:
            return _load_in_turns(b, a[0], 32 * quarter.literal_value, 128)
        lower, upper_half = (load_at(b, a[0], 128 * half + 32 * upper + at, V32B) for at in (0, 64))
        return shuffle(b, lower, upper_half, list(range(64)))

    return u8x64(types.int64, quarter), generate


@intrinsic(prefer_literal=True)
def beside_scales(context, x, zeros):
    """The low 16 bits of 8 int32, one for each sub-block of 32, where packed_scales() has the s and where it has the m; or, zeros,
    only beside the m."""

    size = 8 if IN_TURNS else 4  # so many s, so many m
    lanes = _EIGHT * 2 if IN_TURNS else [*range(4), *range(4), *range(4, 8), *range(4, 8)]
    if zeros.literal_value:
        lanes = [lane if i // size % 2 else 8 for i, lane in enumerate(lanes)]  # 8: the other operand's first
    return i16x16(i32x8, zeros), lambda c, b, s, a: b.trunc(shuffle(b, a[0], constant(V8I, 0), lanes), V16H)


@intrinsic
def in_sixteens(context, x):
    """The low 16 bits of 16 int32, one for each sub-block of 16, in order."""
    return i16x16(i32x16), lambda c, b, s, a: b.trunc(shuffle(b, a[0], a[0], _SIXTEEN), V16H)
