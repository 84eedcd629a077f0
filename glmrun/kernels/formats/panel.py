"""Unpack 32 rows of a quantized matrix into a panel (layout: tile.py): done once for all tokens that meet these rows."""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import q4_k, q5_0, q6_k, q8_0
from glmrun.kernels.formats.transpose import q4_k_codes, q4_k_factors, q5_0_block, q6_k_codes, q6_k_factors, q8_0_block
from glmrun.kernels.layout import Q4_K, Q5_0, Q6_K
from glmrun.kernels.simd.memory import store_i64

TABLE = 16 * 8  # bytes: addresses of the 16 rows that are unpacked together


@kernel(types.void(int64, int64, int64, int64, int64, int64))
def unpack_panel(weight_format, rows, row_bytes, n_rows, n, panel):
    """Fill a panel from n_rows (1 to 32) rows of n columns at address `rows`; rows that do not exist repeat the last one.

    The table of rows stands in front of the panel.
    """
    table = panel - TABLE
    for half in range(2):
        for r in range(16):
            store_i64(table + r * 8, rows + min(half * 16 + r, n_rows - 1) * row_bytes)
        codes, factors = panel + half * 64, panel + n * 32 + half * 64
        if weight_format == Q4_K:
            for b in range(n // 256):
                q4_k_factors(table, b * q4_k.BLOCK, factors + b * 2048)
                for i in range(2):
                    q4_k_codes(table, b * q4_k.BLOCK + 16 + i * 64, codes + (b * 2 + i) * 4096)
        elif weight_format == Q6_K:
            for b in range(n // 256):
                q6_k_factors(table, b * q6_k.BLOCK, factors + b * 2048)
                for i in range(2):
                    low, high = b * q6_k.BLOCK + i * 64, b * q6_k.BLOCK + 128 + i * 32
                    q6_k_codes(table, low, high, codes + (b * 2 + i) * 4096)
        elif weight_format == Q5_0:
            for b in range(n // 32):
                q5_0_block(table, b * q5_0.BLOCK, factors + b * 128, codes + b * 1024)
        else:
            for b in range(n // 32):
                q8_0_block(table, b * q8_0.BLOCK, factors + b * 128, codes + b * 1024)


@kernel(int64(int64))
def panel_bytes(n):
    """Room for a panel of any format with n columns."""
    return n * 32 + n // 16 * 128
