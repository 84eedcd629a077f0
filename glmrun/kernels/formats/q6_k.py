"""Q6_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q6_k.py).

    row . x = sum over blocks of 256 of  d D sum_j (s_j k_j) ((q_j . x_j) - 32 (sum of x_j)),   q from 0 to 63

over 16 sub-blocks j of 16; D k_j is the scale of the activations' codes x_j (quantize_row). All but d D are integers.
"""

from numba import float32, int64, types

from glmrun.kernels.activations import k_quant_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q4_k import AHEAD, ROOM, SCALES, SOME, add
from glmrun.kernels.formats.unpack import (
    four_f16_times,
    load_i8x16_as_i16,
    six_bits,
    splat_lane_x8,
)
from glmrun.kernels.simd.arithmetic import add_halves, fma, to_f32, total
from glmrun.kernels.simd.dots import products_with_scales, sum_products_i16
from glmrun.kernels.simd.memory import (
    load_f32,
    load_i16x16,
    load_u8x64,
    prefetch,
    room_for,
    splat_f32x8,
    store_f32,
    store_f32x8,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import f32x8, f32x16, i16x16, i32x16

BLOCK = 210  # bytes
# The sub-block of each 16 products, in the lower and the upper half of a block.
store_scales, add_lower, add_upper = products_with_scales((0, 4, 1, 5, 2, 6, 3, 7), (8, 12, 9, 13, 10, 14, 11, 15))


@kernel(f32x8(int64, i16x16, int64, int64, int64, f32x8, int64), inline="always")
def offsets(four, scales, x, i, n_blocks, minus, out):
    """minus, the sums of lanes, with the sums of x in block i added; the products of scales and d D are left at `out`, as Q4_K's.

    four     where four float16 of the block stand, d the last of them
    The largest magnitude of an int16 is 128 * 127 in `products` and 4 * 63 * 127 in a dot product, of an int32 4 * 32004 * 16256.
    """
    multiples = x + n_blocks * 320 + i * 32
    products = scales * load_i16x16(multiples)
    store_scales(products, out)
    factors = splat_lane_x8(four_f16_times(four, load_f32(x + k_quant_codes(n_blocks * 256) + n_blocks * 320 + i * 4)), 3)
    store_f32x8(out + 64, factors)
    return fma(to_f32(sum_products_i16(products, load_i16x16(multiples + n_blocks * 32))), factors, minus)


@kernel(i32x16(int64, int64, int64), inline="always")
def _lower(block, x, scales):
    """Sums of sub-blocks 0 to 7 times x's codes times the scales that offsets() left."""
    c0, c1 = six_bits(block, block + 128, 0), six_bits(block, block + 128, 1)
    return add_lower(zero_i32x16(), c0, load_u8x64(x), c1, load_u8x64(x + 64), scales)


@kernel(i32x16(i32x16, int64, int64, int64), inline="always")
def _and_upper(sums, block, x, scales):
    """The same with sub-blocks 8 to 15 added."""
    c0, c1 = six_bits(block + 64, block + 160, 0), six_bits(block + 64, block + 160, 1)
    return add_upper(sums, c0, load_u8x64(x + 128), c1, load_u8x64(x + 192), scales)


@kernel(float32(f32x16, f32x8, float32), inline="always")
def difference(plus, minus, offset):
    """A row's product: `offset` is what its codes are larger than what they stand for."""
    return total(add_halves(plus) - splat_f32x8(offset) * minus)


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
                minus = offsets(block + 202, load_i8x16_as_i16(block + 192), x, i, n_blocks, minus, at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, room + (i - first) * SCALES, x + i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128), prefetch(block + AHEAD + 192)
                plus = add(_and_upper(_lower(block, k, at), block, k, at), at, plus)
        store_f32(out + r * 4, difference(plus, minus, float32(32.0)))


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
                scales = load_i8x16_as_i16(block + 192)
                m0 = offsets(block + 202, scales, x0, i, n_blocks, m0, room0 + at)
                m1 = offsets(block + 202, scales, x1, i, n_blocks, m1, room1 + at)
            for i in range(first, after):
                block, at, k = row + i * BLOCK, (i - first) * SCALES, i * 256
                prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128), prefetch(block + AHEAD + 192)
                s0, s1 = _lower(block, x0 + k, room0 + at), _lower(block, x1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, x0 + k, room0 + at), _and_upper(s1, block, x1 + k, room1 + at)
                p0, p1 = add(s0, room0 + at, p0), add(s1, room1 + at, p1)
        store_f32(out0 + r * 4, difference(p0, m0, float32(32.0)))
        store_f32(out1 + r * 4, difference(p1, m1, float32(32.0)))
