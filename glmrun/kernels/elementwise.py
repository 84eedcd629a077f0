"""Norms, rotary positions, the gate, and the rounding of activations to int8: row by row, any number of rows."""

from numba import float32, int32, int64, types

from glmrun.kernels import kernel
from glmrun.kernels.layout import BF16, F16, F32, Q4_K, Q6_K, activation_record, model_record, step_record
from glmrun.simd import (
    absolute,
    exp,
    f32x16,
    fma,
    i32x16,
    largest,
    load_f32,
    load_f32x16,
    maximum,
    minimum_i32,
    round_to_f16,
    round_to_i32,
    splat_f32,
    splat_i32,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i8x16,
    store_i16,
    store_i32,
    total,
    total_i32,
    zero_f32x16,
)

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


@kernel(_void(int64, int64, int64))
def to_f16_row(x, n, out):
    """float32 (n,) -> float16 (n,), n a multiple of 16."""
    for k in range(0, n, 16):
        store_f16x16(out + k * 2, load_f32x16(x + k * 4))


@kernel(i32x16(f32x16, float32, int64), inline="always")
def _store_rounded(x, inverse_scale, out):
    """16 values times inverse_scale, rounded half to even, at most 127, stored as int8."""
    q = minimum_i32(round_to_i32(x * splat_f32(inverse_scale)), splat_i32(int32(127)))
    store_i8x16(out, q)
    return q


@kernel(_void(int64, int64, int64))
def quantize_32(x, n, out):
    """Round float32 (n,) to int8 with a scale for each 32, n a multiple of 32.

    out: int8 (n,), then float32 (n / 32,) scales, then int32 (n / 32,) -128 times the sum of 32 rounded values.
    As GGML's Q8_0: scale = largest magnitude / 127, kept to float16's precision.
    A value that is not finite makes its scale not finite, so it reaches the logits, where it is found.
    """
    scales, sums = out + n, out + n + n // 8
    for k in range(0, n, 32):
        a, b = load_f32x16(x + k * 4), load_f32x16(x + k * 4 + 64)
        top = largest(maximum(absolute(a), absolute(b)))
        inverse = float32(0.0) if top == 0 else float32(127.0) / top
        rounded = _store_rounded(a, inverse, out + k) + _store_rounded(b, inverse, out + k + 16)
        store_i32(sums + k // 8, -128 * total_i32(rounded))
        store_f32(scales + k // 8, round_to_f16(top / float32(127.0)) + total(a + b) * float32(0.0))


@kernel(_void(int64, int64, int64))
def quantize_256(x, n, out):
    """Round float32 (n,) to int8 with a scale for each 256, n a multiple of 256.

    out: int8 (n,), then float32 (n / 256,) scales, then three kinds of sums of the rounded values: float32 (n / 16,) of 16 each,
    int32 (n / 16,) the same times -32, int16 (n / 32,) of 32 each. As GGML's Q8_K: the value of largest magnitude becomes -127.
    A value that is not finite makes its scale not finite, as in quantize_32.
    """
    scales, sums = out + n, out + n + n // 64
    offsets, pairs = sums + n // 4, sums + n // 2
    for k in range(0, n, 256):
        high, low, check = load_f32x16(x + k * 4), zero_f32x16() - load_f32x16(x + k * 4), zero_f32x16()
        for j in range(k, k + 256, 16):
            v = load_f32x16(x + j * 4)
            high, low, check = maximum(high, v), maximum(low, zero_f32x16() - v), check + v
        most, least = largest(high), -largest(low)
        extreme = most if most > -least else least
        if most == -least:  # whichever comes first, as the reference does
            for j in range(k, k + 256):
                if load_f32(x + j * 4) == most or load_f32(x + j * 4) == least:
                    extreme = load_f32(x + j * 4)
                    break
        inverse, even = float32(0.0) if extreme == 0 else float32(-127.0) / extreme, int32(0)
        for j in range(k, k + 256, 16):
            q = total_i32(_store_rounded(load_f32x16(x + j * 4), inverse, out + j))
            store_f32(sums + j // 4, float32(q))
            store_i32(offsets + j // 4, -32 * q)
            if j % 32 == 0:
                even = q
            else:
                store_i16(pairs + j // 32 * 2, even + q)
        scale = float32(0.0) if extreme == 0 else float32(1.0) / inverse
        store_f32(scales + k // 64, scale + total(check) * float32(0.0))


Q32, Q256 = 1, 2  # the forms of an activation beside float32


@kernel(int64(int64))
def form(weight_format):
    """The form of activations that matrices of this format read: 0 (float32), Q32 or Q256."""
    if weight_format in (Q4_K, Q6_K):
        return Q256
    if weight_format in (F32, F16, BF16):
        return 0
    return Q32


@kernel(_void(activation_record, int64, int64, int64))
def quantize(rows, forms, first, end):
    """Fill the wanted forms (a sum of Q32, Q256) of rows first to end - 1 from their float32 form."""
    for r in range(first, end):
        x = rows.floats + r * rows.floats_stride
        if forms & Q32:
            quantize_32(x, rows.columns, rows.q32 + r * rows.q32_stride)
        if forms & Q256:
            quantize_256(x, rows.columns, rows.q256 + r * rows.q256_stride)


@kernel(_void(model_record, step_record, int64, int64, int64, int64))
def store_latents(m, s, kv_norm, layer, first, end):
    """Cache tokens first to end - 1: [RMSNorm(latent) | rotated k_rope] of kv_a as float16, padding zeroed."""
    for t in range(first, end):
        row, position = s.kv_a + t * s.kv_a_stride, s.position + t
        rope, padded = row + m.kv_lora_rank * 4, row + m.row * 4  # behind every row: room for it as the cache wants it
        rms_norm(row, kv_norm, m.kv_lora_rank, m.rms_norm_eps, padded)
        rotate(rope, m.qk_rope_head_dim, s.rope + position * m.qk_rope_head_dim * 4)
        for k in range(m.qk_rope_head_dim):
            store_f32(padded + (m.latent + k) * 4, load_f32(rope + k * 4))
        to_f16_row(padded, m.row, s.cache + layer * s.cache_layer_bytes + position * m.row * 2)


@kernel(_void(model_record, step_record, int64, int64))
def place_rope(m, s, first, end):
    """Rotate the rope part of every head's query of tokens first to end - 1 into its place behind the absorbed part."""
    heads, width = m.num_attention_heads, m.qk_nope_head_dim + m.qk_rope_head_dim
    for i in range(first * heads, end * heads):
        source = s.q.floats + (i * width + m.qk_nope_head_dim) * 4
        rotate(source, m.qk_rope_head_dim, s.rope + (s.position + i // heads) * m.qk_rope_head_dim * 4)
        for k in range(m.qk_rope_head_dim):
            store_f32(s.query + (i * m.row + m.latent + k) * 4, load_f32(source + k * 4))
