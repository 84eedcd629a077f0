"""Q6_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q6_k.py).

row . x = sum over blocks of  d dx sum_j s_j ((q_j . x_j) - 32 sum(x_j)),   j = 16 sub-blocks of 16, q from 0 to 63
"""

from numba import float32, types

from glmrun.kernels import kernel
from glmrun.simd import (
    dot_u8s8,
    f32x16,
    fma,
    load_f16,
    load_f32,
    load_f32x16,
    load_i8x16_as_f32,
    load_u8x64,
    pick_four,
    six_bits,
    splat_f32,
    to_f32,
    total,
    u8x64,
    zero_f32x16,
)

BLOCK = 210  # bytes
_four = types.UniTuple(types.float32, 4)


@kernel(f32x16(u8x64, u8x64, u8x64, u8x64, f32x16, types.int64, types.int64), inline="always")
def _scaled(c0, c1, c2, c3, s, x, sums):
    """Lanes that sum to sum_j s_j ((q_j . x_j) - 32 sum(x_j)) over one block."""
    part = to_f32(dot_u8s8(c0, load_u8x64(x))) * pick_four(s, 0)
    part = fma(to_f32(dot_u8s8(c1, load_u8x64(x + 64))), pick_four(s, 4), part)
    part = fma(to_f32(dot_u8s8(c2, load_u8x64(x + 128))), pick_four(s, 8), part)
    part = fma(to_f32(dot_u8s8(c3, load_u8x64(x + 192))), pick_four(s, 12), part)
    return fma(s * splat_f32(float32(-32.0)), load_f32x16(sums), part)


@kernel(types.float32(types.int64, types.int64, types.int64))
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q6_K row; x as laid out by quantize_256."""
    scales_at, sums_at = x + n_blocks * 256, x + n_blocks * 260
    result = zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        part = _scaled(
            six_bits(block, block + 128, 0), six_bits(block, block + 128, 1), six_bits(block + 64, block + 160, 0),
            six_bits(block + 64, block + 160, 1), load_i8x16_as_f32(block + 192), x + i * 256, sums_at + i * 64,
        )  # fmt: skip
        result = fma(part, splat_f32(load_f16(block + 208) * load_f32(scales_at + i * 4)), result)
    return total(result)


@kernel(_four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def dot4(row, n_blocks, x0, x1, x2, x3):
    """dot() with four activation vectors at once: the row is unpacked once."""
    scales_at, sums_at = n_blocks * 256, n_blocks * 260
    r0 = r1 = r2 = r3 = zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        c0, c1 = six_bits(block, block + 128, 0), six_bits(block, block + 128, 1)
        c2, c3 = six_bits(block + 64, block + 160, 0), six_bits(block + 64, block + 160, 1)
        s, d, k, j = load_i8x16_as_f32(block + 192), load_f16(block + 208), i * 256, sums_at + i * 64
        r0 = fma(_scaled(c0, c1, c2, c3, s, x0 + k, x0 + j), splat_f32(d * load_f32(x0 + scales_at + i * 4)), r0)
        r1 = fma(_scaled(c0, c1, c2, c3, s, x1 + k, x1 + j), splat_f32(d * load_f32(x1 + scales_at + i * 4)), r1)
        r2 = fma(_scaled(c0, c1, c2, c3, s, x2 + k, x2 + j), splat_f32(d * load_f32(x2 + scales_at + i * 4)), r2)
        r3 = fma(_scaled(c0, c1, c2, c3, s, x3 + k, x3 + j), splat_f32(d * load_f32(x3 + scales_at + i * 4)), r3)
    return total(r0), total(r1), total(r2), total(r3)
