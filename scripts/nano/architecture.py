"""nano's dimensions, and the next-token-prediction layer transformers leaves out.

transformers builds the trunk of GLM-4.7-Flash and skips the extra layer on loading, so that one is put together
here from transformers' own decoder layer.
"""

import torch
from torch import nn
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import (
    Glm4MoeLiteDecoderLayer,
    Glm4MoeLiteRMSNorm,
    Glm4MoeLiteTopkRouter,
)


def nano_config(vocab_size: int, pad_id: int, eos_ids: list[int]) -> Glm4MoeLiteConfig:
    """The shape of GLM-4.7-Flash in small: rows are multiples of 256 where the real ones are, attn_k_b's are not.

    The latent row is the real one, 512 + 64, and heads come in fours, because ik_llama.cpp's attention accepts nothing else.
    Five experts and not eight, because llama-quantize treats models of exactly eight experts as another family.
    """
    layers = 4
    return Glm4MoeLiteConfig(
        architectures=["Glm4MoeLiteForCausalLM"],
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=layers,
        first_k_dense_replace=1,
        mlp_layer_types=["dense"] + ["sparse"] * (layers - 1),
        intermediate_size=512,
        moe_intermediate_size=256,
        n_routed_experts=5,
        num_experts_per_tok=2,
        n_shared_experts=1,
        routed_scaling_factor=1.8,
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        topk_method="noaux_tc",
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=64,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0, "partial_rotary_factor": 1.0},
        rope_interleave=True,
        rms_norm_eps=1e-5,
        num_nextn_predict_layers=1,
        tie_word_embeddings=False,
        pad_token_id=pad_id,
        bos_token_id=None,
        eos_token_id=eos_ids,
        initializer_range=0.02,
    )


def sorted_experts(self: nn.Module, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum over the chosen experts of weight * expert(state): transformers' own loop, with the tokens sorted by expert once.

    states (tokens, hidden), chosen and weights (tokens, k) -> (tokens, hidden). Twice as fast on a CPU as indexing the
    stacked weights expert by expert, whose gradient is a stack of zeros each time.
    """
    k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)  # (tokens * k,)
    rows = order // k
    counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).tolist()
    parts = []
    pieces = states.index_select(0, rows).split(counts)
    for x, gate_up, down in zip(pieces, self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True):
        gate, up = nn.functional.linear(x, gate_up).chunk(2, dim=-1)
        parts.append(nn.functional.linear(nn.functional.silu(gate) * up, down))
    out = torch.cat(parts) * weights.flatten()[order, None]
    return torch.zeros_like(states).index_add(0, rows, out.to(states.dtype))


def plain_attention(
    module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: None, scaling: float, **_: object
) -> tuple[torch.Tensor, None]:
    """softmax(q k^T * scaling) v with a causal mask, (rows, heads, positions, width) -> (rows, positions, heads, width).

    For short rows of bfloat16 the backward pass is three times faster than that of torch's fused attention on a CPU.
    """
    n = q.shape[2]
    future = torch.ones(n, n, dtype=torch.bool).triu(1)  # (positions, positions)
    scores = (q @ k.mT * scaling).masked_fill(future, float("-inf"))
    return (torch.softmax(scores, -1) @ v).transpose(1, 2), None


ALL_EXPERTS_FUNCTIONS["sorted"] = sorted_experts
ALL_ATTENTION_FUNCTIONS["plain"] = plain_attention


class NextTokenLayer(nn.Module):
    """Predicts token p+2 from the trunk's normed state at p and the embedding of token p+1.

    y = layer(eh_proj([enorm(embedding), hnorm(state)])); the caller's head turns norm(y) into logits.
    """

    def __init__(self, config: Glm4MoeLiteConfig) -> None:
        super().__init__()
        values = config.to_dict() | {
            "num_hidden_layers": config.num_hidden_layers + 1,
            "mlp_layer_types": [*config.mlp_layer_types, "sparse"],
        }
        longer = Glm4MoeLiteConfig(**values)
        self.enorm = Glm4MoeLiteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = Glm4MoeLiteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = Glm4MoeLiteDecoderLayer(longer, config.num_hidden_layers)
        self.norm = Glm4MoeLiteRMSNorm(config.hidden_size, config.rms_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
        for weight in (self.layer.mlp.experts.gate_up_proj, self.layer.mlp.experts.down_proj, self.layer.mlp.gate.weight):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, embeddings: torch.Tensor, states: torch.Tensor, rotary: nn.Module) -> torch.Tensor:
        """embeddings, states: (batch, positions, hidden) -> normed (batch, positions, hidden)."""
        x = self.eh_proj(torch.cat([self.enorm(embeddings), self.hnorm(states)], dim=-1))
        positions = torch.arange(x.shape[1]).unsqueeze(0)  # (1, positions)
        return self.norm(self.layer(x, position_embeddings=rotary(x, positions), attention_mask=None, position_ids=positions))


class Nano(nn.Module):
    """The trunk and its next-token layer; embedding and head serve both while training."""

    def __init__(self, config: Glm4MoeLiteConfig) -> None:
        super().__init__()
        self.trunk = Glm4MoeLiteForCausalLM(config)
        self.next_token = NextTokenLayer(self.trunk.config)
        self.loads: dict[str, torch.Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, Glm4MoeLiteTopkRouter):
                self.loads[name] = torch.zeros(config.n_routed_experts)  # (experts,)
                module.register_forward_hook(self._count(name))

    def train(self, mode: bool = True) -> "Nano":
        """Training takes the faster routes above, everything else transformers' own."""
        for module in self.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "plain" if mode else "sdpa"
                module.config._experts_implementation = "sorted" if mode else "eager"
        return super().train(mode)

    def _count(self, name: str):
        def hook(_module, _inputs, outputs) -> None:
            if self.training:
                self.loads[name] += torch.bincount(outputs[2].flatten(), minlength=self.loads[name].numel())

        return hook

    def balance(self, rate: float) -> None:
        """Raise the selection bias of experts that saw too few tokens since the last call, lower the others'.

        This is the auxiliary-loss-free balancing of DeepSeek-V3: the bias chooses experts and never weighs them.
        """
        for name, load in self.loads.items():
            if load.sum() > 0:
                router = self.get_submodule(name)
                router.e_score_correction_bias += rate * torch.sign(load.mean() - load)
                load.zero_()
