"""Blocks of 16 rows side by side: lane i of a vector holds four neighbouring bytes of row i, codes unpacked where they are needed.

Rows are given by a table of 16 addresses, int64 (16,), and an offset behind each. What is unpacked is 16 rows of a panel (layout:
tile.py): four columns of 16 rows are one vector, two vectors of the same rows stand 128 bytes apart.

What types of rows name (address.py) emits LLVM code for words(first, n_bytes), which is _words() of blocks, each loaded once: it
writes factors, or gives codes, (i, value) for the i-th vector.
"""

from functools import cache, partial
from itertools import pairwise

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.formats.tile import OFFSET
from glmrun.kernels.formats.unpack import emit_scales
from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.tables import emit_look_up
from glmrun.kernels.simd.target import has_i8mm, has_neon
from glmrun.kernels.simd.types import I16, I32, I64, V16F, V16I, V64B, behind, constant, pointer, shuffle
from quant.blocks import iq4

_STRIDE = 128
_LOW_PAIR = [lane + i for lane in range(0, 16, 4) for i in (0, 16, 1, 17)]
_HIGH_PAIR = [lane + i for i4 in range(0, 16, 4) for lane, i in ((i4, 2), (i4, 18), (i4, 3), (i4, 19))]
_LOW_HALVES = [lane + i for lane in range(0, 16, 4) for i in (0, 1, 16, 17)]
_HIGH_HALVES = [lane + i for lane in range(0, 16, 4) for i in (2, 3, 18, 19)]


def _words(builder, table, offset, first, n_bytes):
    """Words of 4 bytes from byte `first` on of each row: a vector for each, lane i from row i; n_bytes is a multiple of 16."""
    rows = [builder.load(pointer(builder, behind(builder, table, i * 8), I64), align=8) for i in range(16)]
    rows = [builder.add(row, offset) for row in rows]
    quarter = ir.VectorType(I32, 4)
    words = []
    for at in range(first, first + n_bytes, 16):
        fours = []
        for r in range(4):  # rows r, r + 4, r + 8 and r + 12
            places = (pointer(builder, behind(builder, row, at), quarter) for row in rows[r::4])
            a, b, c, d = (builder.load(place, align=1) for place in places)
            ab, cd = shuffle(builder, a, b, list(range(8))), shuffle(builder, c, d, list(range(8)))
            fours.append(shuffle(builder, ab, cd, list(range(16))))
        a, b, c, d = fours
        for pairs in (_LOW_PAIR, _HIGH_PAIR):
            ab, cd = shuffle(builder, a, b, pairs), shuffle(builder, c, d, pairs)
            words += [shuffle(builder, ab, cd, halves) for halves in (_LOW_HALVES, _HIGH_HALVES)]
    return words


def _bits(builder, word, right, mask):
    """(word >> right) & the same byte mask four times; a negative `right` shifts left."""
    if right:
        word = (builder.lshr if right > 0 else builder.shl)(word, constant(V16I, abs(right)))
    return builder.and_(word, constant(V16I, mask * 0x01010101))


def _more(builder, word, number):
    """A number added to each byte of each lane."""
    return builder.bitcast(builder.add(builder.bitcast(word, V64B), constant(V64B, number % 256)), V16I)


def _half(builder, word, upper):
    """The lower or upper two bytes of each lane, a float16, as float32."""
    if upper:
        word = builder.lshr(word, constant(V16I, 16))
    bits = builder.trunc(word, ir.VectorType(I16, 16))
    return emit_widen(builder, bits)


def _byte(builder, word, i, signed=False):
    """Byte i of each lane as float32."""
    if signed:
        return builder.sitofp(builder.ashr(builder.shl(word, constant(V16I, 24 - 8 * i)), constant(V16I, 24)), V16F)
    return builder.sitofp(builder.and_(builder.lshr(word, constant(V16I, 8 * i)), constant(V16I, 255)), V16F)


def _store_codes(builder, vectors, address):
    """Write codes as they are made: (i, value) for the i-th vector, four columns of 16 rows.

    With i8mm two such vectors become the eight columns of rows 0 to 7, then of rows 8 to 15: smmla's operands.
    """
    if not has_i8mm():
        for i, value in vectors:
            _store(builder, value, address, i)
        return
    made = dict(vectors)
    for i in range(0, len(made), 2):
        for half in range(2):
            lanes = [lane + of for lane in range(half * 8, half * 8 + 8) for of in (0, 16)]
            _store(builder, shuffle(builder, made[i], made[i + 1], lanes), address, i + half)


def _store(builder, value, address, i):
    """Write the i-th vector of these rows."""
    builder.store(value, pointer(builder, behind(builder, address, i * _STRIDE), value.type), align=4)


def emit_q4_k_factors(builder, words, out, *_):
    """d s_j, then -dmin m_j, of the eight sub-blocks of Q4_K and Q5_K blocks; packed as in quant/blocks/q4_k.py."""
    both, x, y, z = words(0, 16)
    scales = _bits(builder, x, 0, 0x3F), builder.or_(_bits(builder, z, 0, 0x0F), _bits(builder, x, 2, 0x30))
    minimums = _bits(builder, y, 0, 0x3F), builder.or_(_bits(builder, z, 4, 0x0F), _bits(builder, y, 2, 0x30))
    d, dmin = _half(builder, both, False), builder.fneg(_half(builder, both, True))
    for j in range(8):
        _store(builder, builder.fmul(_byte(builder, scales[j // 4], j % 4), d), out, j)
        _store(builder, builder.fmul(_byte(builder, minimums[j // 4], j % 4), dmin), out, j + 8)


def emit_q4_k_columns(builder, words, half):
    """128 columns of 4-bit codes from 64 bytes: two times 32 low nibbles, then the 32 high ones."""
    for i, word in enumerate(words(16 + half * 64, 64)):
        at = i // 8 * 16 + i % 8
        yield at, _bits(builder, word, 0, 0x0F)
        yield at + 8, _bits(builder, word, 4, 0x0F)


def emit_q5_k_columns(builder, words, half):
    """128 columns of 5-bit codes: nibbles as Q4_K's; bit j of 32 bytes belongs to sub-block j."""
    low, high = words(48 + half * 64, 64), words(16, 32)
    for i, word in enumerate(low):
        for odd in range(2):
            fifth = _bits(builder, high[i % 8], half * 4 + i // 8 * 2 + odd - 4, 0x10)
            yield i // 8 * 16 + odd * 8 + i % 8, builder.or_(_bits(builder, word, 4 * odd, 0x0F), fifth)


def emit_q6_k_factors(builder, words, out, *_):
    """d s_j of the sixteen sub-blocks of Q6_K blocks."""
    scales, d = words(192, 16), _half(builder, words(194, 16)[3], True)
    for j in range(16):
        _store(builder, builder.fmul(_byte(builder, scales[j // 4], j % 4, signed=True), d), out, j)


def emit_q6_k_columns(builder, words, half):
    """128 columns of 6-bit codes: nibbles of 64 bytes, pairs of bits of 32 bytes."""
    low, high = words(half * 64, 64), words(128 + half * 32, 32)
    for i in range(32):
        nibble = _bits(builder, low[i % 16], i // 16 * 4, 0x0F)
        code = builder.or_(nibble, _bits(builder, high[i % 8], i // 8 * 2 - 4, 0x30))
        yield i, _more(builder, code, -32 if has_neon() else 0)


def emit_q3_k_factors(builder, words, out, *_):
    """d (s_j - 32) of the sixteen sub-blocks of Q3_K blocks; packed as in quant/blocks/q3_k.py."""
    last = words(94, 16)  # two other bytes, then the scales, then d
    shifted = (builder.or_(builder.lshr(x, constant(V16I, 16)), builder.shl(y, constant(V16I, 16))) for x, y in pairwise(last))
    *low, high = shifted
    d = _half(builder, last[3], True)
    for j in range(16):
        if j % 4 == 0:
            four = builder.or_(_bits(builder, low[j // 4 % 2], j // 8 * 4, 0x0F), _bits(builder, high, j // 2 - 4, 0x30))
            four = _more(builder, four, -32)
        _store(builder, builder.fmul(_byte(builder, four, j % 4, signed=True), d), out, j)


def emit_q3_k_columns(builder, words, half):
    """128 columns of 3-bit codes, pairs of bits and single bits of 32 bytes each, as Q6_K's that stand for the same."""
    low, high = words(32 + half * 32, 32), words(0, 32)
    for i in range(32):
        pair, single = _bits(builder, low[i % 8], i // 8 * 2, 0x03), _bits(builder, high[i % 8], half * 4 + i // 8 - 2, 0x04)
        yield i, _more(builder, builder.or_(pair, single), -4 if has_neon() else 28)


def emit_q2_k_factors(builder, words, out, minimums, units):
    """d s_j of the sixteen sub-blocks of Q2_K blocks; two neighbouring m_j at a time as int16; and -dmin."""
    both, d = words(0, 16), words(68, 16)[3]
    _store(builder, builder.fneg(_half(builder, d, True)), units, 0)
    d = _half(builder, d, False)
    for j in range(16):
        word, at = both[j // 4], j % 4
        _store(builder, builder.fmul(_byte(builder, _bits(builder, word, 0, 0x0F), at), d), out, j)
        if at % 2 == 0:
            first, second = (builder.lshr(word, constant(V16I, 8 * i + 4)) for i in (at, at + 1))
            first, second = (builder.and_(one, constant(V16I, 0x0F)) for one in (first, second))
            _store(builder, builder.or_(first, builder.shl(second, constant(V16I, 16))), minimums, j // 2)


def emit_q2_k_columns(builder, words, half):
    """128 columns of 2-bit codes of 32 bytes, with the 32 that Q6_K's codes carry."""
    low = words(16 + half * 32, 32)
    for i in range(32):
        code = _bits(builder, low[i % 8], i // 8 * 2, 0x03)
        yield i, code if has_neon() else builder.or_(code, constant(V16I, 0x20202020))


@intrinsic
def unpack_256(context, table, offset, out, factors, minimums, units):
    """The columns of the blocks of 256 at the offset, and what their sub-blocks are worth; minimums that Q2_K has go elsewhere."""

    def generate(c, b, s, a):
        words = cache(partial(_words, b, a[0], a[1]))
        table.factors(b, words, *a[3:])
        for half in range(2):
            _store_codes(b, table.columns(b, words, half), behind(b, a[2], half * 4096))
        return c.get_dummy_value()

    return types.void(table, int64, int64, int64, int64, int64), generate


def emit_q8_0_columns(builder, words):
    """32 columns of codes + OFFSET."""
    return enumerate(builder.xor(word, constant(V16I, OFFSET * 0x01010101)) for word in words(2, 32))


def emit_five_bit_columns(builder, words, at):
    """32 columns of 5-bit codes: 32 bits `at` bytes into the blocks, column k's fifth is bit k; then as of 4-bit codes."""
    fifth = words(0, 16)[1] if at == 4 else words(at, 16)[0]
    low = words(at + 4, 16)
    for i in range(8):
        four = builder.and_(builder.lshr(fifth, constant(V16I, 4 * i)), constant(V16I, 15))
        spread = builder.mul(four, constant(V16I, 1 + (1 << 7) + (1 << 14) + (1 << 21)))  # bit k of four lands on bit 8 k
        high = builder.shl(_bits(builder, spread, 0, 1), constant(V16I, 4))
        yield i, builder.or_(_bits(builder, low[i % 4], i // 4 * 4, 0x0F), high)


def emit_four_bit_columns(builder, words, at):
    """32 columns of 4-bit codes in 16 bytes: the low nibbles, then the high ones."""
    low = words(at, 16)
    return ((i, _bits(builder, low[i % 4], i // 4 * 4, 0x0F)) for i in range(8))


def emit_value_columns(builder, words, at, values):
    """32 columns of what the 4-bit codes in 16 bytes stand for, + OFFSET: those of the low nibbles, then those of the high."""
    table, four = [(value + OFFSET) % 256 for value in values], words(at, 16)
    nibbles = (builder.bitcast(_bits(builder, four[i % 4], i // 4 * 4, 0x0F), V64B) for i in range(8))
    return enumerate(builder.bitcast(emit_look_up(builder, table, codes), V16I) for codes in nibbles)


@intrinsic
def unpack_32(context, table, offset, out, factors):
    """The columns of the blocks of 32 at the offset, and their scale; eight vectors behind it what is added, if anything."""

    def generate(c, b, s, a):
        words = cache(partial(_words, b, a[0], a[1]))
        scales = emit_scales(b, b.trunc(words(0, 16)[0], ir.VectorType(table.scale, 16)))
        _store(b, scales, a[3], 0)
        if table.offset:
            minimums = _half(b, words(0, 16)[0], True) if table.has_minimum else scales
            _store(b, b.fmul(minimums, constant(V16F, float(table.offset))), a[3], 8)
        _store_codes(b, table.columns(b, words), a[2])
        return c.get_dummy_value()

    return types.void(table, int64, int64, int64), generate


@intrinsic
def iq4_xs_factors(context, table, offset, out):
    """d (s_j - 32) of the eight sub-blocks of the IQ4_XS blocks at the offset."""

    def generate(c, b, s, a):
        first, low = _words(b, a[0], a[1], 0, 16)[:2]
        d = _half(b, first, False)
        for j in range(8):
            four, two = b.lshr(low, constant(V16I, 4 * j)), b.lshr(first, constant(V16I, 12 + 2 * j))
            six = b.or_(b.and_(four, constant(V16I, 0x0F)), b.and_(two, constant(V16I, 0x30)))
            _store(b, b.fmul(b.sitofp(b.sub(six, constant(V16I, 32)), V16F), d), a[2], j)
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def iq4_xs_codes(context, table, offset, out):
    """32 columns of an IQ4_XS sub-block's values + OFFSET from the 16 bytes at the offset."""

    def generate(c, b, s, a):
        _store_codes(b, emit_value_columns(b, partial(_words, b, a[0], a[1]), 0, iq4.VALUES.tolist()), a[2])
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate
