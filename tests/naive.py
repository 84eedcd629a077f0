"""The model in plain NumPy: no kernel, no cache, no thread, one function per idea of the paper.

Every fast path of glmrun is held against this page, and this page against transformers (tests/live). It takes weights as
{GGUF tensor name: float array} and computes in float64 unless told otherwise. Whole matrices, whole sequences: slow, easy to check.

    naive = Naive(read_weights(path)[0], config)
    naive.logits([1, 2, 3])                     # (3, vocab_size)

Sources: DeepSeek-V2 (latent attention), DeepSeek-V3 (sigmoid router with a correction bias), GLM-4.7-Flash's config.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from glmrun.kernels.simd.target import sums_in_16_bits
from quant.config import Config

Array = np.ndarray

FLOATS = ("F32", "F16", "BF16")  # rows of all others meet activation vectors rounded to int8, with one scale for each 32


def read_weights(path: str | PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """({tensor: float32 array, row-major}, {tensor: format name}) of a GGUF file, read by gguf-py and none of our code."""
    import gguf

    weights, formats = {}, {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        weights[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        formats[tensor.name] = tensor.tensor_type.name
    return weights, formats


def round_activations(x: Array, format_name: str) -> Array:
    """x as the kernels see it beside a row of this format; the float formats leave it alone.

    The scale of 32 neighbours is largest magnitude / 127, rounded up to a multiple of what 256 (or the row's last) share:
    their largest magnitude / 127**2; q = x / scale, rounded half to even.
    """
    if format_name in FLOATS:
        return x
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)  # (..., n_blocks, 32)
    top = np.abs(blocks).max(-1)  # (..., n_blocks)
    groups = np.maximum.reduceat(top, np.arange(0, top.shape[-1], 8), -1)  # (..., groups)
    highest = np.repeat(groups, 8, -1)[..., : top.shape[-1]]  # (..., n_blocks)
    highest = np.where(highest < np.float32(1e-30), np.float32(0), highest)
    ratio = np.divide(np.float32(127), highest, out=np.zeros_like(highest), where=highest != 0)
    scale = highest / np.float32(127**2) * np.minimum(np.ceil(top * ratio), np.float32(127))  # (..., n_blocks)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    q = np.rint(blocks * inverse[..., None])  # whole numbers, still float32
    return (q.astype(x.dtype) * scale[..., None].astype(x.dtype)).reshape(x.shape)


def round_blocks(x: Array, steps: int = 127, sums: int = 0) -> Array:
    """x rounded along its last axis in blocks of 64, with `steps` steps to the largest magnitude of each, as attention does.

    sums    0, or as many steps to the largest sum of four magnitudes, two neighbours and those 16 behind them, if that is more
    """
    n = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % 64)])
    blocks = padded.astype(np.float64).reshape(*x.shape[:-1], -1, 64)  # (..., n_blocks, 64)
    scale = np.abs(blocks).max(-1, keepdims=True) / steps  # (..., n_blocks, 1)
    if sums:
        fours = np.abs(blocks).reshape(*blocks.shape[:-1], 2, 2, 8, 2).sum((-3, -1))  # (..., n_blocks, 2, 8)
        scale = np.maximum(scale, fours.max((-2, -1))[..., None] / sums)
    q = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)) * scale
    return q.reshape(padded.shape)[..., :n].astype(x.dtype)


def attend_rounded(query: Array, rows: Array, latent: int, scale: float, rounded: bool = True) -> Array:
    """Absorbed attention of the last T of S positions, (T, heads, latent), with the roundings of kernels/attention/.

    query    (T, heads, row)
    rows     (S, row): latent values, then the rope key
    Where kernels add up products in 16 bits, so do those of attention, and the sums of four codes are limited.
    """
    n, total, together = len(query), len(rows), sums_in_16_bits()
    values = rows[:, :latent]
    if rounded:
        codes = round_blocks(query[..., :latent], sums=126 * together)  # (T, heads, latent)
        query = np.concatenate([codes, round_blocks(query[..., latent:], 4095)], -1)
        rows = np.concatenate([round_blocks(values), round_blocks(rows[:, latent:], 4095)], -1)
        values = round_blocks(values.T).T
    scores = np.einsum("thr,sr->ths", query, rows) * scale  # (T, heads, S)
    scores = np.where(np.tri(n, total, total - n, dtype=bool)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    if rounded:
        weights = round_blocks(weights, 255, 256 * together)
    return np.einsum("ths,sl->thl", weights / weights.sum(-1, keepdims=True), values)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), by way of tanh, which does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def softmax(x: Array) -> Array:
    """e^x / sum(e^x) over the last axis, shifted by the maximum."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rope(x: Array, positions: Array, theta: float) -> Array:
    """Neighbours (x[2i], x[2i+1]) turned by the angle position * theta^(-2i/width).

    x           (T, ..., width), the last axis turned
    positions   (T,)
    Angles are float64: at position 131,071 a float32 angle is wrong by 0.004 rad.
    """
    width = x.shape[-1]
    angles = positions.astype(np.float64)[:, None] * theta ** (-np.arange(0, width, 2) / width)  # (T, width/2)
    angles = angles.reshape(len(positions), *[1] * (x.ndim - 2), width // 2)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


@dataclass
class Naive:
    """A model to compute logits with.

    weights     {GGUF tensor name: float array, row-major}
    formats     {GGUF tensor name: format}: given, activations are rounded before a matrix as the kernels round them, and if any
                matrix is quantized, the rows that the cache keeps are rounded to float16; if any is coarser than
                Q8_0, attention is rounded as its kernels do
    absorbed    queries meet the latent rows themselves (as the runtime does); otherwise keys and values are expanded per head
    dtype       what everything is computed in
    """

    weights: Mapping[str, Array]
    config: Config
    formats: Mapping[str, str] | None = None
    absorbed: bool = False
    dtype: type = np.float64

    def logits(self, tokens: Sequence[int] | Array) -> Array:
        """(T, vocab_size): the scores of the token that follows each of the T tokens, from an empty cache."""
        return self.states(tokens) @ self.weight("token_embd.weight" if self.config.tie_word_embeddings else "output.weight").T

    def states(self, tokens: Sequence[int] | Array) -> Array:
        """(T, hidden): what the output matrix reads."""
        x = self.weight("token_embd.weight")[np.asarray(tokens)]  # (T, hidden)
        for i in range(self.config.num_hidden_layers):
            x = self.block(i, x)
        return rms_norm(x, self.weight("output_norm.weight"), self.config.rms_norm_eps)

    def ahead(self, states: Array, following: Sequence[int] | Array) -> tuple[Array, Array]:
        """The prediction layer: from states (T, hidden) and the T tokens that follow them, (logits of those behind, own states)."""
        n, eps = self.config.num_hidden_layers, self.config.rms_norm_eps
        own = f"blk.{n}.nextn."
        embedding = rms_norm(
            self.weight(own + "embed_tokens.weight")[np.asarray(following)], self.weight(own + "enorm.weight"), eps
        )
        state = rms_norm(states, self.weight(own + "hnorm.weight"), eps)
        x = self.block(n, np.concatenate([embedding, state], -1) @ self.weight(own + "eh_proj.weight").T)
        x = rms_norm(x, self.weight(own + "shared_head_norm.weight"), eps)
        return x @ self.weight(own + "shared_head_head.weight").T, x

    def block(self, i: int, x: Array) -> Array:
        """Decoder block i: attention, then experts (the first blocks: one dense network), each added to its input."""
        eps = self.config.rms_norm_eps
        x = x + self.attention(i, rms_norm(x, self.weight(f"blk.{i}.attn_norm.weight"), eps))
        h = rms_norm(x, self.weight(f"blk.{i}.ffn_norm.weight"), eps)
        if i < self.config.first_k_dense_replace:
            return x + self.mlp(f"blk.{i}.ffn_{{}}.weight", h)
        return x + self.experts(i, h) + self.mlp(f"blk.{i}.ffn_{{}}_shexp.weight", h)

    def attention(self, i: int, x: Array) -> Array:
        """Multi-head latent attention of block i over x (T, hidden), each position seeing itself and those before."""
        c, blk, n = self.config, f"blk.{i}.", len(x)
        heads, positions = c.num_attention_heads, np.arange(n)

        # the kernels read x in two int8 terms here and before the logits: nothing worth imitating is lost
        q = rms_norm(x @ self.weight(blk + "attn_q_a.weight").T, self.weight(blk + "attn_q_a_norm.weight"), c.rms_norm_eps)
        q = self.linear(blk + "attn_q_b.weight", q).reshape(n, heads, c.qk_head_dim)
        q_nope, q_rope = q[..., : c.qk_nope_head_dim], rope(q[..., c.qk_nope_head_dim :], positions, c.rope_theta)

        kv = x @ self.weight(blk + "attn_kv_a_mqa.weight").T  # (T, kv_lora_rank + rope): all that a cache keeps
        latent = rms_norm(kv[:, : c.kv_lora_rank], self.weight(blk + "attn_kv_a_norm.weight"), c.rms_norm_eps)
        k_rope = rope(kv[:, c.kv_lora_rank :], positions, c.rope_theta)  # (T, rope), one for all heads
        latent, k_rope = self.cached(latent), self.cached(k_rope)

        k_b, v_b = blk + "attn_k_b.weight", blk + "attn_v_b.weight"  # (heads, latent, nope), (heads, v, latent)
        if self.absorbed:
            q_latent = np.einsum("thn,hln->thl", self.rounded(k_b, q_nope), self.weight(k_b))  # (T, heads, latent)
            query, rows = np.concatenate([q_latent, q_rope], -1), np.concatenate([latent, k_rope], -1)
            mixed = attend_rounded(query, rows, c.kv_lora_rank, c.qk_head_dim**-0.5, self.int8_attention)  # (T, heads, latent)
            out = np.einsum("thl,hvl->thv", self.rounded(v_b, mixed), self.weight(v_b))
        else:
            k_nope = np.einsum("sl,hln->shn", latent, self.weight(k_b))  # (T, heads, nope)
            scores = np.einsum("thr,sr->hts", q_rope, k_rope) + np.einsum("thn,shn->hts", q_nope, k_nope)  # (heads, T, T)
            scores = np.where(np.tri(n, dtype=bool), scores * c.qk_head_dim**-0.5, -np.inf)
            values = np.einsum("sl,hvl->shv", latent, self.weight(v_b))  # (T, heads, v)
            out = np.einsum("hts,shv->thv", softmax(scores), values)
        return self.linear(blk + "attn_output.weight", out.reshape(n, heads * c.v_head_dim))

    def route(self, i: int, x: Array) -> tuple[Array, Array]:
        """(experts (T, top), weights (T, top)): the bias helps to choose only; a tie goes to the lower number."""
        c = self.config
        scores = x @ self.weight(f"blk.{i}.ffn_gate_inp.weight").T  # (T, experts)
        scores = softmax(scores) if c.scoring_func == "softmax" else sigmoid(scores)
        choice = scores + self.weight(f"blk.{i}.exp_probs_b.bias") if f"blk.{i}.exp_probs_b.bias" in self.weights else scores
        chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : c.num_experts_per_tok]
        weights = np.take_along_axis(scores, chosen, axis=-1)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return chosen, weights * c.routed_scaling_factor

    def experts(self, i: int, x: Array) -> Array:
        """Each token's chosen experts, weighted and summed: (T, hidden)."""
        chosen, weights = self.route(i, x)
        out = np.zeros_like(x)
        for e in range(self.config.n_routed_experts):
            token, slot = np.nonzero(chosen == e)
            if len(token):
                out[token] += weights[token, slot, None] * self.mlp(f"blk.{i}.ffn_{{}}_exps.weight", x[token], expert=e)
        return out

    def mlp(self, names: str, x: Array, expert: int | None = None) -> Array:
        """down(silu(gate(x)) * up(x)); names holds the place of gate, up and down."""
        h = silu(self.linear(names.format("gate"), x, expert)) * self.linear(names.format("up"), x, expert)
        return self.linear(names.format("down"), h, expert)

    def linear(self, name: str, x: Array, expert: int | None = None) -> Array:
        """x @ W^T; of a stack of experts, one."""
        w = self.weight(name) if expert is None else self.weights[name][expert].astype(self.dtype)
        return self.rounded(name, x) @ w.T

    def rounded(self, name: str, x: Array) -> Array:
        """x as the kernel of this tensor's format sees it, if formats are given."""
        return x if self.formats is None else round_activations(x, self.formats[name])

    def cached(self, x: Array) -> Array:
        """x as it comes back from the runtime's cache, if formats are given."""
        return x.astype(np.float32).astype(np.float16).astype(self.dtype) if self.quantized else x

    @property
    def quantized(self) -> bool:
        """Whether formats are given and one of them is quantized: the cache then keeps float16."""
        return self.formats is not None and any(name not in FLOATS for name in self.formats.values())

    @property
    def int8_attention(self) -> bool:
        """Whether one of them is coarser than Q8_0: attention then computes in int8."""
        return self.formats is not None and any(name not in (*FLOATS, "Q8_0") for name in self.formats.values())

    def weight(self, name: str) -> Array:
        """A tensor, in the type computed in."""
        return self.weights[name].astype(self.dtype)
