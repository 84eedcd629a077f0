"""A cached row [latent | rope key], 16 values at a time: float32, float16, or int8 with a scale for each 32 values.

F32, F16   the values
Q8_0       int8 (row,) codes, then float16 (row / 32,) scales = largest magnitude / 127: GGML's block_q8_0 with the scales behind
"""

from numba import float32, int64, types

from glmrun.kernels.attention.rounding import store_f16
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import load_i8x16_as_f32
from glmrun.kernels.layout import F16, F32, model_record
from glmrun.kernels.simd.arithmetic import larger_magnitude, largest_of_magnitudes, round_to_i32
from glmrun.kernels.simd.memory import load_f16, load_f16x16, load_f32x16, splat_f32, store_f16x16, store_f32x16, store_i8x16
from glmrun.kernels.simd.types import f32x16


def row_bytes(row: int, cache_type: int) -> int:
    """Bytes of one row of `row` values, a multiple of 64."""
    return row * 4 if cache_type == F32 else row * 2 if cache_type == F16 else row + row // 32 * 2


@kernel(f32x16(model_record, int64, int64), inline="always")
def load_cached(m, row, k):
    """Values k to k + 15 of the row at an address."""
    if m.cache_type == F16:
        return load_f16x16(row + k * 2)
    if m.cache_type == F32:
        return load_f32x16(row + k * 4)
    return load_i8x16_as_f32(row + k) * splat_f32(load_f16(row + m.row + k // 32 * 2))


@kernel(types.void(model_record, int64, int64))
def store_cached(m, x, row):
    """Write float32 (row,) at x as a cached row. A value that is not finite makes its scale not finite."""
    for k in range(0, m.row, 32):
        a, b = load_f32x16(x + k * 4), load_f32x16(x + k * 4 + 64)
        if m.cache_type == F16:
            store_f16x16(row + k * 2, a), store_f16x16(row + k * 2 + 32, b)
        elif m.cache_type == F32:
            store_f32x16(row + k * 4, a), store_f32x16(row + k * 4 + 64, b)
        else:
            top = largest_of_magnitudes(larger_magnitude(a, b))
            inverse = splat_f32(float32(0.0) if top == 0 else float32(127.0) / top)
            store_i8x16(row + k, round_to_i32(a * inverse)), store_i8x16(row + k + 16, round_to_i32(b * inverse))
            store_f16(row + m.row + k // 16, top / float32(127.0))
