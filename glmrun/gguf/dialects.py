"""What files of others say otherwise, keep together or leave out, in our terms: guessed here and nowhere else."""

import math
from typing import Any

import numpy as np

from glmrun.gguf.file import GGUFFile
from quant.config import Config, of_trunk
from quant.vocabulary import UNUSED

MAX_PADDING = 1 << 16  # rows of the embedding without a token
COMPARED = 64  # rows of two matrices that are looked at before they are taken for the same


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


def as_listed(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes in which a file may list a tensor: ik_llama.cpp's converter makes attn_k_b and attn_v_b one matrix of all heads."""
    heads = ".attn_k_b." in name or ".attn_v_b." in name
    return (shape, (math.prod(shape[:-1]), shape[-1])) if heads else (shape,)


def head_widths(file: GGUFFile, kv_lora_rank: int, qk_rope_head_dim: int) -> tuple[int, int]:
    """(key, value) width of a head. A file states it, and the width of a cached row, under two pairs of keys.

    llama.cpp puts the head's under the names that end in _mla, Ollama the other way round; the oldest files have one pair only.
    """
    cached, pairs = (kv_lora_rank + qk_rope_head_dim, kv_lora_rank), []
    for suffix in ("_mla", ""):
        if f"{file.metadata['general.architecture']}.attention.key_length{suffix}" in file.metadata:
            pairs.append(tuple(file.hyper_parameter(f"attention.{part}_length{suffix}", int) for part in ("key", "value")))
    if not pairs:
        file.hyper_parameter("attention.key_length_mla", int)
    return next((pair for pair in pairs if pair != cached), pairs[0])


def layers(file: GGUFFile) -> tuple[int, int]:
    """(decoder layers, next-token-prediction layers): some converters count a prediction layer that they left out.

    And a last layer that has what only a prediction layer has is one, whether or not the file says so.
    """
    blocks = file.hyper_parameter("block_count", int)
    there = f"blk.{blocks - 1}.nextn.eh_proj.weight" in file.tensors
    nextn = file.hyper_parameter("nextn_predict_layers", int, int(there)) or int(there)
    if nextn and not there:
        nextn, blocks = 0, blocks - (f"blk.{blocks - 1}.attn_norm.weight" not in file.tensors)
    return blocks - nextn, nextn


def shared(file: GGUFFile, config: Config, name: str) -> str | None:
    """of_trunk(), where the file has no `name` of its own or holds the trunk's twice; else None.

    Some rows of the two are compared, not 300 MB that nobody would read otherwise: a wrong answer could only make worse drafts.
    """
    other, own = of_trunk(config, name), file.tensors.get(name)
    if other is None or own is None:
        return other
    trunk = file.tensors[other]
    if (own.format, own.shape) != (trunk.format, trunk.shape):
        return None
    rows = np.linspace(0, len(own.rows) - 1, COMPARED).astype(np.int64)  # int64 (COMPARED,)
    return other if np.array_equal(own.rows[rows], trunk.rows[rows]) else None


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
