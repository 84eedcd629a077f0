"""Give a wider nano the weights of a narrower one, so that what was learnt is kept.

The latent vector of 256 becomes one of 512: the new half is a rotation of the old one, read by nothing yet, which leaves the
root of the mean square as it was. 16 rotary pairs become 32: every second frequency of the new ones is an old one. Queries
grow by the square root of the longer head, because scores are divided by it. Experts and columns that were used least go.
"""

import json
from pathlib import Path

import torch

from nano import checkpoint
from nano.architecture import Nano


def widened(folder: Path, model: Nano) -> dict[str, torch.Tensor]:
    """{the hub's name: tensor} in the model's shapes, from a checkpoint of latent rank 256 and 32 rotary dimensions."""
    old = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = model.trunk.config
    named = {name: tensor.float() for name, tensor in checkpoint.read(folder).items()}
    heads, nope, rope, rank = (old[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank"))
    longer = ((nope + config.qk_rope_head_dim) / (nope + rope)) ** 0.5
    for i in range(old["num_hidden_layers"] + 1):
        stem = f"model.layers.{i}.self_attn."
        query = named[stem + "q_b_proj.weight"].view(heads, nope + rope, -1) * longer
        named[stem + "q_b_proj.weight"] = torch.cat([query[:, :nope], _spread(query[:, nope:])], 1).flatten(0, 1)
        latent, key = named[stem + "kv_a_proj_with_mqa.weight"].split([rank, rope])
        turned = torch.linalg.qr(torch.randn(rank, rank)).Q @ latent
        named[stem + "kv_a_proj_with_mqa.weight"] = torch.cat([latent, turned, _spread(key[None])[0]])
        named[stem + "kv_a_layernorm.weight"] = torch.cat([named[stem + "kv_a_layernorm.weight"], torch.ones(rank)])
        both = named[stem + "kv_b_proj.weight"]
        named[stem + "kv_b_proj.weight"] = torch.cat([both, torch.zeros_like(both)], 1)
        stem = f"model.layers.{i}.mlp."
        if i < old["first_k_dense_replace"]:
            parts = [named[f"{stem}{part}_proj.weight"] for part in ("gate", "up", "down")]
            use = parts[0].norm(dim=1) * parts[1].norm(dim=1) * parts[2].norm(dim=0)
            best = use.topk(config.intermediate_size).indices.sort().values
            named |= {f"{stem}gate_proj.weight": parts[0][best], f"{stem}up_proj.weight": parts[1][best]}
            named[f"{stem}down_proj.weight"] = parts[2][:, best]
        else:
            bias = named[stem + "gate.e_score_correction_bias"]
            best = bias.topk(config.n_routed_experts, largest=False).indices.sort().values  # a raised bias: little wanted
            named[stem + "gate.e_score_correction_bias"] = bias[best]
            named[stem + "gate.weight"] = named[stem + "gate.weight"][best]
            experts = [[named[f"{stem}experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")] for e in best.tolist()]
            for e, matrices in enumerate(experts):
                named |= {
                    f"{stem}experts.{e}.{part}_proj.weight": m for part, m in zip(("gate", "up", "down"), matrices, strict=True)
                }
    return named


def _spread(rows: torch.Tensor) -> torch.Tensor:
    """(heads, rotary, width) -> (heads, 2 * rotary, width): pairs move to every second place, noise between them."""
    pairs = rows.view(rows.shape[0], -1, 2, rows.shape[-1])
    return torch.stack([pairs, torch.randn_like(pairs) * 0.02], 2).reshape(rows.shape[0], -1, rows.shape[-1])
