"""Q5_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q5_k.py): Q4_K with one bit more."""

from numba import int64, types

from glmrun.kernels.activations import k_quant_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q4_k import AHEAD, ROOM, SCALES, SOME, add, add_lower, add_upper, minimums
from glmrun.kernels.formats.unpack import five_bits_of_four, packed_scales
from glmrun.kernels.simd.arithmetic import add_halves, total
from glmrun.kernels.simd.memory import load_u8x64, prefetch, room_for, store_f32, zero_f32x8, zero_f32x16, zero_i32x16
from glmrun.kernels.simd.types import i32x16

BLOCK = 176  # bytes


@kernel(i32x16(int64, int64, int64), inline="always")
def _lower(block, codes, scales):
    """Sums of sub-blocks 0 to 3 times x's codes times the scales that minimums() left."""
    c0, c1 = five_bits_of_four(block + 48, block + 16, 0, 0), five_bits_of_four(block + 48, block + 16, 0, 1)
    return add_lower(zero_i32x16(), c0, load_u8x64(codes), c1, load_u8x64(codes + 64), scales)


@kernel(i32x16(i32x16, int64, int64, int64), inline="always")
def _and_upper(sums, block, codes, scales):
    """The same with sub-blocks 4 to 7 added."""
    c0, c1 = five_bits_of_four(block + 112, block + 16, 4, 0), five_bits_of_four(block + 112, block + 16, 4, 1)
    return add_upper(sums, c0, load_u8x64(codes + 128), c1, load_u8x64(codes + 192), scales)


@kernel(types.void(int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    codes, room = x + k_quant_codes(n_blocks * 256), room_for(ROOM)
    for r in range(n_rows):
        row, plus, minus = rows + r * row_bytes, zero_f32x16(), zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * BLOCK, room + (i - first) * SCALES
                minus = minimums(block, packed_scales(block), codes, i, n_blocks, minus, at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, room + (i - first) * SCALES, codes + i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128)
                plus = add(_and_upper(_lower(block, k, at), block, k, at), at, plus)
        store_f32(out + r * 4, total(add_halves(plus) - minus))


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    codes0, codes1 = x0 + k_quant_codes(n_blocks * 256), x1 + k_quant_codes(n_blocks * 256)
    room0, room1 = room_for(ROOM), room_for(ROOM)
    for r in range(n_rows):
        row = rows + r * row_bytes
        p0 = p1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * BLOCK, (i - first) * SCALES
                scales = packed_scales(block)
                m0 = minimums(block, scales, codes0, i, n_blocks, m0, room0 + at)
                m1 = minimums(block, scales, codes1, i, n_blocks, m1, room1 + at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, (i - first) * SCALES, i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128)
                s0, s1 = _lower(block, codes0 + k, room0 + at), _lower(block, codes1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, codes0 + k, room0 + at), _and_upper(s1, block, codes1 + k, room1 + at)
                p0, p1 = add(s0, room0 + at, p0), add(s1, room1 + at, p1)
        store_f32(out0 + r * 4, total(add_halves(p0) - m0))
        store_f32(out1 + r * 4, total(add_halves(p1) - m1))
