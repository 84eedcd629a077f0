"""Matrices times activations: out[t, r] = row r . x[t].

For few x the rows are unpacked in registers, for up to four x at once; for many, 32 rows at a time go through a panel and tiles.
"""

from numba import float32, int64, types

from glmrun.kernels.activations import FEW
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import floats, q4_k, q5_0, q6_k, q8_0, tile
from glmrun.kernels.formats.panel import TABLE, panel_bytes, unpack_panel
from glmrun.kernels.layout import BF16, F16, F32, Q4_K, Q6_K, Q8_0, activation_record, weight_record
from glmrun.kernels.rows import reads_codes
from glmrun.kernels.simd.memory import load_f32, load_f32x16, load_i64, splat_f32, store_f32, store_f32x16, store_i64

ROWS = 32  # at a time
NEAR = 128  # rows of a matrix that stay in the second-level cache
STORE, ADD = 0, 1

# A thread's scratch: float32 (6, 32) results of dot_rows() or of a tile that has fewer than 32 rows, and this tile's table; a panel
# behind the table of its rows; the table of all columns.
PART = tile.ROWS * tile.COLUMNS * 4
PANEL = PART + (tile.COLUMNS * tile.ENTRY + TABLE + 63) // 64 * 64


@kernel(int64(int64, int64))
def scratch_bytes(columns, n):
    """Room that multiply() needs for matrices of up to so many columns and up to n activations."""
    return PANEL + panel_bytes(columns) + (n + tile.COLUMNS) * tile.ENTRY


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64))
def dot_rows(weight_format, rows, row_bytes, n_rows, columns, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); x in the form that reads_codes(weight_format) tells."""
    if weight_format == Q4_K:
        q4_k.dot_rows(rows, row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q6_K:
        q6_k.dot_rows(rows, row_bytes, n_rows, columns // 256, x, out)
    elif weight_format == Q8_0:
        q8_0.dot_rows(rows, row_bytes, n_rows, columns // 32, x, out)
    elif weight_format == BF16:
        floats.dot_rows_bf16(rows, row_bytes, n_rows, columns, x, out)
    elif weight_format == F16:
        floats.dot_rows_f16(rows, row_bytes, n_rows, columns, x, out)
    elif weight_format == F32:
        floats.dot_rows_f32(rows, row_bytes, n_rows, columns, x, out)
    else:
        q5_0.dot_rows(rows, row_bytes, n_rows, columns // 32, x, out)


@kernel(types.UniTuple(float32, 4)(int64, int64, int64, int64, int64, int64, int64))
def dot4(weight_format, row, columns, x0, x1, x2, x3):
    """One row times four activation vectors at once; each number is what dot_rows() computes for it."""
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
def _multiply_rows(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch):
    """multiply() for few x: 32 rows stay in the first-level cache while all x pass."""
    rows = w.address + matrix * w.rows * w.row_bytes
    for block in range(first, end, ROWS):
        n_rows, i = min(ROWS, end - block), 0
        while i + 4 <= n:
            x0, x1 = x + _entry(x_index, i) * x_stride, x + _entry(x_index, i + 1) * x_stride
            x2, x3 = x + _entry(x_index, i + 2) * x_stride, x + _entry(x_index, i + 3) * x_stride
            for r in range(block, block + n_rows):
                y = dot4(w.format, rows + r * w.row_bytes, w.columns, x0, x1, x2, x3)
                for j in range(4):
                    target = out + _entry(out_index, i + j) * out_stride + r * 4
                    _write(target, y[j], mode, weights + (i + j) * 4 if weights else 0)
            i += 4
        while i < n:
            x0 = x + _entry(x_index, i) * x_stride
            dot_rows(w.format, rows + block * w.row_bytes, w.row_bytes, n_rows, w.columns, x0, scratch)
            target = out + _entry(out_index, i) * out_stride + block * 4
            _write_run(scratch, n_rows, target, mode, weights + i * 4 if weights else 0)
            i += 1


@kernel(types.void(int64, int64, int64, float32))
def _enter(entry, x, result, factor):
    """Fill a column's entry in a tile's table."""
    store_i64(entry, x)
    store_i64(entry + tile.RESULT, result)
    store_f32(entry + tile.FACTOR, factor)


@kernel(_wide)
def _multiply_tiles(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch):
    """multiply() in tiles of 32 rows and 6 or 4 activations."""
    rows, part, panel, add = w.address + matrix * w.rows * w.row_bytes, scratch + PART, scratch + PANEL, 1 if mode == ADD else 0
    table = panel + panel_bytes(w.columns)
    for i in range(n + tile.COLUMNS):  # columns that do not exist do once more what the last one does, or add nothing
        k, factor = min(i, n - 1), float32(1.0)
        if weights:
            factor = load_f32(weights + k * 4)
        if i >= n and mode == ADD:
            factor = float32(0.0)
        _enter(table + i * tile.ENTRY, x + _entry(x_index, k) * x_stride, out + _entry(out_index, k) * out_stride, factor)
    tiles = (n + tile.COLUMNS - 1) // tile.COLUMNS
    run = (tile.ROWS * w.row_bytes // (w.columns // 32 * tiles) + 63) // 64 * 64
    for block in range(first, end, tile.ROWS):
        n_rows = min(tile.ROWS, end - block)
        unpack_panel(w.format, rows + block * w.row_bytes, w.row_bytes, n_rows, w.columns, panel)
        ahead, i = rows + (block + n_rows) * w.row_bytes, 0  # the next panel's rows: each tile asks memory for its part of them
        ahead_end = ahead + min(tile.ROWS, end - block - n_rows) * w.row_bytes
        while i < n:
            width, columns = tile.width_for(n - i), table + i * tile.ENTRY
            if n_rows == tile.ROWS:
                tile.multiply_tile(w.format, panel, w.columns, columns, width, block * 4, add, ahead, run, ahead_end)
            else:
                for j in range(width):
                    _enter(part + j * tile.ENTRY, load_i64(columns + j * tile.ENTRY), scratch + j * tile.ROWS * 4, float32(1.0))
                tile.multiply_tile(w.format, panel, w.columns, part, width, 0, 0, 0, 0, 0)
                for j in range(min(width, n - i)):
                    target = out + _entry(out_index, i + j) * out_stride + block * 4
                    _write_run(scratch + j * tile.ROWS * 4, n_rows, target, mode, weights + (i + j) * 4 if weights else 0)
            i += width
            ahead += run * (w.columns // 32)


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
        _multiply_rows(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode, scratch)


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


@kernel(types.void(weight_record, activation_record, activation_record, int64, int64, int64, int64, int64, int64, int64))
def matmul_twice(w, x, rest, t0, n, out, out_stride, scratch, thread, n_threads):
    """out (n, rows) = x[t0:t0 + n] W^T: this thread's share of the rows; where W is quantized, x in two int8 terms.

    rest    what rounding took from x, see quantize_rest(); rows of W are still in the cache when they meet it
    """
    address, stride = form_of(x, w.format)
    address, second = address + t0 * stride, rest.codes + t0 * rest.codes_stride
    first, end = share(w.rows, thread, n_threads)
    rows, together = w.address + first * w.row_bytes, out + first * 4
    if n == 1 and w.format == Q4_K:
        q4_k.dot_rows_twice(rows, w.row_bytes, end - first, w.columns // 256, address, second, together)
        return
    if n == 1 and w.format == Q6_K:
        q6_k.dot_rows_twice(rows, w.row_bytes, end - first, w.columns // 256, address, second, together)
        return
    if n == 1 and w.format == Q8_0:
        q8_0.dot_rows_twice(rows, w.row_bytes, end - first, w.columns // 32, address, second, together)
        return
    for r in range(first, end, NEAR):
        after = min(r + NEAR, end)
        multiply(w, 0, r, after, address, stride, 0, n, out, out_stride, 0, 0, STORE, scratch)
        if reads_codes(w.format):
            multiply(w, 0, r, after, second, rest.codes_stride, 0, n, out, out_stride, 0, 0, ADD, scratch)


@kernel(types.void(weight_record, activation_record, int64, int64, int64, int64, int64, int64, int64, int64))
def matmul_heads(w, x, n, heads, out, out_stride, head_stride, scratch, thread, n_threads):
    """out[t, h] = W[h] x[t, h] for a stack of one matrix a head; x has n * heads rows, strides are bytes.

    This thread's share is one run of the stack's panels: memory likes long runs better than a part of every head.
    """
    address, stride = form_of(x, w.format)
    panels = (w.rows + tile.ROWS - 1) // tile.ROWS
    begin, after = heads * panels * thread // n_threads, heads * panels * (thread + 1) // n_threads
    for h in range(begin // panels, (after + panels - 1) // panels):
        first, end = max(begin - h * panels, 0) * tile.ROWS, min((after - h * panels) * tile.ROWS, w.rows)
        x_h, out_h = address + h * stride, out + h * head_stride
        multiply(w, h, first, end, x_h, heads * stride, 0, n, out_h, out_stride, 0, 0, STORE, scratch)
