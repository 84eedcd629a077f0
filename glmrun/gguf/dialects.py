"""Matrices that files of others keep together in one tensor, and where in it each stands."""

from quant.config import Config


def fused(config: Config, name: str) -> tuple[str, tuple[int, ...], int, int, int] | None:
    """(tensor that may hold `name` among others, its shape, period, first, count), for the four names that have one."""
    c, (block, _, field) = config, name.rpartition(".weight")[0].rpartition(".")
    nope, v, width = c.qk_nope_head_dim, c.v_head_dim, c.moe_intermediate_size
    if field in ("attn_k_b", "attn_v_b"):
        at, count = (0, nope) if field == "attn_k_b" else (nope, v)
        return f"{block}.attn_kv_b.weight", (c.num_attention_heads * (nope + v), c.kv_lora_rank), nope + v, at, count
    if field in ("ffn_gate_exps", "ffn_up_exps"):
        shape = (c.n_routed_experts, 2 * width, c.hidden_size)
        return f"{block}.ffn_gate_up_exps.weight", shape, 2 * width, 0 if "gate" in field else width, width
    return None
