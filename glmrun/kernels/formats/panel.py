"""Unpack 32 rows of a quantized matrix into a panel (layout: tile.py), 16 at a time: done once for all tokens that meet these rows.

Each function takes a table of 16 addresses of rows, the number of columns, and where the codes and the factors of the 16 rows go.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import iq4_xs, q4_1, q4_k, q6_k, q8_0
from glmrun.kernels.formats.address import block_bytes
from glmrun.kernels.formats.transpose import iq4_xs_codes, iq4_xs_factors, unpack_32, unpack_256
from glmrun.kernels.simd.memory import aligned_stack, store_i64

TABLE = 16 * 8  # bytes: addresses of the 16 rows that are unpacked together


@kernel(int64(int64))
def panel_bytes(n):
    """Room for a panel of any format with n columns."""
    return n * 32 + ((n + 255) // 256 * 16 + n // 32 + n // 256) * 128


@kernel(types.void(int64, int64, int64, int64, int64))
def fill_table(table, rows, row_bytes, first, n_rows):
    """The addresses of 16 rows from `first` on; those behind the n_rows-th are the last one's."""
    for r in range(16):
        store_i64(table + r * 8, rows + min(first + r, n_rows - 1) * row_bytes)


@kernel([types.void(table, int64, int64, int64) for table in (*q4_k.EACH, *q6_k.EACH)], apart=True)
def of_256(table, n, codes, factors):
    """Rows in blocks of 256: of each its scales, then, of Q4_K and Q5_K, its minimums, negative; those of Q2_K behind them all."""
    aligned_stack()
    for b in range(n // 256):
        minimums, units = factors + n * 8 + b * 1024, factors + n * 12 + b * 128
        unpack_256(table, b * block_bytes(table), codes + b * 8192, factors + b * 2048, minimums, units)


@kernel([types.void(table, int64, int64, int64) for table in q8_0.EACH], apart=True)
def of_32(table, n, codes, factors):
    """Rows in blocks of 32: a scale for each."""
    aligned_stack()
    for b in range(n // 32):
        unpack_32(table, b * block_bytes(table), codes + b * 1024, factors + b * 128)


@kernel([types.void(table, int64, int64, int64) for table in q4_1.EACH], apart=True)
def of_32_with_minimums(table, n, codes, factors):
    """Rows in blocks of 32 that have minimums, as Q4_K's: of 256 columns eight scales, then eight minimums."""
    aligned_stack()
    for b in range(n // 32):
        unpack_32(table, b * block_bytes(table), codes + b * 1024, factors + (b // 8 * 16 + b % 8) * 128)


@kernel(types.void(iq4_xs.iq4_xs_rows, int64, int64, int64), apart=True)
def of_iq4_xs(table, n, codes, factors):
    """IQ4_XS rows: the values that the codes choose, + tile.OFFSET; a scale for each 32."""
    aligned_stack()
    for b in range(n // 256):
        block = b * block_bytes(table)
        iq4_xs_factors(table, block, factors + b * 1024)
        for i in range(8):
            iq4_xs_codes(table, block + 8 + i * 16, codes + (b * 8 + i) * 1024)
