"""Matrices times activations: out[t, r] = row r . x[t].

For few x the rows are unpacked in registers, for up to four x at once; for many, 32 rows at a time go through a panel and tiles.
"""

from numba import float32, int64, types

from glmrun.kernels import floats, kernel, q4_k, q5_0, q6_k, q8_0, tile
from glmrun.kernels.elementwise import reads_codes
from glmrun.kernels.layout import BF16, F16, F32, Q4_K, Q6_K, Q8_0, activation_record, weight_record
from glmrun.kernels.panel import unpack_panel
from glmrun.simd import load_f32, load_f32x16, load_i64, splat_f32, store_f32, store_f32x16

ROWS, TOKENS = 32, 16  # a tile: its activations stay in the first-level cache while its rows pass
FEW = 5  # from this many activations on a panel pays
STORE, ADD = 0, 1


@kernel(float32(int64, int64, int64, int64))
def dot(weight_format, row, columns, x):
    """dequantize(row) . x; x float32, or as quantize_row leaves it where reads_codes(weight_format)."""
    if weight_format == Q4_K:
        return q4_k.dot(row, columns // 256, x)
    if weight_format == Q6_K:
        return q6_k.dot(row, columns // 256, x)
    if weight_format == Q8_0:
        return q8_0.dot(row, columns // 32, x)
    if weight_format == BF16:
        return floats.dot_bf16(row, columns, x)
    if weight_format == F16:
        return floats.dot_f16(row, columns, x)
    if weight_format == F32:
        return floats.dot_f32(row, columns, x)
    return q5_0.dot(row, columns // 32, x)


@kernel(types.UniTuple(float32, 4)(int64, int64, int64, int64, int64, int64, int64))
def dot4(weight_format, row, columns, x0, x1, x2, x3):
    """dot() with four activation vectors at once."""
    if weight_format == Q4_K:
        return q4_k.dot4(row, columns // 256, x0, x1, x2, x3)
    if weight_format == Q6_K:
        return q6_k.dot4(row, columns // 256, x0, x1, x2, x3)
    if weight_format == Q8_0:
        return q8_0.dot4(row, columns // 32, x0, x1, x2, x3)
    if weight_format == BF16:
        return floats.dot4_bf16(row, columns, x0, x1, x2, x3)
    if weight_format == F16:
        return floats.dot4_f16(row, columns, x0, x1, x2, x3)
    if weight_format == F32:
        return floats.dot4_f32(row, columns, x0, x1, x2, x3)
    return q5_0.dot4(row, columns // 32, x0, x1, x2, x3)


@kernel(int64(int64, int64))
def _entry(index, i):
    """The i-th number of a list of int64, or i where there is no list."""
    return load_i64(index + i * 8) if index else i


@kernel(types.void(int64, float32, int64, int64))
def _write(address, value, mode, weight):
    if weight:
        value *= load_f32(weight)
    store_f32(address, load_f32(address) + value if mode == ADD else value)


@kernel(types.void(weight_record, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64))
def _multiply_rows(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode):
    """multiply() row by row."""
    rows = w.address + matrix * w.rows * w.row_bytes
    for block in range(first, end, ROWS):
        block_end = min(block + ROWS, end)
        for group in range(0, n, TOKENS):
            group_end = min(group + TOKENS, n)
            for r in range(block, block_end):
                row, i = rows + r * w.row_bytes, group
                while i + 4 <= group_end:
                    x0, x1 = x + _entry(x_index, i) * x_stride, x + _entry(x_index, i + 1) * x_stride
                    x2, x3 = x + _entry(x_index, i + 2) * x_stride, x + _entry(x_index, i + 3) * x_stride
                    y = dot4(w.format, row, w.columns, x0, x1, x2, x3)
                    for j in range(4):
                        target = out + _entry(out_index, i + j) * out_stride + r * 4
                        _write(target, y[j], mode, weights + (i + j) * 4 if weights else 0)
                    i += 4
                while i < group_end:
                    y1 = dot(w.format, row, w.columns, x + _entry(x_index, i) * x_stride)
                    target = out + _entry(out_index, i) * out_stride + r * 4
                    _write(target, y1, mode, weights + i * 4 if weights else 0)
                    i += 1


@kernel(types.void(int64, int64, int64, int64, int64))
def _write_run(values, n, address, mode, weight):
    """_write() for n neighbouring values."""
    factor, whole = splat_f32(load_f32(weight) if weight else float32(1.0)), n // 16 * 16
    for r in range(0, whole, 16):
        v = load_f32x16(values + r * 4) * factor
        store_f32x16(address + r * 4, load_f32x16(address + r * 4) + v if mode == ADD else v)
    for r in range(whole, n):
        _write(address + r * 4, load_f32(values + r * 4), mode, weight)


_wide = types.void(weight_record, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)


@kernel(_wide)
def _multiply_tiles(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch):
    """multiply() in tiles of 32 rows and 8 activations."""
    rows, panel = w.address + matrix * w.rows * w.row_bytes, scratch + tile.ROWS * tile.COLUMNS * 4
    for block in range(first, end, tile.ROWS):
        n_rows = min(tile.ROWS, end - block)
        unpack_panel(w.format, rows + block * w.row_bytes, w.row_bytes, n_rows, w.columns, panel)
        for i in range(0, n, tile.COLUMNS):
            last = n - 1  # columns that do not exist repeat the last one and are not written
            columns = (
                x + _entry(x_index, i) * x_stride,
                x + _entry(x_index, min(i + 1, last)) * x_stride,
                x + _entry(x_index, min(i + 2, last)) * x_stride,
                x + _entry(x_index, min(i + 3, last)) * x_stride,
                x + _entry(x_index, min(i + 4, last)) * x_stride,
                x + _entry(x_index, min(i + 5, last)) * x_stride,
                x + _entry(x_index, min(i + 6, last)) * x_stride,
                x + _entry(x_index, min(i + 7, last)) * x_stride,
            )
            if w.format == Q4_K:
                tile.q4_k(panel, w.columns, columns, scratch)
            elif w.format == Q6_K:
                tile.q6_k(panel, w.columns, columns, scratch)
            else:
                tile.q8_0(panel, w.columns, columns, scratch)
            for j in range(min(tile.COLUMNS, n - i)):
                target = out + _entry(out_index, i + j) * out_stride + block * 4
                _write_run(scratch + j * tile.ROWS * 4, n_rows, target, mode, weights + (i + j) * 4 if weights else 0)


@kernel(_wide)
def multiply(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch):
    """out[j, r] (= or +=) weights[i] * (row r of the matrix . x[k]) for rows first to end - 1 and i from 0 to n - 1.

    x            address of rows `x_stride` bytes apart in the form that w.format reads; k = x_index[i], or i if x_index is 0
    out          address of float32 rows `out_stride` bytes apart; j = out_index[i], or i if out_index is 0
    weights      address of float32 (n,), or 0 for ones
    mode         STORE or ADD
    scratch      address of this thread's panel and tile, scratch_bytes() of it
    """
    if n >= FEW and reads_codes(w.format):
        _multiply_tiles(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch)
    else:
        _multiply_rows(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode)


@kernel(types.UniTuple(int64, 2)(activation_record, int64))
def form_of(x, weight_format):
    """(address, stride) of the form of x that matrices of this format read."""
    if reads_codes(weight_format):
        return x.codes, x.codes_stride
    return x.floats, x.floats_stride


@kernel(types.UniTuple(int64, 2)(int64, int64, int64))
def share(rows, thread, n_threads):
    """(first, end) of this thread's part of the rows, in whole panels."""
    panels = (rows + tile.ROWS - 1) // tile.ROWS
    return panels * thread // n_threads * tile.ROWS, min(rows, panels * (thread + 1) // n_threads * tile.ROWS)


@kernel(types.void(weight_record, activation_record, int64, int64, int64, int64, int64, int64, int64))
def matmul(w, x, n, out, out_stride, mode, scratch, thread, n_threads):
    """out (n, rows) (= or +=) x (n, columns) W^T: this thread's share of the rows."""
    address, stride = form_of(x, w.format)
    first, end = share(w.rows, thread, n_threads)
    multiply(w, 0, first, end, address, stride, 0, n, out, out_stride, 0, 0, mode, scratch)


@kernel(types.void(weight_record, activation_record, int64, int64, int64, int64, int64, int64, int64, int64))
def matmul_heads(w, x, n, heads, out, out_stride, head_stride, scratch, thread, n_threads):
    """out[t, h] = W[h] x[t, h] for a stack of one matrix a head; x has n * heads rows, strides are bytes."""
    address, stride = form_of(x, w.format)
    first, end = share(w.rows, thread, n_threads)
    for h in range(heads):
        x_h, out_h = address + h * stride, out + h * head_stride
        multiply(w, h, first, end, x_h, heads * stride, 0, n, out_h, out_stride, 0, 0, STORE, scratch)
