"""One decoder step, from embeddings to logits: GLM-4.7-Flash on a page.

Every thread of the team runs forward() at once. A line below is either a thread's share of the rows of a matrix, or its
share of the tokens; `wait` stands where the next line reads what other threads wrote. T tokens pass together: T = 1 while an
answer is written, up to some hundred while a prompt is read.

    x (T, hidden_size)                     the residual stream
    normed, q_normed, q, context, heads    rows in float32 and, where a quantized matrix reads them, in int8
"""

from numba import int64, void

import glmrun.kernels.scales  # noqa: F401  # no part of a step, but what is below this page is compiled before the first start
from glmrun.kernels.attention.attend import attend, merge, round_cache
from glmrun.kernels.compiled.cache import kernel, note_compiled
from glmrun.kernels.experts import experts_down, experts_gated, gated, gather, route, scratch_of
from glmrun.kernels.importance import note_attention, note_ffn, note_output
from glmrun.kernels.layout import activation_record, layer_array, layer_record, model_record, step_record
from glmrun.kernels.matmul import ADD, STORE, matmul, matmul_heads, matmul_twice
from glmrun.kernels.rows import place_rope, quantize, quantize_rest, reads_codes, rms_norm, store_latents
from glmrun.kernels.team import CANCEL, DONE_PARTS, STOP, atomic_load, atomic_store, barrier

DONE, CANCELLED = 0, 1


@kernel(void(model_record, int64, int64, int64, activation_record, int64, int64))
def norm_rows(m, x, x_stride, weight, out, first, end):
    """RMSNorm of rows first to end - 1 into out's float32 form."""
    for t in range(first, end):
        rms_norm(x + t * x_stride, weight, out.columns, m.rms_norm_eps, out.floats + t * out.floats_stride)


@kernel(void(model_record, layer_record, step_record, int64, int64, int64, int64, int64))
def cache_latents(m, layer, s, i, n, team, thread, n_threads):
    """Fill the cache rows of the first n tokens and no more: in the last layer nothing else of them is read again."""
    t0, t1 = n * thread // n_threads, n * (thread + 1) // n_threads
    norm_rows(m, s.x, s.x_stride, layer.attn_norm, s.normed, t0, t1)
    if reads_codes(layer.attn_kv_a_mqa.format):
        quantize(s.normed, True, n, t0, t1)
        quantize_rest(s.normed, s.rest, n, t0, t1)
    barrier(team, n_threads)
    scratch = scratch_of(s, thread)
    matmul_twice(layer.attn_kv_a_mqa, s.normed, s.rest, 0, n, s.kv_a, s.kv_a_stride, scratch, thread, n_threads)
    barrier(team, n_threads)
    store_latents(m, s, layer.attn_kv_a_norm, i, t0, t1)
    barrier(team, n_threads)


@kernel(void(model_record, layer_record, step_record, int64, int64, int64, int64))
def attention(m, layer, s, i, team, thread, n_threads):
    """x += attn_output(v_b(attend(...))): multi-head latent attention, absorbed (DeepSeek-V2, section 2.1)."""
    t0, t1, scratch = s.n_tokens * thread // n_threads, s.n_tokens * (thread + 1) // n_threads, scratch_of(s, thread)
    heads = m.num_attention_heads
    h0, h1 = s.n_tokens * heads * thread // n_threads, s.n_tokens * heads * (thread + 1) // n_threads

    norm_rows(m, s.x, s.x_stride, layer.attn_norm, s.normed, t0, t1)
    q_codes, kv_codes = reads_codes(layer.attn_q_a.format), reads_codes(layer.attn_kv_a_mqa.format)
    quantize(s.normed, q_codes or kv_codes, s.n_tokens, t0, t1)
    if q_codes or kv_codes:  # two int8 terms: these small matrices decide where every head looks
        quantize_rest(s.normed, s.rest, s.n_tokens, t0, t1)
    barrier(team, n_threads)
    matmul_twice(layer.attn_q_a, s.normed, s.rest, 0, s.n_tokens, s.q_a, s.q_a_stride, scratch, thread, n_threads)
    matmul_twice(layer.attn_kv_a_mqa, s.normed, s.rest, 0, s.n_tokens, s.kv_a, s.kv_a_stride, scratch, thread, n_threads)
    barrier(team, n_threads)
    norm_rows(m, s.q_a, s.q_a_stride, layer.attn_q_a_norm, s.q_normed, t0, t1)
    quantize(s.q_normed, reads_codes(layer.attn_q_b.format), s.n_tokens, t0, t1)
    store_latents(m, s, layer.attn_kv_a_norm, i, t0, t1)
    barrier(team, n_threads)
    q_stride = (m.qk_nope_head_dim + m.qk_rope_head_dim) * 4
    matmul(layer.attn_q_b, s.q_normed, s.n_tokens, s.q.floats, heads * q_stride, STORE, scratch, thread, n_threads)
    barrier(team, n_threads)
    place_rope(m, s, t0, t1)
    quantize(s.q, reads_codes(layer.attn_k_b.format), s.n_tokens, h0, h1)
    barrier(team, n_threads)
    matmul_heads(layer.attn_k_b, s.q, s.n_tokens, heads, s.query, heads * m.row * 4, m.row * 4, scratch, thread, n_threads)
    round_cache(m, s, i, thread, n_threads)
    barrier(team, n_threads)
    context_codes = reads_codes(layer.attn_v_b.format)
    attend(m, s, i, context_codes, team, thread, n_threads)
    barrier(team, n_threads)
    if s.n_tokens == 1:
        merge(m, s, thread, n_threads)
        barrier(team, n_threads)
        quantize(s.context, context_codes, s.n_tokens, h0, h1)
        barrier(team, n_threads)
    v_stride = m.v_head_dim * 4
    matmul_heads(
        layer.attn_v_b, s.context, s.n_tokens, heads, s.heads.floats, s.heads.floats_stride, v_stride, scratch, thread, n_threads
    )
    barrier(team, n_threads)
    quantize(s.heads, reads_codes(layer.attn_output.format), s.n_tokens, t0, t1)
    barrier(team, n_threads)
    matmul(layer.attn_output, s.heads, s.n_tokens, s.x, s.x_stride, ADD, scratch, thread, n_threads)
    barrier(team, n_threads)


@kernel(void(model_record, layer_record, step_record, int64, int64, int64))
def dense_ffn(m, layer, s, team, thread, n_threads):
    """x += down(silu(gate x) * up x): the first layers."""
    t0, t1, scratch = s.n_tokens * thread // n_threads, s.n_tokens * (thread + 1) // n_threads, scratch_of(s, thread)
    norm_rows(m, s.x, s.x_stride, layer.ffn_norm, s.normed, t0, t1)
    quantize(s.normed, reads_codes(layer.ffn_gate.format) or reads_codes(layer.ffn_up.format), s.n_tokens, t0, t1)
    barrier(team, n_threads)
    gated(layer.ffn_gate, layer.ffn_up, 0, s.normed, 0, s.n_tokens, s.dense, s.dense_up, 0, scratch, thread, n_threads)
    barrier(team, n_threads)
    quantize(s.dense, reads_codes(layer.ffn_down.format), s.n_tokens, t0, t1)
    barrier(team, n_threads)
    matmul(layer.ffn_down, s.dense, s.n_tokens, s.x, s.x_stride, ADD, scratch, thread, n_threads)
    barrier(team, n_threads)


@kernel(void(model_record, layer_record, step_record, int64, int64, int64))
def moe_ffn(m, layer, s, team, thread, n_threads):
    """x += sum of weight * expert(x) over the chosen experts, + the shared expert: DeepSeek-V3's mixture of experts."""
    t0, t1, scratch = s.n_tokens * thread // n_threads, s.n_tokens * (thread + 1) // n_threads, scratch_of(s, thread)
    norm_rows(m, s.x, s.x_stride, layer.ffn_norm, s.normed, t0, t1)
    experts = reads_codes(layer.ffn_gate_exps.format) or reads_codes(layer.ffn_up_exps.format)
    shared = reads_codes(layer.ffn_gate_shexp.format) or reads_codes(layer.ffn_up_shexp.format)
    quantize(s.normed, experts or shared or reads_codes(layer.ffn_gate_inp.format), 1, t0, t1)  # an expert may have one token
    barrier(team, n_threads)
    matmul(layer.ffn_gate_inp, s.normed, s.n_tokens, s.router, s.router_stride, STORE, scratch, thread, n_threads)
    barrier(team, n_threads)
    route(m, s, layer.exp_probs_b, t0, t1)
    barrier(team, n_threads)
    if thread == 0:
        gather(m, s)
    barrier(team, n_threads)
    experts_gated(m, s, layer.ffn_gate_exps, layer.ffn_up_exps, team, thread, n_threads)
    gated(layer.ffn_gate_shexp, layer.ffn_up_shexp, 0, s.normed, 0, s.n_tokens, s.shared, s.dense_up, 0, scratch, thread, n_threads)
    barrier(team, n_threads)
    pairs = s.n_tokens * m.num_experts_per_tok
    quantize(s.routed, reads_codes(layer.ffn_down_exps.format), 1, pairs * thread // n_threads, pairs * (thread + 1) // n_threads)
    quantize(s.shared, reads_codes(layer.ffn_down_shexp.format), s.n_tokens, t0, t1)
    barrier(team, n_threads)
    experts_down(m, s, layer.ffn_down_exps, team, thread, n_threads)
    matmul(layer.ffn_down_shexp, s.shared, s.n_tokens, s.x, s.x_stride, ADD, scratch, thread, n_threads)
    barrier(team, n_threads)


@kernel(void(model_record, step_record, int64, int64, int64))
def logits(m, s, team, thread, n_threads):
    """logits (n_logits, vocab_size) = output(RMSNorm(x)) of the last n_logits tokens.

    No later layer averages out what is rounded here, so a quantized output matrix reads x in two int8 terms.
    """
    first = s.n_tokens - s.n_logits
    t0, t1 = first + s.n_logits * thread // n_threads, first + s.n_logits * (thread + 1) // n_threads
    twice = reads_codes(m.output.format)
    norm_rows(m, s.x, s.x_stride, m.output_norm, s.normed, t0, t1)
    quantize(s.normed, twice, s.n_logits, t0, t1)
    if twice:
        quantize_rest(s.normed, s.rest, s.n_logits, t0, t1)
    barrier(team, n_threads)
    scratch = scratch_of(s, thread)
    matmul_twice(m.output, s.normed, s.rest, first, s.n_logits, s.logits, s.logits_stride, scratch, thread, n_threads)
    barrier(team, n_threads)


@kernel(int64(model_record, layer_array, step_record, step_record, int64, int64, int64), entry=True)
def forward(m, layers, s, tail, team, thread, n_threads):
    """Run s.n_tokens tokens through the model: fills their cache rows and the logits of the last tail.n_logits.

    m, layers, s   records of kernels/layout.py; s.x holds the embeddings and is overwritten
    tail           the step as the last layer sees it: only those of the last tokens that somebody asks for, perhaps none
    team           address of the team's flags
    Returns DONE, or CANCELLED if the cancel flag was raised: the cache rows of this step are then not complete.
    """
    for i in range(m.num_hidden_layers):
        if i == m.num_hidden_layers - 1 and tail.n_tokens < s.n_tokens:
            cache_latents(m, layers[i], s, i, s.n_tokens - tail.n_tokens, team, thread, n_threads)
            s = tail
            if s.n_tokens == 0:
                return DONE
        attention(m, layers[i], s, i, team, thread, n_threads)
        if s.importance:
            note_attention(m, s, i, thread, n_threads)
            barrier(team, n_threads)
        if i < m.first_k_dense_replace:
            dense_ffn(m, layers[i], s, team, thread, n_threads)
        else:
            moe_ffn(m, layers[i], s, team, thread, n_threads)
        if s.importance:
            note_ffn(m, s, i, thread, n_threads)
        if thread == 0:
            atomic_store(team + STOP, atomic_load(team + CANCEL))
            atomic_store(team + DONE_PARTS, i + 1)
        barrier(team, n_threads)
        if atomic_load(team + STOP):
            return CANCELLED
    logits(m, s, team, thread, n_threads)
    if s.importance:
        note_output(m, s, thread, n_threads)
    return DONE


note_compiled()
