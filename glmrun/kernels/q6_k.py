"""Q6_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q6_k.py).

row . x = sum over sub-blocks j of 16:  (d s_j) (dx_j (q_j . x_j) - 32 (sum of x_j)),   16 sub-blocks in a block, q from 0 to 63
"""

from numba import float32, types

from glmrun.kernels import kernel
from glmrun.kernels.q4_k import AHEAD
from glmrun.kernels.unpack import (
    double_lanes,
    load_i8x16_as_f32,
    pick_four,
    six_bits,
)
from glmrun.simd import (
    dot_u8s8,
    f32x16,
    fma,
    load_f16,
    load_f32x8,
    load_f32x16,
    load_u8x64,
    prefetch,
    splat_f32,
    to_f32,
    total,
    u8x64,
    zero_f32x16,
)

BLOCK = 210  # bytes
_four, _sums = types.UniTuple(types.float32, 4), types.UniTuple(f32x16, 2)


@kernel(f32x16(types.int64))
def scales_of(block):
    """d s_j of the block's sixteen sub-blocks."""
    return load_i8x16_as_f32(block + 192) * splat_f32(load_f16(block + 208))


@kernel(_sums(u8x64, u8x64, u8x64, u8x64, f32x16, types.int64, f32x16, f32x16), inline="always")
def _add_block(c0, c1, c2, c3, scales, x, a, b):
    """Two sums of lanes, a and b, with sum_j scales_j (q_j . x_j) of one block added: two, so that additions wait less."""
    a = fma(to_f32(dot_u8s8(c0, load_u8x64(x))), pick_four(scales, 0), a)
    b = fma(to_f32(dot_u8s8(c1, load_u8x64(x + 64))), pick_four(scales, 4), b)
    a = fma(to_f32(dot_u8s8(c2, load_u8x64(x + 128))), pick_four(scales, 8), a)
    b = fma(to_f32(dot_u8s8(c3, load_u8x64(x + 192))), pick_four(scales, 12), b)
    return a, b


@kernel(types.float32(types.int64, types.int64, types.int64))
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q6_K row; x as laid out by quantize_row."""
    scales, sums = x + n_blocks * 256, x + n_blocks * 320
    a, b, minus = zero_f32x16(), zero_f32x16(), zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        prefetch(block + AHEAD), prefetch(block + AHEAD + 64), prefetch(block + AHEAD + 128), prefetch(block + AHEAD + 192)
        s = scales_of(block)
        a, b = _add_block(
            six_bits(block, block + 128, 0), six_bits(block, block + 128, 1), six_bits(block + 64, block + 160, 0),
            six_bits(block + 64, block + 160, 1), s * double_lanes(load_f32x8(scales + i * 32)), x + i * 256, a, b,
        )  # fmt: skip
        minus = fma(s, load_f32x16(sums + i * 64), minus)
    return total(a + b) - float32(32.0) * total(minus)


@kernel(_four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def dot4(row, n_blocks, x0, x1, x2, x3):
    """dot() with four activation vectors at once: the row is unpacked once."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero_f32x16()
    n0 = n1 = n2 = n3 = zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        c0, c1 = six_bits(block, block + 128, 0), six_bits(block, block + 128, 1)
        c2, c3 = six_bits(block + 64, block + 160, 0), six_bits(block + 64, block + 160, 1)
        s, k, scale, sums = scales_of(block), i * 256, n_blocks * 256 + i * 32, n_blocks * 320 + i * 64
        a0, b0 = _add_block(c0, c1, c2, c3, s * double_lanes(load_f32x8(x0 + scale)), x0 + k, a0, b0)
        a1, b1 = _add_block(c0, c1, c2, c3, s * double_lanes(load_f32x8(x1 + scale)), x1 + k, a1, b1)
        a2, b2 = _add_block(c0, c1, c2, c3, s * double_lanes(load_f32x8(x2 + scale)), x2 + k, a2, b2)
        a3, b3 = _add_block(c0, c1, c2, c3, s * double_lanes(load_f32x8(x3 + scale)), x3 + k, a3, b3)
        n0, n1 = fma(s, load_f32x16(x0 + sums), n0), fma(s, load_f32x16(x1 + sums), n1)
        n2, n3 = fma(s, load_f32x16(x2 + sums), n2), fma(s, load_f32x16(x3 + sums), n3)
    t = float32(32.0)
    return (
        total(a0 + b0) - t * total(n0),
        total(a1 + b1) - t * total(n1),
        total(a2 + b2) - t * total(n2),
        total(a3 + b3) - t * total(n3),
    )
