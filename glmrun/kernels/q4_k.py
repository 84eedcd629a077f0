"""Q4_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q4_k.py).

row . x = sum over sub-blocks j of 32:  (d s_j) dx_j (q_j . x_j)  -  (dmin m_j) (sum of x_j),   8 sub-blocks in a block
"""

from numba import types

from glmrun.kernels import kernel
from glmrun.kernels.unpack import (
    bytes_to_f32x8,
    nibbles_low_high,
    pick_two,
)
from glmrun.simd import (
    dot_u8s8,
    f32x8,
    f32x16,
    fma,
    load_f16,
    load_f32x8,
    load_u8x64,
    load_u32,
    prefetch,
    splat_f32x8,
    to_f32,
    total,
    u8x64,
    zero_f32x8,
    zero_f32x16,
)

BLOCK = 144  # bytes
AHEAD = 4096  # bytes: far enough for memory to answer, across the pages at which the hardware's own prefetching stops
_pair = types.UniTuple(f32x8, 2)
_four, _sums = types.UniTuple(types.float32, 4), types.UniTuple(f32x16, 2)


@kernel(_pair(types.int64))
def scales_and_minimums(block):
    """(d s_j, dmin m_j) of the block's eight sub-blocks; bytes 4 to 15 hold the 6-bit s and m in a packed order."""
    a, b, c = load_u32(block + 4), load_u32(block + 8), load_u32(block + 12)
    scales = bytes_to_f32x8(a & 0x3F3F3F3F, (c & 0x0F0F0F0F) | ((a >> 2) & 0x30303030))
    minimums = bytes_to_f32x8(b & 0x3F3F3F3F, ((c >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030))
    return scales * splat_f32x8(load_f16(block)), minimums * splat_f32x8(load_f16(block + 2))


@kernel(_sums(u8x64, u8x64, u8x64, u8x64, f32x8, types.int64, f32x16, f32x16), inline="always")
def _add_block(c0, c1, c2, c3, scales, x, a, b):
    """Two sums of lanes, a and b, with sum_j scales_j (q_j . x_j) of one block added: two, so that additions wait less."""
    a = fma(to_f32(dot_u8s8(c0, load_u8x64(x))), pick_two(scales, 0, 1), a)
    b = fma(to_f32(dot_u8s8(c1, load_u8x64(x + 64))), pick_two(scales, 2, 3), b)
    a = fma(to_f32(dot_u8s8(c2, load_u8x64(x + 128))), pick_two(scales, 4, 5), a)
    b = fma(to_f32(dot_u8s8(c3, load_u8x64(x + 192))), pick_two(scales, 6, 7), b)
    return a, b


@kernel(types.float32(types.int64, types.int64, types.int64))
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q4_K row; x as laid out by quantize_row."""
    scales, sums = x + n_blocks * 256, x + n_blocks * 288
    a, b, minus = zero_f32x16(), zero_f32x16(), zero_f32x8()
    for i in range(n_blocks):
        block = row + i * BLOCK
        prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128)
        s, m = scales_and_minimums(block)
        a, b = _add_block(
            nibbles_low_high(block + 16), nibbles_low_high(block + 48), nibbles_low_high(block + 80), nibbles_low_high(block + 112),
            s * load_f32x8(scales + i * 32), x + i * 256, a, b,
        )  # fmt: skip
        minus = fma(m, load_f32x8(sums + i * 32), minus)
    return total(a + b) - total(minus)


@kernel(_four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def dot4(row, n_blocks, x0, x1, x2, x3):
    """dot() with four activation vectors at once: the row is unpacked once."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero_f32x16()
    n0 = n1 = n2 = n3 = zero_f32x8()
    for i in range(n_blocks):
        block = row + i * BLOCK
        s, m = scales_and_minimums(block)
        c0, c1 = nibbles_low_high(block + 16), nibbles_low_high(block + 48)
        c2, c3 = nibbles_low_high(block + 80), nibbles_low_high(block + 112)
        k, scale, sums = i * 256, n_blocks * 256 + i * 32, n_blocks * 288 + i * 32
        a0, b0 = _add_block(c0, c1, c2, c3, s * load_f32x8(x0 + scale), x0 + k, a0, b0)
        a1, b1 = _add_block(c0, c1, c2, c3, s * load_f32x8(x1 + scale), x1 + k, a1, b1)
        a2, b2 = _add_block(c0, c1, c2, c3, s * load_f32x8(x2 + scale), x2 + k, a2, b2)
        a3, b3 = _add_block(c0, c1, c2, c3, s * load_f32x8(x3 + scale), x3 + k, a3, b3)
        n0, n1 = fma(m, load_f32x8(x0 + sums), n0), fma(m, load_f32x8(x1 + sums), n1)
        n2, n3 = fma(m, load_f32x8(x2 + sums), n2), fma(m, load_f32x8(x3 + sums), n3)
    return total(a0 + b0) - total(n0), total(a1 + b1) - total(n1), total(a2 + b2) - total(n2), total(a3 + b3) - total(n3)
