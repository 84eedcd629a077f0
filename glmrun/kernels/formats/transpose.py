"""Blocks of 16 rows side by side: lane i of a vector holds four neighbouring bytes of row i, codes unpacked where they are needed.

Rows are given by a table of 16 addresses, int64 (16,), and an offset behind each. What is unpacked is 16 rows of a panel (layout:
tile.py): four columns of 16 rows are one vector, two vectors of the same rows stand 128 bytes apart.
"""

from itertools import pairwise

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.formats.four_bits import emit_scale
from glmrun.kernels.formats.tile import OFFSET
from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.tables import emit_look_up
from glmrun.kernels.simd.target import has_i8mm, has_neon
from glmrun.kernels.simd.types import I16, I32, I64, V16F, V16I, V64B, constant, pointer, shuffle
from quant.blocks import iq4

_STRIDE = 128
_LOW_PAIR = [lane + i for lane in range(0, 16, 4) for i in (0, 16, 1, 17)]
_HIGH_PAIR = [lane + i for i4 in range(0, 16, 4) for lane, i in ((i4, 2), (i4, 18), (i4, 3), (i4, 19))]
_LOW_HALVES = [lane + i for lane in range(0, 16, 4) for i in (0, 1, 16, 17)]
_HIGH_HALVES = [lane + i for lane in range(0, 16, 4) for i in (2, 3, 18, 19)]


def _at(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _words(builder, table, offset, first, n_bytes):
    """Words of 4 bytes first / 4, ... of each row: a vector for each, lane i from row i; n_bytes is a multiple of 16."""
    rows = [builder.load(pointer(builder, _at(builder, table, i * 8), I64), align=8) for i in range(16)]
    rows = [builder.add(row, offset) for row in rows]
    quarter = ir.VectorType(I32, 4)
    words = []
    for at in range(first, first + n_bytes, 16):
        fours = []
        for r in range(4):  # rows r, r + 4, r + 8 and r + 12
            a, b, c, d = (builder.load(pointer(builder, _at(builder, rows[r + i], at), quarter), align=1) for i in range(0, 16, 4))
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
    builder.store(value, pointer(builder, _at(builder, address, i * _STRIDE), value.type), align=4)


@intrinsic
def q4_k_factors(context, table, offset, out):
    """d s_j, then -dmin m_j, of the eight sub-blocks of the Q4_K blocks at the offset; packed as in quant/blocks/q4_k.py."""

    def generate(c, b, s, a):
        both, x, y, z = _words(b, a[0], a[1], 0, 16)
        scales = _bits(b, x, 0, 0x3F), b.or_(_bits(b, z, 0, 0x0F), _bits(b, x, 2, 0x30))
        minimums = _bits(b, y, 0, 0x3F), b.or_(_bits(b, z, 4, 0x0F), _bits(b, y, 2, 0x30))
        d, dmin = _half(b, both, False), b.fneg(_half(b, both, True))
        for j in range(8):
            _store(b, b.fmul(_byte(b, scales[j // 4], j % 4), d), a[2], j)
            _store(b, b.fmul(_byte(b, minimums[j // 4], j % 4), dmin), a[2], j + 8)
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def q4_k_codes(context, table, offset, out):
    """128 columns of 4-bit codes from the 64 bytes at the offset: two times 32 low nibbles, then the 32 high ones."""

    def generate(c, b, s, a):
        def codes():
            for i, word in enumerate(_words(b, a[0], a[1], 0, 64)):
                at = i // 8 * 16 + i % 8
                yield at, _bits(b, word, 0, 0x0F)
                yield at + 8, _bits(b, word, 4, 0x0F)

        _store_codes(b, codes(), a[2])
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic(prefer_literal=True)
def q5_k_codes(context, table, low_bits, high_bits, out, first):
    """128 columns of 5-bit codes, sub-blocks `first` (0 or 4) to first + 3: nibbles of the 64 bytes at low_bits as Q4_K's; bit j of
    the 32 bytes at high_bits belongs to sub-block j."""
    bit = first.literal_value

    def generate(c, b, s, a):
        low, high = _words(b, a[0], a[1], 0, 64), _words(b, a[0], a[2], 0, 32)

        def codes():
            for i, word in enumerate(low):
                for odd in range(2):
                    fifth = _bits(b, high[i % 8], bit + i // 8 * 2 + odd - 4, 0x10)
                    yield i // 8 * 16 + odd * 8 + i % 8, b.or_(_bits(b, word, 4 * odd, 0x0F), fifth)

        _store_codes(b, codes(), a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64, first), generate


@intrinsic
def q6_k_factors(context, table, offset, out):
    """d s_j of the sixteen sub-blocks of the Q6_K blocks at the offset."""

    def generate(c, b, s, a):
        scales = _words(b, a[0], a[1], 192, 16)
        d = _half(b, _words(b, a[0], a[1], 194, 16)[3], True)
        for j in range(16):
            _store(b, b.fmul(_byte(b, scales[j // 4], j % 4, signed=True), d), a[2], j)
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def q6_k_codes(context, table, low_bits, high_bits, out):
    """128 columns of 6-bit codes: nibbles of the 64 bytes at low_bits, pairs of bits of the 32 bytes at high_bits."""

    def generate(c, b, s, a):
        low, high = _words(b, a[0], a[1], 0, 64), _words(b, a[0], a[2], 0, 32)

        def codes():
            for i in range(32):
                nibble = _bits(b, low[i % 16], i // 16 * 4, 0x0F)
                code = b.or_(nibble, _bits(b, high[i % 8], i // 8 * 2 - 4, 0x30))
                if has_neon():  # they carry nothing
                    code = b.bitcast(b.sub(b.bitcast(code, V64B), constant(V64B, 32)), V16I)
                yield i, code

        _store_codes(b, codes(), a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


@intrinsic
def q3_k_factors(context, table, offset, out):
    """d (s_j - 32) of the sixteen sub-blocks of the Q3_K blocks at the offset; packed as in quant/blocks/q3_k.py."""

    def generate(c, b, s, a):
        words = _words(b, a[0], a[1], 94, 16)  # the block's last: two other bytes, then the scales, then d
        *low, high = (b.or_(b.lshr(x, constant(V16I, 16)), b.shl(y, constant(V16I, 16))) for x, y in pairwise(words))
        d = _half(b, words[3], True)
        for j in range(16):
            if j % 4 == 0:
                four = b.or_(_bits(b, low[j // 4 % 2], j // 8 * 4, 0x0F), _bits(b, high, j // 2 - 4, 0x30))
                four = b.bitcast(b.sub(b.bitcast(four, V64B), constant(V64B, 32)), V16I)
            _store(b, b.fmul(_byte(b, four, j % 4, signed=True), d), a[2], j)
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def q3_k_codes(context, table, offset, out):
    """256 columns of 3-bit codes of the Q3_K blocks at the offset, as Q6_K's that stand for the same."""

    def generate(c, b, s, a):
        high = _words(b, a[0], a[1], 0, 32)
        for half in range(2):
            low = _words(b, a[0], a[1], 32 + half * 32, 32)

            def codes(half=half, low=low):
                for i in range(32):
                    pair, single = _bits(b, low[i % 8], i // 8 * 2, 0x03), _bits(b, high[i % 8], half * 4 + i // 8 - 2, 0x04)
                    code = b.bitcast(b.or_(pair, single), V64B)
                    yield i, b.bitcast(b.add(code, constant(V64B, 252 if has_neon() else 28)), V16I)

            _store_codes(b, codes(), _at(b, a[2], half * 4096))
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def q2_k_factors(context, table, offset, out, minimums, units):
    """d s_j of the sixteen sub-blocks of the Q2_K blocks at the offset; two neighbouring m_j at a time as int16; and -dmin."""

    def generate(c, b, s, a):
        both, d = _words(b, a[0], a[1], 0, 16), _words(b, a[0], a[1], 68, 16)[3]
        _store(b, b.fneg(_half(b, d, True)), a[4], 0)
        d = _half(b, d, False)
        for j in range(16):
            scales, at = _bits(b, both[j // 4], 0, 0x0F), j % 4
            _store(b, b.fmul(_byte(b, scales, at), d), a[2], j)
            if at % 2 == 0:
                first, second = (b.lshr(both[j // 4], constant(V16I, 8 * i + 4)) for i in (at, at + 1))
                first, second = (b.and_(word, constant(V16I, 0x0F)) for word in (first, second))
                _store(b, b.or_(first, b.shl(second, constant(V16I, 16))), a[3], j // 2)
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64, int64), generate


@intrinsic
def q2_k_codes(context, table, offset, out):
    """128 columns of 2-bit codes of the 32 bytes at the offset, with the 32 that Q6_K's codes carry."""

    def generate(c, b, s, a):
        low = _words(b, a[0], a[1], 0, 32)

        def codes():
            for i in range(32):
                code = _bits(b, low[i % 8], i // 8 * 2, 0x03)
                yield i, code if has_neon() else b.or_(code, constant(V16I, 0x20202020))

        _store_codes(b, codes(), a[2])
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def q8_0_block(context, table, offset, factors, out):
    """The scale and 32 columns of codes + OFFSET of the Q8_0 blocks at the offset."""

    def generate(c, b, s, a):
        _store(b, _half(b, _words(b, a[0], a[1], 0, 16)[0], False), a[2], 0)
        words = enumerate(_words(b, a[0], a[1], 2, 32))
        _store_codes(b, ((i, b.xor(word, constant(V16I, OFFSET * 0x01010101))) for i, word in words), a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


def _five_bits(builder, fifth, low):
    """32 columns of 5-bit codes, low nibbles first: (i, value) for each vector; bit k of `fifth` belongs to column k."""
    for i in range(8):
        four = builder.and_(builder.lshr(fifth, constant(V16I, 4 * i)), constant(V16I, 15))
        spread = builder.mul(four, constant(V16I, 1 + (1 << 7) + (1 << 14) + (1 << 21)))  # bit k of four lands on bit 8 k
        high = builder.shl(_bits(builder, spread, 0, 1), constant(V16I, 4))
        yield i, builder.or_(_bits(builder, low[i % 4], i // 4 * 4, 0x0F), high)


@intrinsic
def q5_0_block(context, table, offset, factors, out):
    """The scale and 32 columns of codes, 16 taken off, + OFFSET of the Q5_0 blocks at the offset."""

    def generate(c, b, s, a):
        _store(b, _half(b, _words(b, a[0], a[1], 0, 16)[0], False), a[2], 0)
        fifth, low = _words(b, a[0], a[1], 2, 16)[0], _words(b, a[0], a[1], 6, 16)
        more = constant(V64B, (OFFSET - 16) % 256)
        codes = ((i, b.bitcast(b.add(b.bitcast(code, V64B), more), V16I)) for i, code in _five_bits(b, fifth, low))
        _store_codes(b, codes, a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


def _scale_and_minimum(builder, both, factors):
    """Write a block's two float16, the minimum eight vectors behind the scale."""
    _store(builder, _half(builder, both, False), factors, 0)
    _store(builder, _half(builder, both, True), factors, 8)


@intrinsic
def q4_1_block(context, table, offset, factors, out):
    """The scale, the minimum and 32 columns of codes of the Q4_1 blocks at the offset."""

    def generate(c, b, s, a):
        _scale_and_minimum(b, _words(b, a[0], a[1], 0, 16)[0], a[2])
        low = _words(b, a[0], a[1], 4, 16)
        _store_codes(b, ((i, _bits(b, low[i % 4], i // 4 * 4, 0x0F)) for i in range(8)), a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


@intrinsic
def q5_1_block(context, table, offset, factors, out):
    """The scale, the minimum and 32 columns of codes of the Q5_1 blocks at the offset."""

    def generate(c, b, s, a):
        both, fifth, *_ = _words(b, a[0], a[1], 0, 16)
        _scale_and_minimum(b, both, a[2])
        _store_codes(b, _five_bits(b, fifth, _words(b, a[0], a[1], 8, 16)), a[3])
        return c.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


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


def _store_values(builder, values, words, address):
    """Write what the 4-bit codes in four words stand for, + OFFSET: those of the low nibbles, then those of the high."""
    table = [(value + OFFSET) % 256 for value in values]
    nibbles = (builder.bitcast(_bits(builder, words[i % 4], i // 4 * 4, 0x0F), V64B) for i in range(8))
    found = (builder.bitcast(emit_look_up(builder, table, four), V16I) for four in nibbles)
    _store_codes(builder, enumerate(found), address)


@intrinsic
def iq4_xs_codes(context, table, offset, out):
    """32 columns of an IQ4_XS sub-block's values + OFFSET from the 16 bytes at the offset."""

    def generate(c, b, s, a):
        _store_values(b, iq4.VALUES.tolist(), _words(b, a[0], a[1], 0, 16), a[2])
        return c.get_dummy_value()

    return types.void(int64, int64, int64), generate


@intrinsic
def four_bits_block(context, table, offset, factors, out):
    """The scale and 32 columns of values + OFFSET of the blocks at the offset; the table's type knows which (four_bits.py)."""

    def generate(c, b, s, a):
        scales = b.trunc(_words(b, a[0], a[1], 0, 16)[0], ir.VectorType(table.scale, 16))
        _store(b, emit_scale(b, table, scales), a[2], 0)
        _store_values(b, table.values, _words(b, a[0], a[1], table.codes, 16), a[3])
        return c.get_dummy_value()

    return types.void(table, int64, int64, int64), generate
