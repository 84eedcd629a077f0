"""Latent attention, absorbed: every head of every token queries the same cached rows of [latent | rope key].

    score[p] = query . row[p] / sqrt(qk_head_dim)      out = sum_p softmax(score)[p] latent[p]

Both products are int8 tiles (tile_32x8.py, tile_16x4.py). 32 neighbouring queries, a head of a token each, form a panel and meet
tiles of TILE positions in turn, the softmax kept up to date tile by tile. What is rounded, in blocks of 64 that share a scale:

    queries and cached rows   along the row, 127 steps to the largest; 4,095 in the rope part, where int8 costs five times the rest
    weights e**score          along the positions, 255 steps to the largest of the block: never negative, so no bit for a sign
    latent values             along the positions, 127 steps, blocks counted from position 0

Where products are added up in 16 bits, queries and weights may have fewer steps (columns.py). The sum that divides is that of the
rounded weights. Models without quantized matrices take exact.py, also the slow twin.
Sources: DeepSeek-V2, section 2.1; online softmax: Milakov and Gimelshein 2018. What rounding costs: benchmarks/LOG.md.
"""

from numba import float32, int64, types

from glmrun.kernels.activations import FEW as FEW_TOKENS
from glmrun.kernels.attention import exact
from glmrun.kernels.attention.columns import (
    BLOCK,
    FEW,
    LATENT_STEPS,
    QUERIES,
    ROPE_STEPS,
    TILE,
    TOGETHER,
    block_at,
    note_rounded,
    top_of,
    top_of_sums,
)
from glmrun.kernels.attention.rounding import fold_fours, maximum_or_nan, round_in_order, round_two_bytes
from glmrun.kernels.attention.softmax import LOWEST, softmax
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import transpose_words
from glmrun.kernels.layout import layer_record, model_record, run_at, run_record, step_record, worker_record
from glmrun.kernels.rows import round_row
from glmrun.kernels.simd.arithmetic import exp, fma
from glmrun.kernels.simd.atomic import atomic_load
from glmrun.kernels.simd.dots import add_dot_u8s8
from glmrun.kernels.simd.memory import (
    bytes_of,
    load_f32,
    load_f32x16,
    load_i64,
    load_u8x64,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i32x16,
    store_i64,
    store_u8x64,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.target import dot_bits
from glmrun.kernels.team import CANCEL, first_piece, leave, next_piece, wait

if dot_bits() == 512:
    from glmrun.kernels.attention import tile_32x8 as tiles
else:
    from glmrun.kernels.attention import tile_16x4 as tiles  # type: ignore[no-redef]

SEGMENTS = 16  # at most: into which the positions of few tokens are cut
_QUERY_SUM = float32(126.0)  # of four codes before they are rounded, where their products are added up: 128 * 255 fits into int16
_void = types.void


# Scratch of a thread, in this order (bytes): words 2,048; limits and shrinks, float32 (QUERIES,) each; query panel; scores, float32
# (TILE, QUERIES); weight panel; result. A result: float32 (latent, QUERIES) sums of weighted values, then the
# largest score and the sum of weights, float32 (QUERIES,) each.


@kernel(int64(model_record), inline="always")
def _panel_bytes(m):
    return QUERIES * (2 * m.row - m.latent) + (m.row + m.latent) // BLOCK * 128


@kernel(int64(model_record), entry=True)
def result_bytes(m):
    """Bytes of one panel's result."""
    return (m.latent + 2) * QUERIES * 4


@kernel(int64(model_record), entry=True)
def scratch_bytes(m):
    """Bytes of scratch that one thread needs."""
    own = 2304 + _panel_bytes(m) + TILE * QUERIES * 5 + TILE // BLOCK * 128 + result_bytes(m)
    return (max(own, exact.scratch_bytes(m)) + 63) // 64 * 64


# ---- queries as a panel ----------------------------------------------------------------------------------------------


@kernel(_void(int64, int64))
def _place_quarters(rows, codes):
    """Codes of a block (64 bytes) of four queries side by side, 16 bytes of each."""
    for i in range(4):
        for k in range(0, 64, 16):
            for at in range(0, 16, 8):
                store_i64(codes + k * QUERIES + i * 16 + at, load_i64(rows + i * 64 + k + at))


@kernel(_void(model_record, int64, int64, int64, int64), apart=True)
def _query_panel(m, queries, n, panel, words):
    """The panel of n (1 to QUERIES) queries, float32 rows one after another; lanes beyond n repeat the last one."""
    factors = panel + QUERIES * (2 * m.row - m.latent)
    starts = factors + m.row // BLOCK * 128
    for half in range(0, QUERIES * 4, 64):
        lanes = 4 if half and n <= FEW else 1  # of a query
        for k in range(0, m.row, BLOCK):
            factor = factors + k // BLOCK * 128 + half
            codes = panel + (k if k < m.latent else 2 * k - m.latent) * QUERIES + half
            for i in range(16 // lanes):
                x = queries + (min(half // 4 + i, n - 1) * m.row + k) * 4
                a, b, c, d = load_f32x16(x), load_f32x16(x + 64), load_f32x16(x + 128), load_f32x16(x + 192)
                if TOGETHER and k < m.latent:
                    top, steps = top_of_sums(a, b, c, d), _QUERY_SUM
                else:
                    top, steps = top_of(a, b, c, d), LATENT_STEPS if k < m.latent else ROPE_STEPS
                inverse = splat_f32(float32(0.0) if top == 0 else steps / top)
                if k < m.latent:
                    store_u8x64(words + i * 64, round_in_order(a, b, c, d, inverse, 0))
                else:
                    store_u8x64(words + i * 64, round_two_bytes(a, b, inverse))
                    store_u8x64(words + 1024 + i * 64, round_two_bytes(c, d, inverse))
                for lane in range(i * lanes, (i + 1) * lanes):
                    store_f32(factor + lane * 4, top / steps * m.softmax_scale)
            for part in range(1 if k < m.latent else 2):
                if lanes == 1:
                    transpose_words(words + part * 1024, codes + part * 2048, 128)
                else:
                    _place_quarters(words + part * 1024, codes + part * 2048)
            if k < m.latent:
                sums = zero_i32x16()
                for i in range(0, 16, lanes):
                    sums = add_dot_u8s8(sums, bytes_of(128), load_u8x64(codes + i * 128))
                store_i32x16(starts + k // BLOCK * 128 + half, zero_i32x16() - sums)


# ---- a panel meets a tile ---------------------------------------------------------------------------------------------


@kernel(_void(model_record, int64))
def _clear(m, out):
    """An empty result."""
    for k in range(0, result_bytes(m), 64):
        store_f32x16(out + k, zero_f32x16())
    for k in range(0, QUERIES * 4, 64):
        store_f32x16(out + m.latent * QUERIES * 4 + k, splat_f32(LOWEST))


@kernel(_void(model_record, layer_record, run_record, int64, int64, int64, int64, int64, int64))
def _meet(m, layer, run, first_query, panel, first, end, scratch, out):
    """A panel of a run's queries against the first tile of positions first to end - 1, of which each sees those up to its own."""
    limits, shrinks = scratch + 2048, scratch + 2176
    scores = scratch + 2304 + _panel_bytes(m)
    weights = scores + TILE * QUERIES * 4
    heads, last = m.num_attention_heads, run.n_tokens * m.num_attention_heads - 1
    n, few = min(end - first, TILE), 1 if first_query + FEW > last else 0
    for lane in range(QUERIES):
        query, position = lane, 0
        if few and lane >= 16:
            query, position = 16 + (lane - 16) // 4, lane % 4
        own = run.position + min(first_query + query, last) // heads
        store_f32(limits + lane * 4, float32(min(n, own + 1 - first) - position))
    columns = block_at(m, layer, run, first)
    whole = min((run.position + run.n_tokens - first) // BLOCK, (end - first + BLOCK - 1) // BLOCK)
    tiles.scores(m, panel, columns, whole, run.tail, n, few, scores)
    softmax(scores, n, limits, out + m.latent * QUERIES * 4, shrinks, weights, few)
    tiles.gather(m, weights, columns, whole, run.tail, n, few, shrinks, out)


@kernel(_void(model_record, int64))
def _join_result(m, out):
    """A few queries' result as that of others: the four lanes of each in the second half added up, their largest score kept."""
    largest = out + m.latent * QUERIES * 4 + 64
    for at in range(out + 64, out + result_bytes(m), QUERIES * 4):
        if at != largest:
            store_f32x16(at, fold_fours(load_f32x16(at)))
    for i in range(4):
        store_f32(largest + i * 4, load_f32(largest + i * 16))


@kernel(_void(model_record, layer_record, step_record, int64, int64, int64, int64, int64), apart=True)
def _finish(m, layer, s, first, n, sums, out, scratch):
    """Divide n queries' results by their sums of weights, into rows of s.context from `first` on, rounded for attn_v_b.

    out, sums    float32 (latent, QUERIES) and (QUERIES,), from a query that is the first of 16 on
    scratch      words, and behind them float32 (kv_lora_rank,)
    """
    stride = s.context.floats_stride
    for half in range(0, n, 16):
        factor = splat_f32(float32(1.0)) / load_f32x16(sums + half * 4)
        for k in range(0, m.latent, 16):
            for i in range(16):
                store_f32x16(scratch + i * 64, load_f32x16(out + ((k + i) * QUERIES + half) * 4) * factor)
            transpose_words(scratch, scratch, 64)
            for i in range(min(16, n - half)):
                row = s.context.floats + (first + half + i) * stride
                store_f32x16(row + k * 4, load_f32x16(scratch + i * 64))
    for i in range(first, first + n):
        round_row(s.context, i, i < s.n_few * m.num_attention_heads, layer.reads_context, scratch + 2048)


# ---- the threads' work ------------------------------------------------------------------------------------------------
# A piece of work is an item: some queries of a run, and a segment of the positions that they see. Runs of few tokens cut their
# positions into segments; runs of many have one. What an item computes depends on its own run only.


@kernel(int64(run_record), inline="always")
def _segment(run):
    """Positions of a segment: whole blocks, as many for any number of threads."""
    end = run.position + run.n_tokens
    if run.n_tokens >= FEW_TOKENS:
        return end
    return ((end + SEGMENTS - 1) // SEGMENTS + BLOCK - 1) // BLOCK * BLOCK


@kernel(int64(run_record), inline="always")
def _segments(run):
    """How many segments a run's positions have."""
    return (run.position + run.n_tokens + _segment(run) - 1) // _segment(run)


@kernel(_void(model_record, layer_record, step_record, run_record, int64, int64), apart=True)
def _attend_item(m, layer, s, run, item, scratch):
    """Queries of a panel against a segment of positions: into s.context, or into the run's partial results to be merged."""
    heads, end = m.num_attention_heads, run.position + run.n_tokens
    queries, panel = run.n_tokens * heads, scratch + 2304
    panels, segments = (queries + QUERIES - 1) // QUERIES, _segments(run)
    first_query, segment = item % panels * QUERIES, item // panels
    n = min(QUERIES, queries - first_query)
    out = panel + _panel_bytes(m) + TILE * QUERIES * 5 + TILE // BLOCK * 128
    if segments > 1:
        out = run.partial + item * result_bytes(m)
    _query_panel(m, s.query + (run.first * heads + first_query) * m.row * 4, n, panel, scratch)
    _clear(m, out)
    after = min(end, (segment + 1) * _segment(run), run.position + (first_query + n - 1) // heads + 1)
    for p in range(segment * _segment(run), after, TILE):
        _meet(m, layer, run, first_query, panel, p, after, scratch, out)
    if n <= FEW:
        _join_result(m, out)
    if segments == 1:
        _finish(m, layer, s, run.first * heads + first_query, n, out + (m.latent + 1) * QUERIES * 4, out, scratch)


@kernel(_void(model_record, layer_record, step_record, run_record, int64, int64, int64), apart=True)
def _merge(m, layer, s, run, first, n, scratch):
    """Join the segments of n queries (one vector of them), in their order, into s.context, rounded for attn_v_b."""
    size, segments = result_bytes(m), _segments(run)
    panels = (run.n_tokens * m.num_attention_heads + QUERIES - 1) // QUERIES
    factors, out = scratch + 2304, scratch + 2304 + SEGMENTS * 64  # float32 (segments, 16); (latent + 2, QUERIES), a vector wide
    part, lanes = run.partial + first // QUERIES * size, first % QUERIES * 4
    state = part + m.latent * QUERIES * 4 + lanes
    now, sums = splat_f32(LOWEST), zero_f32x16()
    for g in range(segments):
        now = maximum_or_nan(now, load_f32x16(state + g * panels * size))
    for g in range(segments):
        factor = exp(load_f32x16(state + g * panels * size) - now)
        store_f32x16(factors + g * 64, factor)
        sums = fma(load_f32x16(state + g * panels * size + QUERIES * 4), factor, sums)
    store_f32x16(out + m.latent * QUERIES * 4, sums)
    for k in range(m.latent):
        x = zero_f32x16()
        for g in range(segments):
            x = fma(load_f32x16(part + g * panels * size + k * QUERIES * 4 + lanes), load_f32x16(factors + g * 64), x)
        store_f32x16(out + k * QUERIES * 4, x)
    _finish(m, layer, s, run.first * m.num_attention_heads + first, n, out + m.latent * QUERIES * 4, out, scratch)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def attend(m, layer, s, w):
    """Wait for queries and columns; every query gathers the latent values that it sees, into s.context, rounded for attn_v_b."""
    wait(w)
    if m.float_attention:
        exact.attend(m, layer, s, w)
        return
    if w.thread == 0:
        note_rounded(layer, s)
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        items = (run.n_tokens * m.num_attention_heads + QUERIES - 1) // QUERIES * _segments(run)
        piece = first_piece(w)
        while piece < items:
            if not atomic_load(w.flags + CANCEL):
                _attend_item(m, layer, s, run, piece, w.attention)
            piece = next_piece(w)
        leave(w, items)
    wait(w)
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        if _segments(run) > 1:
            queries = run.n_tokens * m.num_attention_heads
            items, piece = (queries + 15) // 16, first_piece(w)
            while piece < items:
                _merge(m, layer, s, run, piece * 16, min(16, queries - piece * 16), w.attention)
                piece = next_piece(w)
            leave(w, items)
    wait(w)
