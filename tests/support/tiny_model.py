"""Writes small GGUF models with random weights and awkward dimensions, by gguf-py's writer: our converter has no part in it.

Nothing here is nano's or the real model's size: a vocabulary of 1,016, 6 heads, 12 experts of which 3 are taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from naive import Naive, read_weights
from tokenizers.pre_tokenizers import ByteLevel

from quant.config import Config, tensor_shapes
from quant.formats import WRITTEN

ODD = Config(
    hidden_size=512,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    intermediate_size=768,
    moe_intermediate_size=256,
    n_routed_experts=12,
    num_experts_per_tok=3,
    n_shared_experts=1,
    num_attention_heads=6,
    q_lora_rank=256,
    kv_lora_rank=256,
    qk_nope_head_dim=96,
    qk_rope_head_dim=32,
    v_head_dim=128,
    max_position_embeddings=512,
    vocab_size=1016,
    routed_scaling_factor=1.8,
)
# Rows of 384 in the experts and of 48 in attn_k_b: the widths at which a 256-wide format must give way to another.
ODDER = replace(ODD, moe_intermediate_size=384, qk_nope_head_dim=48, v_head_dim=64, n_shared_experts=2, num_nextn_predict_layers=1)

# GLM's added tokens that mean something to the runtime: (text, GGUF token type: 3 control, 4 user-defined).
SPECIAL = [
    *[(t, 3) for t in ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")],
    *[(t, 3) for t in ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")],
    *[(t, 4) for t in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")],
    *[(t, 4) for t in ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")],
]


@dataclass(frozen=True)
class Tiny:
    """A model file and what is in it, read back by gguf-py."""

    path: Path
    config: Config
    weights: dict[str, np.ndarray]
    formats: dict[str, str]

    def naive(self, as_kernels: bool = True, **options: object) -> Naive:
        """The slow twin; as_kernels rounds activations as the kernels do."""
        return Naive(self.weights, self.config, self.formats if as_kernels else None, absorbed=True, **options)  # type: ignore[arg-type]


def mixed(name: str, shape: tuple[int, ...]) -> str:
    """Formats as in a Q4_K_M file: Q6_K for what matters most, Q4_K for the rest."""
    return "Q6_K" if "ffn_down" in name or name == "output.weight" else "Q4_K"


def everything(name: str, shape: tuple[int, ...]) -> str:
    """All seven formats in one file, so that no kernel relies on its neighbours' format."""
    names = list(WRITTEN)
    return names[sum(map(ord, name)) % len(names)]


CHOICES: dict[str, Callable[[str, tuple[int, ...]], str]] = {"Q4_K_M": mixed, "everything": everything}


def format_of(choice: str, name: str, shape: tuple[int, ...]) -> str:
    """The format of a tensor: vectors, router and norms F32; narrow rows fall back as llama-quantize lets them fall."""
    if len(shape) < 2 or "norm" in name or "ffn_gate_inp" in name:
        return "F32"
    wanted = CHOICES[choice](name, shape) if choice in CHOICES else choice
    if " in " in wanted:
        wanted, part = wanted.split(" in ")
        wanted = wanted if part in name else "F32"
    for narrower in (wanted, {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(wanted, "F16"), "F16"):
        if shape[-1] % WRITTEN[narrower].block_length == 0:
            return narrower
    raise AssertionError("F16 holds any row")


def random_weights(config: Config, seed: int) -> dict[str, np.ndarray]:
    """{tensor: float32}: activations stay near 1, routers decide clearly, a bias changes who is chosen."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if "norm" in name:
            weights[name] = 1 + 0.2 * noise
        elif name.endswith("exp_probs_b.bias"):
            weights[name] = 0.1 * noise
        elif name == "token_embd.weight":
            weights[name] = noise
        else:
            fan_in = shape[-2] if "attn_k_b" in name else shape[-1]  # attn_k_b is stored transposed
            weights[name] = noise * np.float32((3.0 if "ffn_gate_inp" in name else 1.0) / np.sqrt(fan_in))
    return weights


def vocabulary(n_vocab: int) -> tuple[list[str], list[str], list[int]]:
    """(tokens, merges, token types): the 256 bytes, a space before a letter, pairs of letters, GLM's tokens, unused ids."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [f"Ġ {a}" for a in letters] + [f"{a} {b}" for a in letters for b in letters]
    merges = merges[: n_vocab - 256 - len(SPECIAL) - 8]
    tokens = sorted(ByteLevel.alphabet()) + [m.replace(" ", "") for m in merges]
    types = [1] * len(tokens) + [kind for _, kind in SPECIAL]
    tokens += [text for text, _ in SPECIAL]
    unused = range(len(tokens), n_vocab)
    return tokens + [f"[PAD{i}]" for i in unused], merges, types + [5] * len(unused)


def write_tiny(
    path: Path,
    config: Config = ODD,
    choice: str = "Q4_K_M",
    seed: int = 0,
    eog_ids: bool = True,
    weights: dict[str, np.ndarray] | None = None,
    renamed: Mapping[int, str] | None = None,
) -> Tiny:
    """Write a model file.

    choice      a format for all matrices, a name in CHOICES, or "FORMAT in PART": that format for the tensors with PART in their
                names, F32 for the others
    eog_ids     False leaves out the ids of the tokens that end an answer, as early published files did
    weights     instead of random ones
    renamed     {id: text} of special tokens that shall stand elsewhere in the vocabulary; the old place becomes unused
    """
    c, writer = config, gguf.GGUFWriter(path, "deepseek2")
    key = "deepseek2."
    writer.add_uint32(key + "block_count", c.n_blocks)
    writer.add_uint32(key + "context_length", c.max_position_embeddings)
    writer.add_uint32(key + "embedding_length", c.hidden_size)
    writer.add_uint32(key + "feed_forward_length", c.intermediate_size)
    writer.add_uint32(key + "attention.head_count", c.num_attention_heads)
    writer.add_uint32(key + "attention.head_count_kv", 1)
    writer.add_float32(key + "rope.freq_base", c.rope_theta)
    writer.add_float32(key + "attention.layer_norm_rms_epsilon", c.rms_norm_eps)
    writer.add_uint32(key + "leading_dense_block_count", c.first_k_dense_replace)
    writer.add_uint32(key + "vocab_size", c.vocab_size)
    writer.add_uint32(key + "attention.q_lora_rank", c.q_lora_rank)
    writer.add_uint32(key + "attention.kv_lora_rank", c.kv_lora_rank)
    writer.add_uint32(key + "attention.key_length", c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_uint32(key + "attention.value_length", c.kv_lora_rank)
    writer.add_uint32(key + "attention.key_length_mla", c.qk_head_dim)
    writer.add_uint32(key + "attention.value_length_mla", c.v_head_dim)
    writer.add_uint32(key + "rope.dimension_count", c.qk_rope_head_dim)
    writer.add_uint32(key + "expert_feed_forward_length", c.moe_intermediate_size)
    writer.add_uint32(key + "expert_count", c.n_routed_experts)
    writer.add_uint32(key + "expert_used_count", c.num_experts_per_tok)
    writer.add_uint32(key + "expert_shared_count", c.n_shared_experts)
    writer.add_float32(key + "expert_weights_scale", c.routed_scaling_factor)
    writer.add_bool(key + "expert_weights_norm", c.norm_topk_prob)
    writer.add_uint32(key + "expert_gating_func", {"softmax": 1, "sigmoid": 2}[c.scoring_func])
    if c.num_nextn_predict_layers:
        writer.add_uint32(key + "nextn_predict_layers", c.num_nextn_predict_layers)

    tokens, merges, types = vocabulary(c.vocab_size)
    for new, text in (renamed or {}).items():
        old = tokens.index(text)
        tokens[new], types[new], tokens[old], types[old] = text, types[old], f"[PAD{old}]", 5
    merges = [merge for merge in merges if {*merge.split(" "), merge.replace(" ", "")} <= set(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("[gMASK]"))
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    if eog_ids:
        writer.add_eot_token_id(tokens.index("<|user|>"))
        writer.add_eom_token_id(tokens.index("<|observation|>"))

    for name, values in (weights or random_weights(c, seed)).items():
        chosen = WRITTEN[format_of(choice, name, values.shape)]
        if chosen.name == "F32":
            writer.add_tensor(name, values)
            continue
        blocks = chosen.encode(values.reshape(-1, values.shape[-1]))  # uint8 (rows, bytes of a row)
        writer.add_tensor(name, blocks.reshape(*values.shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType(chosen.ggml_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Tiny(path, c, *read_weights(path))
