"""Q4_1 and Q5_1 rows times int8 activations, straight on the mapped blocks (layouts: quant/blocks).

    row . x = sum over blocks of 32 of  d dx (q . x) + m sum(dx x)

The sums stand beside the activations.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, typed
from glmrun.kernels.formats.q8_0 import AHEAD, add_four, add_last, add_two, codes, scales
from glmrun.kernels.formats.transpose import emit_q4_1_columns, emit_q5_1_columns
from glmrun.kernels.formats.unpack import emit_q4_1_codes, emit_q5_1_codes, first_f32
from glmrun.kernels.simd.arithmetic import add_halves, fma, total
from glmrun.kernels.simd.memory import store_f32, zero_f32x8, zero_f32x16
from glmrun.kernels.simd.types import I16

EACH = (
    Rows("Q4_1", 20, scale=I16, codes=emit_q4_1_codes, columns=emit_q4_1_columns, has_minimum=True),
    Rows("Q5_1", 24, scale=I16, codes=emit_q5_1_codes, columns=emit_q5_1_columns, has_minimum=True),
)
q4_1_at, q5_1_at = (typed(rows) for rows in EACH)


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    sums, size = x + n_blocks * 36, block_bytes(rows)
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a, b, minimums = zero_f32x16(), zero_f32x16(), zero_f32x8()
        while i + 4 <= n_blocks:
            block = row + i * size
            ask_blocks(block + AHEAD, 4)
            c0, c1 = codes(block, 2), codes(block + 2 * size, 2)
            a, b = add_four(c0, c1, scales(block, 4), x, i, n_blocks, a, b)
            minimums = fma(scales(block + 2, 4), first_f32(sums + i * 4, 4), minimums)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            a = add_two(codes(block, 2), scales(block, 2), x, i, n_blocks, a)
            minimums = fma(scales(block + 2, 2), first_f32(sums + i * 4, 2), minimums)
            block, i = block + 2 * size, i + 2
        if i < n_blocks:
            b = add_last(codes(block, 1), scales(block, 1), x, n_blocks, b)
            minimums = fma(scales(block + 2, 1), first_f32(sums + i * 4, 1), minimums)
        store_f32(out + r * 4, total(add_halves(a + b) + minimums))


@kernel([types.void(rows, int64, int64, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    sums0, sums1, size = x0 + n_blocks * 36, x1 + n_blocks * 36, block_bytes(rows)
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a0 = a1 = b0 = b1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        while i + 4 <= n_blocks:
            block = row + i * size
            ask_blocks(block + AHEAD, 4)
            c0, c1 = codes(block, 2), codes(block + 2 * size, 2)
            d, m = scales(block, 4), scales(block + 2, 4)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 4), m0), fma(m, first_f32(sums1 + i * 4, 4), m1)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            c, d, m = codes(block, 2), scales(block, 2), scales(block + 2, 2)
            a0, a1 = add_two(c, d, x0, i, n_blocks, a0), add_two(c, d, x1, i, n_blocks, a1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 2), m0), fma(m, first_f32(sums1 + i * 4, 2), m1)
            block, i = block + 2 * size, i + 2
        if i < n_blocks:
            c, d, m = codes(block, 1), scales(block, 1), scales(block + 2, 1)
            b0, b1 = add_last(c, d, x0, n_blocks, b0), add_last(c, d, x1, n_blocks, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 1), m0), fma(m, first_f32(sums1 + i * 4, 1), m1)
        store_f32(out0 + r * 4, total(add_halves(a0 + b0) + m0))
        store_f32(out1 + r * 4, total(add_halves(a1 + b1) + m1))
