"""The memory of one conversation: the cached rows of every layer and the buffers of a step, allocated once.

A cached row is [latent | rope key] for all heads together (kernels/cached_row.py). What grows with the context is reserved as
address space only: memory is used where tokens have been, so a context may be larger than the machine's memory.
"""

import mmap
import sys

import numpy as np

from glmrun.kernels.activations import row_bytes
from glmrun.kernels.attention.attend import SEGMENTS, TILE, result_bytes, tile_bytes
from glmrun.kernels.attention.attend import scratch_bytes as attention_scratch_bytes
from glmrun.kernels.attention.exact import SEGMENT
from glmrun.kernels.attention.tile import QUERIES
from glmrun.kernels.layout import ACTIVATION, STEP
from glmrun.kernels.matmul import scratch_bytes
from glmrun.tensors.weights import Weights, round_up
from quant.errors import UserError

ANGLES = 4096  # positions whose angles are computed at once
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40 if sys.platform == "darwin" else 0  # Python names it from 3.13 on
LINE = 64  # bytes: vectors never share a cache line with a neighbour's row


class State:
    """Cache and scratch for up to n_ctx positions, steps of up to max_tokens tokens, n_threads threads.

    step     record STEP with every address filled; begin() sets what changes with each step
    tail     the same step as the last layer sees it
    x        float32 (max_tokens, hidden_size): where the embeddings go
    """

    def __init__(self, weights: Weights, n_ctx: int, max_tokens: int, n_threads: int) -> None:
        c, m = weights.config, weights.model
        self.n_ctx, self.max_tokens = n_ctx, max_tokens
        self._memory: list[np.ndarray] = []
        row, latent, heads, t = int(m["row"]), int(m["latent"]), c.num_attention_heads, max_tokens
        layer_bytes = n_ctx * int(m["row_bytes"])
        cache = self._reserved(c.num_hidden_layers * layer_bytes, "cache")
        self.cache = cache.reshape(-1, n_ctx, int(m["row_bytes"]))  # uint8 (layers, n_ctx, row_bytes)
        self._steps = np.zeros(2, STEP)  # STEP (2,)
        self.step, self.tail = self._steps
        s = self.step
        s["cache"], s["cache_layer_bytes"] = self.cache.ctypes.data, layer_bytes
        rope = self._reserved(n_ctx * c.qk_rope_head_dim * 4, "table of angles")
        self._rope = rope.view(np.float32).reshape(n_ctx, -1, 2)  # float32 (n_ctx, qk_rope_head_dim / 2, 2), as far as reached
        self._reached, self._theta = 0, c.rope_theta
        s["rope"] = rope.ctypes.data
        x_columns = round_up(c.hidden_size, LINE // 4)
        x = self._zeros(t * x_columns * 4)
        self.x = x.view(np.float32).reshape(t, x_columns)[:, : c.hidden_size]  # float32 (max_tokens, hidden_size)
        s["x"], s["x_stride"] = x.ctypes.data, x_columns * 4
        s["normed"], s["rest"] = self._rows(t, c.hidden_size), self._rows(t, c.hidden_size)
        s["q_normed"] = self._rows(t, c.q_lora_rank)
        s["q_a"], s["q_a_stride"] = self._plain(t, c.q_lora_rank)
        s["kv_a"], s["kv_a_stride"] = self._plain(t, 2 * row)
        s["q"] = self._rows(t * heads, c.qk_nope_head_dim, stride=c.qk_head_dim * 4)
        s["query"], _ = self._plain(t * heads, row)
        s["context"] = self._rows(t * heads, c.kv_lora_rank, stride=(latent + 16) * 4)
        s["scores"] = self._zeros(n_threads * attention_scratch_bytes(m)).ctypes.data
        if m["float_attention"]:
            s["partial"] = self._reserved(-(-n_ctx // SEGMENT) * heads * (latent + 16) * 4, "scratch").ctypes.data
        else:
            s["partial"] = self._zeros(SEGMENTS * -(-heads // QUERIES) * result_bytes(m)).ctypes.data
            s["columns"] = self._reserved(-(-n_ctx // TILE) * tile_bytes(m), "scratch").ctypes.data
        widest = max(c.hidden_size, c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, heads * c.v_head_dim, c.intermediate_size,
                     c.n_shared_experts * c.moe_intermediate_size)  # fmt: skip
        s["scratch_stride"] = round_up(scratch_bytes(widest, t), LINE)
        s["scratch"] = self._zeros(n_threads * int(s["scratch_stride"])).ctypes.data
        s["heads"] = self._rows(t, heads * c.v_head_dim)
        s["router"], s["router_stride"] = self._plain(t, c.n_routed_experts)
        pairs = t * c.num_experts_per_tok
        s["expert"], s["token"] = self._zeros(pairs * 8).ctypes.data, self._zeros(pairs * 8).ctypes.data
        s["expert_weight"], s["weight"] = self._zeros(pairs * 4).ctypes.data, self._zeros(pairs * 4).ctypes.data
        s["first"] = self._zeros((c.n_routed_experts + 1) * 8).ctypes.data
        s["routed"] = self._rows(pairs, c.moe_intermediate_size)
        s["routed_up"], _ = self._plain(pairs, c.moe_intermediate_size)
        shared = c.n_shared_experts * c.moe_intermediate_size
        s["dense"], s["shared"] = self._rows(t, c.intermediate_size), self._rows(t, shared)
        s["dense_up"], _ = self._plain(t, max(c.intermediate_size, shared))

    def begin(self, n_tokens: int, position: int, logits: np.ndarray) -> None:
        """Set up a step of n_tokens tokens behind `position` cached ones; logits (n_logits, n_vocab) takes those of the last ones.

        Where importance is measured, the last layer sees all tokens.
        """
        s = self.step
        s["n_tokens"], s["position"], s["n_logits"] = n_tokens, position, len(logits)
        s["logits"], s["logits_stride"] = logits.ctypes.data, logits.strides[0]
        self.reach(position + n_tokens)
        self._steps[1] = s
        skipped = 0 if s["importance"] else n_tokens - len(logits)
        self.tail["n_tokens"], self.tail["position"] = n_tokens - skipped, position + skipped
        self.tail["x"] = s["x"] + skipped * s["x_stride"]

    def reach(self, n_positions: int) -> None:
        """Have the angles of the first n_positions positions ready."""
        if n_positions > self._reached:
            end = min(self.n_ctx, round_up(n_positions, ANGLES))
            self._rope[self._reached : end] = rope_table(self._reached, end, 2 * self._rope.shape[1], self._theta)
            self._reached = end

    def _reserved(self, n_bytes: int, what: str) -> np.ndarray:
        """uint8 (n_bytes,) of zeros that take up memory page by page, when they are first written."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            memory = np.frombuffer(mmap.mmap(-1, n_bytes, flags), np.uint8)  # uint8 (n_bytes,)
        except (OSError, OverflowError, ValueError) as why:
            raise UserError(
                f"the system refuses {n_bytes / 2**30:,.1f} GiB of address space for the {what} of {self.n_ctx:,} positions; "
                "ask for a smaller context (-c)"
            ) from why
        self._memory.append(memory)
        return memory

    def _zeros(self, n_bytes: int) -> np.ndarray:
        memory = np.zeros(n_bytes + LINE, np.uint8)  # uint8 (n_bytes and room to align)
        self._memory.append(memory)
        start = -memory.ctypes.data % LINE
        return memory[start : start + n_bytes]

    def _plain(self, rows: int, columns: int) -> tuple[int, int]:
        stride = round_up(columns * 4, LINE)
        return self._zeros(rows * stride).ctypes.data, stride

    def _rows(self, rows: int, columns: int, stride: int | None = None) -> tuple:
        """An ACTIVATION record; codes exist where rows of this width can be stored in a quantized format."""
        record = np.zeros(1, ACTIVATION)[0]
        record["columns"], record["floats_stride"] = columns, stride or round_up(columns * 4, LINE)
        record["floats"] = self._zeros(rows * int(record["floats_stride"])).ctypes.data
        if columns % 32 == 0:
            record["codes_stride"] = round_up(row_bytes(columns), LINE)
            record["codes"] = self._zeros(rows * int(record["codes_stride"])).ctypes.data
        return tuple(record)


def rope_table(first: int, end: int, dim: int, theta: float) -> np.ndarray:
    """Cosine and sine of position * theta**(-2 i / dim), computed in float64, float32 (end - first, dim / 2, 2)."""
    frequencies = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)  # float64 (dim / 2,)
    angles = np.arange(first, end, dtype=np.float64)[:, None] * frequencies  # float64 (end - first, dim / 2)
    return np.stack((np.cos(angles), np.sin(angles)), -1).astype(np.float32)  # float32 (end - first, dim / 2, 2)
