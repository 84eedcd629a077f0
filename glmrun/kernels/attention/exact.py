"""Latent attention, absorbed: every head of every token queries the same cached rows of [latent | rope key].

    score[p] = query . row[p] / sqrt(qk_head_dim)      out = sum_p softmax(score)[p] latent[p]

The slow twin of attend.py, in float32 and for any kind of cached row: what models without quantized matrices use, and tests.
Four queries share each pass over a tile of positions, so that a row is widened once for four. The softmax is kept up to date tile
by tile; `largest score` and `sum of weights` stand behind each output row, at latent and latent + 1.
Source: DeepSeek-V2, section 2.1; online softmax: Milakov and Gimelshein 2018.
"""

import math

from numba import float32, int64, types

from glmrun.kernels.activations import FEW
from glmrun.kernels.attention.cached_row import load_cached
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import layer_record, model_record, run_at, run_record, step_record, worker_record
from glmrun.kernels.rows import round_row
from glmrun.kernels.simd.arithmetic import exp, fma, largest, maximum, total
from glmrun.kernels.simd.atomic import atomic_load
from glmrun.kernels.simd.memory import load_f32, load_f32x16, splat_f32, store_f32, store_f32x16, zero_f32x16
from glmrun.kernels.team import CANCEL, first_piece, leave, next_piece, wait

TILE = 64  # positions whose scores are held at once
SEGMENT = 256  # positions into which those of few tokens are cut
_void = types.void
_four, _pair = types.UniTuple(int64, 4), types.UniTuple(int64, 2)


@kernel(_void(model_record, _four, int64, int64, int64, int64), apart=True)
def _scores(m, query, cache, first, end, scores):
    """scores[i, p - first] = query[i] . row[p] * softmax_scale for four queries and positions first to end - 1."""
    for p in range(first, end, 2):
        row0 = cache + p * m.row_bytes
        row1 = row0 + m.row_bytes if p + 1 < end else row0
        a0 = a1 = a2 = a3 = zero_f32x16()
        b0 = b1 = b2 = b3 = zero_f32x16()
        for k in range(0, m.row, 16):
            u, v = load_cached(m, row0, k), load_cached(m, row1, k)
            q = load_f32x16(query[0] + k * 4)
            a0, b0 = fma(u, q, a0), fma(v, q, b0)
            q = load_f32x16(query[1] + k * 4)
            a1, b1 = fma(u, q, a1), fma(v, q, b1)
            q = load_f32x16(query[2] + k * 4)
            a2, b2 = fma(u, q, a2), fma(v, q, b2)
            q = load_f32x16(query[3] + k * 4)
            a3, b3 = fma(u, q, a3), fma(v, q, b3)
        at, line = scores + (p - first) * 4, TILE * 4
        store_f32(at, total(a0) * m.softmax_scale)
        store_f32(at + line, total(a1) * m.softmax_scale)
        store_f32(at + 2 * line, total(a2) * m.softmax_scale)
        store_f32(at + 3 * line, total(a3) * m.softmax_scale)
        if p + 1 < end:
            store_f32(at + 4, total(b0) * m.softmax_scale)
            store_f32(at + line + 4, total(b1) * m.softmax_scale)
            store_f32(at + 2 * line + 4, total(b2) * m.softmax_scale)
            store_f32(at + 3 * line + 4, total(b3) * m.softmax_scale)


@kernel(float32(int64, int64, int64))
def _weigh(scores, n, state):
    """Turn a tile's scores (first n of TILE; the rest count as minus infinity) into weights e**(score - largest so far).

    Updates (largest score, sum of weights) at `state`; returns the factor that older sums must shrink by.
    """
    for k in range(n, TILE):
        store_f32(scores + k * 4, float32(-math.inf))
    top = load_f32x16(scores)
    for k in range(16, TILE, 16):
        top = maximum(top, load_f32x16(scores + k * 4))
    before = load_f32(state)
    now = max(before, largest(top))
    if now == float32(-math.inf):  # nothing to see yet: weights of zero, and no NaN from infinity minus infinity
        for k in range(0, TILE, 16):
            store_f32x16(scores + k * 4, zero_f32x16())
        return float32(1.0)
    weights = zero_f32x16()
    for k in range(0, TILE, 16):
        weight = exp(load_f32x16(scores + k * 4) - splat_f32(now))
        store_f32x16(scores + k * 4, weight)
        weights = weights + weight
    shrink = float32(0.0) if before == float32(-math.inf) else float32(math.exp(before - now))
    store_f32(state, now)
    store_f32(state + 4, load_f32(state + 4) * shrink + total(weights))
    return shrink


@kernel(_void(model_record, _four, types.UniTuple(float32, 4), int64, int64, int64, int64), apart=True)
def _gather(m, out, shrink, cache, first, end, scores):
    """out[i] = shrink[i] * out[i] + sum_p weights[i, p - first] * latent[p] for four outputs, 64 values at a time."""
    line = TILE * 4
    for k in range(0, m.latent, 64):
        s0, s1, s2, s3 = splat_f32(shrink[0]), splat_f32(shrink[1]), splat_f32(shrink[2]), splat_f32(shrink[3])
        o0, o1, o2, o3 = out[0] + k * 4, out[1] + k * 4, out[2] + k * 4, out[3] + k * 4
        a0, a1, a2, a3 = load_f32x16(o0) * s0, load_f32x16(o0 + 64) * s0, load_f32x16(o0 + 128) * s0, load_f32x16(o0 + 192) * s0
        b0, b1, b2, b3 = load_f32x16(o1) * s1, load_f32x16(o1 + 64) * s1, load_f32x16(o1 + 128) * s1, load_f32x16(o1 + 192) * s1
        c0, c1, c2, c3 = load_f32x16(o2) * s2, load_f32x16(o2 + 64) * s2, load_f32x16(o2 + 128) * s2, load_f32x16(o2 + 192) * s2
        d0, d1, d2, d3 = load_f32x16(o3) * s3, load_f32x16(o3 + 64) * s3, load_f32x16(o3 + 128) * s3, load_f32x16(o3 + 192) * s3
        for p in range(first, end):
            row, weight = cache + p * m.row_bytes, scores + (p - first) * 4
            v0, v1 = load_cached(m, row, k), load_cached(m, row, k + 16)
            v2, v3 = load_cached(m, row, k + 32), load_cached(m, row, k + 48)
            w = splat_f32(load_f32(weight))
            a0, a1, a2, a3 = fma(v0, w, a0), fma(v1, w, a1), fma(v2, w, a2), fma(v3, w, a3)
            w = splat_f32(load_f32(weight + line))
            b0, b1, b2, b3 = fma(v0, w, b0), fma(v1, w, b1), fma(v2, w, b2), fma(v3, w, b3)
            w = splat_f32(load_f32(weight + 2 * line))
            c0, c1, c2, c3 = fma(v0, w, c0), fma(v1, w, c1), fma(v2, w, c2), fma(v3, w, c3)
            w = splat_f32(load_f32(weight + 3 * line))
            d0, d1, d2, d3 = fma(v0, w, d0), fma(v1, w, d1), fma(v2, w, d2), fma(v3, w, d3)
        store_f32x16(o0, a0), store_f32x16(o0 + 64, a1), store_f32x16(o0 + 128, a2), store_f32x16(o0 + 192, a3)
        store_f32x16(o1, b0), store_f32x16(o1 + 64, b1), store_f32x16(o1 + 128, b2), store_f32x16(o1 + 192, b3)
        store_f32x16(o2, c0), store_f32x16(o2 + 64, c1), store_f32x16(o2 + 128, c2), store_f32x16(o2 + 192, c3)
        store_f32x16(o3, d0), store_f32x16(o3 + 64, d1), store_f32x16(o3 + 128, d2), store_f32x16(o3 + 192, d3)


@kernel(_void(model_record, run_record, int64, int64, int64, _pair, int64, int64, int64), apart=True)
def _attend(m, run, query0, cache, first_query, out, first, end, scores):
    """Queries first_query to first_query + 3 against positions first to end - 1; each sees no further than its own token.

    query0  address of the run's first query
    out     (address of the first query's row, bytes between rows): latent values and the softmax's state; queries that do not
            exist leave it alone
    scores  address of float32 (4, TILE), and behind it one row of `out` for queries that do not exist
    """
    queries = run.n_tokens * m.num_attention_heads
    spare = scores + 4 * TILE * 4
    last = min(first_query + 3, queries - 1)
    q0, q1, q2, q3 = first_query, min(first_query + 1, last), min(first_query + 2, last), min(first_query + 3, last)
    query = (query0 + q0 * m.row * 4, query0 + q1 * m.row * 4, query0 + q2 * m.row * 4, query0 + q3 * m.row * 4)
    o1 = out[0] + out[1] if first_query + 1 <= last else spare
    o2 = out[0] + 2 * out[1] if first_query + 2 <= last else spare
    o3 = out[0] + 3 * out[1] if first_query + 3 <= last else spare
    rows = (out[0], o1, o2, o3)
    for i in range(4):
        for k in range(0, m.latent + 16, 16):
            store_f32x16(rows[i] + k * 4, zero_f32x16())
        store_f32(rows[i] + m.latent * 4, float32(-math.inf))
    heads = m.num_attention_heads
    end0, end1 = min(end, run.position + q0 // heads + 1), min(end, run.position + q1 // heads + 1)
    end2, end3 = min(end, run.position + q2 // heads + 1), min(end, run.position + q3 // heads + 1)
    for p in range(first, end3, TILE):
        after = min(p + TILE, end3)
        _scores(m, query, cache, p, after, scores)
        f0 = _weigh(scores, max(0, min(after, end0) - p), rows[0] + m.latent * 4)
        f1 = _weigh(scores + TILE * 4, max(0, min(after, end1) - p), rows[1] + m.latent * 4)
        f2 = _weigh(scores + 2 * TILE * 4, max(0, min(after, end2) - p), rows[2] + m.latent * 4)
        f3 = _weigh(scores + 3 * TILE * 4, max(0, min(after, end3) - p), rows[3] + m.latent * 4)
        _gather(m, rows, (f0, f1, f2, f3), cache, p, after, scores)


@kernel(int64(model_record))
def scratch_bytes(m):
    """Bytes of scratch that one thread needs."""
    return 4 * TILE * 4 + (m.latent + 16) * 4


@kernel(int64(run_record), inline="always")
def _segment(run):
    """Positions of a segment: those of many tokens are not cut."""
    return SEGMENT if run.n_tokens < FEW else run.position + run.n_tokens


@kernel(_void(model_record, layer_record, step_record, int64, int64))
def _divide(m, layer, s, row, scratch):
    """Divide a row of s.context by its sum of weights, and round it for attn_v_b."""
    address = s.context.floats + row * s.context.floats_stride
    factor = splat_f32(float32(1.0) / load_f32(address + m.latent * 4 + 4))
    for k in range(0, m.latent, 16):
        store_f32x16(address + k * 4, load_f32x16(address + k * 4) * factor)
    round_row(s.context, row, row < s.n_few * m.num_attention_heads, layer.reads_context, scratch)


@kernel(_void(model_record, layer_record, step_record, run_record, int64, int64))
def _attend_item(m, layer, s, run, item, scratch):
    """Four queries against a segment of positions: into s.context, or into the run's partial results to be merged."""
    heads, stride, end = m.num_attention_heads, (m.latent + 16) * 4, run.position + run.n_tokens
    queries, cache = run.n_tokens * heads, run.cache + layer.index * run.layer_bytes
    groups, query0 = (queries + 3) // 4, s.query + run.first * heads * m.row * 4
    segment, first = item // groups, item % groups * 4
    row, after = run.first * heads + first, min(end, (segment + 1) * _segment(run))
    if end > _segment(run):
        out = run.partial + (segment * queries + first) * stride
        _attend(m, run, query0, cache, first, (out, stride), segment * _segment(run), after, scratch)
        return
    context = (s.context.floats + row * s.context.floats_stride, s.context.floats_stride)
    _attend(m, run, query0, cache, first, context, 0, after, scratch)
    for i in range(row, row + min(4, queries - first)):
        _divide(m, layer, s, i, scratch)


@kernel(_void(model_record, step_record, run_record, int64))
def _merge(m, s, run, query):
    """Join the segments of a query, in their order, into its row of s.context, the sum of weights behind the values."""
    queries, stride = run.n_tokens * m.num_attention_heads, (m.latent + 16) * 4
    segments = (run.position + run.n_tokens + _segment(run) - 1) // _segment(run)
    row = s.context.floats + (run.first * m.num_attention_heads + query) * s.context.floats_stride
    top, weights = float32(-math.inf), float32(0.0)
    for g in range(segments):
        top = max(top, load_f32(run.partial + (g * queries + query) * stride + m.latent * 4))
    for k in range(0, m.latent, 16):
        store_f32x16(row + k * 4, zero_f32x16())
    for g in range(segments):
        part = run.partial + (g * queries + query) * stride
        factor = float32(math.exp(load_f32(part + m.latent * 4) - top))
        weights += load_f32(part + m.latent * 4 + 4) * factor
        for k in range(0, m.latent, 16):
            store_f32x16(row + k * 4, fma(load_f32x16(part + k * 4), splat_f32(factor), load_f32x16(row + k * 4)))
    store_f32(row + m.latent * 4 + 4, weights)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def attend(m, layer, s, w):
    """attend.attend() in float32."""
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        segments = (run.position + run.n_tokens + _segment(run) - 1) // _segment(run)
        items, piece = (run.n_tokens * m.num_attention_heads + 3) // 4 * segments, first_piece(w)
        while piece < items:
            if not atomic_load(w.flags + CANCEL):
                _attend_item(m, layer, s, run, piece, w.attention)
            piece = next_piece(w)
        leave(w, items)
    wait(w)
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        if run.position + run.n_tokens > _segment(run):
            queries, piece = run.n_tokens * m.num_attention_heads, first_piece(w)
            while piece < queries:
                _merge(m, s, run, piece)
                _divide(m, layer, s, run.first * m.num_attention_heads + piece, w.attention)
                piece = next_piece(w)
            leave(w, queries)
    wait(w)
