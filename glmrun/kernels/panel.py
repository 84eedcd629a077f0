"""Unpack 32 rows of a quantized matrix into a panel (layout: tile.py): done once for all tokens that meet these rows."""

from numba import int32, int64, types

from glmrun.kernels import kernel, q4_k, q5_0, q6_k, q8_0, tile
from glmrun.kernels.layout import Q4_K, Q5_0, Q6_K
from glmrun.kernels.unpack import (
    five_bits,
    join,
    nibbles_low_high,
    six_bits,
    transpose_words,
)
from glmrun.simd import (
    flip_sign_bit,
    load_f16,
    load_half_u8x64,
    load_two_u8x32,
    load_u32,
    store_f32,
    store_f32x16,
    store_i32,
    store_u8x64,
    zero_f32x8,
)

_unpack = types.void(int64, int64, int64, int64, int64)


@kernel(_unpack)
def unpack_q4_k(rows, row_bytes, n_rows, n, panel):
    """Panel of up to 32 Q4_K rows of n columns; rows that do not exist repeat the last one."""
    factors, words = panel + n * 32, panel + n * 32 + n // 256 * 2048
    for half in range(2):
        for b in range(n // 256):
            for r in range(16):
                s, m = q4_k.scales_and_minimums(rows + min(half * 16 + r, n_rows - 1) * row_bytes + b * q4_k.BLOCK)
                store_f32x16(words + r * 64, join(s, zero_f32x8() - m))
            transpose_words(words, factors + b * 2048 + half * 64, 128)
            for chunk in range(4):
                for r in range(16):
                    block = rows + min(half * 16 + r, n_rows - 1) * row_bytes + b * q4_k.BLOCK
                    store_u8x64(words + r * 64, nibbles_low_high(block + 16 + chunk * 32))
                transpose_words(words, panel + (b * 4 + chunk) * 2048 + half * 64, 128)


@kernel(_unpack)
def unpack_q6_k(rows, row_bytes, n_rows, n, panel):
    """Panel of up to 32 Q6_K rows of n columns; rows that do not exist repeat the last one."""
    factors, words = panel + n * 32, panel + n * 32 + n // 256 * 2048
    for half in range(2):
        for b in range(n // 256):
            for r in range(16):
                block = rows + min(half * 16 + r, n_rows - 1) * row_bytes + b * q6_k.BLOCK
                store_f32x16(words + r * 64, q6_k.scales_of(block))
            transpose_words(words, factors + b * 2048 + half * 64, 128)
            for chunk in range(4):
                for r in range(16):
                    block = rows + min(half * 16 + r, n_rows - 1) * row_bytes + b * q6_k.BLOCK
                    low, high = block + chunk // 2 * 64, block + 128 + chunk // 2 * 32
                    store_u8x64(words + r * 64, six_bits(low, high, 1) if chunk % 2 else six_bits(low, high, 0))
                transpose_words(words, panel + (b * 4 + chunk) * 2048 + half * 64, 128)


@kernel(types.void(int64, int64, int64, int64, int64, int64))
def _unpack_q8_0(rows, row_bytes, n_rows, n, panel, five):
    """Q8_0 and Q5_0: two blocks fill a vector, the last of an odd number fills half of one."""
    factors = panel + n * 32
    blocks, size = n // 32, q5_0.BLOCK if five else q8_0.BLOCK
    words = factors + blocks * 128
    for half in range(2):
        for b in range(blocks):
            for r in range(16):
                row = rows + min(half * 16 + r, n_rows - 1) * row_bytes
                store_f32(factors + b * 128 + half * 64 + r * 4, load_f16(row + b * size))
        for b in range(0, blocks, 2):
            pair = b + 1 < blocks
            for r in range(16):
                block = rows + min(half * 16 + r, n_rows - 1) * row_bytes + b * size
                if five:
                    codes = five_bits(block + 2, block + 24 if pair else block + 2)
                elif pair:
                    codes = flip_sign_bit(load_two_u8x32(block + 2, block + 36))
                else:
                    codes = flip_sign_bit(load_half_u8x64(block + 2))
                store_u8x64(words + r * 64, codes)
            if pair:
                transpose_words(words, panel + b * 1024 + half * 64, 128)
            else:  # only the first half of the words exists: by way of the scratch behind them
                transpose_words(words, words + 1024, 64)
                for i in range(8):
                    for k in range(0, 64, 4):
                        store_i32(panel + b * 1024 + i * 128 + half * 64 + k, int32(load_u32(words + 1024 + i * 64 + k)))


@kernel(types.void(int64, int64, int64, int64, int64, int64))
def unpack_panel(weight_format, rows, row_bytes, n_rows, n, panel):
    """Fill a panel from n_rows (1 to 32) rows of n columns at address `rows`."""
    if weight_format == Q4_K:
        unpack_q4_k(rows, row_bytes, n_rows, n, panel)
    elif weight_format == Q6_K:
        unpack_q6_k(rows, row_bytes, n_rows, n, panel)
    else:
        _unpack_q8_0(rows, row_bytes, n_rows, n, panel, 1 if weight_format == Q5_0 else 0)


def scratch_bytes(n: int) -> int:
    """Room for one tile's results, a panel of any format with up to n columns, and the words of its unpacking."""
    return tile.ROWS * tile.COLUMNS * 4 + n * 32 + n // 16 * 128 + 2048
