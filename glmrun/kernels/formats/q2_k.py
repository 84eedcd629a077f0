"""Q2_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q2_k.py).

    row . x = sum over blocks of 256 of  d D sum_j (s_j k_j) (q_j . x_j)  -  dmin D sum_j (m_j k_j) (sum of x_j),   q from 0 to 3

over 16 sub-blocks j of 16: scales and codes in Q6_K's order, minimums as Q4_K's.
"""

from numba import int64, types

from glmrun.kernels.activations import k_quant_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q4_k import AHEAD, ROOM, SCALES, SOME, add
from glmrun.kernels.formats.q6_k import add_lower, add_upper, store_scales
from glmrun.kernels.formats.unpack import four_bit_scales, four_f16_times, splat_lane_x8, two_bits
from glmrun.kernels.simd.arithmetic import add_halves, fma, to_f32, total
from glmrun.kernels.simd.dots import sum_products_i16
from glmrun.kernels.simd.memory import (
    load_f32,
    load_i16x16,
    load_u8x64,
    prefetch,
    room_for,
    store_f32,
    store_f32x8,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import f32x8, i32x16

BLOCK = 84  # bytes


@kernel(f32x8(int64, int64, int64, int64, f32x8, int64), inline="always")
def _minimums(block, x, i, n_blocks, minus, out):
    """minus, the sums of lanes, with the minimums' part of block i added; products of scales and d D are left at `out`, as Q4_K's.

    The largest magnitude of an int16 is 15 * 127 in both products and 4 * 3 * 127 in a dot product, of an int32 4 * 2032 * 1905.
    """
    beside = x + n_blocks * 320 + i * 32
    multiples = load_i16x16(beside)
    store_scales(four_bit_scales(block, 0) * multiples, out)
    factors = four_f16_times(block + 76, load_f32(x + k_quant_codes(n_blocks * 256) + n_blocks * 320 + i * 4))
    store_f32x8(out + 64, splat_lane_x8(factors, 2))
    minimums = sum_products_i16(four_bit_scales(block, 1) * multiples, load_i16x16(beside + n_blocks * 32))
    return fma(to_f32(minimums), splat_lane_x8(factors, 3), minus)


@kernel(i32x16(int64, int64, int64), inline="always")
def _lower(block, x, scales):
    """Sums of sub-blocks 0 to 7 times x's codes times the scales that _minimums() left."""
    c0, c1 = two_bits(block + 16, 0), two_bits(block + 16, 1)
    return add_lower(zero_i32x16(), c0, load_u8x64(x), c1, load_u8x64(x + 64), scales)


@kernel(i32x16(i32x16, int64, int64, int64), inline="always")
def _and_upper(sums, block, x, scales):
    """The same with sub-blocks 8 to 15 added."""
    c0, c1 = two_bits(block + 48, 0), two_bits(block + 48, 1)
    return add_upper(sums, c0, load_u8x64(x + 128), c1, load_u8x64(x + 192), scales)


@kernel(types.void(int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    room = room_for(ROOM)
    for r in range(n_rows):
        row, plus, minus = rows + r * row_bytes, zero_f32x16(), zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                minus = _minimums(row + i * BLOCK, x, i, n_blocks, minus, room + (i - first) * SCALES)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, room + (i - first) * SCALES, x + i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
                plus = add(_and_upper(_lower(block, k, at), block, k, at), at, plus)
        store_f32(out + r * 4, total(add_halves(plus) - minus))


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    room0, room1 = room_for(ROOM), room_for(ROOM)
    for r in range(n_rows):
        row = rows + r * row_bytes
        p0 = p1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                m0 = _minimums(row + i * BLOCK, x0, i, n_blocks, m0, room0 + (i - first) * SCALES)
                m1 = _minimums(row + i * BLOCK, x1, i, n_blocks, m1, room1 + (i - first) * SCALES)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, (i - first) * SCALES, i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
                s0, s1 = _lower(block, x0 + k, room0 + at), _lower(block, x1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, x0 + k, room0 + at), _and_upper(s1, block, x1 + k, room1 + at)
                p0, p1 = add(s0, room0 + at, p0), add(s1, room1 + at, p1)
        store_f32(out0 + r * 4, total(add_halves(p0) - m0))
        store_f32(out1 + r * 4, total(add_halves(p1) - m1))
