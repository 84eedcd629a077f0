"""Q4_K rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q4_k.py).

row . x = sum over blocks of  d dx (sum_j s_j (q_j . x_j))  -  dmin dx (sum_j m_j sum(x_j)),   j = 8 sub-blocks of 32
"""

from numba import types

from glmrun.kernels import kernel
from glmrun.simd import (
    bytes_to_f32x8,
    dot_u8s8,
    double_lanes,
    f32x8,
    f32x16,
    fma,
    load_f16,
    load_f32,
    load_f32x16,
    load_u8x64,
    load_u32,
    nibbles_low_high,
    pick_two,
    splat_f32,
    to_f32,
    total,
    u8x64,
    zero_f32x16,
)

BLOCK = 144  # bytes
_pair = types.UniTuple(f32x8, 2)
_four = types.UniTuple(types.float32, 4)


@kernel(_pair(types.int64))
def scales_and_minimums(block):
    """The block's eight 6-bit scales and eight 6-bit minimums as numbers; bytes 4 to 15 hold them in a packed order."""
    a, b, c = load_u32(block + 4), load_u32(block + 8), load_u32(block + 12)
    scales = bytes_to_f32x8(a & 0x3F3F3F3F, (c & 0x0F0F0F0F) | ((a >> 2) & 0x30303030))
    minimums = bytes_to_f32x8(b & 0x3F3F3F3F, ((c >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030))
    return scales, minimums


@kernel(f32x16(u8x64, u8x64, u8x64, u8x64, f32x16, f32x16, f32x16, f32x16, types.int64), inline="always")
def _scaled(c0, c1, c2, c3, s0, s1, s2, s3, x):
    """Lanes that sum to sum_j s_j (q_j . x_j) over one block; every number in them is a whole one below 2**24."""
    part = to_f32(dot_u8s8(c0, load_u8x64(x))) * s0
    part = fma(to_f32(dot_u8s8(c1, load_u8x64(x + 64))), s1, part)
    part = fma(to_f32(dot_u8s8(c2, load_u8x64(x + 128))), s2, part)
    return fma(to_f32(dot_u8s8(c3, load_u8x64(x + 192))), s3, part)


@kernel(types.float32(types.int64, types.int64, types.int64))
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q4_K row; x as laid out by quantize_256."""
    scales_at, sums_at = x + n_blocks * 256, x + n_blocks * 260
    plus, minus = zero_f32x16(), zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        s, m = scales_and_minimums(block)
        part = _scaled(
            nibbles_low_high(block + 16), nibbles_low_high(block + 48), nibbles_low_high(block + 80), nibbles_low_high(block + 112),
            pick_two(s, 0, 1), pick_two(s, 2, 3), pick_two(s, 4, 5), pick_two(s, 6, 7), x + i * 256,
        )  # fmt: skip
        dx = load_f32(scales_at + i * 4)
        plus = fma(part, splat_f32(load_f16(block) * dx), plus)
        minus = fma(double_lanes(m) * load_f32x16(sums_at + i * 64), splat_f32(load_f16(block + 2) * dx), minus)
    return total(plus - minus)


@kernel(_four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def dot4(row, n_blocks, x0, x1, x2, x3):
    """dot() with four activation vectors at once: the row is unpacked once."""
    scales_at, sums_at = n_blocks * 256, n_blocks * 260
    p0 = p1 = p2 = p3 = zero_f32x16()
    n0 = n1 = n2 = n3 = zero_f32x16()
    for i in range(n_blocks):
        block = row + i * BLOCK
        s, m = scales_and_minimums(block)
        c0, c1 = nibbles_low_high(block + 16), nibbles_low_high(block + 48)
        c2, c3 = nibbles_low_high(block + 80), nibbles_low_high(block + 112)
        s0, s1, s2, s3 = pick_two(s, 0, 1), pick_two(s, 2, 3), pick_two(s, 4, 5), pick_two(s, 6, 7)
        d, dmin, mm, k = load_f16(block), load_f16(block + 2), double_lanes(m), i * 256
        dx = load_f32(x0 + scales_at + i * 4)
        p0 = fma(_scaled(c0, c1, c2, c3, s0, s1, s2, s3, x0 + k), splat_f32(d * dx), p0)
        n0 = fma(mm * load_f32x16(x0 + sums_at + i * 64), splat_f32(dmin * dx), n0)
        dx = load_f32(x1 + scales_at + i * 4)
        p1 = fma(_scaled(c0, c1, c2, c3, s0, s1, s2, s3, x1 + k), splat_f32(d * dx), p1)
        n1 = fma(mm * load_f32x16(x1 + sums_at + i * 64), splat_f32(dmin * dx), n1)
        dx = load_f32(x2 + scales_at + i * 4)
        p2 = fma(_scaled(c0, c1, c2, c3, s0, s1, s2, s3, x2 + k), splat_f32(d * dx), p2)
        n2 = fma(mm * load_f32x16(x2 + sums_at + i * 64), splat_f32(dmin * dx), n2)
        dx = load_f32(x3 + scales_at + i * 4)
        p3 = fma(_scaled(c0, c1, c2, c3, s0, s1, s2, s3, x3 + k), splat_f32(d * dx), p3)
        n3 = fma(mm * load_f32x16(x3 + sums_at + i * 64), splat_f32(dmin * dx), n3)
    return total(p0 - n0), total(p1 - n1), total(p2 - n2), total(p3 - n3)
