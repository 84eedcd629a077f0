"""Activations as quantized rows read them: int8 codes, and beside them what every row would otherwise compute again."""

from numba import boolean, float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.arithmetic import absolute, largest, maximum, round_to_i32, shift_left, total, total_i32
from glmrun.kernels.simd.dots import dot_u8s8, store_start
from glmrun.kernels.simd.memory import (
    bytes_of,
    load_f32x16,
    load_half_u8x64,
    load_two_u8x32,
    load_u8x64,
    splat_f32,
    store_f32,
    store_i8x16,
    store_i16,
    store_i32,
    store_i32x16,
    store_u8x64,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import f32x16, i32x16

FEW = 7  # from this many activations on, rows are unpacked into panels; fewer meet them row by row
SMALLEST = 1e-30  # 256 neighbours that are all nearer to zero are zeros: the inverse of their scale may not be a float32


@kernel(int64(int64), inline="always")
def minus_128_sums_of_4(n):
    """How far behind a row's address int32 (n / 4,) stand: -128 times the sums of 4 codes; a whole number of cache lines."""
    return (n * 15 // 8 + 63) // 64 * 64


@kernel(int64(int64), inline="always")
def k_quant_codes(n):
    """How far behind a row's address the codes stand in the order in which Q4_K packs them, and then what belongs to them."""
    return (n * 15 // 8 + 63) // 64 * 64 + n


def row_bytes(n: int) -> int:
    """Room for a row of n values, n a multiple of 32."""
    return (n * 15 // 8 + 63) // 64 * 64 + 2 * n + n // 4 + -(-n // 256) * 4 + 32


@kernel(i32x16(f32x16, float32, int64), inline="always")
def _store_rounded(x, inverse_scale, out):
    """16 values times inverse_scale, rounded half to even, stored as int8."""
    q = round_to_i32(x * splat_f32(inverse_scale))
    store_i8x16(out, q)
    return q


@kernel(types.void(int64, int64, boolean, int64), apart=True)
def quantize_row(x, n, few, out):
    """Round float32 (n,) to int8 with a scale for each 32, n a multiple of 32: what meets quantized rows.

    The scale of 32 values is a multiple of what 256 share (the last may share it with fewer): D k_j with D = largest magnitude
    of the 256 / 127**2 and k_j = 127 * largest magnitude of the 32 / largest of the 256, rounded up: 0 to 127.

    out     int8 (n,) codes; float32 (n / 32,) scales D k_j; float32 (n / 32,) sums of 32 rounded values;
            int16 (n / 16,) k_j, each twice; int16 (n / 16,) sums of 16 codes;
            int32 (n / 32,) -128 times the sums of 32 codes; 4 bytes for each 16 codes as store_start() leaves them;
    and, for what meets rows one by one (few), from minus_128_sums_of_4(n) on: int32 (n / 4,) -128 times the sums of 4 codes
    and, where n is a multiple of 256, from k_quant_codes(n) on:
            int8 (n,) codes, of every 128 the 32 at 0, 64, 32, 96; int16 (n / 256, 16) k_0..3 k_0..3 k_4..7 k_4..7;
            int16 (n / 256, 16) 0 0 0 0 b_0..3 0 0 0 0 b_4..7, b_j the sum of 32 codes; float32 (n / 256,) D
    A value that is not finite makes D not finite, so it reaches the logits, where it is found.
    A scale for each 256, which llama.cpp uses beside K-quants, leaves twice the noise (benchmarks/LOG.md).
    """
    scales, sums_32, multiples = out + n, out + n + n // 8, out + n + n // 4
    sums_16, starts_128, starts_32 = multiples + n // 8, out + n + n // 2, out + n + n // 2 + n // 8
    starts_4, packed = out + minus_128_sums_of_4(n), out + k_quant_codes(n)
    packed_multiples, packed_sums, units = packed + n, packed + n + n // 8, packed + n + n // 4
    for group in range(0, n, 256):
        end = min(group + 256, n)
        top, sum_of_all = zero_f32x16(), zero_f32x16()
        for k in range(group, end, 16):
            v = load_f32x16(x + k * 4)
            top, sum_of_all = maximum(absolute(v), top), sum_of_all + v
        highest = largest(top)
        if highest < float32(SMALLEST):
            highest = float32(0.0)
        ratio = float32(0.0) if highest == 0 else float32(127.0) / highest
        unit = highest / float32(16129.0) + total(sum_of_all) * float32(0.0)
        for k in range(group, end, 32):
            a, b = load_f32x16(x + k * 4), load_f32x16(x + k * 4 + 64)
            exact = largest(maximum(absolute(a), absolute(b))) * ratio
            multiple = int64(exact) if exact < float32(127.0) else 127  # NaN: 127
            multiple += 1 if float32(multiple) < exact and multiple < 127 else 0
            scale = unit * float32(multiple)
            inverse = float32(0.0) if scale == 0 else float32(1.0) / scale
            first = total_i32(_store_rounded(a, inverse, out + k))
            second = total_i32(_store_rounded(b, inverse, out + k + 16))
            store_f32(scales + k // 8, scale)
            store_f32(sums_32 + k // 8, scale * float32(first + second))
            store_i32(multiples + k // 8, multiple * 0x10001)
            store_i32(sums_16 + k // 8, first & 0xFFFF | second << 16)
            store_i32(starts_128 + k // 8, -128 * (first + second))
            store_start(starts_32 + k // 4, out + k, first)
            store_start(starts_32 + k // 4 + 4, out + k + 16, second)
            if few and n % 256 == 0:
                j = k % 256 // 32
                place = group // 8 + j * 2 + j // 4 * 8  # of s_j among the scales and minimums of a Q4_K block
                store_i16(packed_multiples + place, multiple)
                store_i16(packed_multiples + place + 8, multiple)
                store_i16(packed_sums + place, 0)
                store_i16(packed_sums + place + 8, first + second)
        if not few:
            continue
        for k in range(group, end, 64):
            codes = load_u8x64(out + k) if k + 32 < end else load_half_u8x64(out + k)  # the half writes on where nothing stands yet
            store_i32x16(starts_4 + k, zero_i32x16() - shift_left(dot_u8s8(bytes_of(1), codes), 7))
        if n % 256 == 0:
            store_f32(units + group // 64, unit)
            for k in range(group, end, 128):
                store_u8x64(packed + k, load_two_u8x32(out + k, out + k + 64))
                store_u8x64(packed + k + 64, load_two_u8x32(out + k + 32, out + k + 96))
