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

from quant.blocks.lanes import load, maximum, minimum, nearest, splat, store, where_less
from quant.blocks.search import as_half, binade, column_weights, magnitude

# The search keeps its state in rows of float32 (3, 16), one lane for each sub-block.
_D, _S, _ERROR = range(3)


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
    Step 2: every s within 16 of the nearest one, by the error of what a reader will see: each is another grid.
    Step 3: d fitted to the codes of the whole block by least squares, rounded to float16, the next s tried on both sides.
    Deterministic, and independent of which rows share a call.
    """
    n, columns = rows.shape
    by_lane = column_weights(weights, columns).reshape(-1, 16, 16).transpose(0, 2, 1)  # (blocks per row, value, lane)
    out = np.empty((n, columns // 256 * 210), np.uint8)  # (n, columns / 256 * 210)
    _encode(rows.reshape(-1, 256), np.ascontiguousarray(by_lane).reshape(-1, 256), out.reshape(-1, 210))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(rows, weights, out):
    """out[b] = block of rows[b]; rows float32 (n, 256), weights float32 (blocks per row, 256), out uint8 (n, 210)."""
    x = np.empty(256, np.float32)  # (value, lane)
    fitted = np.empty(16, np.float32)  # (lane,)
    tried = np.zeros((3, 16), np.float32)
    found = np.zeros((3, 16), np.float32)
    for b in range(len(rows)):
        w = weights[b % len(weights)]
        up, down = binade(magnitude(rows[b]))  # scaled below 4 by a power of two, so that no sum overflows or vanishes
        for i in range(16):
            for j in range(16):
                x[16 * i + j] = rows[b, 16 * j + i] * down
        _fit(x, w, fitted)
        _round_scales(fitted, up, down, found)
        _try_neighbours(x, w, found, 16)
        _refit(x, w, found, up, down, tried)
        _try_neighbours(x, w, tried, 1)
        _keep_better(tried, found)
        _quantize(x, found)
        _pack(x, found, up, down, out[b])


@njit(cache=True, forceinline=True)
def _codes(v, inverse):
    return minimum(maximum(nearest(v * inverse), splat(np.float32(-32))), splat(np.float32(31)))


@njit(cache=True, forceinline=True)
def _reciprocal(step):
    """1 / step, or 0 where step is 0: then every code is the same, and any will do."""
    zero = splat(np.float32(0))
    return where_less(zero, maximum(step, zero - step), splat(np.float32(1)) / step, zero)


@njit(cache=True, error_model="numpy")
def _fit(x, w, scales):
    """For each lane the scale of least error over four grids that round the largest value to -30 .. -33 (the code's end is -32)."""
    zero, tiny = splat(np.float32(0)), splat(np.float32(1e-7))
    smallest, largest = zero, zero
    for i in range(16):
        v = load(x, 16 * i)
        smallest, largest = minimum(smallest, v), maximum(largest, v)
    extreme = where_less(largest, zero - smallest, minimum(smallest, zero - tiny), maximum(largest, tiny))
    best, best_scale = splat(np.float32(-1)), zero
    for grid in range(4):
        inverse = splat(np.float32(-30 - grid)) / extreme
        sum_qq, sum_qx = zero, zero
        for i in range(16):
            v = load(x, 16 * i)
            q = _codes(v, inverse)
            uq = load(w, 16 * i) * q
            sum_qq, sum_qx = sum_qq + uq * q, sum_qx + uq * v
        scale = sum_qx / maximum(sum_qq, tiny)
        gain = scale * sum_qx
        best_scale = where_less(best, gain, scale, best_scale)
        best = maximum(best, gain)
    store(scales, 0, best_scale)


@njit(cache=True, error_model="numpy")
def _round_scales(fitted, up, down, tried):
    """tried = d that gives the largest scale s = -116, some room to both sides of it, and the s nearest to the fitted scales."""
    extreme = np.float32(0)
    for j in range(16):
        if abs(fitted[j]) > abs(extreme):
            extreme = fitted[j]
    d = as_half(extreme / np.float32(-116), up, down)[1]
    for j in range(16):
        tried[_D, j] = d
        tried[_S, j] = max(min(np.rint(fitted[j] / d), np.float32(127)), np.float32(-128)) if d != 0 else np.float32(0)


@njit(cache=True, forceinline=True)
def _error(x, w, step):
    """sum(w * (x - step * code)**2) of each lane, with the best codes."""
    inverse, total = _reciprocal(step), splat(np.float32(0))
    for i in range(16):
        v = load(x, 16 * i)
        rest = v - step * _codes(v, inverse)
        total = total + load(w, 16 * i) * rest * rest
    return total


@njit(cache=True, error_model="numpy")
def _try_neighbours(x, w, tried, reach):
    """Move s of each lane to the best within reach of it."""
    bottom, top = splat(np.float32(-128)), splat(np.float32(127))
    d, s = load(tried[_D], 0), load(tried[_S], 0)
    best, best_s = _error(x, w, d * s), s
    for ds in range(-reach, reach + 1):
        other = minimum(maximum(s + splat(np.float32(ds)), bottom), top)
        error = _error(x, w, d * other)
        best_s = where_less(error, best, other, best_s)
        best = minimum(error, best)
    store(tried[_S], 0, best_s)
    store(tried[_ERROR], 0, best)


@njit(cache=True)
def _keep_better(tried, found):
    """found = tried if the block's total error fell."""
    before, after = np.float32(0), np.float32(0)
    for j in range(16):
        before, after = before + found[_ERROR, j], after + tried[_ERROR, j]
    if after < before:
        for k in range(3):
            for j in range(16):
                found[k, j] = tried[k, j]


@njit(cache=True, error_model="numpy")
def _refit(x, w, found, up, down, tried):
    """tried = found with the d of least squares over the whole block, its codes and s held."""
    s = load(found[_S], 0)
    inverse = _reciprocal(load(found[_D], 0) * s)
    sum_qq, sum_qx = splat(np.float32(0)), splat(np.float32(0))
    for i in range(16):
        v = load(x, 16 * i)
        q = _codes(v, inverse)
        uq = load(w, 16 * i) * q
        sum_qq, sum_qx = sum_qq + uq * q, sum_qx + uq * v
    terms = np.empty((2, 16), np.float32)  # (s q s q or s q x, lane)
    store(terms[0], 0, s * s * sum_qq)
    store(terms[1], 0, s * sum_qx)
    squares, products = np.float32(0), np.float32(0)
    for j in range(16):
        squares, products = squares + terms[0, j], products + terms[1, j]
    d = as_half(products / squares, up, down)[1] if squares > 0 else np.float32(0)
    for j in range(16):
        tried[_D, j], tried[_S, j] = d, found[_S, j]


@njit(cache=True, error_model="numpy")
def _quantize(x, found):
    """x becomes its codes, 0 .. 63."""
    inverse = _reciprocal(load(found[_D], 0) * load(found[_S], 0))
    for i in range(16):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse) + splat(np.float32(32)))


@njit(cache=True)
def _pack(codes, found, up, down, out):
    """Write one block, its 210 bytes as drawn above."""
    q = np.empty(256, np.int32)  # (256,), in the order of the values
    for j in range(16):
        for i in range(16):
            q[16 * j + i] = np.int32(codes[16 * i + j])
        out[192 + j] = int(found[_S, j]) & 255
    for half in range(2):
        for i in range(32):
            a, b, c, d = q[128 * half + i], q[128 * half + 32 + i], q[128 * half + 64 + i], q[128 * half + 96 + i]
            out[64 * half + i] = a & 15 | (c & 15) << 4
            out[64 * half + 32 + i] = b & 15 | (d & 15) << 4
            out[128 + 32 * half + i] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6
    bits = as_half(found[_D, 0], up, down)[0]
    out[208], out[209] = bits & 255, bits >> 8
