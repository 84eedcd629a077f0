"""Q5_0 rows times int8 activations, straight on the mapped blocks (layout: quant/blocks/q5_0.py).

    row . x = sum over blocks of 32 of  d dx ((q . x) - 16 sum(x)),   q from 0 to 31
Two neighbouring blocks share a vector.
"""

from numba import float32, types

from glmrun.kernels import kernel
from glmrun.kernels.unpack import (
    five_bits,
)
from glmrun.simd import (
    bytes_of,
    dot_u8s8,
    f32x16,
    fma,
    load_f16,
    load_f32,
    load_half_u8x64,
    load_u8x64,
    to_f32,
    total,
    two_f32,
    u8x64,
    zero_f32x16,
)

BLOCK = 22  # bytes
_four = types.UniTuple(types.float32, 4)


@kernel(f32x16(u8x64, u8x64, f32x16, f32x16), inline="always")
def _add_pair(codes, x, scales, result):
    """result + scales ((q . x) - 16 sum(x)) for two blocks."""
    return fma(to_f32(dot_u8s8(codes, x) - dot_u8s8(bytes_of(16), x)), scales, result)


@kernel(types.float32(types.int64, types.int64, types.int64))
def dot(row, n_blocks, x):
    """dequantize(row) . x for one Q5_0 row; x as laid out by quantize_row."""
    scales_at = x + n_blocks * 32
    result = zero_f32x16()
    for i in range(0, n_blocks - 1, 2):
        block, at = row + i * BLOCK, scales_at + i * 4
        scales = two_f32(load_f16(block) * load_f32(at), load_f16(block + 22) * load_f32(at + 4))
        result = _add_pair(five_bits(block + 2, block + 24), load_u8x64(x + i * 32), scales, result)
    if n_blocks % 2:  # the last block alone: the vector's other half meets zeros
        i = n_blocks - 1
        block = row + i * BLOCK
        scales = two_f32(load_f16(block) * load_f32(scales_at + i * 4), float32(0.0))
        result = _add_pair(five_bits(block + 2, block + 2), load_half_u8x64(x + i * 32), scales, result)
    return total(result)


@kernel(_four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def dot4(row, n_blocks, x0, x1, x2, x3):
    """dot() with four activation vectors at once: the row is unpacked once."""
    scales_at = n_blocks * 32
    r0 = r1 = r2 = r3 = zero_f32x16()
    for i in range(0, n_blocks - 1, 2):
        block, at, k = row + i * BLOCK, scales_at + i * 4, i * 32
        codes, a, b = five_bits(block + 2, block + 24), load_f16(block), load_f16(block + 22)
        r0 = _add_pair(codes, load_u8x64(x0 + k), two_f32(a * load_f32(x0 + at), b * load_f32(x0 + at + 4)), r0)
        r1 = _add_pair(codes, load_u8x64(x1 + k), two_f32(a * load_f32(x1 + at), b * load_f32(x1 + at + 4)), r1)
        r2 = _add_pair(codes, load_u8x64(x2 + k), two_f32(a * load_f32(x2 + at), b * load_f32(x2 + at + 4)), r2)
        r3 = _add_pair(codes, load_u8x64(x3 + k), two_f32(a * load_f32(x3 + at), b * load_f32(x3 + at + 4)), r3)
    if n_blocks % 2:
        i = n_blocks - 1
        block, at, k = row + i * BLOCK, scales_at + i * 4, i * 32
        codes, a, zero = five_bits(block + 2, block + 2), load_f16(block), float32(0.0)
        r0 = _add_pair(codes, load_half_u8x64(x0 + k), two_f32(a * load_f32(x0 + at), zero), r0)
        r1 = _add_pair(codes, load_half_u8x64(x1 + k), two_f32(a * load_f32(x1 + at), zero), r1)
        r2 = _add_pair(codes, load_half_u8x64(x2 + k), two_f32(a * load_f32(x2 + at), zero), r2)
        r3 = _add_pair(codes, load_half_u8x64(x3 + k), two_f32(a * load_f32(x3 + at), zero), r3)
    return total(r0), total(r1), total(r2), total(r3)
