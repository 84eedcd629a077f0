"""Norms, rotary positions, the gate, and the rounding of activations to int8: row by row, shared out at run time."""

from numba import boolean, float32, int64, types

from glmrun.kernels.activations import quantize_row
from glmrun.kernels.attention.cached_row import store_cached
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import (
    load_i8x16_as_f32,
)
from glmrun.kernels.layout import (
    BF16,
    EITHER,
    F16,
    F32,
    FLOATS,
    TWO_TERMS,
    activation_record,
    layer_record,
    model_record,
    run_at,
    step_record,
    worker_record,
)
from glmrun.kernels.simd.arithmetic import exp, fma, total
from glmrun.kernels.simd.memory import load_f32, load_f32x16, load_i64, splat_f32, store_f32, store_f32x16, zero_f32x16
from glmrun.kernels.team import first_piece, leave, next_piece, piece_size, wait

_void = types.void


@kernel(_void(int64, int64, int64, float32, int64), apart=True)
def rms_norm(x, weight, n, eps, out):
    """out = weight * x / sqrt(mean(x**2) + eps); float32 (n,) each, out may be x."""
    whole, squares = n // 16 * 16, zero_f32x16()
    for k in range(0, whole, 16):
        v = load_f32x16(x + k * 4)
        squares = fma(v, v, squares)
    mean = total(squares)
    for k in range(whole, n):
        mean += load_f32(x + k * 4) ** 2
    scale = float32(1.0 / (mean / float32(n) + eps) ** 0.5)
    for k in range(0, whole, 16):
        store_f32x16(out + k * 4, load_f32x16(x + k * 4) * splat_f32(scale) * load_f32x16(weight + k * 4))
    for k in range(whole, n):
        store_f32(out + k * 4, load_f32(x + k * 4) * scale * load_f32(weight + k * 4))


@kernel(_void(int64, int64, int64))
def rotate(x, n, angles):
    """Turn the pairs (x0, x1), (x2, x3), ... of float32 (n,) in place; angles: cosine and sine of each pair, float32 (n / 2, 2)."""
    for k in range(0, n, 2):
        a, b = load_f32(x + k * 4), load_f32(x + k * 4 + 4)
        cosine, sine = load_f32(angles + k * 4), load_f32(angles + k * 4 + 4)
        store_f32(x + k * 4, a * cosine - b * sine)
        store_f32(x + k * 4 + 4, a * sine + b * cosine)


@kernel(_void(int64, int64, int64, int64))
def silu_multiply(gate, up, n, out):
    """out = gate * sigmoid(gate) * up, float32 (n rounded up to 16,): rows are padded, what lies beyond n is never read."""
    one, zero = splat_f32(float32(1.0)), zero_f32x16()
    for k in range(0, n * 4, 64):
        g = load_f32x16(gate + k)
        store_f32x16(out + k, g * load_f32x16(up + k) / (one + exp(zero - g)))


@kernel(boolean(int64))
def reads_codes(weight_format):
    """Whether matrices of this format read activations as quantize_row leaves them, not as float32."""
    return weight_format not in (F32, F16, BF16)


@kernel(_void(activation_record, int64, boolean, int64, int64), apart=True)
def round_row(x, r, few, codes, scratch):
    """Fill the codes of row r from its float32 form.

    few      the row meets matrices that are read row by row; else panels
    codes    how: FLOATS (not at all), CODES, EITHER (for both kinds) or TWO_TERMS, which are good to 15 bits together
    scratch  address of float32 (columns,)
    """
    if codes == FLOATS:
        return
    floats, out = x.floats + r * x.floats_stride, x.codes + r * x.codes_stride
    quantize_row(floats, x.columns, few or codes == EITHER, out)
    if codes == TWO_TERMS:
        for k in range(0, x.columns, 16):
            scale = splat_f32(load_f32(out + x.columns + k // 32 * 4))
            store_f32x16(scratch + k * 4, load_f32x16(floats + k * 4) - load_i8x16_as_f32(out + k) * scale)
        quantize_row(scratch, x.columns, few, x.rest + r * x.codes_stride)


@kernel(_void(activation_record, int64, int64, int64, worker_record))
def ready(x, n, n_few, codes, w):
    """Wait for the n rows of x, and round them for the matrices that read them; the first n_few for those that read row by row."""
    wait(w)
    if codes == FLOATS:
        return
    size = piece_size(n, w, 16)
    piece = first_piece(w)
    while piece * size < n:
        for r in range(piece * size, min(n, (piece + 1) * size)):
            round_row(x, r, r < n_few, codes, w.scratch)
        piece = next_piece(w)
    leave(w, (n + size - 1) // size)
    wait(w)


@kernel(_void(model_record, step_record, int64, int64, int64, activation_record, int64, worker_record))
def norm(m, s, x, x_stride, weight, out, codes, w):
    """RMSNorm of the step's rows at x, `x_stride` bytes apart, into out, rounded for the matrices that read them."""
    size = piece_size(s.n_tokens, w, 8)
    piece = first_piece(w)
    while piece * size < s.n_tokens:
        for t in range(piece * size, min(s.n_tokens, (piece + 1) * size)):
            rms_norm(x + t * x_stride, weight, out.columns, m.rms_norm_eps, out.floats + t * out.floats_stride)
            round_row(out, t, t < s.n_few, codes, w.scratch)
        piece = next_piece(w)
    leave(w, (s.n_tokens + size - 1) // size)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def store_latents(m, layer, s, w):
    """Cache every token's [RMSNorm(latent) | rotated k_rope] of kv_a, padding zeroed."""
    size = piece_size(s.n_tokens, w, 8)
    piece = first_piece(w)
    while piece * size < s.n_tokens:
        for t in range(piece * size, min(s.n_tokens, (piece + 1) * size)):
            run = run_at(s.runs, load_i64(s.run + t * 8))
            row, position = s.kv_a + t * s.kv_a_stride, run.position + t - run.first
            rope, padded = row + m.kv_lora_rank * 4, row + m.row * 4  # behind every row: room for it as the cache wants it
            rms_norm(row, layer.attn_kv_a_norm, m.kv_lora_rank, m.rms_norm_eps, padded)
            rotate(rope, m.qk_rope_head_dim, s.rope + position * m.qk_rope_head_dim * 4)
            for k in range(m.qk_rope_head_dim):
                store_f32(padded + (m.latent + k) * 4, load_f32(rope + k * 4))
            store_cached(m, padded, run.cache + layer.index * run.layer_bytes + position * m.row_bytes)
        piece = next_piece(w)
    leave(w, (s.n_tokens + size - 1) // size)


@kernel(_void(model_record, layer_record, step_record, worker_record))
def place_queries(m, layer, s, w):
    """Wait for q; rotate every head's rope part into its place behind the absorbed part, and round what attn_k_b reads."""
    wait(w)
    heads, width = m.num_attention_heads, m.qk_nope_head_dim + m.qk_rope_head_dim
    n, few = s.n_tokens * heads, s.n_few * heads
    size = piece_size(n, w, 64)
    piece = first_piece(w)
    while piece * size < n:
        for i in range(piece * size, min(n, (piece + 1) * size)):
            t = i // heads
            run = run_at(s.runs, load_i64(s.run + t * 8))
            source = s.q.floats + (i * width + m.qk_nope_head_dim) * 4
            rotate(source, m.qk_rope_head_dim, s.rope + (run.position + t - run.first) * m.qk_rope_head_dim * 4)
            for k in range(m.qk_rope_head_dim):
                store_f32(s.query + (i * m.row + m.latent + k) * 4, load_f32(source + k * 4))
            round_row(s.q, i, i < few, layer.reads_q, w.scratch)
        piece = next_piece(w)
    leave(w, (n + size - 1) // size)
    wait(w)


@kernel(_void(step_record, int64, worker_record))
def keep_wanted(s, n_columns, w):
    """Of the step's tokens keep those that somebody wants logits of: their x moves together, by way of normed's rows."""
    columns = (n_columns + 15) // 16 * 16
    for there in range(2):
        piece = first_piece(w)
        while piece < s.n_wanted:
            kept, x = s.normed.floats + piece * s.normed.floats_stride, s.x + piece * s.x_stride
            if not there:
                x = s.x + load_i64(s.wanted + piece * 8) * s.x_stride
            for k in range(0, columns, 16):
                store_f32x16((x if there else kept) + k * 4, load_f32x16((kept if there else x) + k * 4))
            piece = next_piece(w)
        leave(w, s.n_wanted)
        wait(w)
    if w.thread == 0:
        s.n_tokens, s.n_few, s.n_runs = s.n_wanted, s.wanted_few, s.wanted_n_runs
        s.runs, s.run = s.wanted_runs, s.wanted_run
    wait(w)
