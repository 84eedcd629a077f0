"""Q6_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q6_k.py).

    row . x = sum over blocks of 256 of  d D sum_j (s_j k_j) ((q_j . x_j) - 32 (sum of x_j)),   q from 0 to 63

over 16 sub-blocks j of 16; D k_j is the scale of the activations' codes x_j (quantize_row). All but d D are integers.
"""

from numba import float32, int64, types

from glmrun.kernels.activations import k_quant_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q4_k import AHEAD
from glmrun.kernels.formats.unpack import (
    four_f16_times,
    load_i8x16_as_i16,
    six_bits,
    splat_lane,
    splat_lane_x8,
)
from glmrun.kernels.simd.arithmetic import add_halves, fma, to_f32, total
from glmrun.kernels.simd.dots import adding_scaled, dot_codes, sum_products_i16
from glmrun.kernels.simd.memory import (
    load_f32,
    load_i16x16,
    load_u8x64,
    prefetch,
    splat_f32x8,
    store_f32,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import f32x8, f32x16, i16x16, u8x64

BLOCK = 210  # bytes
_sums = types.Tuple((f32x16, f32x8))
# Each four products' sub-block, in the lower and the upper half of a block.
_add_lower, _add_upper = adding_scaled(0, 4, 1, 5, 2, 6, 3, 7), adding_scaled(8, 12, 9, 13, 10, 14, 11, 15)


@kernel(_sums(int64, u8x64, u8x64, u8x64, u8x64, i16x16, int64, int64, int64, f32x16, f32x8), inline="always")
def _add_block(block, c0, c1, c2, c3, scales, x, i, n_blocks, plus, minus):
    """The sums of lanes, plus of q . x and minus of the sums of x, with block i and what x holds for it added.

    c0 to c3   64 codes each
    The largest magnitude of an int16 is 128 * 127 in `products` and 4 * 63 * 127 in a dot product, of an int32 4 * 32004 * 16256.
    """
    multiples = x + n_blocks * 320 + i * 32
    products = scales * load_i16x16(multiples)
    codes = x + i * 256
    x0, x1 = dot_codes(c0, load_u8x64(codes)), dot_codes(c1, load_u8x64(codes + 64))
    sums = _add_lower(zero_i32x16(), x0, x1, products)
    x0, x1 = dot_codes(c2, load_u8x64(codes + 128)), dot_codes(c3, load_u8x64(codes + 192))
    sums = _add_upper(sums, x0, x1, products)
    offsets = sum_products_i16(products, load_i16x16(multiples + n_blocks * 32))
    factors = four_f16_times(block + 202, load_f32(x + k_quant_codes(n_blocks * 256) + n_blocks * 320 + i * 4))  # lane 3: d D
    return fma(to_f32(sums), splat_lane(factors, 3), plus), fma(to_f32(offsets), splat_lane_x8(factors, 3), minus)


@kernel(float32(f32x16, f32x8), inline="always")
def _difference(plus, minus):
    return total(add_halves(plus) - splat_f32x8(float32(32.0)) * minus)


@kernel(float32(int64, int64, int64), inline="always")
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q6_K row; x as laid out by quantize_row."""
    plus, minus = zero_f32x16(), zero_f32x8()
    for i in range(n_blocks):
        block = row + i * BLOCK
        prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128), prefetch(block + AHEAD + 192)
        plus, minus = _add_block(
            block, six_bits(block, block + 128, 0), six_bits(block, block + 128, 1), six_bits(block + 64, block + 160, 0),
            six_bits(block + 64, block + 160, 1), load_i8x16_as_i16(block + 192), x, i, n_blocks, plus, minus,
        )  # fmt: skip
    return _difference(plus, minus)


@kernel(types.void(int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot(rows + r * row_bytes, n_blocks, x))


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    for r in range(n_rows):
        row = rows + r * row_bytes
        p0 = p1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        for i in range(n_blocks):
            block = row + i * BLOCK
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128), prefetch(block + AHEAD + 192)
            c0, c1 = six_bits(block, block + 128, 0), six_bits(block, block + 128, 1)
            c2, c3 = six_bits(block + 64, block + 160, 0), six_bits(block + 64, block + 160, 1)
            scales = load_i8x16_as_i16(block + 192)
            p0, m0 = _add_block(block, c0, c1, c2, c3, scales, x0, i, n_blocks, p0, m0)
            p1, m1 = _add_block(block, c0, c1, c2, c3, scales, x1, i, n_blocks, p1, m1)
        store_f32(out0 + r * 4, _difference(p0, m0))
        store_f32(out1 + r * 4, _difference(p1, m1))
