"""Hyper-parameters of a GGUF file, and proof that its tensors have the shapes that follow from them.

Our own files say everything; files of others leave things out. What is missing is guessed here and nowhere else.
"""

from typing import Any

import numpy as np

from glmrun.gguf.dialects import fused
from glmrun.gguf.file import GGUFFile
from quant.config import Config, tensor_shapes
from quant.errors import UserError, brief
from quant.vocabulary import UNUSED

ARCHITECTURES = ("deepseek2", "glm4moelite")  # what GGUF files call this family: most of them, and those in Ollama's library
DEFAULT_CONTEXT = 32_768  # tokens, where the model takes that many
MAX_PADDING = 1 << 16  # rows of the embedding without a token
_GATING = {1: "softmax", 2: "sigmoid"}

# config.json's name -> (GGUF key below the architecture, type)
_KEYS: dict[str, tuple[str, type]] = {
    "hidden_size": ("embedding_length", int),
    "first_k_dense_replace": ("leading_dense_block_count", int),
    "intermediate_size": ("feed_forward_length", int),
    "moe_intermediate_size": ("expert_feed_forward_length", int),
    "n_routed_experts": ("expert_count", int),
    "num_experts_per_tok": ("expert_used_count", int),
    "n_shared_experts": ("expert_shared_count", int),
    "num_attention_heads": ("attention.head_count", int),
    "q_lora_rank": ("attention.q_lora_rank", int),
    "kv_lora_rank": ("attention.kv_lora_rank", int),
    "qk_rope_head_dim": ("rope.dimension_count", int),
    "max_position_embeddings": ("context_length", int),
    "rope_theta": ("rope.freq_base", float),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float),
    "routed_scaling_factor": ("expert_weights_scale", float),
}


def config_from_gguf(file: GGUFFile) -> Config:
    """The Config that the file's metadata declares, with every tensor it needs present in the right shape.

    Raises UserError for another architecture, a missing or impossible hyper-parameter, a missing or misshapen tensor.
    """
    found = file.metadata.get("general.architecture")
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise UserError(
            f"{file.path}: architecture {brief(found)}; glmrun runs GLM-4.7-Flash, whose files say {' or '.join(ARCHITECTURES)}"
        )
    kind = file.metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise UserError(f"{file.path}: its general.type is {brief(kind)}, not a model; glmrun expects the model itself")
    values = {name: _read(file, key, kind) for name, (key, kind) in _KEYS.items()}
    head, values["v_head_dim"] = _head_widths(file, values["kv_lora_rank"], values["qk_rope_head_dim"])
    values["qk_nope_head_dim"] = head - values["qk_rope_head_dim"]
    values["norm_topk_prob"] = _read(file, "expert_weights_norm", bool, False)
    values["n_group"] = _read(file, "expert_group_count", int, 1)
    values["topk_group"] = _read(file, "expert_group_used_count", int, 1)
    gating = _read(file, "expert_gating_func", int, 2)  # most published files leave it out; this model's router is a sigmoid
    if gating not in _GATING:
        raise UserError(f"{file.path}: expert_gating_func is {gating}; glmrun knows 1 (softmax) and 2 (sigmoid)")
    values["scoring_func"] = _GATING[gating]
    values["num_hidden_layers"], values["num_nextn_predict_layers"] = _layers(file)
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    if "token_embd.weight" not in file.tensors or not any(name.startswith("blk.0.") for name in file.tensors):
        raise UserError(f"{file.path}: holds no whole model: token_embd.weight or the first layer is missing; fetch the main file")
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    try:
        config = Config(**values)
    except UserError as why:
        raise UserError(f"{file.path}: {why}") from None
    _check_tensors(file, config)
    return config


def _read(file: GGUFFile, key: str, kind: type, default: Any = None) -> Any:
    key = f"{file.metadata['general.architecture']}.{key}"
    value = file.metadata.get(key, default)
    if value is None:
        raise UserError(f"{file.path}: {key} is missing from the file's metadata")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{file.path}: {key} is {brief(value)}; glmrun expects {kind.__name__}")
    return value


def _head_widths(file: GGUFFile, kv_lora_rank: int, qk_rope_head_dim: int) -> tuple[int, int]:
    """(key, value) width of a head. A file states it, and the width of a cached row, under two pairs of keys.

    llama.cpp puts the head's under the names that end in _mla, Ollama the other way round; the oldest files have one pair only.
    """
    cached, pairs = (kv_lora_rank + qk_rope_head_dim, kv_lora_rank), []
    for suffix in ("_mla", ""):
        if f"{file.metadata['general.architecture']}.attention.key_length{suffix}" in file.metadata:
            pairs.append(tuple(_read(file, f"attention.{part}_length{suffix}", int) for part in ("key", "value")))
    if not pairs:
        _read(file, "attention.key_length_mla", int)
    return next((pair for pair in pairs if pair != cached), pairs[0])


def _layers(file: GGUFFile) -> tuple[int, int]:
    """(decoder layers, next-token-prediction layers): some converters count a prediction layer that they left out."""
    blocks, nextn = _read(file, "block_count", int), _read(file, "nextn_predict_layers", int, 0)
    if nextn and f"blk.{blocks - 1}.nextn.eh_proj.weight" not in file.tensors:
        nextn, blocks = 0, blocks - (f"blk.{blocks - 1}.attn_norm.weight" not in file.tensors)
    return blocks - nextn, nextn


def _check_tensors(file: GGUFFile, config: Config) -> None:
    for wanted, shape in tensor_shapes(config).items():
        name = wanted
        tensor, other = file.tensors.get(wanted), fused(config, wanted)
        if tensor is None and other:
            name, shape = other[:2]
            tensor = file.tensors.get(name)
        if tensor is None:
            raise UserError(f"{file.path}: the tensor {wanted} is missing; its metadata promises a model that needs it")
        if tensor.shape != shape:
            raise UserError(f"{file.path}: {name} has the shape {tensor.shape}; its metadata promises {shape}")


def whole_vocabulary(metadata: dict[str, Any], n_rows: int) -> dict[str, Any]:
    """The metadata with a token for every row of the embedding: some files list no tokens for the rows that pad it."""
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, np.ndarray) or len(tokens) != len(types):
        return metadata
    padding = range(len(tokens), n_rows)
    if not 0 < len(padding) <= MAX_PADDING:
        return metadata
    return metadata | {
        "tokenizer.ggml.tokens": tokens + [f"[PAD{i}]" for i in padding],
        "tokenizer.ggml.token_type": np.append(types, np.full(len(padding), UNUSED, types.dtype)),
    }
