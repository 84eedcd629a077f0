"""What the kernels read, as plain records of numbers: weights, activations, the model's sizes, one step's buffers.

Every address is an int64. A WEIGHT is a matrix (or a stack of equal ones, one after another) on the mapped file; an
ACTIVATION is a set of rows in float32 and, if a quantized matrix reads them, in int8.
"""

import numpy as np
from numba import from_dtype, types

F32, F16, Q5_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 6, 8, 12, 14, 30  # GGML's numbers

WEIGHT = np.dtype(
    [
        ("address", np.int64),
        ("format", np.int64),  # GGML type
        ("rows", np.int64),  # of one matrix
        ("columns", np.int64),
        ("row_bytes", np.int64),
    ]
)

ACTIVATION = np.dtype(
    [
        ("floats", np.int64),  # address of float32 (rows, columns), rows `floats_stride` bytes apart
        ("floats_stride", np.int64),
        ("codes", np.int64),  # rows as quantize_row lays them out
        ("codes_stride", np.int64),
        ("columns", np.int64),
    ]
)

# GGUF's tensor names; vectors are addresses of float32 copies.
LAYER = np.dtype(
    [
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
    ]
)

# One step: n_tokens new tokens at positions `position`, `position` + 1, ...; all buffers hold `max_tokens` rows or more.
STEP = np.dtype(
    [
        ("n_tokens", np.int64),
        ("position", np.int64),
        ("n_logits", np.int64),  # of the last tokens
        ("cache", np.int64),  # rows of cached_row.py (layers, capacity)
        ("cache_layer_bytes", np.int64),
        ("rope", np.int64),  # float32 (capacity, qk_rope_head_dim / 2, 2): cosine and sine, of the positions so far
        ("x", np.int64),  # float32 (n_tokens, hidden_size): the residual stream, holds the embeddings when the step begins
        ("x_stride", np.int64),
        ("normed", ACTIVATION),  # (n_tokens, hidden_size)
        ("rest", ACTIVATION),  # of normed: what rounding to int8 took away, for the output matrix
        ("q_a", np.int64),  # float32 (n_tokens, q_lora_rank)
        ("q_a_stride", np.int64),
        ("q_normed", ACTIVATION),  # (n_tokens, q_lora_rank)
        ("kv_a", np.int64),  # float32 (n_tokens, kv_lora_rank + qk_rope_head_dim), each followed by `row` padded values
        ("kv_a_stride", np.int64),
        ("q", ACTIVATION),  # (n_tokens * heads, qk_nope_head_dim), each followed by its rope part
        ("query", np.int64),  # float32 (n_tokens * heads, row): absorbed queries
        ("context", ACTIVATION),  # (n_tokens * heads, kv_lora_rank): what attention gathers; then 16 for its bookkeeping
        ("partial", np.int64),  # what one token gathers from each segment of positions, before they are joined
        ("scores", np.int64),  # attention's scratch, for each thread
        ("columns", np.int64),  # cached rows of one layer in int8, in tiles: what several tokens attend to
        ("scratch", np.int64),  # one panel and one tile for each thread
        ("scratch_stride", np.int64),
        ("heads", ACTIVATION),  # (n_tokens, heads * v_head_dim)
        ("router", np.int64),  # float32 (n_tokens, n_routed_experts)
        ("router_stride", np.int64),
        ("expert", np.int64),  # int64 (n_tokens, num_experts_per_tok)
        ("expert_weight", np.int64),  # float32, likewise
        ("first", np.int64),  # int64 (n_routed_experts + 1): where an expert's tokens begin in the two lists below
        ("token", np.int64),  # int64 (n_tokens * num_experts_per_tok): tokens sorted by expert
        ("weight", np.int64),  # float32, likewise
        ("routed", ACTIVATION),  # (n_tokens * num_experts_per_tok, moe_intermediate_size)
        ("routed_up", np.int64),
        ("dense", ACTIVATION),  # (n_tokens, intermediate_size)
        ("shared", ACTIVATION),  # (n_tokens, n_shared_experts * moe_intermediate_size), in the same memory
        ("dense_up", np.int64),  # for both
        ("logits", np.int64),  # float32 (n_logits, vocab_size)
        ("logits_stride", np.int64),
        ("importance", np.int64),  # the table of kernels/importance.py, or 0: nobody wants to know
    ]
)

weight_record, activation_record, layer_record = from_dtype(WEIGHT), from_dtype(ACTIVATION), from_dtype(LAYER)
model_record, step_record = from_dtype(MODEL), from_dtype(STEP)
layer_array = types.Array(layer_record, 1, "C")
