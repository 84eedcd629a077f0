"""A Hugging Face checkpoint of the full-size model whose shards are sparse files: real names, shapes and offsets, no data.

It serves to plan a conversion (`glmrun convert DIR --dry-run`), not to run one: every weight reads as zero.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from synthetic_vocabulary import make_vocabulary, tokenizer_json

from quant.config import Config
from quant.mapping import pieces


def write_checkpoint(folder: Path, config: Config) -> None:
    """Write config.json, generation_config.json, tokenizer files, index and shards into folder, which may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    eos = [154820, 154827, 154829]
    _write_json(folder / "config.json", config_json(config, eos))
    _write_json(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": eos[0], "temperature": 1.0, "top_p": 0.95})
    _write_json(folder / "tokenizer.json", tokenizer_json(make_vocabulary()))
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"})
    write_sparse_shards(folder, source_shapes(config), config.n_blocks)


def config_json(config: Config, eos: list[int]) -> dict:
    """The config.json of a checkpoint with this Config, with the keys of the real one."""
    same = {key: value for key, value in config.asdict().items() if key not in ("scoring_func", "rope_theta")}
    return {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        **same,
        "num_key_value_heads": config.num_attention_heads,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "partial_rotary_factor": 1.0,
        "rope_interleave": True,
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": eos,
        "pad_token_id": eos[0],
        "dtype": "bfloat16",
    }


def source_shapes(config: Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of every tensor in a checkpoint with experts one by one."""
    found = {piece.source: piece.shape for parts in pieces(config, ()).values() for piece in parts}
    return {name: ("F32" if name.endswith("e_score_correction_bias") else "BF16", shape) for name, shape in found.items()}


def write_sparse_shards(folder: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], n_shards: int) -> None:
    """Shards of about equal size and their index; the data are a hole in the file."""
    total = sum(_n_bytes(*entry) for entry in shapes.values())
    shards: list[list[str]] = [[] for _ in range(n_shards)]
    done = 0
    for name, entry in shapes.items():
        shards[min(done * n_shards // total, n_shards - 1)].append(name)
        done += _n_bytes(*entry)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        path = folder / f"model-{i:05}-of-{n_shards:05}.safetensors"
        weight_map |= dict.fromkeys(names, path.name)
        _write_sparse(path, [(name, *shapes[name]) for name in names])
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    n = 4 if dtype == "F32" else 2
    for extent in shape:
        n *= extent
    return n


def _write_sparse(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + _n_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
