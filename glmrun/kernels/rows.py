"""Norms, rotary positions, the gate, and the rounding of activations to int8: row by row, any number of rows."""

from numba import boolean, float32, int64, types

from glmrun.kernels.activations import FEW, quantize_row
from glmrun.kernels.attention.cached_row import store_cached
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import (
    load_i8x16_as_f32,
)
from glmrun.kernels.layout import BF16, F16, F32, activation_record, model_record, step_record
from glmrun.kernels.simd.arithmetic import exp, fma, total
from glmrun.kernels.simd.memory import load_f32, load_f32x16, splat_f32, store_f32, store_f32x16, zero_f32x16

_void = types.void


@kernel(_void(int64, int64, int64, float32, int64))
def rms_norm(x, weight, n, eps, out):
    """out = weight * x / sqrt(mean(x**2) + eps); float32 (n,) each, out may be x."""
    whole, squares = n // 16 * 16, zero_f32x16()
    for k in range(0, whole, 16):
        v = load_f32x16(x + k * 4)
        squares = fma(v, v, squares)
    mean = total(squares)
    for k in range(whole, n):
        mean += load_f32(x + k * 4) ** 2
    scale = float32(1.0 / (mean / float32(n) + eps) ** 0.5)
    for k in range(0, whole, 16):
        store_f32x16(out + k * 4, load_f32x16(x + k * 4) * splat_f32(scale) * load_f32x16(weight + k * 4))
    for k in range(whole, n):
        store_f32(out + k * 4, load_f32(x + k * 4) * scale * load_f32(weight + k * 4))


@kernel(_void(int64, int64, int64))
def rotate(x, n, angles):
    """Turn the pairs (x0, x1), (x2, x3), ... of float32 (n,) in place; angles: cosine and sine of each pair, float32 (n / 2, 2)."""
    for k in range(0, n, 2):
        a, b = load_f32(x + k * 4), load_f32(x + k * 4 + 4)
        cosine, sine = load_f32(angles + k * 4), load_f32(angles + k * 4 + 4)
        store_f32(x + k * 4, a * cosine - b * sine)
        store_f32(x + k * 4 + 4, a * sine + b * cosine)


@kernel(_void(int64, int64, int64))
def silu_multiply(gate, up, n):
    """gate = gate * sigmoid(gate) * up, float32 (n rounded up to 16,): rows are padded, what lies beyond n is never read."""
    one, zero = splat_f32(float32(1.0)), zero_f32x16()
    for k in range(0, n, 16):
        g = load_f32x16(gate + k * 4)
        store_f32x16(gate + k * 4, g * load_f32x16(up + k * 4) / (one + exp(zero - g)))


@kernel(boolean(int64))
def reads_codes(weight_format):
    """Whether matrices of this format read activations as quantize_row leaves them, not as float32."""
    return weight_format not in (F32, F16, BF16)


@kernel(_void(activation_record, boolean, int64, int64, int64))
def quantize(rows, wanted, n, first, end):
    """Fill the codes of rows first to end - 1 from their float32 form, if a matrix wants them.

    n   how many of them, at least, meet a matrix together
    """
    if wanted:
        for r in range(first, end):
            quantize_row(rows.floats + r * rows.floats_stride, rows.columns, n < FEW, rows.codes + r * rows.codes_stride)


@kernel(_void(activation_record, activation_record, int64, int64, int64))
def quantize_rest(rows, rest, n, first, end):
    """What rounding took from rows first to end - 1, rounded in turn: codes of both together are good to 15 bits."""
    for r in range(first, end):
        x, codes, out = (
            rows.floats + r * rows.floats_stride,
            rows.codes + r * rows.codes_stride,
            rest.floats + r * rest.floats_stride,
        )
        for k in range(0, rows.columns, 16):
            scale = splat_f32(load_f32(codes + rows.columns + k // 32 * 4))
            store_f32x16(out + k * 4, load_f32x16(x + k * 4) - load_i8x16_as_f32(codes + k) * scale)
        quantize_row(out, rest.columns, n < FEW, rest.codes + r * rest.codes_stride)


@kernel(_void(model_record, step_record, int64, int64, int64, int64))
def store_latents(m, s, kv_norm, layer, first, end):
    """Cache tokens first to end - 1: [RMSNorm(latent) | rotated k_rope] of kv_a, padding zeroed."""
    for t in range(first, end):
        row, position = s.kv_a + t * s.kv_a_stride, s.position + t
        rope, padded = row + m.kv_lora_rank * 4, row + m.row * 4  # behind every row: room for it as the cache wants it
        rms_norm(row, kv_norm, m.kv_lora_rank, m.rms_norm_eps, padded)
        rotate(rope, m.qk_rope_head_dim, s.rope + position * m.qk_rope_head_dim * 4)
        for k in range(m.qk_rope_head_dim):
            store_f32(padded + (m.latent + k) * 4, load_f32(rope + k * 4))
        store_cached(m, padded, s.cache + layer * s.cache_layer_bytes + position * m.row_bytes)


@kernel(_void(model_record, step_record, int64, int64))
def place_rope(m, s, first, end):
    """Rotate the rope part of every head's query of tokens first to end - 1 into its place behind the absorbed part."""
    heads, width = m.num_attention_heads, m.qk_nope_head_dim + m.qk_rope_head_dim
    for i in range(first * heads, end * heads):
        source = s.q.floats + (i * width + m.qk_nope_head_dim) * 4
        rotate(source, m.qk_rope_head_dim, s.rope + (s.position + i // heads) * m.qk_rope_head_dim * 4)
        for k in range(m.qk_rope_head_dim):
            store_f32(s.query + (i * m.row + m.latent + k) * 4, load_f32(source + k * 4))
