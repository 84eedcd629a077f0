"""Unpack 32 rows of a quantized matrix into a panel (layout: tile.py), 16 at a time: done once for all tokens that meet these rows.

Each function takes a table of 16 addresses of rows, the number of columns, and where the codes and the factors of the 16 rows go.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import four_bits as _four_bits
from glmrun.kernels.formats import iq4_xs as _iq4_xs
from glmrun.kernels.formats import q2_k as _q2_k
from glmrun.kernels.formats import q3_k as _q3_k
from glmrun.kernels.formats import q4_1 as _q4_1
from glmrun.kernels.formats import q4_k as _q4_k
from glmrun.kernels.formats import q5_0 as _q5_0
from glmrun.kernels.formats import q5_1 as _q5_1
from glmrun.kernels.formats import q5_k as _q5_k
from glmrun.kernels.formats import q6_k as _q6_k
from glmrun.kernels.formats import q8_0 as _q8_0
from glmrun.kernels.formats.transpose import (
    four_bits_block,
    iq4_xs_codes,
    iq4_xs_factors,
    q2_k_codes,
    q2_k_factors,
    q3_k_codes,
    q3_k_factors,
    q4_1_block,
    q4_k_codes,
    q4_k_factors,
    q5_0_block,
    q5_1_block,
    q5_k_codes,
    q6_k_codes,
    q6_k_factors,
    q8_0_block,
)
from glmrun.kernels.simd.memory import aligned_stack, store_i64

TABLE = 16 * 8  # bytes: addresses of the 16 rows that are unpacked together
_unpack = types.void(int64, int64, int64, int64)


@kernel(int64(int64))
def panel_bytes(n):
    """Room for a panel of any format with n columns."""
    return n * 32 + ((n + 255) // 256 * 16 + n // 32 + n // 256) * 128


@kernel(types.void(int64, int64, int64, int64, int64))
def fill_table(table, rows, row_bytes, first, n_rows):
    """The addresses of 16 rows from `first` on; those behind the n_rows-th are the last one's."""
    for r in range(16):
        store_i64(table + r * 8, rows + min(first + r, n_rows - 1) * row_bytes)


@kernel(_unpack, apart=True)
def q4_k(table, n, codes, factors):
    """Q4_K rows: codes 0 to 15; of each block eight scales, then eight minimums, negative."""
    aligned_stack()
    for b in range(n // 256):
        q4_k_factors(table, b * _q4_k.BLOCK, factors + b * 2048)
        for i in range(2):
            q4_k_codes(table, b * _q4_k.BLOCK + 16 + i * 64, codes + (b * 2 + i) * 4096)


@kernel(_unpack, apart=True)
def q5_k(table, n, codes, factors):
    """Q5_K rows, as Q4_K's: codes 0 to 31."""
    aligned_stack()
    for b in range(n // 256):
        block = b * _q5_k.BLOCK
        q4_k_factors(table, block, factors + b * 2048)
        q5_k_codes(table, block + 48, block + 16, codes + b * 8192, 0)
        q5_k_codes(table, block + 112, block + 16, codes + b * 8192 + 4096, 4)


@kernel(_unpack, apart=True)
def q6_k(table, n, codes, factors):
    """Q6_K rows: codes 0 to 63, 32 more than what they stand for; 16 scales of a block."""
    aligned_stack()
    for b in range(n // 256):
        q6_k_factors(table, b * _q6_k.BLOCK, factors + b * 2048)
        for i in range(2):
            low, high = b * _q6_k.BLOCK + i * 64, b * _q6_k.BLOCK + 128 + i * 32
            q6_k_codes(table, low, high, codes + (b * 2 + i) * 4096)


@kernel(_unpack, apart=True)
def q3_k(table, n, codes, factors):
    """Q3_K rows, as Q6_K's: codes 28 to 35."""
    aligned_stack()
    for b in range(n // 256):
        q3_k_factors(table, b * _q3_k.BLOCK, factors + b * 2048)
        q3_k_codes(table, b * _q3_k.BLOCK, codes + b * 8192)


@kernel(_unpack, apart=True)
def q2_k(table, n, codes, factors):
    """Q2_K rows: codes and scales as Q6_K's, 32 to 35; then the minimums, as tile.py says."""
    aligned_stack()
    for b in range(n // 256):
        q2_k_factors(table, b * _q2_k.BLOCK, factors + b * 2048, factors + n * 8 + b * 1024, factors + n * 12 + b * 128)
        for i in range(2):
            q2_k_codes(table, b * _q2_k.BLOCK + 16 + i * 32, codes + (b * 2 + i) * 4096)


@kernel(_unpack, apart=True)
def q8_0(table, n, codes, factors):
    """Q8_0 rows: codes as they are, + tile.OFFSET; a scale for each block."""
    aligned_stack()
    for b in range(n // 32):
        q8_0_block(table, b * _q8_0.BLOCK, factors + b * 128, codes + b * 1024)


@kernel(_unpack, apart=True)
def q5_0(table, n, codes, factors):
    """Q5_0 rows, as Q8_0's."""
    aligned_stack()
    for b in range(n // 32):
        q5_0_block(table, b * _q5_0.BLOCK, factors + b * 128, codes + b * 1024)


@kernel(_unpack, apart=True)
def q4_1(table, n, codes, factors):
    """Q4_1 rows, as Q4_K's: of 256 columns eight scales, then eight minimums."""
    aligned_stack()
    for b in range(n // 32):
        q4_1_block(table, b * _q4_1.BLOCK, factors + (b // 8 * 16 + b % 8) * 128, codes + b * 1024)


@kernel(_unpack, apart=True)
def q5_1(table, n, codes, factors):
    """Q5_1 rows, as Q4_K's: codes 0 to 31; of 256 columns eight scales, then eight minimums."""
    aligned_stack()
    for b in range(n // 32):
        q5_1_block(table, b * _q5_1.BLOCK, factors + (b // 8 * 16 + b % 8) * 128, codes + b * 1024)


@kernel(_unpack, apart=True)
def iq4_xs(table, n, codes, factors):
    """IQ4_XS rows: the values that the codes choose, + tile.OFFSET; a scale for each 32."""
    aligned_stack()
    for b in range(n // 256):
        iq4_xs_factors(table, b * _iq4_xs.BLOCK, factors + b * 1024)
        for i in range(8):
            iq4_xs_codes(table, b * _iq4_xs.BLOCK + 8 + i * 16, codes + (b * 8 + i) * 1024)


@kernel([types.void(blocks, int64, int64, int64) for blocks in _four_bits.EACH], apart=True)
def four_bits(table, n, codes, factors):
    """IQ4_NL, Q4_0 or MXFP4 rows, as the table's type tells, as IQ4_XS's."""
    aligned_stack()
    for b in range(n // 32):
        four_bits_block(table, b * _four_bits.block_bytes(table), factors + b * 128, codes + b * 1024)
