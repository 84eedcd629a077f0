"""Rows of a quantized matrix times activations: out[t, r] = row r . x[t], the row unpacked in registers for up to four x."""

from glmrun.kernels import floats, kernel, q4_k, q5_0, q6_k, q8_0
from glmrun.kernels.elementwise import Q32, Q256, form
from glmrun.kernels.layout import BF16, F16, F32, Q4_K, Q6_K, Q8_0, activation_record, weight_record
from glmrun.simd import load_f32, load_i64, store_f32
from numba import float32, int64, types

ROWS, TOKENS = 32, 16  # a tile: its activations stay in the first-level cache while its rows pass
STORE, ADD = 0, 1


@kernel(float32(int64, int64, int64, int64))
def dot(weight_format, row, columns, x):
    """dequantize(row) . x; x in the form that form(weight_format) names."""
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
def multiply(w, matrix, first, end, x, x_stride, x_index, n, out, out_stride, out_index, weights, mode):
    """out[j, r] (= or +=) weights[i] * (row r of the matrix . x[k]) for rows first to end - 1 and i from 0 to n - 1.

    x            address of rows `x_stride` bytes apart in the form that w.format reads; k = x_index[i], or i if x_index is 0
    out          address of float32 rows `out_stride` bytes apart; j = out_index[i], or i if out_index is 0
    weights      address of float32 (n,), or 0 for ones
    mode         STORE or ADD
    """
    rows = w.address + matrix * w.rows * w.row_bytes
    for block in range(first, end, ROWS):
        block_end = min(block + ROWS, end)
        for tile in range(0, n, TOKENS):
            tile_end = min(tile + TOKENS, n)
            for r in range(block, block_end):
                row, i = rows + r * w.row_bytes, tile
                while i + 4 <= tile_end:
                    x0, x1 = x + _entry(x_index, i) * x_stride, x + _entry(x_index, i + 1) * x_stride
                    x2, x3 = x + _entry(x_index, i + 2) * x_stride, x + _entry(x_index, i + 3) * x_stride
                    y = dot4(w.format, row, w.columns, x0, x1, x2, x3)
                    for j in range(4):
                        target = out + _entry(out_index, i + j) * out_stride + r * 4
                        _write(target, y[j], mode, weights + (i + j) * 4 if weights else 0)
                    i += 4
                while i < tile_end:
                    y1 = dot(w.format, row, w.columns, x + _entry(x_index, i) * x_stride)
                    target = out + _entry(out_index, i) * out_stride + r * 4
                    _write(target, y1, mode, weights + i * 4 if weights else 0)
                    i += 1


@kernel(types.UniTuple(int64, 2)(activation_record, int64))
def form_of(x, weight_format):
    """(address, stride) of the form of x that matrices of this format read."""
    wanted = form(weight_format)
    if wanted == Q256:
        return x.q256, x.q256_stride
    if wanted == Q32:
        return x.q32, x.q32_stride
    return x.floats, x.floats_stride


@kernel(types.void(weight_record, activation_record, int64, int64, int64, int64, int64, int64))
def matmul(w, x, n, out, out_stride, mode, thread, n_threads):
    """out (n, rows) (= or +=) x (n, columns) W^T: this thread's share of the rows."""
    address, stride = form_of(x, w.format)
    first, end = w.rows * thread // n_threads, w.rows * (thread + 1) // n_threads
    multiply(w, 0, first, end, address, stride, 0, n, out, out_stride, 0, 0, mode)


@kernel(types.void(weight_record, activation_record, int64, int64, int64, int64, int64, int64, int64))
def matmul_heads(w, x, n, heads, out, out_stride, head_stride, thread, n_threads):
    """out[t, h] = W[h] x[t, h] for a stack of one matrix a head; x has n * heads rows, strides are bytes."""
    address, stride = form_of(x, w.format)
    first, end = w.rows * thread // n_threads, w.rows * (thread + 1) // n_threads
    for h in range(heads):
        multiply(w, h, first, end, address + h * stride, heads * stride, 0, n, out + h * head_stride, out_stride, 0, 0, STORE)
