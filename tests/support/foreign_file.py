"""Writes the files of others: a model in our dialect taken apart into metadata and blocks, changed, and put together again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.gguf.open import open_gguf
from quant.config import Config
from quant.formats import FORMATS, WRITTEN
from quant.gguf_header import TensorEntry, pack_header, padding

READ_ONLY = [name for name in FORMATS if name not in WRITTEN]
# Where a block keeps its float16 numbers: the scale and, behind it, the minimum's, as a multiple of the scale that centres values.
_SCALES: dict[str, tuple[int, float | None]] = {
    "Q4_0": (0, None), "Q4_1": (0, -7.5), "Q5_1": (0, -15.5), "IQ4_NL": (0, None), "IQ4_XS": (0, None),
    "Q2_K": (80, 1.5), "Q3_K": (108, None), "Q5_K": (0, 15.5),
}  # fmt: skip


@dataclass
class Parts:
    """A GGUF file in memory: metadata, and for each tensor its format, shape and blocks, uint8 (rows, bytes of a row)."""

    metadata: dict[str, Any]
    blocks: dict[str, np.ndarray]
    formats: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Parts":
        """Take a file apart; its own alignment is dropped."""
        file = open_gguf(path)
        metadata = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()}
        tensors = file.tensors
        return cls(
            metadata,
            {name: t.rows.copy() for name, t in tensors.items()},
            {name: t.format for name, t in tensors.items()},
            {name: t.shape for name, t in tensors.items()},
        )

    def put(self, name: str, values: np.ndarray, format_name: str) -> None:
        """Store a tensor, replacing the one of that name, in a format that we can write."""
        blocks = WRITTEN[format_name].encode(values.reshape(-1, values.shape[-1]))
        self.blocks[name], self.formats[name], self.shapes[name] = blocks, format_name, values.shape

    def put_random(self, *formats: str) -> None:
        """Random blocks of these formats, in turn, instead of all matrices whose rows they divide; activations stay near 1."""
        for i, (name, shape) in enumerate(self.shapes.items()):
            f = FORMATS[formats[i % len(formats)]]
            if len(shape) > 1 and shape[-1] % f.block_length == 0 and "ffn_gate_inp" not in name:
                spread = 1.0 if "token_embd" in name else 1 / np.sqrt(shape[-2 if "attn_k_b" in name else -1])
                n_rows = int(np.prod(shape[:-1]))
                self.blocks[name], self.formats[name] = random_blocks(f.name, n_rows, shape[-1], spread, seed=n_rows), f.name

    def take(self, name: str) -> np.ndarray:
        """Remove a tensor and return its values, float32 (shape)."""
        return FORMATS[self.formats.pop(name)].decode(self.blocks.pop(name)).reshape(self.shapes.pop(name))

    def fuse_experts(self) -> None:
        """Gate and up of all experts as one tensor a layer, their blocks as they are, wherever both have one format."""
        for name in [name for name in self.blocks if ".ffn_gate_exps." in name]:
            up, both, (experts, width, hidden) = name.replace("gate", "up"), name.replace("gate", "gate_up"), self.shapes[name]
            if self.formats[name] != self.formats[up]:
                continue
            halves = [self.blocks[part].reshape(experts, width, -1) for part in (name, up)]
            self.shapes[both], self.formats[both] = (experts, 2 * width, hidden), self.formats[name]
            self.blocks[both] = np.concatenate(halves, axis=1).reshape(experts * 2 * width, -1)
            self.take(name), self.take(up)

    def fuse_keys(self, format_name: str, block: str = "blk.") -> None:
        """attn_k_b and attn_v_b as the one matrix of the checkpoint, in a format that we can write, of all blocks or of one."""
        for name in [name for name in self.blocks if name.startswith(block) and ".attn_k_b." in name]:
            k, v = self.take(name), self.take(name.replace("k_b", "v_b"))
            both = np.concatenate([k.transpose(0, 2, 1), v], axis=1)  # float32 (heads, nope + v, latent)
            self.put(name.replace("k_b", "kv_b"), both.reshape(-1, both.shape[-1]), format_name)

    def taken_apart(self, config: Config) -> "Parts":
        """What was fused, as a tensor for each stack: blocks as they are, but keys transposed, to F16 unless they are floats."""
        parts, nope, width = replace(self), config.qk_nope_head_dim, config.moe_intermediate_size
        parts.blocks, parts.formats, parts.shapes = dict(self.blocks), dict(self.formats), dict(self.shapes)
        for name in [name for name in self.blocks if "_gate_up_exps." in name or ".attn_kv_b." in name]:
            blocks, kind, columns = parts.blocks.pop(name), parts.formats.pop(name), parts.shapes.pop(name)[-1]
            if "_gate_up_exps." in name:
                groups = blocks.reshape(config.n_routed_experts, 2 * width, -1)  # uint8 (experts, rows, bytes of a row)
                found = {name.replace("_gate_up", "_gate"): groups[:, :width], name.replace("_gate_up", "_up"): groups[:, width:]}
            else:
                groups = blocks.reshape(config.num_attention_heads, nope + config.v_head_dim, -1)
                found = {name.replace("kv_b", "v_b"): groups[:, nope:]}
                keys = FORMATS[kind].decode(groups[:, :nope]).transpose(0, 2, 1)  # float32 (heads, latent, nope)
                parts.put(name.replace("kv_b", "k_b"), keys, kind if FORMATS[kind].block_length == 1 else "F16")
            for own, rows in found.items():
                parts.blocks[own], parts.formats[own] = rows.reshape(-1, rows.shape[-1]), kind
                parts.shapes[own] = (*rows.shape[:2], columns)
        return parts

    def write(self, path: Path, names: list[str] | None = None, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write a file of all tensors or of those that are named, in that order."""
        names = list(self.blocks) if names is None else names
        entries = [TensorEntry(n, self.shapes[n], FORMATS[self.formats[n]].ggml_type, self.blocks[n].nbytes) for n in names]
        data = b"".join(self.blocks[n].tobytes() + bytes(padding(self.blocks[n].nbytes)) for n in names)
        path.write_bytes(pack_header(self.metadata if metadata is None else metadata, entries) + data)
        return path

    def weights(self) -> dict[str, np.ndarray]:
        """{name: float32 values}."""
        return {n: FORMATS[self.formats[n]].decode(self.blocks[n]).reshape(self.shapes[n]) for n in self.blocks}


def random_blocks(name: str, n_rows: int, n_columns: int, spread: float, seed: int = 0) -> np.ndarray:
    """Rows of a format in READ_ONLY, random codes, around zero, with that standard deviation, uint8 (n_rows, bytes of a row)."""
    f, rng = FORMATS[name], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows * n_columns // f.block_length, f.block_bytes), dtype=np.uint8)
    if name == "MXFP4":  # its scales are powers of two
        blocks[:, 0] = 128
        blocks[:, 0] += np.round(np.log2(spread / f.decode(blocks).std())).astype(np.int8).view(np.uint8)
        return blocks.reshape(n_rows, -1)
    at, minimum = _SCALES[name]
    for size in (1.0, 0.0):  # measured at scale 1, then set
        d = np.full((len(blocks), 1), size or spread / f.decode(blocks).std())
        d *= 1 if size else rng.uniform(0.9, 1.1, d.shape)
        blocks[:, at : at + 2] = d.astype("<f2").view(np.uint8)
        if minimum is not None:
            blocks[:, at + 2 : at + 4] = (d * minimum).astype("<f2").view(np.uint8)
    return blocks.reshape(n_rows, -1)
