"""The mixture of experts: route every token, gather the tokens of each expert, and compute only those."""

import math

from numba import float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import activation_record, model_record, step_record, weight_record
from glmrun.kernels.matmul import ADD, STORE, form_of, multiply, share
from glmrun.kernels.rows import silu_multiply
from glmrun.kernels.simd.atomic import atomic_load
from glmrun.kernels.simd.memory import load_f32, load_i64, store_f32, store_i64
from glmrun.kernels.team import CANCEL

_void = types.void


@kernel(_void(model_record, step_record, int64, int64, int64))
def route(m, s, bias, first, end):
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
def gather(m, s):
    """Sort (token, weight) pairs by expert into s.token and s.weight; s.first tells where each expert's begin."""
    n, pairs = m.n_routed_experts, s.n_tokens * m.num_experts_per_tok
    for e in range(n + 1):
        store_i64(s.first + e * 8, 0)
    for i in range(pairs):
        slot = s.first + (load_i64(s.expert + i * 8) + 1) * 8
        store_i64(slot, load_i64(slot) + 1)
    for e in range(n):
        store_i64(s.first + (e + 1) * 8, load_i64(s.first + (e + 1) * 8) + load_i64(s.first + e * 8))
    for i in range(pairs):
        slot = s.first + load_i64(s.expert + i * 8) * 8
        place = load_i64(slot)
        store_i64(s.token + place * 8, i // m.num_experts_per_tok)
        store_f32(s.weight + place * 4, load_f32(s.expert_weight + i * 4))
        store_i64(slot, place + 1)
    for e in range(n, 0, -1):  # each entry has moved to the next one's beginning: move them back
        store_i64(s.first + e * 8, load_i64(s.first + (e - 1) * 8))
    store_i64(s.first, 0)


@kernel(int64(step_record, int64))
def scratch_of(s, thread):
    """Address of a thread's scratch for multiply()."""
    return s.scratch + thread * s.scratch_stride


@kernel(
    _void(
        weight_record, weight_record, int64, activation_record, int64, int64, activation_record, int64, int64, int64, int64, int64
    )
)
def gated(gate, up, matrix, x, x_index, n, hidden, hidden_up, hidden_first, scratch, thread, n_threads):
    """hidden[hidden_first + i] = silu(gate x[k]) * (up x[k]), k = x_index[i]: this thread's share of the rows, in float32."""
    first, end = share(gate.rows, thread, n_threads)  # whole vectors: the shares of two threads never meet inside one
    stride = hidden.floats_stride
    g, u = hidden.floats + hidden_first * stride, hidden_up + hidden_first * stride
    address, x_stride = form_of(x, gate.format)
    multiply(gate, matrix, first, end, address, x_stride, x_index, n, g, stride, 0, 0, STORE, scratch)
    address, x_stride = form_of(x, up.format)
    multiply(up, matrix, first, end, address, x_stride, x_index, n, u, stride, 0, 0, STORE, scratch)
    for i in range(n):
        silu_multiply(g + i * stride + first * 4, u + i * stride + first * 4, end - first)


@kernel(_void(model_record, step_record, weight_record, weight_record, int64, int64, int64))
def experts_gated(m, s, gate, up, team, thread, n_threads):
    """gated() for every expert that has tokens; for no more of them once the step is cancelled."""
    for e in range(m.n_routed_experts):
        begin, after = load_i64(s.first + e * 8), load_i64(s.first + (e + 1) * 8)
        if after > begin and not atomic_load(team + CANCEL):
            gated(
                gate, up, e, s.normed, s.token + begin * 8, after - begin,
                s.routed, s.routed_up, begin, scratch_of(s, thread), thread, n_threads,
            )  # fmt: skip


@kernel(_void(model_record, step_record, weight_record, int64, int64, int64))
def experts_down(m, s, down, team, thread, n_threads):
    """x[token] += weight * (down hidden) for every expert that has tokens: this thread's share of the output rows.

    For no more of them once the step is cancelled.
    """
    first, end = share(down.rows, thread, n_threads)
    address, stride = form_of(s.routed, down.format)
    for e in range(m.n_routed_experts):
        begin, after = load_i64(s.first + e * 8), load_i64(s.first + (e + 1) * 8)
        if after > begin and not atomic_load(team + CANCEL):
            multiply(
                down, e, first, end, address + begin * stride, stride, 0, after - begin,
                s.x, s.x_stride, s.token + begin * 8, s.weight + begin * 4, ADD, scratch_of(s, thread),
            )  # fmt: skip
