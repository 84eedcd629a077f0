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
from numba import njit

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

# One lane for each sub-block. The "sums" of codes are (w q q, w q x) over the sub-block: with them the error of any scale is known.
_FAR = np.array([0, 1, 2, -2, 4, -4, 6, -6, 8, -8, 10, -10, 13, -13, 16, -16], np.float32)
_CLOSE = np.array([0, 1, -1, 2], np.float32)


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

    Step 1: for each sub-block alone, the best real scale over four grids; the largest of them sets d.
    Step 2: the codes of every second s within 16 of the nearest one, and for each the s of least error: each s is another grid.
    Step 3: d fitted to the codes of the whole block by least squares, rounded to float16, the next s tried on both sides.
    Deterministic, and independent of which rows share a call.
    """
    n, columns = rows.shape
    out = np.empty((n, columns // 256 * 210), np.uint8)  # (n, columns / 256 * 210)
    by_lane = None
    if weights is not None:
        by_lane = column_weights(weights, columns).reshape(-1, 16, 16).transpose(0, 2, 1).reshape(-1)  # (block, value, lane)
    _encode(rows.reshape(-1), by_lane, columns // 256, out.reshape(-1))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(rows, weights, blocks_per_row, out):
    """out[b] = block of rows[256 b : 256 b + 256]; weights float32 (blocks_per_row * 256,) or None, out uint8 (n * 210,)."""
    x = np.empty(256, np.float32)  # (value, lane)
    y = np.empty(256, np.float32)  # codes, (lane, value)
    zero = splat(np.float32(0))
    for b in range(len(rows) // 256):
        transpose(rows, 256 * b, 16, x, 0, 16)
        largest = zero
        for i in range(16):
            v = load(x, 16 * i)
            largest = maximum(largest, maximum(v, zero - v))
        up, down = binade(lane(largest_of_all(largest), 0))  # scaled below 4 by a power of two: no sum overflows or vanishes
        for i in range(16):
            store(x, 16 * i, load(x, 16 * i) * splat(down))
        d, s = _search(x, weights, 256 * (b % blocks_per_row), up, down)
        _quantize(x, d, s, y)
        _pack(y, as_half(d, up, down)[0], s, out, 210 * b)


@njit(cache=True, error_model="numpy")
def _search(x, w, k, up, down):
    """(d, s by lane) of least error found; d in the block's range."""
    scale = _fit(x, w, k)
    highest, lowest = largest_of_all(scale), largest_of_all(splat(np.float32(0)) - scale)
    extreme = lane(where_less(highest, lowest, splat(np.float32(0)) - lowest, highest), 0)
    # A largest s of -116 leaves it some room to both sides.
    d = as_half(extreme / np.float32(-116), up, down)[1]
    s = _near(x, w, k, d, _eight_bits(scale * reciprocal(splat(d))), _FAR)
    sums = _sums(x, w, k, splat(d) * s)
    error = total_of_all(_error(sums, splat(d) * s))
    squares, products = lane(total_of_all(s * s * sums[0]), 0), lane(total_of_all(s * sums[1]), 0)
    other_d = as_half(products / squares, up, down)[1] if squares > 0 else np.float32(0)
    other_s = _near(x, w, k, other_d, s, _CLOSE)
    other_error = total_of_all(_error(_sums(x, w, k, splat(other_d) * other_s), splat(other_d) * other_s))
    if lane(other_error, 0) < lane(error, 0):
        return other_d, other_s
    return d, s


@njit(cache=True, error_model="numpy")
def _fit(x, w, k):
    """For each lane the scale of least error over four grids that round the largest value to -30 .. -33 (the code's end is -32)."""
    zero, tiny = splat(np.float32(0)), splat(np.float32(1e-7))
    smallest, largest = zero, zero
    for i in range(16):
        v = load(x, 16 * i)
        smallest, largest = minimum(smallest, v), maximum(largest, v)
    extreme = where_less(largest, zero - smallest, minimum(smallest, zero - tiny), maximum(largest, tiny))
    inverse = splat(np.float32(-1)) / extreme
    best, best_scale = splat(np.float32(-1)), zero
    a, b = inverse * splat(np.float32(30)), inverse * splat(np.float32(31))
    c, d = inverse * splat(np.float32(32)), inverse * splat(np.float32(33))
    for sums in _four_sums(x, w, k, a, b, c, d):
        scale = sums[1] / maximum(sums[0], tiny)
        gain = scale * sums[1]
        best_scale = where_less(best, gain, scale, best_scale)
        best = maximum(best, gain)
    return best_scale


@njit(cache=True, forceinline=True)
def _codes(v, inverse):
    return minimum(maximum(nearest(v * inverse), splat(np.float32(-32))), splat(np.float32(31)))


@njit(cache=True, forceinline=True)
def _eight_bits(s):
    return minimum(maximum(nearest(s), splat(np.float32(-128))), splat(np.float32(127)))


@njit(cache=True, forceinline=True)
def _add(w, i, v, q, sums):
    uq = weigh(w, i, q)
    return sums[0] + uq * q, sums[1] + uq * v


@njit(cache=True, forceinline=True)
def _four_sums(x, w, k, inverse_a, inverse_b, inverse_c, inverse_d):
    """The sums of four sets of codes, each x * inverse rounded. Four at a time, because each sum waits for itself."""
    zero = splat(np.float32(0))
    a, b, c, d = (zero, zero), (zero, zero), (zero, zero), (zero, zero)
    for i in range(16):
        v = load(x, 16 * i)
        a = _add(w, k + 16 * i, v, _codes(v, inverse_a), a)
        b = _add(w, k + 16 * i, v, _codes(v, inverse_b), b)
        c = _add(w, k + 16 * i, v, _codes(v, inverse_c), c)
        d = _add(w, k + 16 * i, v, _codes(v, inverse_d), d)
    return a, b, c, d


@njit(cache=True)
def _sums(x, w, k, scale):
    """The sums of the best codes for a scale."""
    zero, inverse = splat(np.float32(0)), reciprocal(scale)
    sums = (zero, zero)
    for i in range(16):
        v = load(x, 16 * i)
        sums = _add(w, k + 16 * i, v, _codes(v, inverse), sums)
    return sums


@njit(cache=True, forceinline=True)
def _error(sums, scale):
    """sum(w (x - scale * code)**2) - sum(w x x) of each lane."""
    return scale * (scale * sums[0] - (sums[1] + sums[1]))


@njit(cache=True, error_model="numpy")
def _near(x, w, k, d, s, away):
    """The s of least error for the codes of s + away[0], s + away[1], ...; away float32 (4 n,)."""
    best, best_s, per_d = splat(np.float32(np.inf)), s, reciprocal(splat(d))
    for i in range(0, len(away), 4):
        a, b = _step(d, s, away[i]), _step(d, s, away[i + 1])
        c, e = _step(d, s, away[i + 2]), _step(d, s, away[i + 3])
        for sums in _four_sums(x, w, k, a, b, c, e):
            other = _eight_bits(sums[1] / maximum(sums[0], splat(np.float32(1e-30))) * per_d)
            error = _error(sums, splat(d) * other)
            best_s = where_less(error, best, other, best_s)
            best = minimum(error, best)
    return best_s


@njit(cache=True, forceinline=True)
def _step(d, s, away):
    return reciprocal(splat(d) * _eight_bits(s + splat(away)))


@njit(cache=True, forceinline=True, error_model="numpy")
def _quantize(x, d, s, codes):
    """codes = the best codes of x, 0 .. 63, sub-block after sub-block."""
    inverse = reciprocal(splat(d) * s)
    for i in range(16):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse) + splat(np.float32(32)))
    transpose(x, 0, 16, codes, 0, 16)


@njit(cache=True, forceinline=True)
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
