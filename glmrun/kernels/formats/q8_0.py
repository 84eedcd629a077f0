"""Q8_0 rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q8_0.py).

    row . x = sum over blocks of 32 of  d dx (q . x),   with q . x = (q + 128) . x - 128 sum(x): one factor must be unsigned

Two neighbouring blocks share a vector, four the work on their scales; all 256 byte values of q are exact.
"""

from numba import int64, types

from glmrun.kernels.activations import minus_128_sums_of_4
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import (
    pick_two,
    spaced_f16,
)
from glmrun.kernels.simd.arithmetic import flip_sign_bit, fma, to_f32, total
from glmrun.kernels.simd.dots import dot_offset_128
from glmrun.kernels.simd.memory import (
    load_f32x8,
    load_half_u8x64,
    load_two_u8x32,
    load_u8x64,
    prefetch,
    store_f32,
    zero_f32x16,
)
from glmrun.kernels.simd.types import f32x8, f32x16, u8x64

BLOCK = 34  # bytes
AHEAD = 8192  # bytes, as beside Q4_K
_sums = types.UniTuple(f32x16, 2)


@kernel(f32x16(u8x64, int64, int64, f32x16, f32x16), inline="always")
def add_pair(codes, x, starts, scales, result):
    """result + scales ((codes - 128) . x) for two blocks of int8 x, with -128 times the sums of 4 of them at `starts`."""
    return fma(to_f32(dot_offset_128(codes, load_u8x64(x), starts)), scales, result)


@kernel(_sums(u8x64, u8x64, f32x8, int64, int64, int64, f32x16, f32x16), inline="always")
def add_four(c0, c1, d, x, i, n_blocks, a, b):
    """Two sums of lanes with blocks i to i + 3 added: two, so that additions wait less. Lanes of d are the blocks' scales."""
    at, starts = x + i * 32, x + minus_128_sums_of_4(n_blocks * 32) + i * 32
    scales = d * load_f32x8(x + n_blocks * 32 + i * 4)
    a = add_pair(c0, at, starts, pick_two(scales, 0, 1), a)
    return a, add_pair(c1, at + 64, starts + 64, pick_two(scales, 2, 3), b)


@kernel(f32x16(u8x64, f32x8, int64, int64, int64, f32x16), inline="always")
def add_two(codes, d, x, i, n_blocks, a):
    """A sum of lanes with blocks i and i + 1 added."""
    scales = d * load_f32x8(x + n_blocks * 32 + i * 4)
    return add_pair(codes, x + i * 32, x + minus_128_sums_of_4(n_blocks * 32) + i * 32, pick_two(scales, 0, 1), a)


@kernel(f32x16(u8x64, f32x8, int64, int64, f32x16), inline="always")
def add_last(codes, d, x, n_blocks, a):
    """A sum of lanes with the last block of an odd number added: the upper half meets zeros."""
    i = n_blocks - 1
    dots = dot_offset_128(codes, load_half_u8x64(x + i * 32), x + minus_128_sums_of_4(n_blocks * 32) + i * 32)
    return fma(to_f32(dots), pick_two(d * load_f32x8(x + n_blocks * 32 + i * 4), 0, 1), a)


@kernel(types.float32(int64, int64, int64), inline="always")
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q8_0 row; x as laid out by quantize_row."""
    a, b, i = zero_f32x16(), zero_f32x16(), 0
    while i + 4 <= n_blocks:
        block = row + i * BLOCK
        prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128)
        c0 = flip_sign_bit(load_two_u8x32(block + 2, block + 36))
        c1 = flip_sign_bit(load_two_u8x32(block + 70, block + 104))
        a, b = add_four(c0, c1, spaced_f16(block, 4, BLOCK), x, i, n_blocks, a, b)
        i += 4
    block = row + i * BLOCK
    if i + 2 <= n_blocks:
        a = add_two(flip_sign_bit(load_two_u8x32(block + 2, block + 36)), spaced_f16(block, 2, BLOCK), x, i, n_blocks, a)
        block += 2 * BLOCK
    if n_blocks % 2:
        b = add_last(flip_sign_bit(load_half_u8x64(block + 2)), spaced_f16(block, 1, BLOCK), x, n_blocks, b)
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
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128)
            c0, c1 = flip_sign_bit(load_two_u8x32(block + 2, block + 36)), flip_sign_bit(load_two_u8x32(block + 70, block + 104))
            d = spaced_f16(block, 4, BLOCK)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            i += 4
        block = row + i * BLOCK
        if i + 2 <= n_blocks:
            codes, d = flip_sign_bit(load_two_u8x32(block + 2, block + 36)), spaced_f16(block, 2, BLOCK)
            a0, a1 = add_two(codes, d, x0, i, n_blocks, a0), add_two(codes, d, x1, i, n_blocks, a1)
            block += 2 * BLOCK
        if n_blocks % 2:
            codes, d = flip_sign_bit(load_half_u8x64(block + 2)), spaced_f16(block, 1, BLOCK)
            b0, b1 = add_last(codes, d, x0, n_blocks, b0), add_last(codes, d, x1, n_blocks, b1)
        store_f32(out0 + r * 4, total(a0 + b0))
        store_f32(out1 + r * 4, total(a1 + b1))
