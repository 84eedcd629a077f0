"""Q5_0 rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q5_0.py).

    row . x = sum over blocks of 32 of  d dx ((q . x) - 16 sum(x)),   q from 0 to 31

Codes are unpacked to q + 112, 128 more than what they stand for: then everything else is as beside Q8_0.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q8_0 import AHEAD, add_four, add_last, add_two
from glmrun.kernels.formats.unpack import (
    five_bits,
    spaced_f16,
)
from glmrun.kernels.simd.arithmetic import total
from glmrun.kernels.simd.memory import prefetch, store_f32, zero_f32x16

BLOCK = 22  # bytes


@kernel(types.float32(int64, int64, int64), inline="always")
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q5_0 row; x as laid out by quantize_row."""
    a, b, i = zero_f32x16(), zero_f32x16(), 0
    while i + 4 <= n_blocks:
        block = row + i * BLOCK
        prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
        c0 = five_bits(block + 2, block + 24, 112)
        c1 = five_bits(block + 46, block + 68, 112)
        a, b = add_four(c0, c1, spaced_f16(block, 4, BLOCK), x, i, n_blocks, a, b)
        i += 4
    block = row + i * BLOCK
    if i + 2 <= n_blocks:
        a = add_two(five_bits(block + 2, block + 24, 112), spaced_f16(block, 2, BLOCK), x, i, n_blocks, a)
        block += 2 * BLOCK
    if n_blocks % 2:
        b = add_last(five_bits(block + 2, block + 2, 112), spaced_f16(block, 1, BLOCK), x, n_blocks, b)
    return total(a + b)


@kernel(types.void(int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot(rows + r * row_bytes, n_blocks, x))


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a0 = a1 = b0 = b1 = zero_f32x16()
        while i + 4 <= n_blocks:
            block = row + i * BLOCK
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
            c0, c1 = five_bits(block + 2, block + 24, 112), five_bits(block + 46, block + 68, 112)
            d = spaced_f16(block, 4, BLOCK)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            i += 4
        block = row + i * BLOCK
        if i + 2 <= n_blocks:
            codes, d = five_bits(block + 2, block + 24, 112), spaced_f16(block, 2, BLOCK)
            a0, a1 = add_two(codes, d, x0, i, n_blocks, a0), add_two(codes, d, x1, i, n_blocks, a1)
            block += 2 * BLOCK
        if n_blocks % 2:
            codes, d = five_bits(block + 2, block + 2, 112), spaced_f16(block, 1, BLOCK)
            b0, b1 = add_last(codes, d, x0, n_blocks, b0), add_last(codes, d, x1, n_blocks, b1)
        store_f32(out0 + r * 4, total(a0 + b0))
        store_f32(out1 + r * 4, total(a1 + b1))
