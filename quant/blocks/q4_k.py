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

from quant.blocks.compiled import compiled
from quant.blocks.lanes import (
    halves,
    lane,
    largest_of_eight,
    load,
    maximum,
    minimum,
    nearest,
    splat,
    store,
    store_bytes,
    total_of_eight,
    transpose,
    weigh,
    where_less,
)
from quant.blocks.search import as_half, binade, column_weights, reciprocal

# One lane for each sub-block of two blocks. What the search holds of them: a "fit" is (d, dmin, s, m), and the "sums" of its
# codes are (w q, w q q, w q x) over the sub-block: with (w, w x) they tell the error of any scale and minimum for these codes.
_GRIDS, _FEWEST, _STEP = 8, np.float32(13.3), np.float32(2.4 / 7)


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

    Step 1: for each sub-block alone, eight grids, each fitted by least squares and rounded again; the largest scale sets d.
    Step 2: three values of d; for each the grid, and the 6-bit s and m, that leave the least error.
    Step 3: d and dmin fitted to the codes of the whole block, rounded to float16; s and m once more, from five starts.
    Deterministic, and independent of which rows share a call.
    """
    n, columns = rows.shape
    out = np.empty((n, columns // 256 * 144), np.uint8)  # (n, columns / 256 * 144)
    if weights is None:
        _encode(rows.reshape(-1), None, columns // 256, out.reshape(-1))
        return out
    by_lane = column_weights(weights, columns).reshape(-1, 8, 32).transpose(0, 2, 1)  # (blocks per row, 32, 8)
    pairs = np.concatenate(
        [by_lane, np.roll(by_lane, -1, axis=0)], axis=2
    )  # (blocks per row, 32, 16): a block and the one after it
    _encode(rows.reshape(-1), pairs.reshape(-1), columns // 256, out.reshape(-1))
    return out


@compiled(nogil=True, error_model="numpy")
def _encode(rows, weights, blocks_per_row, out):
    """out[b] = block of rows[256 b : 256 b + 256]; weights float32 (blocks_per_row * 512,) or None, out uint8 (n * 144,)."""
    x = np.empty(512, np.float32)  # (value, lane): lanes 0-7 are the sub-blocks of one block, 8-15 of the next
    y = np.empty(512, np.float32)  # (lane, value): an odd last block, twice; codes on their way out
    grids = np.empty(_GRIDS * 64, np.float32)  # (grid, scale and sums by lane)
    n = len(rows) // 256
    for first in range(0, n, 2):
        if first + 1 < n:
            up, down = _gather(rows, 256 * first, x)
        else:
            for i in range(512):
                y[i] = rows[256 * first + i % 256]
            up, down = _gather(y, 0, x)
        fit = _search(x, weights, 512 * (first % blocks_per_row), grids, up, down)
        _quantize(x, fit, y)
        for side in range(min(2, n - first)):
            _pack(y, fit, side, up, down, out, 144 * (first + side))


@compiled(forceinline=True)
def _gather(rows, begin, x):
    """Lay two blocks into the lanes, each scaled below 4 by a power of two, so that no sum overflows or vanishes.

    Returns the power of two of each block, by lane, and its inverse.
    """
    transpose(rows, begin, 32, x, 0, 16)
    transpose(rows, begin + 16, 32, x, 256, 16)
    zero = splat(np.float32(0))
    largest = zero
    for i in range(32):
        v = load(x, 16 * i)
        largest = maximum(largest, maximum(v, zero - v))
    largest = largest_of_eight(largest)
    up_a, down_a = binade(lane(largest, 0))
    up_b, down_b = binade(lane(largest, 8))
    down = halves(down_a, down_b)
    for i in range(32):
        store(x, 16 * i, load(x, 16 * i) * down)
    return halves(up_a, up_b), down


@compiled(error_model="numpy")
def _search(x, w, k, grids, up, down):
    """The fit of least error found."""
    zero = splat(np.float32(0))
    constant, scale, offset = _fit(x, w, k, grids)
    highest, lowest = largest_of_eight(scale), largest_of_eight(offset) * splat(np.float32(1 / 63))
    fit, sums, error = (zero, zero, zero, zero), (zero, zero, zero), splat(np.float32(np.inf))
    for candidate in range(3):
        # A largest s of 63, 62 or 61: other steps for the sub-blocks with small s, which suffer most from rounding.
        d = _as_halves(highest / splat(np.float32(63 - candidate)), up, down)
        dmin = _as_halves(lowest, up, down)
        s, m = _best_grid(grids, constant, d, dmin)
        fit, sums, error = _keep_better(fit, sums, error, (d, dmin, s, m), _sums(x, w, k, d * s, dmin * m), constant)
    d, dmin = _refit(fit, sums, constant, up, down)
    s, m = _from_five_starts(x, w, k, (d, dmin, fit[2], fit[3]), sums, constant)
    fit, sums, error = _keep_better(fit, sums, error, (d, dmin, s, m), _sums(x, w, k, d * s, dmin * m), constant)
    return fit


@compiled(error_model="numpy")
def _fit(x, w, k, grids):
    """((w, w x, 1 / w), scale, offset): the constant sums, and the least squares x = scale * code - offset of the best grid.

    grids keeps the scale of each grid and the sums of its codes.
    """
    zero, one, tiny = splat(np.float32(0)), splat(np.float32(1)), splat(np.float32(1e-7))
    smallest, largest, sum_w, sum_x = zero, load(x, 0), zero, zero
    for i in range(32):
        v, u = load(x, 16 * i), weigh(w, k + 16 * i, one)
        smallest, largest = minimum(smallest, v), maximum(largest, v)
        sum_w, sum_x = sum_w + u, sum_x + u * v
    constant = (sum_w, sum_x, one / sum_w)
    per_span = one / maximum(largest - smallest, tiny)
    best, best_scale, best_offset = splat(np.float32(-1)), zero, zero
    for grid in range(0, _GRIDS, 2):  # two at a time: the sums of one wait for each other
        # Below 15 steps the span has room to spare, above it the largest values are clipped.
        a = per_span * splat(_FEWEST + _STEP * np.float32(grid))
        b = per_span * splat(_FEWEST + _STEP * np.float32(grid + 1))
        sums_a, sums_b = _two_sums(x, w, k, a, zero - smallest * a, b, zero - smallest * b)
        for turn in range(2):
            scale_a, offset_a, gain_a = _least_squares(sums_a, constant)
            scale_b, offset_b, gain_b = _least_squares(sums_b, constant)
            best_scale = where_less(best, gain_a, scale_a, best_scale)
            best_offset = where_less(best, gain_a, offset_a, best_offset)
            best = maximum(best, gain_a)
            best_scale = where_less(best, gain_b, scale_b, best_scale)
            best_offset = where_less(best, gain_b, offset_b, best_offset)
            best = maximum(best, gain_b)
            if turn == 0:
                a, b = one / maximum(scale_a, tiny), one / maximum(scale_b, tiny)
                sums_a, sums_b = _two_sums(x, w, k, a, offset_a * a, b, offset_b * b)
        _remember(grids, 64 * grid, scale_a, sums_a)
        _remember(grids, 64 * grid + 64, scale_b, sums_b)
    return constant, best_scale, best_offset


@compiled(forceinline=True)
def _remember(grids, i, scale, sums):
    store(grids, i, scale)
    store(grids, i + 16, sums[0])
    store(grids, i + 32, sums[1])
    store(grids, i + 48, sums[2])


@compiled(forceinline=True, error_model="numpy")
def _least_squares(sums, constant):
    """(scale, offset >= 0, how much of sum(w x x) the two explain) for codes of these sums."""
    zero = splat(np.float32(0))
    sum_q, sum_qq, sum_qx = sums
    sum_w, sum_x, per_w = constant
    square, product = sum_w * sum_qq, sum_w * sum_qx - sum_x * sum_q
    determinant = square - sum_q * sum_q
    # Where all codes are alike only the offset is defined.
    regular = maximum(determinant, square * splat(np.float32(1e-6)) + splat(np.float32(1e-30)))
    product = where_less(determinant, regular, zero, product)
    # The format lifts no values: where the offset would be below zero, a line through the origin.
    lifts = product * sum_q - sum_x * regular
    product = where_less(lifts, zero, sum_qx, product)
    scale = product / where_less(lifts, zero, maximum(sum_qq, splat(np.float32(1e-7))), regular)
    offset = maximum((scale * sum_q - sum_x) * per_w, zero)
    offset = where_less(lifts, zero, zero, offset)
    return scale, offset, zero - _error(sums, constant, scale, offset)


@compiled(forceinline=True)
def _error(sums, constant, scale, offset):
    """sum(w (x - (scale * code - offset))**2) - sum(w x x) of each lane."""
    sum_q, sum_qq, sum_qx = sums
    sum_w, sum_x, _ = constant
    rest = scale * sum_q - sum_x
    return scale * (scale * sum_qq - (sum_qx + sum_qx)) + offset * (offset * sum_w - (rest + rest))


@compiled(forceinline=True)
def _codes(v, inverse, shift):
    return minimum(maximum(nearest(v * inverse + shift), splat(np.float32(0))), splat(np.float32(15)))


@compiled(forceinline=True)
def _add(w, i, v, q, sums):
    sum_q, sum_qq, sum_qx = sums
    uq = weigh(w, i, q)
    return sum_q + uq, sum_qq + uq * q, sum_qx + uq * v


@compiled()
def _two_sums(x, w, k, inverse_a, shift_a, inverse_b, shift_b):
    """The sums of two sets of codes, each x * inverse + shift rounded."""
    zero = splat(np.float32(0))
    a, b = (zero, zero, zero), (zero, zero, zero)
    for i in range(32):
        v = load(x, 16 * i)
        a = _add(w, k + 16 * i, v, _codes(v, inverse_a, shift_a), a)
        b = _add(w, k + 16 * i, v, _codes(v, inverse_b, shift_b), b)
    return a, b


@compiled()
def _sums(x, w, k, scale, offset):
    """The sums of the best codes for a scale and an offset."""
    zero = splat(np.float32(0))
    inverse = reciprocal(scale)
    sums, shift = (zero, zero, zero), offset * inverse
    for i in range(32):
        v = load(x, 16 * i)
        sums = _add(w, k + 16 * i, v, _codes(v, inverse, shift), sums)
    return sums


@compiled(forceinline=True)
def _as_halves(d, up, down):
    """A number for each block, rounded to the float16 a file can hold; never below zero."""
    zero = np.float32(0)
    a = as_half(max(lane(d, 0), zero), lane(up, 0), lane(down, 0))[1]
    b = as_half(max(lane(d, 8), zero), lane(up, 8), lane(down, 8))[1]
    return halves(a, b)


@compiled(forceinline=True)
def _six_bits(a):
    return minimum(maximum(nearest(a), splat(np.float32(0))), splat(np.float32(63)))


@compiled(forceinline=True)
def _near(sums, constant, d, dmin, per_m, s, best):
    """best = (error, s, m), or what leaves less error for codes of these sums: s and its two neighbours, each with its own m."""
    error, best_s, best_m = best
    for step in range(-1, 2):
        other_s = minimum(maximum(s + splat(np.float32(step)), splat(np.float32(0))), splat(np.float32(63)))
        scale = d * other_s
        other_m = _six_bits((scale * sums[0] - constant[1]) * per_m)
        other = _error(sums, constant, scale, dmin * other_m)
        best_s, best_m = where_less(other, error, other_s, best_s), where_less(other, error, other_m, best_m)
        error = minimum(other, error)
    return error, best_s, best_m


@compiled()
def _best_grid(grids, constant, d, dmin):
    """(s, m) of least error over the codes of all grids."""
    zero = splat(np.float32(0))
    best, per_s, per_m = (splat(np.float32(np.inf)), zero, zero), reciprocal(d), reciprocal(dmin) * constant[2]
    for i in range(0, len(grids), 64):
        sums = (load(grids, i + 16), load(grids, i + 32), load(grids, i + 48))
        best = _near(sums, constant, d, dmin, per_m, _six_bits(load(grids, i) * per_s), best)
    return best[1], best[2]


@compiled()
def _from_five_starts(x, w, k, fit, sums, constant):
    """(s, m) near those of fit: the codes of s - 2 .. s + 2, and for each the s and m of least error."""
    zero = splat(np.float32(0))
    d, dmin, s, m = fit
    per_m = reciprocal(dmin) * constant[2]
    best = _near(sums, constant, d, dmin, per_m, s, (splat(np.float32(np.inf)), s, m))
    for step in range(1, 3):
        a = minimum(s + splat(np.float32(step)), splat(np.float32(63)))
        b = maximum(s - splat(np.float32(step)), zero)
        # A wider step wants a lower minimum.
        offset_a = dmin * _six_bits((d * a * sums[0] - constant[1]) * per_m)
        offset_b = dmin * _six_bits((d * b * sums[0] - constant[1]) * per_m)
        inverse_a, inverse_b = reciprocal(d * a), reciprocal(d * b)
        sums_a, sums_b = _two_sums(x, w, k, inverse_a, offset_a * inverse_a, inverse_b, offset_b * inverse_b)
        best = _near(sums_a, constant, d, dmin, per_m, a, best)
        best = _near(sums_b, constant, d, dmin, per_m, b, best)
    return best[1], best[2]


@compiled(forceinline=True)
def _keep_better(fit, sums, error, other, other_sums, constant):
    """(fit, sums, error of the block in each lane), or the other where that block's error is less."""
    other_error = total_of_eight(_error(other_sums, constant, other[0] * other[2], other[1] * other[3]))
    return (
        (
            where_less(other_error, error, other[0], fit[0]),
            where_less(other_error, error, other[1], fit[1]),
            where_less(other_error, error, other[2], fit[2]),
            where_less(other_error, error, other[3], fit[3]),
        ),
        (
            where_less(other_error, error, other_sums[0], sums[0]),
            where_less(other_error, error, other_sums[1], sums[1]),
            where_less(other_error, error, other_sums[2], sums[2]),
        ),
        minimum(other_error, error),
    )


@compiled(forceinline=True, error_model="numpy")
def _refit(fit, sums, constant, up, down):
    """(d, dmin) of least squares over each whole block, its codes, s and m held."""
    zero = splat(np.float32(0))
    d, dmin, s, m = fit
    aa, ab = total_of_eight(s * s * sums[1]), total_of_eight(s * m * sums[0])  # x is fitted by d * a - dmin * b
    bb, ax = total_of_eight(m * m * constant[0]), total_of_eight(s * sums[2])
    bx = total_of_eight(m * constant[1])
    determinant, least = aa * bb - ab * ab, splat(np.float32(1e-5)) * aa * bb
    regular = maximum(determinant, splat(np.float32(1e-30)))
    alone = where_less(zero, aa, (ax + dmin * ab) / maximum(aa, splat(np.float32(1e-30))), d)
    d = where_less(least, determinant, (bb * ax - ab * bx) / regular, alone)
    dmin = where_less(least, determinant, (ab * ax - aa * bx) / regular, dmin)
    return _as_halves(d, up, down), _as_halves(dmin, up, down)


@compiled(forceinline=True)
def _quantize(x, fit, codes):
    """codes = the best codes of x, sub-block after sub-block."""
    d, dmin, s, m = fit
    offset, inverse = dmin * m, reciprocal(d * s)
    for i in range(32):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse, offset * inverse))
    for half in range(2):
        transpose(x, 256 * half, 16, codes, 16 * half, 32)


@compiled(forceinline=True)
def _pack(codes, fit, side, up, down, out, at):
    """Write one block, its 144 bytes as drawn above, at out[at]; codes float32 (lane, value)."""
    d, dmin, s, m = fit
    for k in range(2):
        bits = as_half(lane(dmin if k else d, 8 * side), lane(up, 8 * side), lane(down, 8 * side))[0]
        out[at + 2 * k], out[at + 2 * k + 1] = bits & 255, bits >> 8
    for j in range(4):
        s0, s4 = int(lane(s, 8 * side + j)), int(lane(s, 8 * side + j + 4))
        m0, m4 = int(lane(m, 8 * side + j)), int(lane(m, 8 * side + j + 4))
        out[at + 4 + j] = s0 | (s4 >> 4) << 6
        out[at + 8 + j] = m0 | (m4 >> 4) << 6
        out[at + 12 + j] = s4 & 15 | (m4 & 15) << 4
    for k in range(4):
        for i in range(0, 32, 16):
            low, high = load(codes, 256 * side + 64 * k + i), load(codes, 256 * side + 64 * k + 32 + i)
            store_bytes(out, at + 16 + 32 * k + i, low + splat(np.float32(16)) * high)
