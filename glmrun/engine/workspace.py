"""The buffers of one step, allocated once, and the records by which the kernels find them.

What grows with the context is reserved as address space only: memory is used where tokens have been, so a context may be larger
than the machine's memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glmrun.engine.sequence import Cache, reserve
from glmrun.kernels import likely
from glmrun.kernels.activations import FEW, row_bytes
from glmrun.kernels.attention.attend import SEGMENTS, result_bytes
from glmrun.kernels.attention.attend import scratch_bytes as attention_scratch_bytes
from glmrun.kernels.attention.columns import BLOCK, QUERIES, block_bytes
from glmrun.kernels.attention.exact import SEGMENT
from glmrun.kernels.disk import LOOKED_AT
from glmrun.kernels.experts import gated_bytes
from glmrun.kernels.layout import ACTIVATION, RUN, STEP, WORKER
from glmrun.tensors.weights import Weights, round_up

ANGLES = 4096  # positions whose angles are computed at once
MAX_RUNS = 16  # of one step
LINE = 64  # bytes: vectors never share a cache line with a neighbour's row


class Part(NamedTuple):
    """One run of a step, as begin() takes it."""

    cache: Cache
    position: int  # of the first token
    n_tokens: int
    n_logits: int  # of how many of the last tokens somebody wants logits
    likeliest: bool = False  # only the largest of them need be exact


class Workspace:
    """Buffers for steps of up to max_tokens tokens in up to MAX_RUNS runs, of positions below n_ctx, on n_threads threads.

    step     record STEP with every address filled; begin() sets what changes with each step
    workers  records WORKER (n_threads,)
    x        float32 (max_tokens, hidden_size): after a step the last layer's rows in the logits' order
    """

    def __init__(self, weights: Weights, n_ctx: int, max_tokens: int, n_threads: int) -> None:
        c, m = weights.config, weights.model
        self.n_ctx, self.max_tokens = n_ctx, max_tokens
        self._memory: list[np.ndarray] = []
        self.step = s = np.zeros(1, STEP)[0]
        self._tokens = np.zeros((3, max_tokens), np.int64)  # int64 (3, max_tokens): runs, wanted tokens, their runs
        self._runs = np.zeros((2, MAX_RUNS), RUN)  # RUN (2, MAX_RUNS): of the step, and of the tokens that are wanted
        s["run"], s["wanted"], s["wanted_run"] = (row.ctypes.data for row in self._tokens)
        rope = self._reserved(n_ctx * c.qk_rope_head_dim * 4, "table of angles")
        self._rope = rope.view(np.float32).reshape(n_ctx, -1, 2)  # float32 (n_ctx, qk_rope_head_dim / 2, 2), as far as reached
        self._reached, self._theta = 0, c.rope_theta
        s["rope"] = rope.ctypes.data
        self._reserve_attention(m, c.num_attention_heads)
        self._fill_step(weights)
        self.uses = np.zeros((c.num_hidden_layers + 1, c.n_routed_experts), np.int64)  # of the layers and the prediction layer
        s["uses"] = self.uses.ctypes.data
        self._exact = np.ones(max_tokens, np.int64)  # int64 (max_tokens,): by rows of logits
        self._all_are_looked_at = c.vocab_size <= likely.BLOCK * likely.BLOCKS  # then both terms at once are less work
        s["exact"] = self._exact.ctypes.data
        s["maxima"], s["maxima_stride"] = self._plain(n_threads, -(-c.vocab_size // likely.BLOCK))
        self.workers = np.zeros(n_threads, WORKER)  # WORKER (n_threads,)
        widest = max(c.hidden_size, c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.num_attention_heads * c.v_head_dim,
                     c.intermediate_size, c.n_shared_experts * c.moe_intermediate_size)  # fmt: skip
        for worker in self.workers:
            worker["scratch"] = self._zeros(gated_bytes(widest, max_tokens)).ctypes.data
            worker["resident"] = self._zeros(LOOKED_AT).ctypes.data
            worker["attention"] = self._zeros(attention_scratch_bytes(m)).ctypes.data

    def _reserve_attention(self, m: np.void, heads: int) -> None:
        """Room for what runs of few tokens gather from segments of positions, and for the columns of each run's last block."""
        queries = (FEW - 1) * heads
        if m["float_attention"]:
            self._partial_bytes = -(-self.n_ctx // SEGMENT) * queries * (int(m["latent"]) + 16) * 4
        else:
            self._partial_bytes = SEGMENTS * -(-queries // QUERIES) * result_bytes(m)
        self._partial = self._reserved(MAX_RUNS * self._partial_bytes, "scratch").ctypes.data
        self._tail_bytes = block_bytes(m)
        self._tails = self._zeros(MAX_RUNS * self._tail_bytes).ctypes.data

    def _fill_step(self, weights: Weights) -> None:
        """Allocate every buffer that has a row for each token."""
        c, m, s, t = weights.config, weights.model, self.step, self.max_tokens
        row, latent, heads = int(m["row"]), int(m["latent"]), c.num_attention_heads
        x_columns = round_up(c.hidden_size, LINE // 4)
        x = self._zeros(t * x_columns * 4)
        self.x = x.view(np.float32).reshape(t, x_columns)[:, : c.hidden_size]  # float32 (max_tokens, hidden_size)
        s["x"], s["x_stride"] = x.ctypes.data, x_columns * 4
        s["normed"], s["ffn_normed"] = self._rows(t, c.hidden_size, two_terms=True), self._rows(t, c.hidden_size)
        s["q_normed"] = self._rows(t, c.q_lora_rank)
        s["q_a"], s["q_a_stride"] = self._plain(t, c.q_lora_rank)
        s["kv_a"], s["kv_a_stride"] = self._plain(t, 2 * row)
        s["q"] = self._rows(t * heads, c.qk_nope_head_dim, stride=c.qk_head_dim * 4)
        s["query"], _ = self._plain(t * heads, row)
        s["context"] = self._rows(t * heads, c.kv_lora_rank, stride=(latent + 16) * 4)
        s["heads"] = self._rows(t, heads * c.v_head_dim)
        s["router"], s["router_stride"] = self._plain(t, c.n_routed_experts)
        pairs = t * c.num_experts_per_tok
        s["expert"], s["token"] = self._zeros(pairs * 8).ctypes.data, self._zeros(pairs * 8).ctypes.data
        s["expert_weight"], s["weight"] = self._zeros(pairs * 4).ctypes.data, self._zeros(pairs * 4).ctypes.data
        s["first"] = self._zeros((2 * c.n_routed_experts + 1) * 8).ctypes.data
        s["count"] = self._zeros(c.n_routed_experts * 8).ctypes.data
        s["routed"] = self._rows(pairs, c.moe_intermediate_size)
        shared = c.n_shared_experts * c.moe_intermediate_size
        s["dense"], s["shared"] = self._rows(t, c.intermediate_size), self._rows(t, shared)

    def begin(self, parts: Sequence[Part], x: np.ndarray, logits: np.ndarray) -> list[int]:
        """Set up a step of one or more runs of x, float32 (tokens, hidden_size), in the parts' order.

        logits (sum of n_logits, n_vocab) takes those that are wanted. Returns each part's first row in it. Where importance is
        measured, the last layer sees all tokens.
        """
        s, first = self.step, 0
        everything = bool(s["importance"])
        n_tokens, n_few, places = self._place(0, [part.n_tokens for part in parts], parts, [0] * len(parts))
        wanted = [part.n_tokens if everything else part.n_logits for part in parts]
        skipped = [part.n_tokens - n for part, n in zip(parts, wanted, strict=True)]
        n_wanted, wanted_few, rows = self._place(1, wanted, parts, skipped)
        for part, place, row, n, skip in zip(parts, places, rows, wanted, skipped, strict=True):
            self.x[place : place + part.n_tokens] = x[first : first + part.n_tokens]
            first += part.n_tokens
            self._tokens[1, row : row + n] = np.arange(place + skip, place + skip + n)
            self._exact[row : row + n] = everything or self._all_are_looked_at or not part.likeliest
        s["n_tokens"], s["n_few"], s["n_runs"], s["runs"] = n_tokens, n_few, len(parts), self._runs[0].ctypes.data
        s["run"] = self._tokens[0].ctypes.data
        s["n_wanted"], s["wanted_few"], s["wanted_runs"] = n_wanted, wanted_few, self._runs[1].ctypes.data
        s["wanted_n_runs"] = sum(n > 0 for n in wanted)
        s["n_logits"], s["logits_few"] = len(logits), min(wanted_few, len(logits))
        if everything:
            s["logits_few"] = len(logits) if len(logits) < FEW else 0
        s["logits"], s["logits_stride"] = logits.ctypes.data, logits.strides[0]
        self.reach(max(part.position + part.n_tokens for part in parts))
        return rows

    def _place(self, which: int, counts: list[int], parts: Sequence[Part], skipped: list[int]) -> tuple[int, int, list[int]]:
        """Fill the RUN records of `counts` tokens of each part, those of few tokens first: (tokens, of them few, first of each)."""
        places, first, n_few, number = [0] * len(parts), 0, 0, 0
        for i in sorted(range(len(parts)), key=lambda i: counts[i] >= FEW):
            part, n = parts[i], counts[i]
            places[i] = first
            if not n:
                continue
            position = part.position + skipped[i]
            rows, columns, rounded = part.cache
            np.minimum(rounded, part.position // BLOCK * BLOCK, out=rounded)  # a step that was cancelled may have rounded more
            tail, partial = self._tails + number * self._tail_bytes, self._partial + number * self._partial_bytes
            own = rows.ctypes.data, rows.strides[0], columns.ctypes.data, columns.strides[0], rounded.ctypes.data
            self._runs[which, number] = (first, n, position, *own, tail, partial)
            self._tokens[2 * which, first : first + n] = number
            first, number = first + n, number + 1
            if n < FEW:
                n_few = first
        return first, n_few, places

    def reach(self, n_positions: int) -> None:
        """Have the angles of the first n_positions positions ready."""
        if n_positions > self._reached:
            end = min(self.n_ctx, round_up(n_positions, ANGLES))
            self._rope[self._reached : end] = rope_table(self._reached, end, 2 * self._rope.shape[1], self._theta)
            self._reached = end

    def _reserved(self, n_bytes: int, what: str) -> np.ndarray:
        """uint8 (n_bytes,) of zeros that take up memory page by page, when they are first written."""
        memory = np.frombuffer(reserve(n_bytes, f"the {what} of {self.n_ctx:,} positions"), np.uint8)  # uint8 (n_bytes,)
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

    def _rows(self, rows: int, columns: int, stride: int | None = None, two_terms: bool = False) -> tuple:
        """An ACTIVATION record; codes, in one term or two, exist where rows of this width can be stored in a quantized format."""
        record = np.zeros(1, ACTIVATION)[0]
        record["columns"], record["floats_stride"] = columns, stride or round_up(columns * 4, LINE)
        record["floats"] = self._zeros(rows * int(record["floats_stride"])).ctypes.data
        if columns % 32 == 0:
            record["codes_stride"] = round_up(row_bytes(columns), LINE)
            record["codes"] = self._zeros(rows * int(record["codes_stride"])).ctypes.data
            if two_terms:
                record["rest"] = self._zeros(rows * int(record["codes_stride"])).ctypes.data
        return tuple(record)


def rope_table(first: int, end: int, dim: int, theta: float) -> np.ndarray:
    """Cosine and sine of position * theta**(-2 i / dim), computed in float64, float32 (end - first, dim / 2, 2)."""
    frequencies = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)  # float64 (dim / 2,)
    angles = np.arange(first, end, dtype=np.float64)[:, None] * frequencies  # float64 (end - first, dim / 2)
    return np.stack((np.cos(angles), np.sin(angles)), -1).astype(np.float32)  # float32 (end - first, dim / 2, 2)
