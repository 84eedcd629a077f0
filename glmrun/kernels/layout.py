"""What the kernels read, as plain records of numbers: weights, activations, the model's sizes, one step's buffers.

Every address is an int64. A WEIGHT is a matrix (or a stack of equal ones, equally far apart) on the mapped file; an ACTIVATION is
a set of rows in float32 and, if a quantized matrix reads them, in int8.
"""

import numpy as np
from numba import from_dtype, types
from numba.extending import intrinsic

# GGML's numbers.
F32, F16, BF16, Q8_0 = 0, 1, 30, 8
Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4 = 2, 3, 6, 7, 20, 39
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS = 10, 11, 12, 13, 14, 23

WEIGHT = np.dtype(
    [
        ("address", np.int64),
        ("format", np.int64),  # GGML type
        ("rows", np.int64),  # of one matrix
        ("columns", np.int64),
        ("row_bytes", np.int64),
        ("stride", np.int64),  # bytes from a matrix of the stack to the next
    ]
)

ACTIVATION = np.dtype(
    [
        ("floats", np.int64),  # address of float32 (rows, columns), rows `floats_stride` bytes apart
        ("floats_stride", np.int64),
        ("codes", np.int64),  # rows as quantize_row lays them out
        ("codes_stride", np.int64),
        ("rest", np.int64),  # what rounding to codes took away, rounded in turn; 0 where no matrix reads two terms
        ("columns", np.int64),
    ]
)

# How rows are rounded for the matrices that read them: not at all, to int8, to int8 in two terms, or to int8 for few and for many.
FLOATS, CODES, TWO_TERMS, EITHER = 0, 1, 2, 3

# GGUF's tensor names; vectors are addresses of float32 copies. `reads_` says how what these matrices read is rounded.
LAYER = np.dtype(
    [
        ("index", np.int64),
        ("is_dense", np.int64),  # one of the first layers, without experts
        ("reads_normed", np.int64),  # attn_q_a, attn_kv_a_mqa
        ("reads_q_normed", np.int64),
        ("reads_q", np.int64),
        ("reads_context", np.int64),
        ("reads_heads", np.int64),
        ("reads_ffn_normed", np.int64),  # gate and up, of all experts, too
        ("reads_hidden", np.int64),  # ffn_down or ffn_down_shexp
        ("reads_routed", np.int64),
        ("attn_norm", np.int64),
        ("attn_q_a", WEIGHT),
        ("attn_q_a_norm", np.int64),
        ("attn_q_b", WEIGHT),
        ("attn_kv_a_mqa", WEIGHT),
        ("attn_kv_a_norm", np.int64),
        ("attn_k_b", WEIGHT),
        ("attn_v_b", WEIGHT),
        ("attn_output", WEIGHT),
        ("ffn_norm", np.int64),
        ("ffn_gate", WEIGHT),  # the first layers
        ("ffn_up", WEIGHT),
        ("ffn_down", WEIGHT),
        ("ffn_gate_inp", WEIGHT),  # the others
        ("exp_probs_b", np.int64),
        ("ffn_gate_exps", WEIGHT),
        ("ffn_up_exps", WEIGHT),
        ("ffn_down_exps", WEIGHT),
        ("ffn_gate_shexp", WEIGHT),
        ("ffn_up_shexp", WEIGHT),
        ("ffn_down_shexp", WEIGHT),
    ]
)

# The sizes under config.json's names, and what the whole model shares.
MODEL = np.dtype(
    [
        ("hidden_size", np.int64),
        ("num_hidden_layers", np.int64),
        ("first_k_dense_replace", np.int64),
        ("n_routed_experts", np.int64),
        ("num_experts_per_tok", np.int64),
        ("num_attention_heads", np.int64),
        ("q_lora_rank", np.int64),
        ("kv_lora_rank", np.int64),
        ("qk_nope_head_dim", np.int64),
        ("qk_rope_head_dim", np.int64),
        ("v_head_dim", np.int64),
        ("norm_topk_prob", np.int64),
        ("softmax_router", np.int64),
        ("rms_norm_eps", np.float32),
        ("routed_scaling_factor", np.float32),
        ("softmax_scale", np.float32),  # 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim)
        ("latent", np.int64),  # kv_lora_rank rounded up to whole vectors: where the rope part of a cached row begins
        ("row", np.int64),  # values of one cached row, padded likewise
        ("cache_type", np.int64),  # of cached rows: F32, F16 or Q8_0 (cached_row.py)
        ("float_attention", np.int64),  # 1: attention in float32, 0: in int8
        ("row_bytes", np.int64),
        ("output_norm", np.int64),
        ("output", WEIGHT),
        ("reads_output", np.int64),
    ]
)

# So many tokens of one sequence that meet the matrices together.
RUN = np.dtype(
    [
        ("first", np.int64),  # of its tokens in the step
        ("n_tokens", np.int64),
        ("position", np.int64),  # of its first token
        ("cache", np.int64),  # the sequence's rows of cached_row.py (layers, capacity)
        ("layer_bytes", np.int64),
        ("columns", np.int64),  # the sequence's columns (layers, capacity / BLOCK): its rows in int8, where attention is in int8
        ("columns_bytes", np.int64),  # of a layer
        ("rounded", np.int64),  # int64 (layers,): how many positions have their columns; whole blocks
        ("tail", np.int64),  # the columns of the last block, where that is not whole
        ("partial", np.int64),  # what its queries gather from each segment of positions, before that is joined
    ]
)

# One step: the tokens of several runs. First stand all runs of few tokens (fewer than activations.FEW), then those of many.
# The tokens that somebody wants logits of stand in the same order; only they pass the last layer.
STEP = np.dtype(
    [
        ("n_tokens", np.int64),
        ("n_few", np.int64),  # tokens of runs of few
        ("n_runs", np.int64),
        ("runs", np.int64),  # RUN (n_runs,)
        ("run", np.int64),  # int64 (n_tokens,): each token's run
        ("n_wanted", np.int64),
        ("wanted", np.int64),  # int64 (n_wanted,): tokens that pass the last layer, and then the same five for them
        ("wanted_few", np.int64),
        ("wanted_n_runs", np.int64),
        ("wanted_runs", np.int64),
        ("wanted_run", np.int64),
        ("n_logits", np.int64),  # of the last of those
        ("logits_few", np.int64),
        ("rope", np.int64),  # float32 (capacity, qk_rope_head_dim / 2, 2): cosine and sine, of the positions so far
        ("x", np.int64),  # float32 (n_tokens, hidden_size): the residual stream, holds the embeddings when the step begins
        ("x_stride", np.int64),
        ("normed", ACTIVATION),  # (n_tokens, hidden_size)
        ("ffn_normed", ACTIVATION),
        ("q_a", np.int64),  # float32 (n_tokens, q_lora_rank)
        ("q_a_stride", np.int64),
        ("q_normed", ACTIVATION),  # (n_tokens, q_lora_rank)
        ("kv_a", np.int64),  # float32 (n_tokens, kv_lora_rank + qk_rope_head_dim), each followed by `row` padded values
        ("kv_a_stride", np.int64),
        ("q", ACTIVATION),  # (n_tokens * heads, qk_nope_head_dim), each followed by its rope part
        ("query", np.int64),  # float32 (n_tokens * heads, row): absorbed queries
        ("context", ACTIVATION),  # (n_tokens * heads, kv_lora_rank): what attention gathers; then 16 for its bookkeeping
        ("heads", ACTIVATION),  # (n_tokens, heads * v_head_dim)
        ("router", np.int64),  # float32 (n_tokens, n_routed_experts)
        ("router_stride", np.int64),
        ("expert", np.int64),  # int64 (n_tokens, num_experts_per_tok)
        ("expert_weight", np.int64),  # float32, likewise
        ("first", np.int64),  # int64 (2 * n_routed_experts + 1): where an expert's few and its many tokens begin in the lists below
        ("count", np.int64),  # int64 (n_routed_experts,): scratch
        ("token", np.int64),  # int64 (n_tokens * num_experts_per_tok): tokens sorted by expert
        ("weight", np.int64),  # float32, likewise
        ("routed", ACTIVATION),  # (n_tokens * num_experts_per_tok, moe_intermediate_size)
        ("dense", ACTIVATION),  # (n_tokens, intermediate_size)
        ("shared", ACTIVATION),  # (n_tokens, n_shared_experts * moe_intermediate_size), in the same memory
        ("logits", np.int64),  # float32 (n_logits, vocab_size)
        ("logits_stride", np.int64),
        ("exact", np.int64),  # int64 (n_logits,): 0 where only the largest logits of a row need be exact
        ("maxima", np.int64),  # float32 (threads, blocks of likely.py)
        ("maxima_stride", np.int64),
        ("from_disk", np.int64),  # 0: the model is in memory, else how disk.py has its experts read
        ("populates", np.int64),  # whether the system maps pages in one call, and so reports what a disk fails to read
        ("uses", np.int64),  # int64 (num_hidden_layers + 1, n_routed_experts): in how many steps from the disk an expert was used
        ("importance", np.int64),  # the table of kernels/importance.py, or 0: nobody wants to know
    ]
)

# One thread.
WORKER = np.dtype(
    [
        ("flags", np.int64),  # address of the team's flags
        ("thread", np.int64),
        ("n_threads", np.int64),
        ("scratch", np.int64),  # one panel and one tile
        ("attention", np.int64),  # attention's scratch
        ("resident", np.int64),  # room for disk.LOOKED_AT bytes
        ("wanted", np.int64),  # bytes of experts that steps from the disk used, so far
        ("missing", np.int64),  # of them: not in memory when they were asked for
        ("failed", np.int64),  # whether the disk has failed to read what this step needs
        ("ticket", np.int64),  # the piece of work that it has drawn since the last wait, or -1
        ("passed", np.int64),  # pieces of loops that it has left since then
    ]
)

weight_record, activation_record, layer_record = from_dtype(WEIGHT), from_dtype(ACTIVATION), from_dtype(LAYER)
model_record, step_record, run_record = from_dtype(MODEL), from_dtype(STEP), from_dtype(RUN)
worker_record = from_dtype(WORKER)
layer_array, worker_array = types.Array(layer_record, 1, "C"), types.Array(worker_record, 1, "C")


@intrinsic
def run_at(context, runs, i):
    """The i-th RUN of those at an address."""

    def generate(c, b, s, a):
        address = b.add(a[0], b.mul(a[1], a[1].type(RUN.itemsize)))
        return b.inttoptr(address, c.get_value_type(run_record))

    return run_record(types.int64, types.int64), generate
