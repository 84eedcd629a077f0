"""Q6_K, Q3_K and Q2_K rows times int8 activations, straight on the mapped blocks (layouts: quant/blocks).

    row . x = sum over blocks of 256 of  d D sum_j (s_j k_j) (q_j . x_j)  -  e D sum_j (m_j k_j) (sum of x_j)

over 16 sub-blocks j of 16; D k_j is the scale of the activations' codes x_j (quantize_row). All but d D and e D are integers.
Q2_K has minimums m_j, and e is dmin. Codes of Q6_K, 0 to 63, are 32 more than what they stand for, those of Q3_K, 0 to 7, 4 more:
there m_j is s_j, and e is 32 d or 4 d.
"""

from llvmlite import ir
from numba import float32, int64, types
from numba.extending import intrinsic

from glmrun.kernels.activations import beside_sixteens, k_quant_codes, q6_k_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import quarters, transpose
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, offset, typed
from glmrun.kernels.formats.q4_k import AHEAD, ROOM, SCALES, SOME, D, codes
from glmrun.kernels.formats.unpack import four_f16_times, splat_lane_x8
from glmrun.kernels.simd.arithmetic import add_halves, fma, to_f32, total
from glmrun.kernels.simd.dots import products_with_scales, sum_products_i16
from glmrun.kernels.simd.memory import (
    load_f32,
    load_i16x16,
    load_u8x64,
    room_for,
    store_f32,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import I32, f32x8, i16x16, i32x16

# d: which of a block's last four float16 it is. offset: what the minimums are multiplied by besides.
EACH = (
    Rows(
        "Q6_K", 210, codes=quarters.emit_q6_k_codes, columns=transpose.emit_q6_k_columns, factors=transpose.emit_q6_k_factors,
        scales=quarters.emit_q6_k_scales, minimums=quarters.emit_q6_k_scales, d=3, offset=32,
    ),
    Rows(
        "Q3_K", 110, codes=quarters.emit_q3_k_codes, columns=transpose.emit_q3_k_columns, factors=transpose.emit_q3_k_factors,
        scales=quarters.emit_q3_k_scales, minimums=quarters.emit_q3_k_scales, d=3, offset=4,
    ),
    Rows(
        "Q2_K", 84, codes=quarters.emit_q2_k_codes, columns=transpose.emit_q2_k_columns, factors=transpose.emit_q2_k_factors,
        scales=quarters.emit_q2_k_scales, minimums=quarters.emit_q2_k_minimums, d=2, offset=1,
    ),
)  # fmt: skip
q6_k_at, q3_k_at, q2_k_at = (typed(rows) for rows in EACH)
_both = types.UniTuple(i16x16, 2)
# The sub-block of each 16 products, in the lower and the upper half of a block.
_store_scales, _add_lower, _add_upper, _add_block = products_with_scales((0, 4, 1, 5, 2, 6, 3, 7), (8, 12, 9, 13, 10, 14, 11, 15))


@intrinsic
def _scales(context, block):
    """The block's sixteen s_j and its m_j."""
    return _both(block), lambda c, b, s, a: c.make_tuple(b, _both, [block.scales(b, a[0]), block.minimums(b, a[0])])


@intrinsic
def _d(context, block, last):
    """d, of what four_f16_times() made of the block's last four float16."""
    return float32(block, f32x8), lambda c, b, s, a: b.extract_element(a[1], ir.Constant(I32, block.d))


@kernel([f32x8(block, _both, int64, int64, int64, f32x8, int64) for block in EACH], inline="always")
def _minimums(block, both, x, i, n_blocks, minus, out):
    """minus, the sums of lanes, with the minimums' part of block i added; products of scales and d D are left at `out`, as Q4_K's.

    both    what _scales() gives
    The largest magnitude of an int16 is 128 * 127 in `products` and 4 * 63 * 127 in a dot product, of an int32 4 * 32004 * 16256.
    """
    beside, last = x + beside_sixteens(n_blocks * 256) + i * 32, block + (block_bytes(block) - 8)
    multiples = load_i16x16(beside)
    products, minimums = both[0] * multiples, both[1] * multiples
    _store_scales(products, out)
    factors = four_f16_times(last, load_f32(x + k_quant_codes(n_blocks * 256) + n_blocks * 352 + i * 4))
    store_f32(out + D, _d(block, factors))
    return fma(to_f32(sum_products_i16(minimums, load_i16x16(beside + n_blocks * 32))), splat_lane_x8(factors, 3), minus)


@kernel([i32x16(block, int64, int64) for block in EACH], inline="always")
def _lower(block, x, scales):
    """Sums of sub-blocks 0 to 7 times x's codes times the scales that _minimums() left."""
    c0, c1 = codes(block, 0), codes(block, 1)
    return _add_lower(zero_i32x16(), c0, load_u8x64(x), c1, load_u8x64(x + 64), scales)


@kernel([i32x16(i32x16, block, int64, int64) for block in EACH], inline="always")
def _and_upper(sums, block, x, scales):
    """The same with sub-blocks 8 to 15 added."""
    c0, c1 = codes(block, 2), codes(block, 3)
    return _add_upper(sums, c0, load_u8x64(x + 128), c1, load_u8x64(x + 192), scales)


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    codes, room, size = x + q6_k_codes(n_blocks * 256), room_for(ROOM), block_bytes(rows)
    for r in range(n_rows):
        row, plus, minus = rows + r * row_bytes, zero_f32x16(), zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * size, room + (i - first) * SCALES
                minus = _minimums(block, _scales(block), x, i, n_blocks, minus, at)
            for i in range(first, after):
                block, at, k = row + i * size, room + (i - first) * SCALES, codes + i * 256
                ask_blocks(block + AHEAD, 1)
                plus = _add_block(_and_upper(_lower(block, k, at), block, k, at), at + D, plus)
        store_f32(out + r * 4, total(add_halves(plus) - offset(rows) * minus))


@kernel([types.void(rows, int64, int64, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    codes0, codes1 = x0 + q6_k_codes(n_blocks * 256), x1 + q6_k_codes(n_blocks * 256)
    room0, room1, size = room_for(ROOM), room_for(ROOM), block_bytes(rows)
    for r in range(n_rows):
        row = rows + r * row_bytes
        p0 = p1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * size, (i - first) * SCALES
                both = _scales(block)
                m0 = _minimums(block, both, x0, i, n_blocks, m0, room0 + at)
                m1 = _minimums(block, both, x1, i, n_blocks, m1, room1 + at)
            for i in range(first, after):
                block, at, k = row + i * size, (i - first) * SCALES, i * 256
                ask_blocks(block + AHEAD, 1)
                s0, s1 = _lower(block, codes0 + k, room0 + at), _lower(block, codes1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, codes0 + k, room0 + at), _and_upper(s1, block, codes1 + k, room1 + at)
                p0, p1 = _add_block(s0, room0 + at + D, p0), _add_block(s1, room1 + at + D, p1)
        store_f32(out0 + r * 4, total(add_halves(p0) - offset(rows) * m0))
        store_f32(out1 + r * 4, total(add_halves(p1) - offset(rows) * m1))
