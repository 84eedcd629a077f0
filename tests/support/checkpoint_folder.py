"""Writes small Hugging Face model folders by hand, byte by byte: neither torch nor our own reader has a part in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from quant.config import Config

SMALL = Config(
    hidden_size=256,
    num_hidden_layers=3,
    num_nextn_predict_layers=1,
    first_k_dense_replace=1,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=5,
    num_experts_per_tok=2,
    n_shared_experts=1,
    num_attention_heads=3,
    q_lora_rank=256,
    kv_lora_rank=256,
    qk_nope_head_dim=96,
    qk_rope_head_dim=32,
    v_head_dim=64,
    max_position_embeddings=1024,
    vocab_size=320,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    routed_scaling_factor=1.8,
)
GLM_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = ["th", "the", "Ġa", "Ġan"]
ADDED = {"<|endoftext|>": True, "[gMASK]": True, "<sop>": True, "<|user|>": True, "<|observation|>": True, "<think>": False}

Tensors = dict[str, tuple[str, np.ndarray]]  # {name: (dtype, values; uint16 bit patterns for BF16)}


def bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values: uint16 of the same shape."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def floats(bits: np.ndarray) -> np.ndarray:
    """BF16 bit patterns as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def source_tensors(c: Config, seed: int = 0) -> Tensors:
    """Random weights under Hugging Face's names, experts one by one; the router's bias is F32 as in the real checkpoint."""
    rng = np.random.default_rng(seed)
    found: Tensors = {}

    def add(name: str, *shape: int, dtype: str = "BF16") -> None:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.05) + np.float32(len(shape) == 1)
        found[name] = (dtype, bf16(values) if dtype == "BF16" else values)

    add("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers + c.num_nextn_predict_layers):
        layer = f"model.layers.{i}."
        add(layer + "input_layernorm.weight", c.hidden_size)
        add(layer + "post_attention_layernorm.weight", c.hidden_size)
        add(layer + "self_attn.q_a_proj.weight", c.q_lora_rank, c.hidden_size)
        add(layer + "self_attn.q_a_layernorm.weight", c.q_lora_rank)
        add(layer + "self_attn.q_b_proj.weight", c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.q_lora_rank)
        add(layer + "self_attn.kv_a_proj_with_mqa.weight", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size)
        add(layer + "self_attn.kv_a_layernorm.weight", c.kv_lora_rank)
        add(layer + "self_attn.kv_b_proj.weight", c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
        add(layer + "self_attn.o_proj.weight", c.hidden_size, c.num_attention_heads * c.v_head_dim)
        widths = {"mlp.": c.intermediate_size}
        if i >= c.first_k_dense_replace:
            add(layer + "mlp.gate.weight", c.n_routed_experts, c.hidden_size)
            add(layer + "mlp.gate.e_score_correction_bias", c.n_routed_experts, dtype="F32")
            widths = {f"mlp.experts.{e}.": c.moe_intermediate_size for e in range(c.n_routed_experts)}
            widths["mlp.shared_experts."] = c.moe_intermediate_size * c.n_shared_experts
        for part, width in widths.items():
            add(layer + part + "gate_proj.weight", width, c.hidden_size)
            add(layer + part + "up_proj.weight", width, c.hidden_size)
            add(layer + part + "down_proj.weight", c.hidden_size, width)
        if i >= c.num_hidden_layers:
            add(layer + "eh_proj.weight", c.hidden_size, 2 * c.hidden_size)
            for name in ("enorm", "hnorm", "shared_head.norm"):
                add(layer + name + ".weight", c.hidden_size)
            add(layer + "shared_head.head.weight", c.vocab_size, c.hidden_size)
            add(layer + "embed_tokens.weight", c.vocab_size, c.hidden_size)
    add("model.norm.weight", c.hidden_size)
    add("lm_head.weight", c.vocab_size, c.hidden_size)
    return found


def fuse_experts(c: Config, tensors: Tensors) -> Tensors:
    """The same weights with one tensor for all experts of a layer, gate rows before up rows."""
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for i in range(c.first_k_dense_replace, c.num_hidden_layers + c.num_nextn_predict_layers):
        part = f"model.layers.{i}.mlp.experts."
        experts = [[tensors[f"{part}{e}.{n}_proj.weight"][1] for n in ("gate", "up", "down")] for e in range(c.n_routed_experts)]
        fused[part + "gate_up_proj"] = ("BF16", np.stack([np.concatenate([gate, up]) for gate, up, _ in experts]))
        fused[part + "down_proj"] = ("BF16", np.stack([down for _, _, down in experts]))
    return fused


def config_json(c: Config) -> dict[str, Any]:
    """config.json as transformers 4 writes it."""
    source = {key: value for key, value in c.asdict().items() if key != "scoring_func"}
    return source | {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        "hidden_act": "silu",
        "attention_bias": False,
        "num_key_value_heads": c.num_attention_heads,
        "partial_rotary_factor": 1.0,
        "rope_interleave": True,
        "rope_scaling": None,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "eos_token_id": [260, 263, 264],
        "pad_token_id": 260,
    }


def tokenizer_json() -> dict[str, Any]:
    """Byte-level BPE with GLM's pre-tokenizer: 256 bytes, four words, six added tokens; 266 of 320 ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = {"type": "Split", "pattern": {"Regex": GLM_SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 260 + i, "content": text, "special": special, **flags} for i, (text, special) in enumerate(ADDED.items())
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate(alphabet + WORDS)},
            "merges": ["t h", "th e", "Ġ a", "Ġa n"],
        },
    }


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, values) in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, values in tensors.values():
            file.write(values.tobytes())


def write_folder(folder: Path, c: Config = SMALL, tensors: Tensors | None = None, n_shards: int = 3, **changes: Any) -> Path:
    """A complete model folder; `changes` replace keys of config.json, None removes one. One shard has no index."""
    folder.mkdir(parents=True, exist_ok=True)
    source = {key: value for key, value in (config_json(c) | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(source))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "top_p": 0.95, "top_k": 40, "do_sample": True}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "chat_template.jinja").write_text("[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    tensors = source_tensors(c) if tensors is None else tensors
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names, weight_map = list(tensors), {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        mine = names[i * len(names) // n_shards : (i + 1) * len(names) // n_shards]
        write_safetensors(folder / file, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
