"""Activations as quantized rows read them: int8 codes, and beside them what every row would otherwise compute again."""

from numba import boolean, float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.quarters import IN_TURNS, beside_scales, in_sixteens, load_quarter
from glmrun.kernels.simd.arithmetic import (
    add_neighbours,
    inverse_or_zero,
    larger_magnitude,
    largest_of_eight,
    largest_of_magnitudes,
    narrow,
    round_64,
    round_up_to,
    times,
    to_f32,
)
from glmrun.kernels.simd.dots import dot_codes, store_starts, sums_of_16
from glmrun.kernels.simd.memory import (
    bytes_of,
    load_f32,
    load_f32x16,
    load_half_u8x64,
    load_u8x64,
    room_for,
    splat_f32x8,
    store_f32,
    store_f32x8,
    store_f32x16,
    store_i16x16,
    store_i32x8,
    store_i32x16,
    store_u8x64,
    zero_f32x16,
)

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


@kernel(int64(int64), inline="always")
def q6_k_codes(n):
    """How far behind a row's address the codes stand as Q6_K packs them."""
    return k_quant_codes(n) if IN_TURNS else 0


@kernel(int64(int64), inline="always")
def beside_sixteens(n):
    """How far behind a row's address stand int16 (n / 16,) k_j and, behind them, int16 (n / 16,) sums of 16, in Q6_K's order."""
    return k_quant_codes(n) + n + n // 8 if IN_TURNS else n + n // 4


def row_bytes(n: int) -> int:
    """Room for a row of n values, n a multiple of 32."""
    return (n * 15 // 8 + 63) // 64 * 64 + 2 * n + 3 * n // 8 + -(-n // 256) * 4 + 32


@kernel(types.void(int64, int64, int64), inline="always")
def _copy(source, n, to):
    """Copy n bytes, a multiple of 4."""
    for at in range(0, n, 4):
        store_f32(to + at, load_f32(source + at))


@kernel(types.void(int64, int64, boolean, int64), apart=True)
def quantize_row(x, n, few, out):
    """Round float32 (n,) to int8 with a scale for each 32, n a multiple of 32: what meets quantized rows.

    The scale of 32 values is a multiple of what 256 share (the last may share it with fewer): D k_j with D = largest magnitude
    of the 256 / 127**2 and k_j = 127 * largest magnitude of the 32 / largest of the 256, rounded up: 0 to 127.

    out     int8 (n,) codes; float32 (n / 32,) scales D k_j; float32 (n / 32,) sums of 32 rounded values;
            int16 (n / 16,) k_j, each twice; int16 (n / 16,) sums of 16 codes;
            int32 (n / 32,) -128 times the sums of 32 codes; 4 bytes for each 16 codes as store_starts() leaves them;
    and, for what meets rows one by one (few), from minus_128_sums_of_4(n) on: int32 (n / 4,) -128 times the sums of 4 codes
    and, where n is a multiple of 256, from k_quant_codes(n) on:
            int8 (n,) codes as load_quarter() orders them; int16 (n / 256, 16) sums of 32 codes, each beside its m_j of
            packed_scales(), zeros beside s_j; int16 (n / 256, 16) k_j beside both; int16 (n / 16,) sums of 16 codes as
            in_sixteens() orders them, if IN_TURNS, else anything; float32 (n / 256,) D
    A value that is not finite makes D not finite, so it reaches the logits, where it is found.
    A scale for each 256, which llama.cpp uses beside K-quants, leaves twice the noise (benchmarks/LOG.md).
    """
    starts_4, packed = out + minus_128_sums_of_4(n), out + k_quant_codes(n)
    packed_sums, packed_multiples, units = packed + n, packed + n + n // 8, packed + n + 3 * n // 8
    room = room_for(2048)
    tops, padded, results = room, room + 512, room + 1536
    for group in range(0, n, 256):
        end = min(group + 256, n)
        whole, source = end - group == 256, x + group * 4
        own_codes, own_beside, own_starts = out + group, out + n + group // 8, out + n + 5 * n // 8 + group // 4
        codes, beside, starts = own_codes, own_beside, own_starts
        step = n // 8  # from scales to sums of 32, multiples, sums of 16, -128 times the sums of 32
        if not whole:  # computed as if it were, zeros behind it
            for k in range(0, 1024, 64):
                store_f32x16(padded + k, load_f32x16(source + k) if k < (end - group) * 4 else zero_f32x16())
            source, codes, beside, starts, step = padded, results, results + 256, results + 416, 32
        for k in range(0, 512, 64):
            store_f32x16(tops + k, larger_magnitude(load_f32x16(source + 2 * k), load_f32x16(source + 2 * k + 64)))
        largest = largest_of_eight(tops)
        highest = largest_of_magnitudes(largest)
        if highest < float32(SMALLEST):
            highest = float32(0.0)
        ratio, unit = float32(0.0) if highest == 0 else float32(127.0) / highest, highest / float32(16129.0)
        multiples = round_up_to(largest * splat_f32x8(ratio), 127)
        scales = splat_f32x8(unit) * to_f32(multiples)
        inverses = inverse_or_zero(scales)
        c0, c1 = round_64(source, inverses, 0), round_64(source + 256, inverses, 2)
        c2, c3 = round_64(source + 512, inverses, 4), round_64(source + 768, inverses, 6)
        store_u8x64(codes, c0)
        store_u8x64(codes + 64, c1)
        store_u8x64(codes + 128, c2)
        store_u8x64(codes + 192, c3)
        sums_16 = sums_of_16(c0, c1, c2, c3)
        sums_32 = add_neighbours(sums_16)
        store_f32x8(beside, scales)
        store_f32x8(beside + step, scales * to_f32(sums_32))
        store_i32x8(beside + 2 * step, times(multiples, 0x10001))
        store_i16x16(beside + 3 * step, narrow(sums_16))
        store_i32x8(beside + 4 * step, times(sums_32, -128))
        store_starts(starts, codes, sums_16)
        if not whole:
            _copy(codes, end - group, own_codes)
            for j in range(5):
                _copy(beside + j * step, (end - group) // 8, own_beside + j * (n // 8))
            _copy(starts, (end - group) // 4, own_starts)
        if not few:
            continue
        for k in range(group, end, 64):
            line = load_u8x64(out + k) if k + 32 < end else load_half_u8x64(out + k)  # the half writes on where nothing stands yet
            store_i32x16(starts_4 + k, times(dot_codes(bytes_of(1), line), -128))
        if n % 256 == 0:
            store_f32(units + group // 64, unit)
            store_i16x16(packed_sums + group // 8, beside_scales(sums_32, 1))
            store_i16x16(packed_multiples + group // 8, beside_scales(multiples, 0))
            if IN_TURNS:
                store_i16x16(packed_multiples + n // 8 + group // 8, in_sixteens(sums_16))
            store_u8x64(packed + group, load_quarter(own_codes, 0))
            store_u8x64(packed + group + 64, load_quarter(own_codes, 1))
            store_u8x64(packed + group + 128, load_quarter(own_codes, 2))
            store_u8x64(packed + group + 192, load_quarter(own_codes, 3))
