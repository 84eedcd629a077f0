"""The search of the formats whose blocks are 32 values and one float16: Q8_0 and Q5_0, x = d * q.

GGML puts the value of largest magnitude exactly onto the last code and asks no further. Here d is tried over a range around
that, one lane for each block, by the error of what a reader will see: for any d the nearest codes are the best ones.
"""

import numpy as np

from quant.blocks.compiled import compiled
from quant.blocks.lanes import (
    load,
    maximum,
    minimum,
    nearest,
    power_of_two,
    splat,
    store,
    transpose,
    weigh,
    where_less,
)
from quant.blocks.search import column_weights, reciprocal


def weights_by_lane(weights: np.ndarray | None, n_columns: int) -> np.ndarray | None:
    """float32 (columns,) -> (blocks per row, value, lane), flat: for each block the weights of it and the fifteen after it."""
    if weights is None:
        return None
    blocks = column_weights(weights, n_columns).reshape(-1, 32)  # (blocks per row, 32)
    following = (np.arange(len(blocks))[:, None] + np.arange(16)) % len(blocks)  # (blocks per row, 16)
    return blocks[following].transpose(0, 2, 1).reshape(-1)  # (blocks per row * 512,)


@compiled(error_model="numpy")
def encode_sixteen(rows, begin, w, k, levels, bottom, top, codes, scales):
    """codes, scales = q and d of the sixteen blocks from rows[begin] on, those behind the end zero.

    rows     float32 (n * 32,)
    w, k     their weights are w[k : k + 512]; w None: all alike
    levels   float32 (4 n,): the codes that the value of largest magnitude may get, negative for a d of the other sign; one of
             them GGML's, so that no block has more error than GGML's
    bottom   lowest code; top: highest code
    codes    float32 (512,), block after block; scales: float32 (16,), each a float16 exactly
    """
    if begin + 512 <= len(rows):
        transpose(rows, begin, 32, codes, 0, 16)
        transpose(rows, begin + 16, 32, codes, 256, 16)
    else:
        for block in range(16):
            for i in range(32):
                at = begin + 32 * block + i
                codes[16 * i + block] = rows[at] if at < len(rows) else np.float32(0)
    x = np.empty(512, np.float32)  # (value, lane)
    zero = splat(np.float32(0))
    smallest, largest = zero, zero
    for i in range(32):
        v = load(codes, 16 * i)
        smallest, largest = minimum(smallest, v), maximum(largest, v)
    extreme = where_less(largest, zero - smallest, smallest, largest)
    # Each block is scaled below 4 by a power of two, so that no sum overflows or vanishes.
    up = minimum(maximum(power_of_two(extreme), splat(np.float32(2.0**-126))), splat(np.float32(2.0**126)))
    down = splat(np.float32(1)) / up
    for i in range(32):
        store(x, 16 * i, load(codes, 16 * i) * down)
    best, best_d = splat(np.float32(np.inf)), zero
    for i in range(0, len(levels), 4):
        a, b = _half(extreme, levels[i]), _half(extreme, levels[i + 1])
        c, d = _half(extreme, levels[i + 2]), _half(extreme, levels[i + 3])
        errors = _four_errors(x, w, k, a * down, b * down, c * down, d * down, splat(bottom), splat(top))
        best_d = where_less(errors[0], best, a, best_d)
        best = minimum(errors[0], best)
        best_d = where_less(errors[1], best, b, best_d)
        best = minimum(errors[1], best)
        best_d = where_less(errors[2], best, c, best_d)
        best = minimum(errors[2], best)
        best_d = where_less(errors[3], best, d, best_d)
        best = minimum(errors[3], best)
    store(scales, 0, best_d)
    inverse = reciprocal(best_d * down)
    for i in range(32):
        store(x, 16 * i, _codes(load(x, 16 * i), inverse, splat(bottom), splat(top)))
    transpose(x, 0, 16, codes, 0, 32)
    transpose(x, 256, 16, codes, 16, 32)


@compiled(forceinline=True, error_model="numpy")
def _half(extreme, level):
    """extreme / level rounded to the float16 a file can hold: never infinite, and never zero unless extreme is."""
    zero = splat(np.float32(0))
    d = extreme / splat(level)
    size = minimum(maximum(d, zero - d), splat(np.float32(65504)))
    # Adding 2**13 times its power of two leaves 11 bits of a number; below 2**-14 all float16 numbers are 2**-24 apart.
    step = maximum(power_of_two(size), splat(np.float32(2.0**-14))) * splat(np.float32(1.5 * 2.0**13))
    rounded = maximum((size + step) - step, splat(np.float32(2.0**-24)))
    rounded = where_less(zero, size, rounded, zero)
    return where_less(d, zero, zero - rounded, rounded)


@compiled(forceinline=True)
def _codes(v, inverse, bottom, top):
    return minimum(maximum(nearest(v * inverse), bottom), top)


@compiled(forceinline=True)
def _squared(w, i, v, d, q):
    rest = v - d * q
    return weigh(w, i, rest) * rest


@compiled(forceinline=True)
def _four_errors(x, w, k, a, b, c, d, bottom, top):
    """sum(w * (x - scale * code)**2) of each lane for four scales; four at a time, because each sum waits for itself."""
    e, f, g, h = reciprocal(a), reciprocal(b), reciprocal(c), reciprocal(d)
    zero = splat(np.float32(0))
    error_a, error_b, error_c, error_d = zero, zero, zero, zero
    for i in range(32):
        v = load(x, 16 * i)
        error_a = error_a + _squared(w, k + 16 * i, v, a, _codes(v, e, bottom, top))
        error_b = error_b + _squared(w, k + 16 * i, v, b, _codes(v, f, bottom, top))
        error_c = error_c + _squared(w, k + 16 * i, v, c, _codes(v, g, bottom, top))
        error_d = error_d + _squared(w, k + 16 * i, v, d, _codes(v, h, bottom, top))
    return error_a, error_b, error_c, error_d
