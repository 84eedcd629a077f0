"""Q5_1 rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q5_1.py).

    row . x = sum over blocks of 32 of  d dx (q . x) + m sum(dx x)

The sums stand beside the activations.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q8_0 import AHEAD, add_four, add_last, add_two
from glmrun.kernels.formats.unpack import first_f32, five_bits, spaced_f16
from glmrun.kernels.simd.arithmetic import add_halves, fma, total
from glmrun.kernels.simd.memory import prefetch, store_f32, zero_f32x8, zero_f32x16

BLOCK = 24  # bytes


@kernel(types.void(int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    sums = x + n_blocks * 36
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a, b, minimums = zero_f32x16(), zero_f32x16(), zero_f32x8()
        while i + 4 <= n_blocks:
            block = row + i * BLOCK
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
            c0, c1 = five_bits(block + 4, block + 28, 128), five_bits(block + 52, block + 76, 128)
            a, b = add_four(c0, c1, spaced_f16(block, 4, BLOCK), x, i, n_blocks, a, b)
            minimums = fma(spaced_f16(block + 2, 4, BLOCK), first_f32(sums + i * 4, 4), minimums)
            i += 4
        block = row + i * BLOCK
        if i + 2 <= n_blocks:
            a = add_two(five_bits(block + 4, block + 28, 128), spaced_f16(block, 2, BLOCK), x, i, n_blocks, a)
            minimums = fma(spaced_f16(block + 2, 2, BLOCK), first_f32(sums + i * 4, 2), minimums)
            block, i = block + 2 * BLOCK, i + 2
        if i < n_blocks:
            b = add_last(five_bits(block + 4, block + 4, 128), spaced_f16(block, 1, BLOCK), x, n_blocks, b)
            minimums = fma(spaced_f16(block + 2, 1, BLOCK), first_f32(sums + i * 4, 1), minimums)
        store_f32(out + r * 4, total(add_halves(a + b) + minimums))


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    sums0, sums1 = x0 + n_blocks * 36, x1 + n_blocks * 36
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a0 = a1 = b0 = b1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        while i + 4 <= n_blocks:
            block = row + i * BLOCK
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
            c0, c1 = five_bits(block + 4, block + 28, 128), five_bits(block + 52, block + 76, 128)
            d, m = spaced_f16(block, 4, BLOCK), spaced_f16(block + 2, 4, BLOCK)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 4), m0), fma(m, first_f32(sums1 + i * 4, 4), m1)
            i += 4
        block = row + i * BLOCK
        if i + 2 <= n_blocks:
            codes, d, m = five_bits(block + 4, block + 28, 128), spaced_f16(block, 2, BLOCK), spaced_f16(block + 2, 2, BLOCK)
            a0, a1 = add_two(codes, d, x0, i, n_blocks, a0), add_two(codes, d, x1, i, n_blocks, a1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 2), m0), fma(m, first_f32(sums1 + i * 4, 2), m1)
            block, i = block + 2 * BLOCK, i + 2
        if i < n_blocks:
            codes, d, m = five_bits(block + 4, block + 4, 128), spaced_f16(block, 1, BLOCK), spaced_f16(block + 2, 1, BLOCK)
            b0, b1 = add_last(codes, d, x0, n_blocks, b0), add_last(codes, d, x1, n_blocks, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 1), m0), fma(m, first_f32(sums1 + i * 4, 1), m1)
        store_f32(out0 + r * 4, total(add_halves(a0 + b0) + m0))
        store_f32(out1 + r * 4, total(add_halves(a1 + b1) + m1))
