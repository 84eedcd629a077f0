"""Latent attention, absorbed: every head of every token queries the same cached rows of [latent | rope key].

    score[p] = query . row[p] / sqrt(qk_head_dim)      out = sum_p softmax(score)[p] latent[p]

The slow twin of attention.py, in float32 and for any kind of cached row: what models without quantized matrices use, and tests.
Four queries share each pass over a tile of positions, so that a row is widened once for four. The softmax is kept up to date tile
by tile; `largest score` and `sum of weights` stand behind each output row, at latent and latent + 1.
Source: DeepSeek-V2, section 2.1; online softmax: Milakov and Gimelshein 2018.
"""

import math

from numba import boolean, float32, int64, types

from glmrun.kernels.attention.cached_row import load_cached
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import model_record, step_record
from glmrun.kernels.rows import quantize
from glmrun.kernels.simd.arithmetic import exp, fma, largest, maximum, total
from glmrun.kernels.simd.memory import load_f32, load_f32x16, splat_f32, store_f32, store_f32x16, zero_f32x16

TILE = 64  # positions whose scores are held at once
SEGMENT = 256  # positions of one piece of work when a single token attends
_void = types.void
_four = types.UniTuple(int64, 4)


@kernel(_void(model_record, _four, int64, int64, int64, int64))
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


@kernel(_void(model_record, _four, types.UniTuple(float32, 4), int64, int64, int64, int64))
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


@kernel(_void(model_record, step_record, int64, int64, int64, int64, int64, int64, int64))
def _attend(m, s, cache, first_query, out, out_stride, first, end, scores):
    """Queries first_query to first_query + 3 against positions first to end - 1; each sees no further than its own token.

    out     address of the first query's row: latent values and the softmax's state; queries that do not exist leave it alone
    scores  address of float32 (4, TILE), and behind it one row of `out` for queries that do not exist
    """
    queries = s.n_tokens * m.num_attention_heads
    spare = scores + 4 * TILE * 4
    last = min(first_query + 3, queries - 1)
    q0, q1, q2, q3 = first_query, min(first_query + 1, last), min(first_query + 2, last), min(first_query + 3, last)
    query = (s.query + q0 * m.row * 4, s.query + q1 * m.row * 4, s.query + q2 * m.row * 4, s.query + q3 * m.row * 4)
    o1 = out + out_stride if first_query + 1 <= last else spare
    o2 = out + 2 * out_stride if first_query + 2 <= last else spare
    o3 = out + 3 * out_stride if first_query + 3 <= last else spare
    rows = (out, o1, o2, o3)
    for i in range(4):
        for k in range(0, m.latent + 16, 16):
            store_f32x16(rows[i] + k * 4, zero_f32x16())
        store_f32(rows[i] + m.latent * 4, float32(-math.inf))
    heads = m.num_attention_heads
    end0, end1 = min(end, s.position + q0 // heads + 1), min(end, s.position + q1 // heads + 1)
    end2, end3 = min(end, s.position + q2 // heads + 1), min(end, s.position + q3 // heads + 1)
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


@kernel(_void(model_record, step_record, int64, boolean, int64, int64, int64))
def attend(m, s, layer, codes, scores, thread, n_threads):
    """Several tokens: this thread's share of the queries, four at a time, into s.context, in int8 too if codes are wanted.

    One token: this thread's share of (segment of positions, four heads) into s.partial; merge() finishes.
    """
    cache = s.cache + layer * s.cache_layer_bytes
    heads, stride = m.num_attention_heads, (m.latent + 16) * 4
    if s.n_tokens == 1:
        groups, end = (heads + 3) // 4, s.position + 1
        for item in range(thread, (end + SEGMENT - 1) // SEGMENT * groups, n_threads):
            segment, head = item // groups, item % groups * 4
            out = s.partial + (segment * heads + head) * stride
            _attend(m, s, cache, head, out, stride, segment * SEGMENT, min(end, (segment + 1) * SEGMENT), scores)
        return
    queries = s.n_tokens * heads
    for group in range(thread, (queries + 3) // 4, n_threads):
        out = s.context.floats + group * 4 * s.context.floats_stride
        _attend(m, s, cache, group * 4, out, s.context.floats_stride, 0, s.position + s.n_tokens, scores)
        for i in range(group * 4, min(group * 4 + 4, queries)):
            row = s.context.floats + i * s.context.floats_stride
            factor = splat_f32(float32(1.0) / load_f32(row + m.latent * 4 + 4))
            for k in range(0, m.latent, 16):
                store_f32x16(row + k * 4, load_f32x16(row + k * 4) * factor)
        quantize(s.context, codes, s.n_tokens, group * 4, min(group * 4 + 4, queries))


@kernel(_void(model_record, step_record, int64, int64))
def merge(m, s, thread, n_threads):
    """One token: join the segments of this thread's share of the heads, in their order, into s.context (float32 form)."""
    heads, stride = m.num_attention_heads, (m.latent + 16) * 4
    segments = (s.position + SEGMENT) // SEGMENT
    for h in range(thread, heads, n_threads):
        row, top, weights = s.context.floats + h * s.context.floats_stride, float32(-math.inf), float32(0.0)
        for g in range(segments):
            top = max(top, load_f32(s.partial + (g * heads + h) * stride + m.latent * 4))
        for k in range(0, m.latent, 16):
            store_f32x16(row + k * 4, zero_f32x16())
        for g in range(segments):
            part = s.partial + (g * heads + h) * stride
            factor = float32(math.exp(load_f32(part + m.latent * 4) - top))
            weights += load_f32(part + m.latent * 4 + 4) * factor
            for k in range(0, m.latent, 16):
                store_f32x16(row + k * 4, fma(load_f32x16(part + k * 4), splat_f32(factor), load_f32x16(row + k * 4)))
        factor = float32(1.0) / weights
        for k in range(0, m.latent, 16):
            store_f32x16(row + k * 4, load_f32x16(row + k * 4) * splat_f32(factor))
