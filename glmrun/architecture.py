"""Hyper-parameters of a GGUF file, and proof that its tensors have the shapes that follow from them.

Our own files say everything; files of others leave things out. What is missing is guessed here and nowhere else.
"""

from typing import Any

from glmrun.gguf_file import GGUFFile
from quant.config import Config, tensor_shapes
from quant.errors import UserError

ARCHITECTURE = "deepseek2"  # what GGUF files call this family
DEFAULT_CONTEXT = 32_768  # tokens, where the model takes that many
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
    "v_head_dim": ("attention.value_length_mla", int),
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
    if found != ARCHITECTURE:
        raise UserError(f"{file.path}: architecture {found!r}; glmrun runs GLM-4.7-Flash, whose files say {ARCHITECTURE!r}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{file.path}: one part of a model split into {file.metadata['split.count']} files; join them into one first"
        )
    values = {name: _read(file, key, kind) for name, (key, kind) in _KEYS.items()}
    values["qk_nope_head_dim"] = _read(file, "attention.key_length_mla", int) - values["qk_rope_head_dim"]
    values["norm_topk_prob"] = _read(file, "expert_weights_norm", bool, False)
    values["n_group"] = _read(file, "expert_group_count", int, 1)
    values["topk_group"] = _read(file, "expert_group_used_count", int, 1)
    gating = _read(file, "expert_gating_func", int, 2)  # most published files leave it out; this model's router is a sigmoid
    if gating not in _GATING:
        raise UserError(f"{file.path}: {ARCHITECTURE}.expert_gating_func is {gating}; glmrun knows 1 (softmax) and 2 (sigmoid)")
    values["scoring_func"] = _GATING[gating]
    values["num_hidden_layers"], values["num_nextn_predict_layers"] = _layers(file)
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path}: token_embd.weight is missing; is this file only a part of a model?")
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    try:
        config = Config(**values)
    except UserError as why:
        raise UserError(f"{file.path}: {why}") from None
    _check_tensors(file, config)
    return config


def _read(file: GGUFFile, key: str, kind: type, default: Any = None) -> Any:
    key = f"{ARCHITECTURE}.{key}"
    value = file.metadata.get(key, default)
    if value is None:
        raise UserError(f"{file.path}: {key} is missing from the file's metadata")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{file.path}: {key} is {value!r}; glmrun expects {kind.__name__}")
    return value


def _layers(file: GGUFFile) -> tuple[int, int]:
    """(decoder layers, next-token-prediction layers): some converters count a prediction layer that they left out."""
    blocks, nextn = _read(file, "block_count", int), _read(file, "nextn_predict_layers", int, 0)
    if nextn and f"blk.{blocks - 1}.nextn.eh_proj.weight" not in file.tensors:
        nextn, blocks = 0, blocks - (f"blk.{blocks - 1}.attn_norm.weight" not in file.tensors)
    return blocks - nextn, nextn


def _check_tensors(file: GGUFFile, config: Config) -> None:
    for name, shape in tensor_shapes(config).items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise UserError(f"{file.path}: the tensor {name} is missing; its metadata promises a model that needs it")
        if tensor.shape != shape:
            raise UserError(f"{file.path}: {name} has the shape {tensor.shape}; its metadata promises {shape}")
