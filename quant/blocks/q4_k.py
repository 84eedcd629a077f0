"""Q4_K: 256 values in 144 bytes, as 8 sub-blocks of 32; x = (d * s[j]) * q - (dmin * m[j]).

byte  0   2      4                 16                                144
      | d | dmin | s and m, 8 x 6  | q: 4 runs of 32 bytes           |
d, dmin   float16
s, m      6 bits each: byte j     holds s[j]     | s[j+4] bits 4-5 << 6     (j = 0 .. 3)
                       byte 4 + j holds m[j]     | m[j+4] bits 4-5 << 6
                       byte 8 + j holds s[j+4] bits 0-3 | m[j+4] bits 0-3 << 4
q         4 bits: run k, byte i holds value i of sub-block 2k (lower nibble) and of sub-block 2k + 1 (upper nibble)
"""

import numpy as np
from numba import njit

from quant.blocks.lanes import load, maximum, minimum, nearest, splat, store, where_less
from quant.blocks.search import as_half, binade, column_weights, magnitude

# The search keeps its state in rows of float32 (5, 16), one lane for each sub-block of two blocks.
_D, _DMIN, _S, _M, _ERROR = range(5)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 144 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 144)  # (n, 144)
    d, dmin = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]  # (n, 4) each
    s = np.concatenate([a & 63, c & 15 | (a >> 2) & 48], axis=1).astype(np.float32)  # (n, 8)
    m = np.concatenate([b & 63, c >> 4 | (b >> 2) & 48], axis=1).astype(np.float32)  # (n, 8)
    runs = raw[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)  # (n, 8, 32)
    with np.errstate(invalid="ignore"):
        x = (d * s)[:, :, None] * q  # (n, 8, 32)
        x -= (dmin * m)[:, :, None]
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 144 * 256)  # (..., 256 n)


def encode_q4_k(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 256 * 144), searched for the least sum(weights * (x - y)**2).

    Step 1: for each sub-block alone, the best real scale and minimum: ten grids, each re-fitted by least squares and re-rounded.
    Step 2: three values of d; the 6-bit s and m nearest to step 1 and their neighbours, by the error of what a reader will see.
    Step 3: d and dmin fitted to the codes of the whole block, rounded to float16, neighbours tried again.
    Deterministic, and independent of which rows share a call.
    """
    n, columns = rows.shape
    by_lane = column_weights(weights, columns).reshape(-1, 8, 32).transpose(0, 2, 1)  # (blocks per row, 32, 8)
    pairs = np.concatenate(
        [by_lane, np.roll(by_lane, -1, axis=0)], axis=2
    )  # (blocks per row, 32, 16): a block and the one after it
    out = np.empty((n, columns // 256 * 144), np.uint8)  # (n, columns / 256 * 144)
    _encode(rows.reshape(-1, 256), pairs.reshape(-1, 512), out.reshape(-1, 144))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(rows, weights, out):
    """out[b] = block of rows[b]; rows float32 (n, 256), weights float32 (blocks per row, 512), out uint8 (n, 144)."""
    x = np.empty(512, np.float32)  # (value, lane): lanes 0-7 are the sub-blocks of one block, 8-15 of the next
    fitted = np.empty((2, 16), np.float32)  # (scale or minimum, lane)
    tried = np.zeros((5, 16), np.float32)
    found = np.zeros((5, 16), np.float32)
    binades = np.empty((2, 2), np.float32)  # (block, up or down)
    for first in range(0, len(rows), 2):
        w = weights[first % len(weights)]
        for side in range(2):  # an odd last block has itself as neighbour
            _gather(rows[min(first + side, len(rows) - 1)], x, side, binades)
        _fit(x, w, fitted[0], fitted[1])
        for candidate in range(3):
            _round_scales(fitted, candidate, binades, tried)
            _try_neighbours(x, w, tried)
            _keep_better(tried, found, candidate == 0)
        _refit(x, w, found, binades, tried)
        _try_neighbours(x, w, tried)
        _keep_better(tried, found, False)
        _quantize(x, found)
        for side in range(min(2, len(rows) - first)):
            _pack(x, found, side, binades, out[first + side])


@njit(cache=True, error_model="numpy")
def _gather(row, x, side, binades):
    """Lay one block into its half of the lanes, scaled below 4 by a power of two, so that no sum overflows or vanishes."""
    up, down = binade(magnitude(row))
    binades[side, 0], binades[side, 1] = up, down
    for i in range(32):
        for j in range(8):
            x[16 * i + 8 * side + j] = row[32 * j + i] * down


@njit(cache=True, error_model="numpy")
def _fit(x, w, scales, minima):
    """For each lane the scale a >= 0 and minimum -b <= 0 of least error over ten grids, rounding x to a * code - b."""
    zero, top, tiny = splat(np.float32(0)), splat(np.float32(15)), splat(np.float32(1e-7))
    smallest, largest, sum_w, sum_x = zero, load(x, 0), zero, zero
    for i in range(32):
        v, u = load(x, 16 * i), load(w, 16 * i)
        smallest, largest = minimum(smallest, v), maximum(largest, v)
        sum_w, sum_x = sum_w + u, sum_x + u * v
    span = maximum(largest - smallest, tiny)
    best, best_scale, best_minimum = splat(np.float32(-1)), zero, zero
    for grid in range(10):
        inverse = splat(np.float32(13 + 0.4 * grid)) / span  # below 15 the span has room to spare, above it the ends are clipped
        shift = zero - smallest * inverse
        for _ in range(2):
            sum_q, sum_qq, sum_qx = zero, zero, zero
            for i in range(32):
                v, u = load(x, 16 * i), load(w, 16 * i)
                q = minimum(maximum(nearest(v * inverse + shift), zero), top)
                uq = u * q
                sum_q, sum_qq, sum_qx = sum_q + uq, sum_qq + uq * q, sum_qx + uq * v
            # Least squares for scale and offset; where all codes are alike only the offset is defined.
            square = sum_w * sum_qq
            determinant = square - sum_q * sum_q
            regular = maximum(determinant, square * splat(np.float32(1e-6)) + splat(np.float32(1e-30)))
            scale = where_less(determinant, regular, zero, (sum_w * sum_qx - sum_x * sum_q) / regular)
            offset = (sum_x - scale * sum_q) / sum_w
            # The format has no offset above zero: then a line through the origin.
            scale = where_less(zero, offset, sum_qx / maximum(sum_qq, tiny), scale)
            offset = minimum(offset, zero)
            gain = scale * (sum_qx + sum_qx - scale * sum_qq - offset * (sum_q + sum_q)) + offset * (sum_x + sum_x - offset * sum_w)
            best_scale = where_less(best, gain, scale, best_scale)
            best_minimum = where_less(best, gain, zero - offset, best_minimum)
            best = maximum(best, gain)
            inverse = splat(np.float32(1)) / maximum(scale, tiny)
            shift = zero - offset * inverse
    store(scales, 0, best_scale)
    store(minima, 0, best_minimum)


@njit(cache=True, error_model="numpy")
def _round_scales(fitted, candidate, binades, tried):
    """tried = d, dmin from the largest scale and minimum of each block, and the 6-bit numbers nearest to the fitted ones."""
    for side in range(2):
        highest, lowest = np.float32(0), np.float32(0)
        for j in range(8 * side, 8 * side + 8):
            highest, lowest = max(highest, fitted[0, j]), max(lowest, fitted[1, j])
        up, down = binades[side, 0], binades[side, 1]
        # A largest s of 63, 62 or 61: other grids for the sub-blocks with small s, which suffer most from rounding.
        d = as_half(highest / np.float32(63 - candidate), up, down)[1]
        dmin = as_half(lowest / np.float32(63), up, down)[1]
        for j in range(8 * side, 8 * side + 8):
            tried[_D, j], tried[_DMIN, j] = d, dmin
            tried[_S, j] = min(np.rint(fitted[0, j] / d), np.float32(63)) if d > 0 else np.float32(0)
            tried[_M, j] = min(np.rint(fitted[1, j] / dmin), np.float32(63)) if dmin > 0 else np.float32(0)


@njit(cache=True, forceinline=True)
def _codes(v, inverse, shift):
    return minimum(maximum(nearest(v * inverse + shift), splat(np.float32(0))), splat(np.float32(15)))


@njit(cache=True, forceinline=True)
def _reciprocal(step):
    """1 / step where step > 0, else 0: then every code is the same, and any will do."""
    zero = splat(np.float32(0))
    return where_less(zero, step, splat(np.float32(1)) / step, zero)


@njit(cache=True, forceinline=True)
def _error(x, w, step, offset):
    """sum(w * (x - (step * code - offset))**2) of each lane, with the best codes."""
    inverse = _reciprocal(step)
    shift, total = offset * inverse, splat(np.float32(0))
    for i in range(32):
        v = load(x, 16 * i)
        rest = (v + offset) - step * _codes(v, inverse, shift)
        total = total + load(w, 16 * i) * rest * rest
    return total


@njit(cache=True, error_model="numpy")
def _try_neighbours(x, w, tried):
    """Move s and m of each lane to the best of 13 pairs around them: a wider step wants a lower minimum, so they move together."""
    zero, top = splat(np.float32(0)), splat(np.float32(63))
    d, dmin, s, m = load(tried[_D], 0), load(tried[_DMIN], 0), load(tried[_S], 0), load(tried[_M], 0)
    best, best_s, best_m = _error(x, w, d * s, dmin * m), s, m
    for ds in range(-2, 3):
        for dm in range(max(ds - 1, -2), min(ds + 1, 2) + 1):
            if ds == 0 and dm == 0:
                continue
            other_s = minimum(maximum(s + splat(np.float32(ds)), zero), top)
            other_m = minimum(maximum(m + splat(np.float32(dm)), zero), top)
            error = _error(x, w, d * other_s, dmin * other_m)
            best_s, best_m = where_less(error, best, other_s, best_s), where_less(error, best, other_m, best_m)
            best = minimum(error, best)
    store(tried[_S], 0, best_s)
    store(tried[_M], 0, best_m)
    store(tried[_ERROR], 0, best)


@njit(cache=True)
def _keep_better(tried, found, always):
    """found = tried for each block whose total error fell."""
    for side in range(2):
        before, after = np.float32(0), np.float32(0)
        for j in range(8 * side, 8 * side + 8):
            before, after = before + found[_ERROR, j], after + tried[_ERROR, j]
        if always or after < before:
            for k in range(5):
                for j in range(8 * side, 8 * side + 8):
                    found[k, j] = tried[k, j]


@njit(cache=True, error_model="numpy")
def _refit(x, w, found, binades, tried):
    """tried = found with the d and dmin of least squares over each whole block, its codes, s and m held."""
    zero = splat(np.float32(0))
    s, m = load(found[_S], 0), load(found[_M], 0)
    step, offset = load(found[_D], 0) * s, load(found[_DMIN], 0) * m
    inverse = _reciprocal(step)
    shift = offset * inverse
    sum_w, sum_x, sum_q, sum_qq, sum_qx = zero, zero, zero, zero, zero
    for i in range(32):
        v, u = load(x, 16 * i), load(w, 16 * i)
        q = _codes(v, inverse, shift)
        uq = u * q
        sum_w, sum_x = sum_w + u, sum_x + u * v
        sum_q, sum_qq, sum_qx = sum_q + uq, sum_qq + uq * q, sum_qx + uq * v
    terms = np.empty((5, 16), np.float32)  # of the normal equations, by lane
    store(terms[0], 0, s * s * sum_qq)
    store(terms[1], 0, s * m * sum_q)
    store(terms[2], 0, m * m * sum_w)
    store(terms[3], 0, s * sum_qx)
    store(terms[4], 0, m * sum_x)
    for side in range(2):
        aa, ab, bb, ax, bx = 0.0, 0.0, 0.0, 0.0, 0.0  # x is fitted by d * a - dmin * b
        for j in range(8 * side, 8 * side + 8):
            aa, ab, bb, ax, bx = aa + terms[0, j], ab + terms[1, j], bb + terms[2, j], ax + terms[3, j], bx + terms[4, j]
        d, dmin = found[_D, 8 * side], found[_DMIN, 8 * side]
        determinant = aa * bb - ab * ab
        up, down = binades[side, 0], binades[side, 1]
        if determinant > 1e-6 * aa * bb:
            d = as_half(max((bb * ax - ab * bx) / determinant, 0.0), up, down)[1]
            dmin = as_half(max((ab * ax - aa * bx) / determinant, 0.0), up, down)[1]
        elif aa > 0:
            d = as_half(max((ax + dmin * ab) / aa, 0.0), up, down)[1]
        for j in range(8 * side, 8 * side + 8):
            tried[_D, j], tried[_DMIN, j], tried[_S, j], tried[_M, j] = d, dmin, found[_S, j], found[_M, j]


@njit(cache=True, error_model="numpy")
def _quantize(x, found):
    """x becomes its codes."""
    step, offset = load(found[_D], 0) * load(found[_S], 0), load(found[_DMIN], 0) * load(found[_M], 0)
    inverse = _reciprocal(step)
    for i in range(32):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse, offset * inverse))


@njit(cache=True)
def _pack(codes, found, side, binades, out):
    """Write one block, its 144 bytes as drawn above."""
    up, down = binades[side, 0], binades[side, 1]
    lane = 8 * side
    for k, row in enumerate((_D, _DMIN)):
        bits = as_half(found[row, lane], up, down)[0]
        out[2 * k], out[2 * k + 1] = bits & 255, bits >> 8
    for j in range(4):
        s, s4 = int(found[_S, lane + j]), int(found[_S, lane + j + 4])
        m, m4 = int(found[_M, lane + j]), int(found[_M, lane + j + 4])
        out[4 + j] = s | (s4 >> 4) << 6
        out[8 + j] = m | (m4 >> 4) << 6
        out[12 + j] = s4 & 15 | (m4 & 15) << 4
    for k in range(4):
        for i in range(32):
            out[16 + 32 * k + i] = int(codes[16 * i + lane + 2 * k]) | int(codes[16 * i + lane + 2 * k + 1]) << 4
