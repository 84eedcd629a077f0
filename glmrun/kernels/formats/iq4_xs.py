"""IQ4_XS rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/iq4.py).

    row . x = sum over sub-blocks of 32 of  d (s - 32) dx (value[q] . x)

Codes become what they stand for, plus 128, and the scales float32: then everything else is as beside eight blocks of Q8_0.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, typed
from glmrun.kernels.formats.q8_0 import AHEAD, add_four
from glmrun.kernels.formats.unpack import iq4_values, iq4_xs_scales, upper_half
from glmrun.kernels.simd.arithmetic import total
from glmrun.kernels.simd.memory import store_f32, zero_f32x16

iq4_xs_rows = Rows("IQ4_XS", 136)
iq4_xs_at = typed(iq4_xs_rows)


@kernel(types.void(iq4_xs_rows, int64, int64, int64, int64, int64), apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x as laid out by quantize_row."""
    n, size = n_blocks * 8, block_bytes(rows)
    for r in range(n_rows):
        row, a, b = rows + r * row_bytes, zero_f32x16(), zero_f32x16()
        for i in range(0, n, 8):
            block = row + i // 8 * size
            ask_blocks(block + AHEAD, 1)
            scales = iq4_xs_scales(block)
            a, b = add_four(iq4_values(block + 8, block + 24), iq4_values(block + 40, block + 56), scales, x, i, n, a, b)
            c2, c3 = iq4_values(block + 72, block + 88), iq4_values(block + 104, block + 120)
            a, b = add_four(c2, c3, upper_half(scales), x, i + 4, n, a, b)
        store_f32(out + r * 4, total(a + b))


@kernel(types.void(iq4_xs_rows, int64, int64, int64, int64, int64, int64, int64), apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    n, size = n_blocks * 8, block_bytes(rows)
    for r in range(n_rows):
        row = rows + r * row_bytes
        a0 = a1 = b0 = b1 = zero_f32x16()
        for i in range(0, n, 8):
            block = row + i // 8 * size
            ask_blocks(block + AHEAD, 1)
            scales = iq4_xs_scales(block)
            c0, c1 = iq4_values(block + 8, block + 24), iq4_values(block + 40, block + 56)
            a0, b0 = add_four(c0, c1, scales, x0, i, n, a0, b0)
            a1, b1 = add_four(c0, c1, scales, x1, i, n, a1, b1)
            c2, c3, scales = iq4_values(block + 72, block + 88), iq4_values(block + 104, block + 120), upper_half(scales)
            a0, b0 = add_four(c2, c3, scales, x0, i + 4, n, a0, b0)
            a1, b1 = add_four(c2, c3, scales, x1, i + 4, n, a1, b1)
        store_f32(out0 + r * 4, total(a0 + b0))
        store_f32(out1 + r * 4, total(a1 + b1))
