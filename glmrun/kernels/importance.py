"""The mean squares of what each matrix reads: where an importance matrix comes from.

A step whose `importance` is not 0 adds the squares of every layer's activations to sums at the end of the layer, while the buffers
still hold them. Threads share columns, so sums do not depend on their number.
"""

from numba import boolean, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.experts import pairs_of
from glmrun.kernels.layout import activation_record, layer_record, model_record, step_record, worker_record
from glmrun.kernels.simd.arithmetic import fma
from glmrun.kernels.simd.atomic import atomic_load, atomic_store
from glmrun.kernels.simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16
from glmrun.kernels.team import CANCEL, DONE_PARTS, STOP, wait

_void = types.void

# One row of the table: addresses of float32 (matrices, columns + 1), sums of squares and then the number of vectors.
ATTENTION, Q_B, K_B, V_B, ATTENTION_OUTPUT, FFN, DOWN, EXPERTS, EXPERTS_DOWN = range(9)
N_INPUTS = 9


@kernel(_void(int64, int64, int64, int64, int64, int64, int64, int64, int64))
def add_squares(sums, matrix, columns, x, stride, index, n, thread, n_threads):
    """sums[matrix, k] += sum of x[i, k]**2 over the n rows x[index[i]] (index 0: x[i]), `stride` bytes apart."""
    row = sums + matrix * (columns + 1) * 4
    first, end = columns * thread // n_threads // 64 * 64, columns * (thread + 1) // n_threads // 64 * 64
    if thread == n_threads - 1:
        end = columns
    whole = first + (end - first) // 64 * 64
    for k in range(first, whole, 64):
        a, b = load_f32x16(row + k * 4), load_f32x16(row + k * 4 + 64)
        c, d = load_f32x16(row + k * 4 + 128), load_f32x16(row + k * 4 + 192)
        for i in range(n):
            at = x + (load_i64(index + i * 8) if index else i) * stride + k * 4
            e, f = load_f32x16(at), load_f32x16(at + 64)
            g, h = load_f32x16(at + 128), load_f32x16(at + 192)
            a, b, c, d = fma(e, e, a), fma(f, f, b), fma(g, g, c), fma(h, h, d)
        store_f32x16(row + k * 4, a)
        store_f32x16(row + k * 4 + 64, b)
        store_f32x16(row + k * 4 + 128, c)
        store_f32x16(row + k * 4 + 192, d)
    for k in range(whole, end):
        total = load_f32(row + k * 4)
        for i in range(n):
            value = load_f32(x + (load_i64(index + i * 8) if index else i) * stride + k * 4)
            total += value * value
        store_f32(row + k * 4, total)
    if thread == 0:
        store_f32(row + columns * 4, load_f32(row + columns * 4) + n)


@kernel(_void(int64, int64, activation_record, int64, int64, worker_record))
def _add_all(table, kind, x, n_matrices, n_tokens, w):
    """Every token has n_matrices rows in x, one for each matrix."""
    stride = x.floats_stride
    for j in range(n_matrices):
        sums = load_i64(table + kind * 8)
        add_squares(sums, j, x.columns, x.floats + j * stride, n_matrices * stride, 0, n_tokens, w.thread, w.n_threads)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def _note_layer(m, layer, s, w):
    """Add what the layer's matrices have read."""
    table = s.importance + layer.index * N_INPUTS * 8
    _add_all(table, ATTENTION, s.normed, 1, s.n_tokens, w)
    _add_all(table, Q_B, s.q_normed, 1, s.n_tokens, w)
    _add_all(table, K_B, s.q, m.num_attention_heads, s.n_tokens, w)
    _add_all(table, V_B, s.context, m.num_attention_heads, s.n_tokens, w)
    _add_all(table, ATTENTION_OUTPUT, s.heads, 1, s.n_tokens, w)
    _add_all(table, FFN, s.ffn_normed, 1, s.n_tokens, w)
    if layer.is_dense:
        _add_all(table, DOWN, s.dense, 1, s.n_tokens, w)
        return
    _add_all(table, DOWN, s.shared, 1, s.n_tokens, w)
    experts, down, x, hidden = load_i64(table + EXPERTS * 8), load_i64(table + EXPERTS_DOWN * 8), s.ffn_normed, s.routed
    for e in range(m.n_routed_experts):
        begin, few, many = pairs_of(s, e)
        if few + many:
            index, n = s.token + begin * 8, few + many
            add_squares(experts, e, x.columns, x.floats, x.floats_stride, index, n, w.thread, w.n_threads)
            address = hidden.floats + begin * hidden.floats_stride
            add_squares(down, e, hidden.columns, address, hidden.floats_stride, 0, n, w.thread, w.n_threads)


@kernel(boolean(model_record, layer_record, step_record, worker_record))
def layer_done(m, layer, s, w):
    """At the end of a layer: whether the step continues, the same for all threads; they have waited. Says how far the step is."""
    if s.importance:
        _note_layer(m, layer, s, w)
    if w.thread == 0:
        atomic_store(w.flags + STOP, atomic_load(w.flags + CANCEL))
        atomic_store(w.flags + DONE_PARTS, layer.index + 1)
    wait(w)
    return atomic_load(w.flags + STOP) == 0


@kernel(_void(model_record, step_record, worker_record))
def logits_done(m, s, w):
    """At the end of a step: add what the output matrix has read, where somebody measures it."""
    if s.importance:
        table, x = s.importance + m.num_hidden_layers * N_INPUTS * 8, s.normed
        address = x.floats + (s.n_tokens - s.n_logits) * x.floats_stride
        add_squares(load_i64(table), 0, x.columns, address, x.floats_stride, 0, s.n_logits, w.thread, w.n_threads)
    wait(w)
