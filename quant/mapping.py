"""From a Hugging Face checkpoint's names to a GGUF file's: which rows of which tensor, and the metadata.

Experts are stacked, kv_b is split into its key half (transposed, so that queries can be absorbed into the latent space)
and its value half; everything else is renamed. GGUF's names of tensors and keys are gguf-py's.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, ExpertGatingFuncType, Keys, get_tensor_name_map

from quant.config import Config, of_trunk, tensor_shapes
from quant.errors import UserError, brief
from quant.gguf_header import MetadataValue
from quant.vocabulary import Vocabulary

ARCHITECTURE = "deepseek2"  # what llama.cpp calls models of this build
# The one whose table in gguf-py names everything that a layer of ours may have, a prediction layer's tensors too.
_NAMES = MODEL_ARCH.GLM_DSA
# generation_config.json's key -> (key of the file, lowest and highest value).
_SAMPLING = {
    "temperature": (Keys.General.SAMPLING_TEMP, 0, 1e9),
    "top_k": (Keys.General.SAMPLING_TOP_K, -1, (1 << 31) - 1),
    "top_p": (Keys.General.SAMPLING_TOP_P, 0, 1),
    "min_p": (Keys.General.SAMPLING_MIN_P, 0, 1),
    "repetition_penalty": (Keys.General.SAMPLING_PENALTY_REPEAT, 1e-6, 1e6),
}
# What is only renamed, by Hugging Face's names; the router's bias ends otherwise.
_OUTER = ("model.embed_tokens", "model.norm", "lm_head")
_OF_A_LAYER = (
    *("input_layernorm", "self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj", "self_attn.kv_a_proj_with_mqa"),
    *("self_attn.kv_a_layernorm", "self_attn.o_proj", "post_attention_layernorm"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate"),
    *("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"),
    *("eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens"),
)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one source tensor, all leading dimensions counted as rows."""

    source: str
    shape: tuple[int, ...]  # the whole source tensor's
    first_row: int
    n_rows: int
    transposed: bool = False  # the piece is turned before it is stored: (n_rows, columns) -> (columns, n_rows)


@dataclass(frozen=True)
class Card:
    """What a model's folder says of it, beside its config and its weights."""

    name: str
    vocabulary: Vocabulary
    chat_template: str | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    eos_token_ids: Collection[int] = ()  # the folder's; GLM's end tokens are written too where the vocabulary names them
    pad_token_id: int | None = None
    license: str | None = None


def pieces(config: Config, names: Collection[str]) -> dict[str, list[Piece]]:
    """{GGUF tensor name: the pieces whose rows, one after the other, are the tensor}, in the order of the file.

    names   the checkpoint's tensor names; they only decide whether a layer's experts are stored one by one or fused, and
            whether the prediction layer has an embedding and a head of its own
    """
    renamed, found = _renamed(config.n_blocks), {}
    for name, shape in tensor_shapes(config).items():
        if source := renamed.get(name):
            trunk = renamed.get(of_trunk(config, name) or "")
            if trunk and trunk in names and source not in names:
                source = trunk
            found[name] = [Piece(source, shape, 0, shape[0] if len(shape) == 2 else 1)]
            continue
        _, i, kind, _ = name.split(".")
        if kind in ("attn_k_b", "attn_v_b"):
            found[name] = _heads(config, f"model.layers.{i}.self_attn.kv_b_proj.weight", kind)
        else:
            found[name] = _experts(f"model.layers.{i}.mlp.experts.", kind.split("_")[1], shape, names)
    return found


def _renamed(n_blocks: int) -> dict[str, str]:
    """{GGUF's name: Hugging Face's} of the tensors that are only renamed."""
    gguf_names = get_tensor_name_map(_NAMES, n_blocks)
    ours = [*_OUTER, *(f"model.layers.{i}.{name}" for i in range(n_blocks) for name in _OF_A_LAYER)]
    found = {f"{gguf_names.get_name(name)}.weight": f"{name}.weight" for name in ours}
    bias = "model.layers.{}.mlp.gate.e_score_correction"
    return found | {f"{gguf_names.get_name(bias.format(i))}.bias": f"{bias.format(i)}_bias" for i in range(n_blocks)}


def _heads(c: Config, kv_b: str, kind: str) -> list[Piece]:
    """The key or the value rows of every head."""
    per_head = c.qk_nope_head_dim + c.v_head_dim
    first, n = (0, c.qk_nope_head_dim) if kind == "attn_k_b" else (c.qk_nope_head_dim, c.v_head_dim)
    whole = (c.num_attention_heads * per_head, c.kv_lora_rank)
    return [Piece(kv_b, whole, h * per_head + first, n, kind == "attn_k_b") for h in range(c.num_attention_heads)]


def _experts(prefix: str, kind: str, shape: tuple[int, ...], names: Collection[str]) -> list[Piece]:
    """The gate, up or down projection of all experts of a layer: shape is (experts, rows, columns)."""
    n, rows, columns = shape
    if f"{prefix}gate_up_proj" not in names:
        return [Piece(f"{prefix}{e}.{kind}_proj.weight", (rows, columns), 0, rows) for e in range(n)]
    if kind == "down":
        return [Piece(f"{prefix}down_proj", shape, rows * e, rows) for e in range(n)]
    # One tensor for both; the gate's rows stand before the up projection's.
    first = 0 if kind == "gate" else rows
    return [Piece(f"{prefix}gate_up_proj", (n, 2 * rows, columns), 2 * rows * e + first, rows) for e in range(n)]


def metadata(config: Config, card: Card, file_type: int, n_weights: int) -> dict[str, MetadataValue]:
    """Every key of the file, in order: general, hyper-parameters, tokenizer.

    file_type   the recipe's number for general.file_type
    n_weights   values in all tensors, for the size label
    Source: the key lists of published GLM-4.7-Flash files; expert_gating_func is written although those leave it out,
    because readers then have to guess the router's function from the model's size.
    """
    found: dict[str, MetadataValue] = {
        Keys.General.ARCHITECTURE: ARCHITECTURE,
        Keys.General.TYPE: "model",
        Keys.General.NAME: card.name,
        Keys.General.BASENAME: card.name,
        Keys.General.SIZE_LABEL: _size_label(config, n_weights),
        Keys.General.QUANTIZED_BY: "glmrun",
        Keys.General.QUANTIZATION_VERSION: 2,
        Keys.General.FILE_TYPE: file_type,
    }
    if card.license:
        found[Keys.General.LICENSE] = card.license
    found |= dict(_sampling(card.generation_config))
    found |= hyper_parameters(config)
    found |= _tokenizer(card.vocabulary, list(card.eos_token_ids), card.pad_token_id)
    if card.chat_template:
        found[Keys.Tokenizer.CHAT_TEMPLATE] = card.chat_template
    return found


def hyper_parameters(c: Config) -> dict[str, MetadataValue]:
    """The keys that say what the model computes."""
    model, attention = Keys.LLM, Keys.Attention
    found: dict[str, MetadataValue] = {
        model.BLOCK_COUNT: c.n_blocks,
        model.CONTEXT_LENGTH: c.max_position_embeddings,
        model.EMBEDDING_LENGTH: c.hidden_size,
        model.FEED_FORWARD_LENGTH: c.intermediate_size,
        model.LEADING_DENSE_BLOCK_COUNT: c.first_k_dense_replace,
        model.VOCAB_SIZE: c.vocab_size,
        attention.HEAD_COUNT: c.num_attention_heads,
        attention.HEAD_COUNT_KV: 1,  # all heads share the one latent row that is cached
        attention.LAYERNORM_RMS_EPS: float(c.rms_norm_eps),
        attention.Q_LORA_RANK: c.q_lora_rank,
        attention.KV_LORA_RANK: c.kv_lora_rank,
        attention.KEY_LENGTH: c.kv_lora_rank + c.qk_rope_head_dim,
        attention.VALUE_LENGTH: c.kv_lora_rank,
        attention.KEY_LENGTH_MLA: c.qk_head_dim,
        attention.VALUE_LENGTH_MLA: c.v_head_dim,
        Keys.Rope.DIMENSION_COUNT: c.qk_rope_head_dim,
        Keys.Rope.FREQ_BASE: float(c.rope_theta),
        model.EXPERT_FEED_FORWARD_LENGTH: c.moe_intermediate_size,
        model.EXPERT_COUNT: c.n_routed_experts,
        model.EXPERT_USED_COUNT: c.num_experts_per_tok,
        model.EXPERT_SHARED_COUNT: c.n_shared_experts,
        model.EXPERT_GROUP_COUNT: c.n_group,
        model.EXPERT_GROUP_USED_COUNT: c.topk_group,
        model.EXPERT_WEIGHTS_SCALE: float(c.routed_scaling_factor),
        model.EXPERT_WEIGHTS_NORM: c.norm_topk_prob,
        model.EXPERT_GATING_FUNC: ExpertGatingFuncType[c.scoring_func.upper()].value,
    }
    if c.num_nextn_predict_layers:
        found[model.NEXTN_PREDICT_LAYERS] = c.num_nextn_predict_layers
    return {key.format(arch=ARCHITECTURE): value for key, value in found.items()}


def _tokenizer(v: Vocabulary, eos: list[int], pad: int | None) -> dict[str, MetadataValue]:
    """Token ids are written only if the vocabulary has the token."""
    end_of_text = v.ids.get("<|endoftext|>")
    eos = eos or [i for i in [end_of_text] if i is not None]
    # The first end token is eos; GLM's other two have keys of their own, and so find any others config.json names.
    turn_ends = [v.ids.get("<|user|>"), v.ids.get("<|observation|>")]
    others = [i for i in eos[1:] if i not in turn_ends]
    eot, eom = (i if i is not None else others.pop(0) if others else None for i in turn_ends)
    key = Keys.Tokenizer
    ids = {
        key.BOS_ID: v.ids.get("[gMASK]"),
        key.EOS_ID: eos[0] if eos else None,
        key.EOT_ID: eot,
        key.EOM_ID: eom,
        key.UNK_ID: end_of_text,
        key.PAD_ID: end_of_text if pad is None else pad,
    }
    found: dict[str, MetadataValue] = {key.MODEL: "gpt2", key.PRE: v.pre, key.LIST: v.tokens, key.TOKEN_TYPE: v.types}
    found[key.MERGES] = v.merges
    found |= {name: i for name, i in ids.items() if i is not None}
    if not {*eos} <= {end_of_text, eot, eom, *eos[:1]}:  # more ends than GGUF has keys for: the list in which Ollama keeps them
        found["tokenizer.ggml.eos_token_ids"] = eos
    # The chat template writes the prefix; a reader that adds one too would double it.
    return found | {key.ADD_BOS: False}


def _sampling(generation_config: Mapping[str, Any]) -> Iterator[tuple[str, MetadataValue]]:
    for name, (key, low, high) in _SAMPLING.items():
        value = generation_config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f"generation_config.json: {name} is {brief(value)}; glmrun expects a number from {low:g} to {high:g}")
        yield key, np.int32(value) if name == "top_k" else float(value)


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
