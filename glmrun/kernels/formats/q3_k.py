"""Q3_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q3_k.py).

    row . x = sum over blocks of 256 of  d D sum_j ((s_j - 32) k_j) ((q_j . x_j) - 4 (sum of x_j)),   q from 0 to 7

over 16 sub-blocks j of 16: Q6_K with other codes, and the same but for how these and the scales are unpacked.
"""

from numba import float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q4_k import AHEAD, ROOM, SCALES, SOME, add
from glmrun.kernels.formats.q6_k import add_lower, add_upper, difference, offsets
from glmrun.kernels.formats.unpack import six_bit_scales, three_bits
from glmrun.kernels.simd.memory import (
    load_u8x64,
    prefetch,
    room_for,
    store_f32,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import i32x16

BLOCK = 110  # bytes


@kernel(i32x16(int64, int64, int64), inline="always")
def _lower(block, x, scales):
    """Sums of sub-blocks 0 to 7 times x's codes times the scales that offsets() left."""
    c0, c1 = three_bits(block + 32, block, 0), three_bits(block + 32, block, 1)
    return add_lower(zero_i32x16(), c0, load_u8x64(x), c1, load_u8x64(x + 64), scales)


@kernel(i32x16(i32x16, int64, int64, int64), inline="always")
def _and_upper(sums, block, x, scales):
    """The same with sub-blocks 8 to 15 added."""
    c0, c1 = three_bits(block + 64, block, 2), three_bits(block + 64, block, 3)
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
                block, at = row + i * BLOCK, room + (i - first) * SCALES
                minus = offsets(block + 102, six_bit_scales(block + 94), x, i, n_blocks, minus, at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, room + (i - first) * SCALES, x + i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
                plus = add(_and_upper(_lower(block, k, at), block, k, at), at, plus)
        store_f32(out + r * 4, difference(plus, minus, float32(4.0)))


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
                block, at = row + i * BLOCK, (i - first) * SCALES
                scales = six_bit_scales(block + 94)
                m0 = offsets(block + 102, scales, x0, i, n_blocks, m0, room0 + at)
                m1 = offsets(block + 102, scales, x1, i, n_blocks, m1, room1 + at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, (i - first) * SCALES, i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
                s0, s1 = _lower(block, x0 + k, room0 + at), _lower(block, x1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, x0 + k, room0 + at), _and_upper(s1, block, x1 + k, room1 + at)
                p0, p1 = add(s0, room0 + at, p0), add(s1, room1 + at, p1)
        store_f32(out0 + r * 4, difference(p0, m0, float32(4.0)))
        store_f32(out1 + r * 4, difference(p1, m1, float32(4.0)))
