"""The one place that knows every block format: which kernel reads its rows.

Every choice names all formats that a file may hold; tensors/weights.py lets no other into a record. A number that is none of them
computes nothing.
"""

from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import floats, iq4_xs, panel, q4_1, q4_k, q6_k, q8_0, tile
from glmrun.kernels.layout import BF16, F16, F32, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from glmrun.kernels.simd.target import dot_bits, has_neon

if dot_bits() == 512 or has_neon():
    from glmrun.kernels.formats import tile_in_registers as tiles
else:
    from glmrun.kernels.formats import tile_16x4 as tiles  # type: ignore[no-redef]

WIDE, NARROW = tiles.WIDTHS  # columns of a tile
IN_FRONT = -(-max(tiles.CELLS, panel.TABLE) // 64) * 64  # bytes in front of a panel: its rows' addresses, or a tile's sums
width_for = tiles.width_for


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64))
def dot_rows(weight_format, rows, row_bytes, n_rows, columns, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); x in the form that reads_codes(weight_format) tells."""
    if weight_format == Q4_K:
        q4_k.dot_rows(q4_k.q4_k_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q5_K:
        q4_k.dot_rows(q4_k.q5_k_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q6_K:
        q6_k.dot_rows(q6_k.q6_k_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q3_K:
        q6_k.dot_rows(q6_k.q3_k_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q2_K:
        q6_k.dot_rows(q6_k.q2_k_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q8_0:
        q8_0.dot_rows(q8_0.q8_0_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == Q5_0:
        q4_1.dot_rows(q4_1.q5_0_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == Q4_1:
        q4_1.dot_rows(q4_1.q4_1_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == Q5_1:
        q4_1.dot_rows(q4_1.q5_1_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == IQ4_XS:
        iq4_xs.dot_rows(iq4_xs.iq4_xs_at(rows), row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == IQ4_NL:
        q8_0.dot_rows(q8_0.iq4_nl_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == Q4_0:
        q4_1.dot_rows(q4_1.q4_0_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == MXFP4:
        q8_0.dot_rows(q8_0.mxfp4_at(rows), row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == BF16:
        floats.dot_rows(floats.bf16_at(rows), row_bytes, n_rows, columns, x, out)
    elif weight_format == F16:
        floats.dot_rows(floats.f16_at(rows), row_bytes, n_rows, columns, x, out)
    elif weight_format == F32:
        floats.dot_rows(floats.f32_at(rows), row_bytes, n_rows, columns, x, out)


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64, int64))
def dot_rows_two(weight_format, rows, row_bytes, n_rows, columns, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1, the same numbers: each row is unpacked once."""
    if weight_format == Q4_K:
        q4_k.dot_rows_two(q4_k.q4_k_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == Q5_K:
        q4_k.dot_rows_two(q4_k.q5_k_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == Q6_K:
        q6_k.dot_rows_two(q6_k.q6_k_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == Q3_K:
        q6_k.dot_rows_two(q6_k.q3_k_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == Q2_K:
        q6_k.dot_rows_two(q6_k.q2_k_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == Q8_0:
        q8_0.dot_rows_two(q8_0.q8_0_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == Q5_0:
        q4_1.dot_rows_two(q4_1.q5_0_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == Q4_1:
        q4_1.dot_rows_two(q4_1.q4_1_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == Q5_1:
        q4_1.dot_rows_two(q4_1.q5_1_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == IQ4_XS:
        iq4_xs.dot_rows_two(iq4_xs.iq4_xs_at(rows), row_bytes, n_rows, columns // 256, x0, x1, out0, out1)
    elif weight_format == IQ4_NL:
        q8_0.dot_rows_two(q8_0.iq4_nl_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == Q4_0:
        q4_1.dot_rows_two(q4_1.q4_0_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == MXFP4:
        q8_0.dot_rows_two(q8_0.mxfp4_at(rows), row_bytes, n_rows, columns // 32, x0, x1, out0, out1)
    elif weight_format == BF16:
        floats.dot_rows_two(floats.bf16_at(rows), row_bytes, n_rows, columns, x0, x1, out0, out1)
    elif weight_format == F16:
        floats.dot_rows_two(floats.f16_at(rows), row_bytes, n_rows, columns, x0, x1, out0, out1)
    elif weight_format == F32:
        floats.dot_rows_two(floats.f32_at(rows), row_bytes, n_rows, columns, x0, x1, out0, out1)


@kernel(types.void(int64, int64, int64, int64, int64, int64))
def unpack_panel(weight_format, rows, row_bytes, n_rows, columns, out):
    """Fill a panel (tile.py) at `out` from n_rows (1 to 32) rows at address `rows`; rows that do not exist repeat the last one.

    IN_FRONT bytes in front of the panel are used on the way.
    """
    table = out - panel.TABLE
    for half in range(2):
        panel.fill_table(table, rows, row_bytes, half * 16, n_rows)
        codes, factors = out + half * 64, out + columns * 32 + half * 64
        if weight_format == Q4_K:
            panel.of_256(q4_k.q4_k_at(table), columns, codes, factors)
        elif weight_format == Q5_K:
            panel.of_256(q4_k.q5_k_at(table), columns, codes, factors)
        elif weight_format == Q6_K:
            panel.of_256(q6_k.q6_k_at(table), columns, codes, factors)
        elif weight_format == Q3_K:
            panel.of_256(q6_k.q3_k_at(table), columns, codes, factors)
        elif weight_format == Q2_K:
            panel.of_256(q6_k.q2_k_at(table), columns, codes, factors)
        elif weight_format == Q8_0:
            panel.of_32(q8_0.q8_0_at(table), columns, codes, factors)
        elif weight_format == Q5_0:
            panel.of_32_with_minimums(q4_1.q5_0_at(table), columns, codes, factors)
        elif weight_format == Q4_1:
            panel.of_32_with_minimums(q4_1.q4_1_at(table), columns, codes, factors)
        elif weight_format == Q5_1:
            panel.of_32_with_minimums(q4_1.q5_1_at(table), columns, codes, factors)
        elif weight_format == IQ4_XS:
            panel.of_iq4_xs(iq4_xs.iq4_xs_at(table), columns, codes, factors)
        elif weight_format == IQ4_NL:
            panel.of_32(q8_0.iq4_nl_at(table), columns, codes, factors)
        elif weight_format == Q4_0:
            panel.of_32_with_minimums(q4_1.q4_0_at(table), columns, codes, factors)
        elif weight_format == MXFP4:
            panel.of_32(q8_0.mxfp4_at(table), columns, codes, factors)


@kernel([types.void(int64, *signature.args) for signature in tile.signatures(tiles.WIDTHS)])
def _of_format(weight_format, codes, n, columns, table, offset, add, ahead, run, end):
    if weight_format in (Q4_K, Q4_1, Q4_0):
        tiles.q4_k(codes, n, columns, table, offset, add, ahead, run, end)
    elif weight_format in (Q5_K, Q5_1, Q5_0):
        tiles.q5_k(codes, n, columns, table, offset, add, ahead, run, end)
    elif weight_format in (Q6_K, Q3_K):
        tiles.q6_k(codes, n, columns, table, offset, add, ahead, run, end)
    elif weight_format == Q2_K:
        tiles.q2_k(codes, n, columns, table, offset, add, ahead, run, end)
    elif weight_format in (Q8_0, IQ4_XS, IQ4_NL, MXFP4):
        tiles.q8_0(codes, n, columns, table, offset, add, ahead, run, end)


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64))
def multiply_tile(weight_format, codes, n, table, width, offset, add, ahead, run, end):
    """A panel of this format times the first `width` columns of a table, WIDE or NARROW: the arguments of the tiles' q4_k()."""
    if width == WIDE:
        _of_format(weight_format, codes, n, tile.load_columns(table, WIDE), table, offset, add, ahead, run, end)
    else:
        _of_format(weight_format, codes, n, tile.load_columns(table, NARROW), table, offset, add, ahead, run, end)
