"""One decoder step, from embeddings to logits: GLM-4.7-Flash on a page.

A step holds T tokens of one or several sequences: a token that is being written, a piece of a prompt, a draft to verify. Only
attention asks whose they are. All threads run forward() at once and draw pieces of each line's work; `wait` stands where the next
line reads what other threads wrote, `ready` waits and rounds what was written to int8, where a quantized matrix reads it.

    x (T, hidden_size)                                the residual stream
    normed, q_normed, q, context, heads, hidden       rows in float32 and, rounded, in int8
"""

from numba import int64, void

import glmrun.kernels.checks  # noqa: F401  # no part of a step, but what is below this page is compiled before the first start
from glmrun.kernels.attention.attend import attend
from glmrun.kernels.attention.columns import round_cache
from glmrun.kernels.compiled.cache import kernel, note_compiled
from glmrun.kernels.disk import ask_likely
from glmrun.kernels.experts import experts_down, experts_gated, gated, route
from glmrun.kernels.importance import layer_done, logits_done
from glmrun.kernels.layout import layer_array, layer_record, model_record, step_record, worker_array, worker_record
from glmrun.kernels.likely import sharpen_likeliest
from glmrun.kernels.matmul import add_linear, linear, linear_exact, linear_heads
from glmrun.kernels.rows import keep_wanted, norm, place_queries, ready, store_latents
from glmrun.kernels.team import wait

DONE, CANCELLED, FAILED = 0, 1, 2


@kernel(void(model_record, layer_record, step_record, worker_record))
def latents(m, layer, s, w):
    """kv_a = W x, and the cache's rows of it: [RMSNorm(latent) | rotated key]; these small matrices read x in two int8 terms."""
    norm(m, s, s.x, s.x_stride, layer.attn_norm, s.normed, layer.reads_normed, w)
    wait(w)
    few, many = s.n_few, s.n_tokens - s.n_few
    linear_exact(layer.attn_kv_a_mqa, s.normed, 0, (few, many), 0, (s.kv_a, s.kv_a_stride, 0), w)
    wait(w)
    store_latents(m, layer, s, w)


@kernel(void(model_record, layer_record, step_record, worker_record))
def attention(m, layer, s, w):
    """x += attn_output(v_b(attend(k_b(q), cache))): multi-head latent attention, absorbed (DeepSeek-V2, section 2.1)."""
    heads, v_bytes, row_bytes = m.num_attention_heads, m.v_head_dim * 4, m.row * 4
    latents(m, layer, s, w)
    linear_exact(layer.attn_q_a, s.normed, 0, (s.n_few, s.n_tokens - s.n_few), 0, (s.q_a, s.q_a_stride, 0), w)
    wait(w)
    norm(m, s, s.q_a, s.q_a_stride, layer.attn_q_a_norm, s.q_normed, layer.reads_q_normed, w)
    wait(w)
    linear(s, layer.attn_q_b, s.q_normed, (s.q.floats, heads * s.q.floats_stride, 0), w)
    place_queries(m, layer, s, w)
    linear_heads(s, layer.attn_k_b, s.q, heads, (s.query, heads * row_bytes, 0), row_bytes, w)
    round_cache(m, layer, s, w)
    attend(m, layer, s, w)
    linear_heads(s, layer.attn_v_b, s.context, heads, (s.heads.floats, s.heads.floats_stride, 0), v_bytes, w)
    ready(s.heads, s.n_tokens, s.n_few, layer.reads_heads, w)
    add_linear(s, layer.attn_output, s.heads, w)


@kernel(void(model_record, layer_record, step_record, worker_record))
def dense_ffn(m, layer, s, w):
    """x += down(silu(gate x) * up x): the first layers."""
    norm(m, s, s.x, s.x_stride, layer.ffn_norm, s.ffn_normed, layer.reads_ffn_normed, w)
    wait(w)
    gated(s, layer.ffn_gate, layer.ffn_up, s.ffn_normed, s.dense, w)
    ready(s.dense, s.n_tokens, s.n_few, layer.reads_hidden, w)
    add_linear(s, layer.ffn_down, s.dense, w)


@kernel(void(model_record, layer_record, step_record, worker_record))
def moe_ffn(m, layer, s, w):
    """x += sum of weight * expert(x) over the chosen experts, + the shared expert: DeepSeek-V3's mixture of experts."""
    pairs = s.n_tokens * m.num_experts_per_tok
    norm(m, s, s.x, s.x_stride, layer.ffn_norm, s.ffn_normed, layer.reads_ffn_normed, w)
    wait(w)
    linear(s, layer.ffn_gate_inp, s.ffn_normed, (s.router, s.router_stride, 0), w)
    route(m, layer, s, w)
    experts_gated(m, layer, s, w)
    gated(s, layer.ffn_gate_shexp, layer.ffn_up_shexp, s.ffn_normed, s.shared, w)
    ready(s.routed, pairs, pairs, layer.reads_routed, w)
    ready(s.shared, s.n_tokens, s.n_few, layer.reads_hidden, w)
    experts_down(m, layer, s, w)


@kernel(void(model_record, step_record, worker_record))
def logits(m, s, w):
    """logits (n_logits, vocab_size) = output(RMSNorm(x)), x in two int8 terms: no later layer averages out what is rounded here."""
    norm(m, s, s.x, s.x_stride, m.output_norm, s.normed, m.reads_output, w)
    wait(w)
    counts, first = (s.logits_few, s.n_logits - s.logits_few), s.n_tokens - s.n_logits
    linear_exact(m.output, s.normed, first, counts, s.exact, (s.logits, s.logits_stride, 0), w)
    sharpen_likeliest(m, s, first, w)
    logits_done(m, s, w)


@kernel(int64(model_record, layer_array, step_record, worker_array, int64, int64, int64), entry=True)
def forward(m, layers, s, workers, flags, thread, n_threads):
    """Run the step's tokens through the model: fills their cache rows and the logits that are asked for.

    m, layers, s, workers   records of kernels/layout.py; s.x holds the embeddings and is overwritten
    flags                   address of the team's flags
    Returns DONE, CANCELLED if the cancel flag was raised, or on some thread FAILED if the disk behind the weights has failed: the
    cache rows of this step are then not complete.
    """
    w = workers[thread]
    w.flags, w.thread, w.n_threads, w.ticket, w.passed, w.failed = flags, thread, n_threads, -1, 0, 0
    for i in range(m.num_hidden_layers):
        if i == m.num_hidden_layers - 1 and s.n_wanted < s.n_tokens:
            latents(m, layers[i], s, w)
            wait(w)
            keep_wanted(s, m.hidden_size, w)
            if s.n_tokens == 0:
                return DONE
        ask_likely(m, layers[i], s, w)
        attention(m, layers[i], s, w)
        if layers[i].is_dense:
            dense_ffn(m, layers[i], s, w)
        else:
            moe_ffn(m, layers[i], s, w)
        if not layer_done(m, layers[i], s, w):
            return FAILED if w.failed else CANCELLED
    logits(m, s, w)
    return DONE


note_compiled()
