"""From a Hugging Face checkpoint's names to a GGUF file's: which rows of which tensor, and the metadata.

Experts are stacked, kv_b is split into its key half (transposed, so that queries can be absorbed into the latent space)
and its value half; everything else is renamed.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.config import Config
from quant.errors import UserError, brief
from quant.gguf_header import MetadataValue
from quant.vocabulary import Vocabulary

ARCHITECTURE = "deepseek2"  # what llama.cpp calls models of this build
_GATING = {"softmax": 1, "sigmoid": 2}
# generation_config.json's key -> (key below general.sampling, lowest and highest value).
_SAMPLING = {
    "temperature": ("temp", 0, 1e9),
    "top_k": ("top_k", -1, (1 << 31) - 1),
    "top_p": ("top_p", 0, 1),
    "min_p": ("min_p", 0, 1),
    "repetition_penalty": ("penalty_repeat", 1e-6, 1e6),
}


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one source tensor, all leading dimensions counted as rows."""

    source: str
    shape: tuple[int, ...]  # the whole source tensor's
    first_row: int
    n_rows: int
    transposed: bool = False  # the piece is turned before it is stored: (n_rows, columns) -> (columns, n_rows)


def pieces(config: Config, names: Collection[str]) -> dict[str, list[Piece]]:
    """{GGUF tensor name: the pieces whose rows, one after the other, are the tensor}, in the order of the file.

    names   the checkpoint's tensor names; they only decide whether a layer's experts are stored one by one or fused
    """
    c = config
    found = {"token_embd.weight": [_whole("model.embed_tokens.weight", c.vocab_size, c.hidden_size)]}
    for i in range(c.n_blocks):
        layer = f"model.layers.{i}."
        parts = _attention(c, layer)
        if i < c.first_k_dense_replace:
            parts |= _dense(c, layer)
        else:
            parts |= _moe(c, layer, fused=layer + "mlp.experts.gate_up_proj" in names)
        if i >= c.num_hidden_layers:
            parts |= _next_token_prediction(c, layer)
        found |= {f"blk.{i}.{name}": part for name, part in parts.items()}
    found["output_norm.weight"] = [_whole("model.norm.weight", c.hidden_size)]
    if not c.tie_word_embeddings:
        found["output.weight"] = [_whole("lm_head.weight", c.vocab_size, c.hidden_size)]
    return found


def _whole(name: str, *shape: int) -> Piece:
    return Piece(name, shape, 0, shape[0] if len(shape) == 2 else 1)


def _attention(c: Config, layer: str) -> dict[str, list[Piece]]:
    a, heads, per_head = layer + "self_attn.", c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim
    kv_b, kv_b_shape = a + "kv_b_proj.weight", (heads * per_head, c.kv_lora_rank)
    return {
        "attn_norm.weight": [_whole(layer + "input_layernorm.weight", c.hidden_size)],
        "attn_q_a.weight": [_whole(a + "q_a_proj.weight", c.q_lora_rank, c.hidden_size)],
        "attn_q_a_norm.weight": [_whole(a + "q_a_layernorm.weight", c.q_lora_rank)],
        "attn_q_b.weight": [_whole(a + "q_b_proj.weight", heads * c.qk_head_dim, c.q_lora_rank)],
        "attn_kv_a_mqa.weight": [_whole(a + "kv_a_proj_with_mqa.weight", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size)],
        "attn_kv_a_norm.weight": [_whole(a + "kv_a_layernorm.weight", c.kv_lora_rank)],
        "attn_k_b.weight": [Piece(kv_b, kv_b_shape, h * per_head, c.qk_nope_head_dim, True) for h in range(heads)],
        "attn_v_b.weight": [Piece(kv_b, kv_b_shape, h * per_head + c.qk_nope_head_dim, c.v_head_dim) for h in range(heads)],
        "attn_output.weight": [_whole(a + "o_proj.weight", c.hidden_size, heads * c.v_head_dim)],
        "ffn_norm.weight": [_whole(layer + "post_attention_layernorm.weight", c.hidden_size)],
    }


def _dense(c: Config, layer: str) -> dict[str, list[Piece]]:
    return {
        "ffn_gate.weight": [_whole(layer + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size)],
        "ffn_up.weight": [_whole(layer + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size)],
        "ffn_down.weight": [_whole(layer + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size)],
    }


def _moe(c: Config, layer: str, fused: bool) -> dict[str, list[Piece]]:
    m, experts, hidden, width = layer + "mlp.", c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
    shared = c.n_shared_experts * width
    if fused:  # one tensor for all experts; the gate's rows stand before the up projection's
        both, both_shape = m + "experts.gate_up_proj", (experts, 2 * width, hidden)
        gate = [Piece(both, both_shape, 2 * width * e, width) for e in range(experts)]
        up = [Piece(both, both_shape, 2 * width * e + width, width) for e in range(experts)]
        down = [Piece(m + "experts.down_proj", (experts, hidden, width), hidden * e, hidden) for e in range(experts)]
    else:
        gate = [_whole(f"{m}experts.{e}.gate_proj.weight", width, hidden) for e in range(experts)]
        up = [_whole(f"{m}experts.{e}.up_proj.weight", width, hidden) for e in range(experts)]
        down = [_whole(f"{m}experts.{e}.down_proj.weight", hidden, width) for e in range(experts)]
    return {
        "ffn_gate_inp.weight": [_whole(m + "gate.weight", experts, hidden)],
        "exp_probs_b.bias": [_whole(m + "gate.e_score_correction_bias", experts)],
        "ffn_gate_exps.weight": gate,
        "ffn_up_exps.weight": up,
        "ffn_down_exps.weight": down,
        "ffn_gate_shexp.weight": [_whole(m + "shared_experts.gate_proj.weight", shared, hidden)],
        "ffn_up_shexp.weight": [_whole(m + "shared_experts.up_proj.weight", shared, hidden)],
        "ffn_down_shexp.weight": [_whole(m + "shared_experts.down_proj.weight", hidden, shared)],
    }


def _next_token_prediction(c: Config, layer: str) -> dict[str, list[Piece]]:
    return {
        "nextn.eh_proj.weight": [_whole(layer + "eh_proj.weight", c.hidden_size, 2 * c.hidden_size)],
        "nextn.enorm.weight": [_whole(layer + "enorm.weight", c.hidden_size)],
        "nextn.hnorm.weight": [_whole(layer + "hnorm.weight", c.hidden_size)],
        "nextn.shared_head_norm.weight": [_whole(layer + "shared_head.norm.weight", c.hidden_size)],
        "nextn.shared_head_head.weight": [_whole(layer + "shared_head.head.weight", c.vocab_size, c.hidden_size)],
        "nextn.embed_tokens.weight": [_whole(layer + "embed_tokens.weight", c.vocab_size, c.hidden_size)],
    }


def metadata(
    config: Config,
    vocabulary: Vocabulary,
    *,
    name: str,
    file_type: int,
    n_weights: int,
    license: str | None = None,
    chat_template: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    eos_token_ids: Collection[int] = (),
    pad_token_id: int | None = None,
) -> dict[str, MetadataValue]:
    """Every key of the file, in order: general, hyper-parameters, tokenizer.

    file_type       the recipe's number for general.file_type
    n_weights       values in all tensors, for the size label
    sampling        generation_config.json
    eos_token_ids   config.json's; where the vocabulary has GLM's end tokens by name, those are written too
    Source: the key lists of published GLM-4.7-Flash files; expert_gating_func is written although those leave it out,
    because readers then have to guess the router's function from the model's size.
    """
    found: dict[str, MetadataValue] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.basename": name,
        "general.size_label": _size_label(config, n_weights),
        "general.quantized_by": "glmrun",
        "general.quantization_version": 2,
        "general.file_type": file_type,
    }
    if license:
        found["general.license"] = license
    found |= dict(_sampling(sampling or {}))
    found |= hyper_parameters(config)
    found |= {f"tokenizer.{key}": value for key, value in _tokenizer(vocabulary, list(eos_token_ids), pad_token_id).items()}
    if chat_template:
        found["tokenizer.chat_template"] = chat_template
    return found


def hyper_parameters(c: Config) -> dict[str, MetadataValue]:
    """The keys that say what the model computes."""
    found: dict[str, MetadataValue] = {
        "block_count": c.n_blocks,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "leading_dense_block_count": c.first_k_dense_replace,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1,  # all heads share the one latent row that is cached
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "attention.q_lora_rank": c.q_lora_rank,
        "attention.kv_lora_rank": c.kv_lora_rank,
        "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        "attention.value_length": c.kv_lora_rank,
        "attention.key_length_mla": c.qk_head_dim,
        "attention.value_length_mla": c.v_head_dim,
        "rope.dimension_count": c.qk_rope_head_dim,
        "rope.freq_base": float(c.rope_theta),
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_count": c.n_routed_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_shared_count": c.n_shared_experts,
        "expert_group_count": c.n_group,
        "expert_group_used_count": c.topk_group,
        "expert_weights_scale": float(c.routed_scaling_factor),
        "expert_weights_norm": c.norm_topk_prob,
        "expert_gating_func": _GATING[c.scoring_func],
    }
    if c.num_nextn_predict_layers:
        found["nextn_predict_layers"] = c.num_nextn_predict_layers
    return {f"{ARCHITECTURE}.{key}": value for key, value in found.items()}


def _tokenizer(v: Vocabulary, eos: list[int], pad: int | None) -> dict[str, MetadataValue]:
    """Token ids are written only if the vocabulary has the token."""
    end_of_text = v.ids.get("<|endoftext|>")
    eos = eos or [i for i in [end_of_text] if i is not None]
    # The first end token is eos; GLM's other two have keys of their own, and so find any others config.json names.
    turn_ends = [v.ids.get("<|user|>"), v.ids.get("<|observation|>")]
    others = [i for i in eos[1:] if i not in turn_ends]
    eot, eom = (i if i is not None else others.pop(0) if others else None for i in turn_ends)
    ids = {
        "bos": v.ids.get("[gMASK]"),
        "eos": eos[0] if eos else None,
        "eot": eot,
        "eom": eom,
        "unknown": end_of_text,
        "padding": end_of_text if pad is None else pad,
    }
    found: dict[str, MetadataValue] = {"ggml.model": "gpt2", "ggml.pre": v.pre, "ggml.tokens": v.tokens, "ggml.token_type": v.types}
    found["ggml.merges"] = v.merges
    found |= {f"ggml.{key}_token_id": i for key, i in ids.items() if i is not None}
    # The chat template writes the prefix; a reader that adds one too would double it.
    return found | {"ggml.add_bos_token": False}


def _sampling(generation_config: Mapping[str, Any]) -> Iterator[tuple[str, MetadataValue]]:
    for key, (name, low, high) in _SAMPLING.items():
        value = generation_config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f"generation_config.json: {key} is {brief(value)}; glmrun expects a number from {low:g} to {high:g}")
        yield f"general.sampling.{name}", np.int32(value) if name == "top_k" else float(value)


def _size_label(c: Config, n_weights: int) -> str:
    """The "64x2.6B" of file names: experts, times the weights of a model that had but one."""
    moe_layers = c.n_blocks - c.first_k_dense_replace
    per_expert = 3 * c.moe_intermediate_size * c.hidden_size * moe_layers
    n: float = n_weights - per_expert * (c.n_routed_experts - 1)
    for unit in ("", "K", "M", "B"):
        if n < 1000 or unit == "B":
            break
        n /= 1000
    return f"{c.n_routed_experts}x{n:.1f}{unit}" if n < 10 else f"{c.n_routed_experts}x{n:.0f}{unit}"
