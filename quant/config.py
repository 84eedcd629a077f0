"""Hyper-parameters under config.json's own names, and the {GGUF tensor: shape} table that follows from them.

The converter reads a Config from config.json, the runtime reads one from a GGUF file; both hold their tensors
against the same table, so a file whose numbers contradict its weights is found before anything touches them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from quant.errors import UserError, brief

# (lowest, highest) legal value: generous for any model of this family, small enough that products stay far from 2**63.
_RANGES = {
    "hidden_size": (1, 1 << 20),
    "num_hidden_layers": (1, 512),
    "num_nextn_predict_layers": (0, 1),
    "first_k_dense_replace": (0, 512),
    "intermediate_size": (1, 1 << 22),
    "moe_intermediate_size": (1, 1 << 22),
    "n_routed_experts": (1, 1024),
    "num_experts_per_tok": (1, 64),
    "n_shared_experts": (1, 64),
    "n_group": (1, 1),
    "topk_group": (1, 1),
    "num_attention_heads": (1, 1024),
    "q_lora_rank": (1, 1 << 20),
    "kv_lora_rank": (1, 1 << 16),
    "qk_nope_head_dim": (1, 1 << 16),
    "qk_rope_head_dim": (2, 1 << 16),
    "v_head_dim": (1, 1 << 16),
    "max_position_embeddings": (1, 1 << 31),
    "vocab_size": (1, 1 << 20),
}

# Field of the prediction layer that a file or a checkpoint may leave out -> the trunk's tensor that it is then.
_SHARED = {
    "nextn.embed_tokens": "token_embd.weight",
    "nextn.shared_head_head": "output.weight",
    "nextn.shared_head_norm": "output_norm.weight",
}


@dataclass(frozen=True)
class Config:
    """One GLM-4.7-Flash-shaped model; every name is config.json's."""

    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    vocab_size: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    scoring_func: str = "sigmoid"
    n_group: int = 1
    topk_group: int = 1
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for the first number that no model of this architecture can have."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                expected = f"a whole number from {low} to {high}" if low < high else f"{low}: it runs no other"
                raise UserError(f"{name} is {brief(value)}; glmrun expects {expected}")
        for name in ("rope_theta", "rms_norm_eps", "routed_scaling_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} is {brief(value)}; glmrun expects a positive number")
        if self.qk_rope_head_dim % 2:
            raise UserError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotary positions turn pairs, so it must be even")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than n_routed_experts, which is {self.n_routed_experts}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise UserError(
                f"first_k_dense_replace is {self.first_k_dense_replace}, more than num_hidden_layers: {self.num_hidden_layers}"
            )
        if self.scoring_func not in ("sigmoid", "softmax"):
            raise UserError(f"scoring_func is {brief(self.scoring_func)}; glmrun knows 'sigmoid' and 'softmax'")

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head; attention scores are scaled by its inverse square root."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def n_blocks(self) -> int:
        """Decoder blocks in a file: the trunk and the next-token-prediction layer, if there is one."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def asdict(self) -> dict[str, int | float | bool | str]:
        """{name: value} in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


# GLM-4.7-Flash itself, the next-token-prediction layer included.
FLASH = Config(
    hidden_size=2048,
    num_hidden_layers=47,
    num_nextn_predict_layers=1,
    first_k_dense_replace=1,
    intermediate_size=10240,
    moe_intermediate_size=1536,
    n_routed_experts=64,
    num_experts_per_tok=4,
    n_shared_experts=1,
    num_attention_heads=20,
    q_lora_rank=768,
    kv_lora_rank=512,
    qk_nope_head_dim=192,
    qk_rope_head_dim=64,
    v_head_dim=256,
    max_position_embeddings=202752,
    vocab_size=154880,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    routed_scaling_factor=1.8,
)


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{GGUF tensor name: shape} of a model, row-major (a GGUF file lists the same numbers in reverse order).

    The order is the file's: embedding, blocks from first to last, output.
    """
    c = config
    vocab = (c.vocab_size, c.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["token_embd.weight"] = vocab
    for i in range(c.n_blocks):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in _block_shapes(c, i).items()}
    shapes["output_norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["output.weight"] = vocab
    return shapes


def of_trunk(config: Config, name: str) -> str | None:
    """The trunk's tensor that may stand for `name` of the prediction layer; None for a tensor that nothing stands for."""
    found = _SHARED.get(name.removeprefix(f"blk.{config.num_hidden_layers}.").removesuffix(".weight"))
    return "token_embd.weight" if found == "output.weight" and config.tie_word_embeddings else found


def _block_shapes(c: Config, i: int) -> dict[str, tuple[int, ...]]:
    heads = c.num_attention_heads
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (c.hidden_size,),
        "attn_q_a.weight": (c.q_lora_rank, c.hidden_size),
        "attn_q_a_norm.weight": (c.q_lora_rank,),
        "attn_q_b.weight": (heads * c.qk_head_dim, c.q_lora_rank),
        "attn_kv_a_mqa.weight": (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size),
        "attn_kv_a_norm.weight": (c.kv_lora_rank,),
        "attn_k_b.weight": (heads, c.kv_lora_rank, c.qk_nope_head_dim),
        "attn_v_b.weight": (heads, c.v_head_dim, c.kv_lora_rank),
        "attn_output.weight": (c.hidden_size, heads * c.v_head_dim),
        "ffn_norm.weight": (c.hidden_size,),
    }
    if i < c.first_k_dense_replace:
        shapes |= {
            "ffn_gate.weight": (c.intermediate_size, c.hidden_size),
            "ffn_up.weight": (c.intermediate_size, c.hidden_size),
            "ffn_down.weight": (c.hidden_size, c.intermediate_size),
        }
    else:
        experts, width, shared = c.n_routed_experts, c.moe_intermediate_size, c.n_shared_experts * c.moe_intermediate_size
        shapes |= {
            "ffn_gate_inp.weight": (experts, c.hidden_size),
            "exp_probs_b.bias": (experts,),
            "ffn_gate_exps.weight": (experts, width, c.hidden_size),
            "ffn_up_exps.weight": (experts, width, c.hidden_size),
            "ffn_down_exps.weight": (experts, c.hidden_size, width),
            "ffn_gate_shexp.weight": (shared, c.hidden_size),
            "ffn_up_shexp.weight": (shared, c.hidden_size),
            "ffn_down_shexp.weight": (c.hidden_size, shared),
        }
    if i >= c.num_hidden_layers:
        shapes |= {
            "nextn.eh_proj.weight": (c.hidden_size, 2 * c.hidden_size),
            "nextn.enorm.weight": (c.hidden_size,),
            "nextn.hnorm.weight": (c.hidden_size,),
            "nextn.shared_head_norm.weight": (c.hidden_size,),
            "nextn.shared_head_head.weight": (c.vocab_size, c.hidden_size),
            "nextn.embed_tokens.weight": (c.vocab_size, c.hidden_size),
        }
    return shapes


def read_per_token(config: Config, sizes: Mapping[str, int]) -> int:
    """How much of a model one decoded token reads: the chosen experts, one row of the embedding, and not the prediction layer.

    sizes   {GGUF tensor name: its bytes, or its weights}: the result is in the same unit
    """
    total = 0
    for name, size in sizes.items():
        if name.startswith(f"blk.{config.num_hidden_layers}."):  # the prediction layer
            continue
        if name == "token_embd.weight" and not config.tie_word_embeddings:
            size //= config.vocab_size
        elif "_exps." in name:
            size = size * config.num_experts_per_tok // config.n_routed_experts
        total += size
    return total
