"""What the searches of Q4_K and Q6_K share: column weights, and a block's way into a safe range and its scale's way out of it."""

import numpy as np

from quant.blocks.compiled import compiled
from quant.blocks.floats import half_from_single, single_from_half
from quant.blocks.lanes import load, maximum, splat, store, where_less


def column_weights(weights: np.ndarray | None, n_columns: int) -> np.ndarray:
    """weights as a search can divide by them: float32 (columns,), the largest 1, none below a millionth; None means all alike.

    Raises ValueError for weights that are negative or not numbers.
    """
    if weights is None or not len(weights):
        return np.ones(n_columns, np.float32)  # (columns,)
    largest = float(weights.max())
    if not (np.isfinite(largest) and weights.min() >= 0):
        raise ValueError("weights must be finite and not negative")
    if largest == 0:
        return np.ones(n_columns, np.float32)  # (columns,)
    return np.maximum(weights / np.float64(largest), 1e-6).astype(np.float32)  # (columns,)


@compiled()
def magnitude(block):
    """The largest |x| of a float32 (256,)."""
    zero = splat(np.float32(0))
    largest = zero
    for i in range(0, 256, 16):
        v = load(block, i)
        largest = maximum(largest, maximum(v, zero - v))
    spread = np.empty(16, np.float32)  # (16,)
    store(spread, 0, largest)
    return spread.max()


@compiled(forceinline=True)
def binade(largest):
    """The power of two at or below largest, and its inverse; both kept normal, so that largest * inverse stays below 4."""
    exponent = int(np.float32(largest).view(np.int32)) >> 23 & 255
    exponent = min(max(exponent, 1), 253)
    return np.int32(exponent << 23).view(np.float32), np.int32((254 - exponent) << 23).view(np.float32)


@compiled(forceinline=True)
def as_half(d, up, down):
    """(bits, value) of the float16 a file can hold nearest to d * up, its value told in the block's range: * down.

    Never infinite, and never zero unless d is: the smallest scale with small factors is better than no block at all.
    """
    real = np.float32(d) * up
    bits = half_from_single(min(max(real, np.float32(-65504)), np.float32(65504)))
    if bits & 0x7FFF == 0 and d != 0:
        bits = bits | 1
    return bits, single_from_half(bits) * down


@compiled(forceinline=True, error_model="numpy")
def reciprocal(step):
    """1 / step, or 0 where step is 0: then every code is the same, and any will do."""
    zero = splat(np.float32(0))
    return where_less(zero, maximum(step, zero - step), splat(np.float32(1)) / step, zero)
