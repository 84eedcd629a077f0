"""The mixture of experts: route every token, gather the tokens of each expert, and compute only those."""

import math

from numba import float32, int64, types

from glmrun.kernels.activations import FEW
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.disk import arrive, ask_first, ask_next, used
from glmrun.kernels.formats import tile
from glmrun.kernels.layout import (
    activation_record,
    layer_record,
    model_record,
    run_at,
    step_record,
    weight_record,
    worker_record,
)
from glmrun.kernels.matmul import ADD, STORE, address_of, form_of, multiply, rows_of_piece, scratch_bytes
from glmrun.kernels.rows import silu_multiply
from glmrun.kernels.simd.atomic import atomic_load
from glmrun.kernels.simd.memory import load_f32, load_i64, store_f32, store_i64
from glmrun.kernels.team import CANCEL, first_piece, leave, next_piece, piece_size, wait

NEAR_BYTES = 1 << 17  # of products that wait in the cache for the others that they are multiplied with
_void = types.void


@kernel(_void(model_record, step_record, int64, int64, int64), apart=True)
def _route(m, s, bias, first, end):
    """Choose the experts of tokens first to end - 1 from s.router, which holds logits: s.expert and s.expert_weight.

    The bias (float32, one for each expert) counts for the choice, not for the weight. Equal scores: the lower number wins.
    An expert number is valid and distinct even if every score is NaN.  Source: DeepSeek-V3, sections 2.1.2 and 4.2.
    """
    n, k = m.n_routed_experts, m.num_experts_per_tok
    for t in range(first, end):
        scores, chosen, weights = s.router + t * s.router_stride, s.expert + t * k * 8, s.expert_weight + t * k * 4
        top = load_f32(scores)
        for e in range(n):
            top = max(top, load_f32(scores + e * 4))
        denominator = float32(0.0)
        for e in range(n):
            z = load_f32(scores + e * 4)
            p = math.exp(z - top) if m.softmax_router else float32(1.0) / (float32(1.0) + math.exp(-z))
            denominator += p
            store_f32(scores + e * 4, p)
        if m.softmax_router:
            for e in range(n):
                store_f32(scores + e * 4, load_f32(scores + e * 4) / denominator)
        kept = float32(0.0)
        for slot in range(k):
            best, best_score = -1, float32(0.0)
            for e in range(n):
                taken = False
                for earlier in range(slot):
                    taken = taken or load_i64(chosen + earlier * 8) == e
                score = load_f32(scores + e * 4) + load_f32(bias + e * 4)
                if not taken and (best < 0 or score > best_score):
                    best, best_score = e, score
            store_i64(chosen + slot * 8, best)
            store_f32(weights + slot * 4, load_f32(scores + best * 4))
            kept += load_f32(scores + best * 4)
        scale = m.routed_scaling_factor / (kept + float32(1e-20)) if m.norm_topk_prob else m.routed_scaling_factor
        for slot in range(k):
            store_f32(weights + slot * 4, load_f32(weights + slot * 4) * scale)


@kernel(_void(model_record, step_record))
def _sort(m, s):
    """Sort (token, weight) pairs by expert into s.token and s.weight, a counting sort: of each expert first the tokens of runs of
    which few meet it, then those of which many do. s.first tells where each of the two lists of an expert begins.

    A token's numbers so depend on how many tokens of its own run meet a matrix, never on other runs.
    """
    n, k, lists = m.n_routed_experts, m.num_experts_per_tok, 2 * m.n_routed_experts
    for i in range(lists + 1):
        store_i64(s.first + i * 8, 0)
    for there in range(2):  # count, then place
        for r in range(s.n_runs):
            run = run_at(s.runs, r)
            begin, after = run.first * k, (run.first + run.n_tokens) * k
            for e in range(n):
                store_i64(s.count + e * 8, 0)
            for i in range(begin, after):
                at = s.count + load_i64(s.expert + i * 8) * 8
                store_i64(at, load_i64(at) + 1)
            for i in range(begin, after):
                e = load_i64(s.expert + i * 8)
                slot = s.first + (2 * e + (1 if load_i64(s.count + e * 8) >= FEW else 0) + 1) * 8
                if there:
                    slot -= 8
                    place = load_i64(slot)
                    store_i64(s.token + place * 8, i // k)
                    store_f32(s.weight + place * 4, load_f32(s.expert_weight + i * 4))
                store_i64(slot, load_i64(slot) + 1)
        if not there:
            for i in range(lists):
                store_i64(s.first + (i + 1) * 8, load_i64(s.first + (i + 1) * 8) + load_i64(s.first + i * 8))
    for i in range(lists, 0, -1):  # each entry has moved to the next one's beginning: move them back
        store_i64(s.first + i * 8, load_i64(s.first + (i - 1) * 8))
    store_i64(s.first, 0)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def route(m, layer, s, w):
    """Wait for the router's logits, choose every token's experts, and sort the pairs of token and expert."""
    wait(w)
    size = piece_size(s.n_tokens, w, 8)
    piece = first_piece(w)
    while piece * size < s.n_tokens:
        _route(m, s, layer.exp_probs_b, piece * size, min(s.n_tokens, (piece + 1) * size))
        piece = next_piece(w)
    leave(w, (s.n_tokens + size - 1) // size)
    wait(w)
    if first_piece(w) == 0:
        _sort(m, s)
        next_piece(w)
    leave(w, 1)
    wait(w)


@kernel(types.UniTuple(int64, 3)(step_record, int64))
def pairs_of(s, e):
    """Where expert e's pairs begin, and of how many of them few and many meet it."""
    begin, middle, after = load_i64(s.first + e * 16), load_i64(s.first + e * 16 + 8), load_i64(s.first + e * 16 + 16)
    return begin, middle - begin, after - middle


_rows_range, _x, _counts = types.UniTuple(int64, 3), types.UniTuple(int64, 3), types.UniTuple(int64, 2)


@kernel(types.UniTuple(int64, 2)(int64, int64))
def _chunk(n_rows, n):
    """How many rows n activations meet before silu_multiply() reads their products, and bytes between the products of two."""
    rows = min(n_rows, max(tile.ROWS, NEAR_BYTES // (4 * n) // tile.ROWS * tile.ROWS))
    return rows, (rows + 15) // 16 * 64 + 64  # one more line, so that activations don't all stand at the same place of a cache


@kernel(int64(int64, int64), entry=True)
def gated_bytes(columns, n):
    """Room that gated_rows() needs for matrices of up to so many columns and up to n activations."""
    return (scratch_bytes(columns, n) + 63) // 64 * 64 + 2 * (max(NEAR_BYTES, n * tile.ROWS * 4) + n * 128)


@kernel(_void(weight_record, weight_record, _rows_range, activation_record, int64, _counts, _x, int64), apart=True)
def gated_rows(gate, up, rows, x, index, n, hidden, scratch):
    """hidden[i] = silu(gate x[k]) * (up x[k]), k = index[i], float32, for some rows of a gate and an up matrix.

    rows     (which of their stacks, first row, row behind the last): whole panels, so no vector belongs to two pieces
    n        (few, many), as multiply() takes it
    hidden   (address of the first row, bytes between rows, 0)
    scratch  gated_bytes(): products stay in the cache until they are multiplied
    """
    which, begin, end = rows
    n_all = n[0] + n[1]
    size, stride = _chunk(end - begin, n_all)
    products = scratch + (scratch_bytes(gate.columns, n_all) + 63) // 64 * 64
    for first in range(begin, end, size):
        after = min(end, first + size)
        out, up_out = products - first * 4, products + n_all * stride - first * 4
        some, then = (which, first, after), address_of(gate, (which, after, end)) if after < end else 0
        multiply(gate, some, form_of(x, gate.format, index), n, (out, stride, 0), 0, STORE, scratch, address_of(up, some))
        multiply(up, some, form_of(x, up.format, index), n, (up_out, stride, 0), 0, STORE, scratch, then)
        for i in range(n_all):
            at = i * stride + first * 4
            silu_multiply(out + at, up_out + at, after - first, hidden[0] + i * hidden[1] + first * 4)


@kernel(_void(step_record, weight_record, weight_record, activation_record, activation_record, worker_record))
def gated(s, gate, up, x, hidden, w):
    """hidden (tokens, rows) = silu(gate x) * (up x); no more of it once the step is cancelled."""
    size = rows_of_piece(gate.rows, gate.row_bytes, w)
    n, out = (s.n_few, s.n_tokens - s.n_few), (hidden.floats, hidden.floats_stride, 0)
    piece = first_piece(w)
    while piece * size < gate.rows:
        if not atomic_load(w.flags + CANCEL):
            rows = (0, piece * size, min(gate.rows, (piece + 1) * size))
            gated_rows(gate, up, rows, x, 0, n, out, w.scratch)
        piece = next_piece(w)
    leave(w, (gate.rows + size - 1) // size)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def experts_gated(m, layer, s, w):
    """routed = silu(gate x) * (up x) for every expert that has tokens; for no more of them once the step is cancelled."""
    gate, up, stride = layer.ffn_gate_exps, layer.ffn_up_exps, s.routed.floats_stride
    all_pairs = s.n_tokens * m.num_experts_per_tok
    ask_first(m, layer, s, w)
    piece = first_piece(w)
    for e in range(m.n_routed_experts):
        begin, few, many = pairs_of(s, e)
        if few + many == 0:
            continue
        # The more work is left, the larger the pieces: at each one's beginning nothing has been asked from memory.
        size = min(gate.rows, rows_of_piece(gate.rows * (all_pairs - begin) // (few + many), gate.row_bytes, w))
        parts = (gate.rows + size - 1) // size
        while piece < parts:
            if not atomic_load(w.flags + CANCEL):
                if piece == 0:
                    ask_next(m, layer, s, e, w)
                first, end, out = piece * size, min(gate.rows, (piece + 1) * size), (s.routed.floats + begin * stride, stride, 0)
                if arrive(s, gate, e, first, end, w) and arrive(s, up, e, first, end, w):
                    gated_rows(gate, up, (e, first, end), s.ffn_normed, s.token + begin * 8, (few, many), out, w.scratch)
            piece = next_piece(w)
        leave(w, parts)
        piece -= parts


@kernel(_void(model_record, layer_record, step_record, worker_record))
def experts_down(m, layer, s, w):
    """x[token] += weight * (down hidden) for every expert that has tokens, then the shared expert's; waits at the end.

    A piece is some output rows of all of them, so that no two threads add to the same numbers.
    """
    down, shared = layer.ffn_down_exps, layer.ffn_down_shexp
    address, stride, _ = form_of(s.routed, down.format, 0)
    size = rows_of_piece(down.rows, down.row_bytes * m.num_experts_per_tok, w)
    piece, n = first_piece(w), (s.n_few, s.n_tokens - s.n_few)
    while piece * size < down.rows:
        first, end = piece * size, min(down.rows, (piece + 1) * size)
        e = used(m, s, 0, 0)
        while e < m.n_routed_experts:
            (begin, few, many), after = pairs_of(s, e), used(m, s, e + 1, 0)
            then = address_of(down, (after, first, end)) if after < m.n_routed_experts else address_of(shared, (0, first, end))
            if not atomic_load(w.flags + CANCEL) and arrive(s, down, e, first, end, w):
                x, out = (address + begin * stride, stride, 0), (s.x, s.x_stride, s.token + begin * 8)
                multiply(down, (e, first, end), x, (few, many), out, s.weight + begin * 4, ADD, w.scratch, then)
            e = after
        multiply(shared, (0, first, end), form_of(s.shared, shared.format, 0), n, (s.x, s.x_stride, 0), 0, ADD, w.scratch, 0)
        piece = next_piece(w)
    leave(w, (down.rows + size - 1) // size)
    wait(w)
