"""Rows of Q4_1, Q5_1, Q4_0 and Q5_0 times int8 activations, straight on the mapped blocks (layouts: quant/blocks).

    row . x = sum over blocks of 32 of  d dx (q . x) + m sum(dx x)

q are codes as they stand in the file, and Q4_0 has m = -8 d, Q5_0 -16 d. The sums stand beside the activations.
"""

from functools import partial

from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, offset, typed
from glmrun.kernels.formats.q8_0 import AHEAD, add_four, add_last, add_two, codes, emit_some_scales, scales
from glmrun.kernels.formats.transpose import emit_five_bit_columns, emit_four_bit_columns
from glmrun.kernels.formats.unpack import emit_five_bits, emit_four_bits, first_f32
from glmrun.kernels.simd.arithmetic import add_halves, fma, total
from glmrun.kernels.simd.memory import store_f32, zero_f32x8, zero_f32x16
from glmrun.kernels.simd.types import I16, behind, f32x8, u7x64


def _of_bits(name, n_bytes, emit_codes, emit_columns, less):
    """Rows of blocks of a scale and codes that are so much too large; or, if nothing is said of that, a minimum between the two."""
    at = 2 if less else 4
    codes, columns = partial(emit_codes, at=at), partial(emit_columns, at=at)
    return Rows(
        name, n_bytes, scale=I16, vector=u7x64, codes=codes, columns=columns, has_minimum=not less, offset=-less if less else 1
    )


EACH = (
    _of_bits("Q4_1", 20, emit_four_bits, emit_four_bit_columns, None),
    _of_bits("Q5_1", 24, emit_five_bits, emit_five_bit_columns, None),
    _of_bits("Q4_0", 18, emit_four_bits, emit_four_bit_columns, 8),
    _of_bits("Q5_0", 22, emit_five_bits, emit_five_bit_columns, 16),
)
q4_1_at, q5_1_at, q4_0_at, q5_0_at = (typed(rows) for rows in EACH)


@intrinsic(prefer_literal=True)
def minimums(context, block, d, count):
    """What scales() gives of the minimums, or d, which that gave, if there are none: the offset makes minimums of either."""
    n = count.literal_value

    def generate(c, b, s, a):
        return emit_some_scales(b, block, behind(b, a[0], block.scale.width // 8), n) if block.has_minimum else a[1]

    return f32x8(block, f32x8, count), generate


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    sums, size = x + n_blocks * 36, block_bytes(rows)
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a, b, m = zero_f32x16(), zero_f32x16(), zero_f32x8()
        while i + 4 <= n_blocks:
            block = row + i * size
            ask_blocks(block + AHEAD, 4)
            c0, c1 = codes(block, 2), codes(block + 2 * size, 2)
            d = scales(block, 4)
            a, b = add_four(c0, c1, d, x, i, n_blocks, a, b)
            m = fma(minimums(block, d, 4), first_f32(sums + i * 4, 4), m)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            d = scales(block, 2)
            a = add_two(codes(block, 2), d, x, i, n_blocks, a)
            m = fma(minimums(block, d, 2), first_f32(sums + i * 4, 2), m)
            block, i = block + 2 * size, i + 2
        if i < n_blocks:
            d = scales(block, 1)
            b = add_last(codes(block, 1), d, x, n_blocks, b)
            m = fma(minimums(block, d, 1), first_f32(sums + i * 4, 1), m)
        store_f32(out + r * 4, total(add_halves(a + b) + offset(rows) * m))


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
            d = scales(block, 4)
            m = minimums(block, d, 4)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 4), m0), fma(m, first_f32(sums1 + i * 4, 4), m1)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            c, d = codes(block, 2), scales(block, 2)
            m = minimums(block, d, 2)
            a0, a1 = add_two(c, d, x0, i, n_blocks, a0), add_two(c, d, x1, i, n_blocks, a1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 2), m0), fma(m, first_f32(sums1 + i * 4, 2), m1)
            block, i = block + 2 * size, i + 2
        if i < n_blocks:
            c, d = codes(block, 1), scales(block, 1)
            m = minimums(block, d, 1)
            b0, b1 = add_last(c, d, x0, n_blocks, b0), add_last(c, d, x1, n_blocks, b1)
            m0, m1 = fma(m, first_f32(sums0 + i * 4, 1), m0), fma(m, first_f32(sums1 + i * 4, 1), m1)
        store_f32(out0 + r * 4, total(add_halves(a0 + b0) + offset(rows) * m0))
        store_f32(out1 + r * 4, total(add_halves(a1 + b1) + offset(rows) * m1))
