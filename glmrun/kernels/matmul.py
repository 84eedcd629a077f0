"""Matrices times activations: out[t, r] = row r . x[t].

For few x the rows are unpacked in registers, for two x at once; for many, 32 rows at a time go through a panel and tiles.
"""

from numba import float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats import tile
from glmrun.kernels.formats.dispatch import (
    IN_FRONT,
    WIDE,
    dot_rows,
    dot_rows_two,
    multiply_tile,
    unpack_panel,
    width_for,
)
from glmrun.kernels.formats.panel import panel_bytes
from glmrun.kernels.layout import activation_record, step_record, weight_record, worker_record
from glmrun.kernels.rows import reads_codes
from glmrun.kernels.simd.atomic import atomic_load
from glmrun.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i64,
    prefetch_to_write,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
)
from glmrun.kernels.team import CANCEL, first_piece, leave, next_piece, piece_size, wait

ROWS = 32  # at a time
PIECE = 1 << 20  # bytes of a matrix, at most, that a thread draws at a time: at its beginning nothing was asked from memory ahead
NEAR = 128  # rows of a matrix that stay in the second-level cache
STORE, ADD = 0, 1

# A thread's scratch: float32 results of rows, or (WIDE, 32) of a tile that has fewer than 32 of them, and this tile's table; a
# panel behind what it needs in front; the table of all columns.
PART = max(tile.ROWS * WIDE, NEAR) * 4
PANEL = PART + (WIDE * tile.ENTRY + IN_FRONT + 63) // 64 * 64


@kernel(int64(int64, int64))
def scratch_bytes(columns, n):
    """Room that multiply() needs for matrices of up to so many columns and up to n activations."""
    return PANEL + panel_bytes(columns) + (n + WIDE) * tile.ENTRY


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


_rows = _x = _out = types.UniTuple(int64, 3)
_counts = types.UniTuple(int64, 2)


@kernel(int64(weight_record, _rows))
def address_of(w, rows):
    """Where the first of some rows of a matrix stands."""
    return w.address + rows[0] * w.stride + rows[1] * w.row_bytes


@kernel(types.void(int64, int64, int64, float32))
def _enter(entry, x, result, factor):
    """Fill a column's entry in a tile's table."""
    store_i64(entry, x)
    store_i64(entry + tile.RESULT, result)
    store_f32(entry + tile.FACTOR, factor)


@kernel(types.void(_x, int64, _out, int64, int64, int64))
def _fill_table(x, n, out, weights, mode, table):
    """What the columns of the tiles read and where their results go: n of them, and as many again as a tile may have too many."""
    for i in range(n + WIDE):  # columns that do not exist do once more what the last one does, or add nothing
        k, factor = min(i, n - 1), float32(1.0)
        if weights:
            factor = load_f32(weights + k * 4)
        if i >= n and mode == ADD:
            factor = float32(0.0)
        _enter(table + i * tile.ENTRY, x[0] + _entry(x[2], k) * x[1], out[0] + _entry(out[2], k) * out[1], factor)


@kernel(types.void(weight_record, _rows, _x, int64, _out, int64, int64, int64, int64))
def _multiply_tiles(w, rows, x, n, out, weights, mode, scratch, then):
    """multiply() for x of which many meet the rows: in tiles of 32 rows and a few x."""
    which, first, end = rows
    part, panel, add = scratch + PART, scratch + PANEL, 1 if mode == ADD else 0
    table = panel + panel_bytes(w.columns)
    _fill_table(x, n, out, weights, mode, table)
    tiles = (n + WIDE - 1) // WIDE
    run = (tile.ROWS * w.row_bytes // (w.columns // 32 * tiles) + 63) // 64 * 64
    for block in range(first, end, tile.ROWS):
        n_rows, i = min(tile.ROWS, end - block), 0
        unpack_panel(w.format, address_of(w, (which, block, end)), w.row_bytes, n_rows, w.columns, panel)
        after = block + n_rows  # the next panel's rows: each tile asks memory for its part of them
        ahead = address_of(w, (which, after, end)) if after < end else then
        ahead_end = ahead + min(tile.ROWS, end - after if after < end else tile.ROWS) * w.row_bytes if ahead else 0
        while i < n:
            width, columns = width_for(n - i), table + i * tile.ENTRY
            if n_rows == tile.ROWS:
                for j in range(width):  # nobody waits for lines of results when the tile ends
                    result = load_i64(columns + j * tile.ENTRY + tile.RESULT) + block * 4
                    prefetch_to_write(result), prefetch_to_write(result + 64)
                multiply_tile(w.format, panel, w.columns, columns, width, block * 4, add, ahead, run, ahead_end)
            else:
                for j in range(width):
                    _enter(part + j * tile.ENTRY, load_i64(columns + j * tile.ENTRY), scratch + j * tile.ROWS * 4, float32(1.0))
                multiply_tile(w.format, panel, w.columns, part, width, 0, 0, 0, 0, 0)
                for j in range(min(width, n - i)):
                    target = out[0] + _entry(out[2], i + j) * out[1] + block * 4
                    _write_run(scratch + j * tile.ROWS * 4, n_rows, target, mode, weights + (i + j) * 4 if weights else 0)
            i += width
            ahead += run * (w.columns // 32)


@kernel(_x(_x, int64), inline="always")
def _behind(rows, n):
    """A list of rows without its first n."""
    return (rows[0] if rows[2] else rows[0] + n * rows[1]), rows[1], (rows[2] + n * 8 if rows[2] else 0)


@kernel(types.void(weight_record, _rows, _x, _counts, _out, int64, int64, int64, int64), apart=True)
def multiply(w, rows, x, n, out, weights, mode, scratch, then):
    """out[j, r] (= or +=) weights[i] * (row r of the matrix . x[k]) for some rows of it and i from 0 to sum(n) - 1.

    rows         (which matrix of the stack, its first row, the row behind the last)
    x            (address of rows in the form that w.format reads, bytes between them, index); k = index[i], or i if index is 0
    n            (few, many): the first few meet the matrix row by row, the others in tiles
    out          (address of float32 rows, bytes between them, index); j = index[i], or i if index is 0
    weights      address of float32 (sum(n),), or 0 for ones
    mode         STORE or ADD
    scratch      address of this thread's panel and tile, scratch_bytes() of it
    then         address of the rows that this thread is likely to read next: tiles ask memory for a panel of them; or 0
    """
    (which, first, end), (few, many) = rows, n
    if not reads_codes(w.format):
        few, many = few + many, 0
    for block in range(first, end, ROWS):  # rows that stay in the first-level cache while few x pass
        n_rows, i, at = min(ROWS, end - block), 0, address_of(w, (which, block, end))
        while i < few:
            x0, n_x = x[0] + _entry(x[2], i) * x[1], min(2, few - i)
            if n_x == 2:
                x1 = x[0] + _entry(x[2], i + 1) * x[1]
                dot_rows_two(w.format, at, w.row_bytes, n_rows, w.columns, x0, x1, scratch, scratch + ROWS * 4)
            else:
                dot_rows(w.format, at, w.row_bytes, n_rows, w.columns, x0, scratch)
            for j in range(n_x):
                target = out[0] + _entry(out[2], i + j) * out[1] + block * 4
                _write_run(scratch + j * ROWS * 4, n_rows, target, mode, weights + (i + j) * 4 if weights else 0)
            i += n_x
    if many:
        weights = weights + few * 4 if weights else 0
        _multiply_tiles(w, rows, _behind(x, few), many, _behind(out, few), weights, mode, scratch, then)


@kernel(_x(activation_record, int64, int64))
def form_of(x, weight_format, index):
    """The form of x that matrices of this format read, as multiply() takes it."""
    if reads_codes(weight_format):
        return x.codes, x.codes_stride, index
    return x.floats, x.floats_stride, index


@kernel(int64(int64, int64, worker_record))
def rows_of_piece(rows, row_bytes, w):
    """How many rows make a piece of work: whole panels, long enough to stream, some pieces for each thread."""
    panels = (rows + tile.ROWS - 1) // tile.ROWS
    return piece_size(panels, w, max(1, PIECE // (row_bytes * tile.ROWS))) * tile.ROWS


@kernel(types.void(step_record, weight_record, activation_record, _out, int64, worker_record))
def matmul(s, m, x, out, mode, w):
    """out (tokens, rows) (= or +=) x (tokens, columns) M^T; no more of it once the step is cancelled."""
    rows, size = form_of(x, m.format, 0), rows_of_piece(m.rows, m.row_bytes, w)
    n, piece = (s.n_few, s.n_tokens - s.n_few), first_piece(w)
    while piece * size < m.rows:
        if not atomic_load(w.flags + CANCEL):
            after = (piece + w.n_threads) * size
            then = address_of(m, (0, after, m.rows)) if after < m.rows else 0
            multiply(m, (0, piece * size, min(m.rows, (piece + 1) * size)), rows, n, out, 0, mode, w.scratch, then)
        piece = next_piece(w)
    leave(w, (m.rows + size - 1) // size)


@kernel(types.void(step_record, weight_record, activation_record, _out, worker_record))
def linear(s, m, x, out, w):
    """out (tokens, rows) = x M^T."""
    matmul(s, m, x, out, STORE, w)


@kernel(types.void(step_record, weight_record, activation_record, worker_record))
def add_linear(s, m, x, w):
    """The residual stream (tokens, rows) += x M^T, when all threads have computed x."""
    matmul(s, m, x, (s.x, s.x_stride, 0), ADD, w)
    wait(w)


@kernel(types.void(weight_record, int64, int64, _x, int64, int64, _out))
def _first_terms(m, first, end, x, few, exact, out):
    """Rows first to end - 1 of M times the first terms of those of `few` x whose entry in `exact` is 0, two at a time."""
    rows, n_rows, waiting = m.address + first * m.row_bytes, end - first, -1
    for i in range(few):
        if load_i64(exact + i * 8):
            continue
        if waiting < 0:
            waiting = i
            continue
        x0, x1, at0, at1 = x[0] + waiting * x[1], x[0] + i * x[1], out[0] + waiting * out[1], out[0] + i * out[1]
        dot_rows_two(m.format, rows, m.row_bytes, n_rows, m.columns, x0, x1, at0 + first * 4, at1 + first * 4)
        waiting = -1
    if waiting >= 0:
        x0, at0 = x[0] + waiting * x[1], out[0] + waiting * out[1]
        dot_rows(m.format, rows, m.row_bytes, n_rows, m.columns, x0, at0 + first * 4)


@kernel(types.void(weight_record, int64, int64, _x, _counts, int64, _out, int64), apart=True)
def _exact_rows(m, first, end, x, n, exact, out, scratch):
    """linear_exact() for rows first to end - 1 of M; x is (first terms, bytes between rows, second terms)."""
    few, many = n
    if not reads_codes(m.format):
        multiply(m, (0, first, end), (x[0], x[1], 0), n, out, 0, STORE, scratch, 0)
        return
    rows = m.address + first * m.row_bytes
    for i in range(few):
        if exact and load_i64(exact + i * 8) == 0:
            continue
        at = i * x[1]
        target = out[0] + i * out[1] + first * 4
        dot_rows_two(m.format, rows, m.row_bytes, end - first, m.columns, x[0] + at, x[2] + at, target, scratch)
        _write_run(scratch, end - first, target, ADD, 0)
    if exact:
        _first_terms(m, first, end, x, few, exact, out)
    if many:
        at, target = few * x[1], _behind(out, few)
        _multiply_tiles(m, (0, first, end), (x[0] + at, x[1], 0), many, target, 0, STORE, scratch, 0)
        _multiply_tiles(m, (0, first, end), (x[2] + at, x[1], 0), many, target, 0, ADD, scratch, 0)


@kernel(types.void(weight_record, activation_record, int64, _counts, int64, _out, worker_record))
def linear_exact(m, x, first_x, n, exact, out, w):
    """out (sum(n), rows) = x[first_x:] M^T; where M is quantized, x in two int8 terms.

    n       (few, many), as multiply() takes it; rows of M are still in the cache when they meet the second term
    exact   address of int64 (few,): where it is 0 only the first term is read; or 0, all are exact
    """
    size = rows_of_piece(m.rows, m.row_bytes, w)
    address, stride, _ = form_of(x, m.format, 0)
    address, rest = address + first_x * stride, x.rest + first_x * stride
    piece = first_piece(w)
    while piece * size < m.rows:
        after = min(m.rows, (piece + 1) * size)
        for first in range(piece * size, after, NEAR):
            _exact_rows(m, first, min(after, first + NEAR), (address, stride, rest), n, exact, out, w.scratch)
        piece = next_piece(w)
    leave(w, (m.rows + size - 1) // size)


@kernel(types.void(step_record, weight_record, activation_record, int64, _out, int64, worker_record))
def linear_heads(s, m, x, heads, out, head_stride, w):
    """out[t, h] = M[h] x[t, h] for a stack of one matrix a head; x has tokens * heads rows, strides are bytes."""
    address, stride, _ = form_of(x, m.format, 0)
    size = rows_of_piece(m.rows * heads, m.row_bytes, w)
    size = min(size, (m.rows + tile.ROWS - 1) // tile.ROWS * tile.ROWS)
    parts = (m.rows + size - 1) // size
    n, piece = (s.n_few, s.n_tokens - s.n_few), first_piece(w)
    while piece < heads * parts:
        h, first = piece // parts, piece % parts * size
        rows, target = (address + h * stride, heads * stride, 0), (out[0] + h * head_stride, out[1], 0)
        after = piece + w.n_threads
        then = address_of(m, (after // parts, after % parts * size, 0)) if after < heads * parts else 0
        multiply(m, (h, first, min(m.rows, first + size)), rows, n, target, 0, STORE, w.scratch, then)
        piece = next_piece(w)
    leave(w, heads * parts)
