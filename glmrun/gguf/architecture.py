"""Hyper-parameters of a GGUF file, and proof that its tensors have the shapes that follow from them.

Our own files say everything; what files of others leave out or say otherwise is known in dialects.py.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from glmrun.gguf.dialects import as_listed, fused, head_widths, layers
from glmrun.gguf.file import GGUFFile
from glmrun.gguf.neighbours import another_model
from glmrun.gguf.open import open_gguf
from quant.config import Config, of_trunk, tensor_shapes
from quant.errors import UserError, brief

DEFAULT_CONTEXT = 32_768  # tokens, where the model takes that many
_GATING = {1: "softmax", 2: "sigmoid"}
# Where a tensor has a part in what the model computes; other programs keep other things in a file, vision for instance.
_OF_THE_MODEL = re.compile(r"(?:blk\.(\d{1,5})|(?:output|token_embd|rope)\w*)\.")

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


@dataclass(frozen=True)
class ModelFile(GGUFFile):
    """A GGUF file that is proven to hold a whole model that glmrun runs."""

    config: Config


def open_model_file(path: str | os.PathLike) -> ModelFile:
    """open_gguf() and config_from_gguf() of it; raises UserError as they do."""
    file = open_gguf(path)
    return ModelFile(**vars(file), config=config_from_gguf(file))


def config_from_gguf(file: GGUFFile) -> Config:
    """The Config that the file's metadata declares, with every tensor it needs present in the right shape.

    Raises UserError for another architecture, a missing or impossible hyper-parameter, a missing or misshapen tensor.
    """
    kind = file.metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise UserError(f"{file.path}: its general.type is {brief(kind)}, not a model; glmrun expects the model itself")
    if other := another_model(file):
        raise UserError(f"{file.path}: {other}")
    values = {name: file.hyper_parameter(key, kind) for name, (key, kind) in _KEYS.items()}
    head, values["v_head_dim"] = head_widths(file, values["kv_lora_rank"], values["qk_rope_head_dim"])
    values["qk_nope_head_dim"] = head - values["qk_rope_head_dim"]
    values["norm_topk_prob"] = file.hyper_parameter("expert_weights_norm", bool, False)
    values["n_group"] = file.hyper_parameter("expert_group_count", int, 1)
    values["topk_group"] = file.hyper_parameter("expert_group_used_count", int, 1)
    gating = file.hyper_parameter("expert_gating_func", int, 2)  # left out by most published files; this router is a sigmoid
    if gating not in _GATING:
        raise UserError(f"{file.path}: expert_gating_func is {gating}; glmrun knows 1 (softmax) and 2 (sigmoid)")
    values["scoring_func"] = _GATING[gating]
    values["num_hidden_layers"], values["num_nextn_predict_layers"] = layers(file)
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


def _check_tensors(file: GGUFFile, config: Config) -> None:
    known = set[str]()
    for wanted, shape in tensor_shapes(config).items():
        name = wanted
        tensor, other = file.tensors.get(wanted), fused(config, wanted)
        known |= {wanted, *(other or ())[:1]}
        if tensor is None and other:
            name, shape = other[:2]
            tensor = file.tensors.get(name)
        if tensor is None and of_trunk(config, wanted):
            continue
        if tensor is None:
            raise UserError(f"{file.path}: the tensor {wanted} is missing; its metadata promises a model that needs it")
        if tensor.shape not in as_listed(name, shape):
            raise UserError(f"{file.path}: {name} has the shape {tensor.shape}; its metadata promises {shape}")
    _check_no_others(file, config, known)


def _check_no_others(file: GGUFFile, config: Config, known: Collection[str]) -> None:
    """Refuse a bias, a scale, a further norm: computed without it, every number would be wrong and nothing would show it."""
    for name in file.tensors:
        found = _OF_THE_MODEL.match(name)
        if found and name not in known and int(found[1] or 0) < config.num_hidden_layers:
            raise UserError(f"{file.path}: holds {brief(name)}, which GLM-4.7-Flash does not have: a model that computes otherwise")
