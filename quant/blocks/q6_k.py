"""Q6_K: 256 values in 210 bytes, as 16 sub-blocks of 16; x = (d * s[j]) * (q - 32).

byte  0                        128             192        208  210
      | low: 2 halves of 64    | high: 2 x 32  | s 16 x 1 | d  |
d     float16
s     int8
q     6 bits. For half h (values 128h .. 128h + 127) and i = 0 .. 31, value 128h + 32k + i has
      bits 0-3  k = 0, 1: lower nibble of low[64h + 32k + i];  k = 2, 3: upper nibble of low[64h + 32(k - 2) + i]
      bits 4-5  bits 2k, 2k + 1 of high[32h + i]
"""

import numpy as np

from quant.blocks.compiled import compiled
from quant.blocks.lanes import (
    lane,
    largest_of_all,
    load,
    maximum,
    minimum,
    nearest,
    splat,
    store,
    store_bytes,
    total_of_all,
    transpose,
    weigh,
    where_less,
)
from quant.blocks.search import as_half, binade, column_weights, reciprocal

# One lane for each sub-block. The scales tried for it, relative to the one that puts its largest magnitude onto code -32: hardly
# less, which would cut that value, but up to a sixth more. d leaves room for that: the largest of its block begins at s = -107.
_FACTORS = np.linspace(0.98, 1.18, 16).astype(np.float32)
_LARGEST_S = np.float32(107)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 210 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 210)  # (n, 210)
    d = raw[:, 208:].copy().view("<f2").astype(np.float32)  # (n, 1)
    s = raw[:, 192:208].view(np.int8).astype(np.float32)  # (n, 16)
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)  # (n, half, k, i)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3  # (n, half, k, i)
    q = (low | high << 4).view(np.int8).reshape(-1, 16, 16) - np.int8(32)  # (n, 16, 16)
    with np.errstate(invalid="ignore"):
        return ((d * s)[:, :, None] * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 210 * 256)  # (..., 256 n)


def encode_q6_k(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 256 * 210), searched for the least sum(weights * (x - y)**2).

    Step 1: d from the block's largest magnitude; for each sub-block sixteen s, and the one whose codes leave the least error.
    Step 2: d fitted to those codes of the whole block by least squares, rounded to float16; for it, four s around the chosen one.
    Deterministic, and independent of which rows share a call.
    """
    n, columns = rows.shape
    out = np.empty((n, columns // 256 * 210), np.uint8)  # (n, columns / 256 * 210)
    by_lane = None
    if weights is not None:
        by_lane = column_weights(weights, columns).reshape(-1, 16, 16).transpose(0, 2, 1).reshape(-1)  # (block, value, lane)
    _encode(rows.reshape(-1), by_lane, columns // 256, out.reshape(-1))
    return out


@compiled(nogil=True, error_model="numpy")
def _encode(rows, weights, blocks_per_row, out):
    """out[b] = block of rows[256 b : 256 b + 256]; weights float32 (blocks_per_row * 256,) or None, out uint8 (n * 210,)."""
    x = np.empty(256, np.float32)  # (value, lane)
    y = np.empty(256, np.float32)  # codes, (lane, value)
    for b in range(len(rows) // 256):
        k = 256 * (b % blocks_per_row)
        transpose(rows, 256 * b, 16, x, 0, 16)
        tails, whole, up, down = _scaled(x, weights, k)
        d, s = _search(x, weights, k, tails, whole, up, down)
        _quantize(x, d, s, y)
        _pack(y, as_half(d, up, down)[0], s, out, 210 * b)


@compiled(forceinline=True)
def _scaled(x, w, k):
    """Scale x below 4 by a power of two, so that no sum overflows or vanishes.

    Returns (tails, the block's value of largest magnitude, that power of two, its inverse); tails are, of each lane, the lowest
    value, its weight, the highest value, its weight, and sum(w x x).
    """
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    lowest, highest, squares = zero, zero, zero
    lowest_weight, highest_weight = one, one
    for i in range(16):
        v, u = load(x, 16 * i), weigh(w, k + 16 * i, one)
        lowest_weight, highest_weight = where_less(v, lowest, u, lowest_weight), where_less(highest, v, u, highest_weight)
        lowest, highest = minimum(lowest, v), maximum(highest, v)
    top, bottom = lane(largest_of_all(highest), 0), lane(largest_of_all(zero - lowest), 0)
    up, down = binade(max(top, bottom))
    for i in range(16):
        v = load(x, 16 * i) * splat(down)
        squares = squares + weigh(w, k + 16 * i, v) * v
        store(x, 16 * i, v)
    tails = (lowest * splat(down), lowest_weight, highest * splat(down), highest_weight, squares)
    return tails, (top if top > bottom else -bottom) * down, up, down


@compiled(error_model="numpy")
def _search(x, w, k, tails, whole, up, down):
    """(d, s by lane) of least error found; d in the block's range."""
    zero, (lowest, _, highest, _, nothing) = splat(np.float32(0)), tails
    extreme = where_less(highest, zero - lowest, lowest, highest)
    d = as_half(whole / (np.float32(32) * _LARGEST_S), up, down)[1]
    wanted = extreme * reciprocal(splat(np.float32(-32) * d))
    error, s = nothing, zero
    for i in range(0, len(_FACTORS), 4):
        a, b = _eight_bits(wanted * splat(_FACTORS[i])), _eight_bits(wanted * splat(_FACTORS[i + 1]))
        c, e = _eight_bits(wanted * splat(_FACTORS[i + 2])), _eight_bits(wanted * splat(_FACTORS[i + 3]))
        error, s = _best_of_four(x, w, k, tails, d, (a, b, c, e), error, s)
    sums = _sums(x, w, k, splat(d) * s)
    squares, products = lane(total_of_all(s * s * sums[0]), 0), lane(total_of_all(s * sums[1]), 0)
    other_d = as_half(products / squares, up, down)[1] if squares > 0 else np.float32(0)
    one, two = splat(np.float32(1)), splat(np.float32(2))
    close = (s, _eight_bits(s + one), _eight_bits(s - one), _eight_bits(s + two))
    other_error, other_s = _best_of_four(x, w, k, tails, other_d, close, nothing, zero)
    gain = total_of_all(error - other_error)  # chosen without a jump, which no CPU could foretell
    return lane(where_less(zero, gain, splat(other_d), splat(d)), 0), where_less(zero, gain, other_s, s)


@compiled(forceinline=True)
def _best_of_four(x, w, k, tails, d, candidates, error, s):
    """(error, s), or the candidate of less error sum(w (x - d * s * code)**2), the codes being the nearest ones.

    Four at a time, because each sum waits for itself. Codes are not clipped while rounding errors are summed: only the two
    outermost values can go beyond the codes' ends, and theirs is added afterwards.
    """
    a, b, c, e = (_inverse(d, candidates[0]), _inverse(d, candidates[1]), _inverse(d, candidates[2]), _inverse(d, candidates[3]))
    zero = splat(np.float32(0))
    error_a, error_b, error_c, error_e = zero, zero, zero, zero
    for i in range(16):
        v = load(x, 16 * i)
        error_a = error_a + _rounded_off(w, k + 16 * i, v * a)
        error_b = error_b + _rounded_off(w, k + 16 * i, v * b)
        error_c = error_c + _rounded_off(w, k + 16 * i, v * c)
        error_e = error_e + _rounded_off(w, k + 16 * i, v * e)
    error, s = _better(tails, d, candidates[0], a, error_a, error, s)
    error, s = _better(tails, d, candidates[1], b, error_b, error, s)
    error, s = _better(tails, d, candidates[2], c, error_c, error, s)
    return _better(tails, d, candidates[3], e, error_e, error, s)


@compiled(forceinline=True)
def _inverse(d, s):
    return reciprocal(splat(d) * s)


@compiled(forceinline=True)
def _rounded_off(w, i, t):
    rest = t - nearest(t)
    return weigh(w, i, rest) * rest


@compiled(forceinline=True)
def _better(tails, d, other_s, inverse, rounding, error, s):
    """(error, s), or what other_s leaves if that is less: `rounding` in steps, and what the outermost values lose by clipping."""
    zero, two = splat(np.float32(0)), splat(np.float32(2))
    lowest, lowest_weight, highest, highest_weight, nothing = tails
    low, high = lowest * inverse, highest * inverse
    below, above = where_less(inverse, zero, high, low), where_less(inverse, zero, low, high)
    # (t + 32)**2 - (t + 33)**2 for a value at t that would round to -33; and likewise beyond 31.
    cut = where_less(inverse, zero, highest_weight, lowest_weight) * maximum(zero - two * below - splat(np.float32(65)), zero)
    cut = cut + where_less(inverse, zero, lowest_weight, highest_weight) * maximum(two * above - splat(np.float32(63)), zero)
    scale = splat(d) * other_s
    other = where_less(zero, scale * scale, scale * scale * (rounding + cut), nothing)
    return minimum(other, error), where_less(other, error, other_s, s)


@compiled()
def _sums(x, w, k, scale):
    """(sum(w q q), sum(w q x)) of each lane for the best codes q of a scale."""
    zero, inverse = splat(np.float32(0)), reciprocal(scale)
    squares, products = zero, zero
    for i in range(16):
        v = load(x, 16 * i)
        q = _codes(v, inverse)
        squares, products = squares + weigh(w, k + 16 * i, q) * q, products + weigh(w, k + 16 * i, q) * v
    return squares, products


@compiled(forceinline=True)
def _codes(v, inverse):
    return minimum(maximum(nearest(v * inverse), splat(np.float32(-32))), splat(np.float32(31)))


@compiled(forceinline=True)
def _eight_bits(s):
    return minimum(maximum(nearest(s), splat(np.float32(-128))), splat(np.float32(127)))


@compiled(forceinline=True, error_model="numpy")
def _quantize(x, d, s, codes):
    """codes = the best codes of x, 0 .. 63, sub-block after sub-block."""
    inverse = reciprocal(splat(d) * s)
    for i in range(16):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse) + splat(np.float32(32)))
    transpose(x, 0, 16, codes, 0, 16)


@compiled(forceinline=True)
def _pack(codes, bits, s, out, at):
    """Write one block, its 210 bytes as drawn above, at out[at]; codes float32 (lane, value)."""
    sixteen = splat(np.float32(16))
    for half in range(2):
        for i in range(0, 32, 16):
            low, high = at + 64 * half + i, splat(np.float32(0))
            for k in range(3, -1, -1):
                q = load(codes, 128 * half + 32 * k + i)
                upper = nearest(q * splat(np.float32(1 / 16)) - splat(np.float32(15 / 32)))  # q / 16, rounded down
                store(codes, 128 * half + 32 * k + i, q - sixteen * upper)
                high = high * splat(np.float32(4)) + upper
            for k in range(2):
                a, c = load(codes, 128 * half + 32 * k + i), load(codes, 128 * half + 32 * k + 64 + i)
                store_bytes(out, low + 32 * k, a + sixteen * c)
            store_bytes(out, at + 128 + 32 * half + i, high)
    store_bytes(out, at + 192, s)
    out[at + 208], out[at + 209] = bits & 255, bits >> 8
