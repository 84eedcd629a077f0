"""Q8_0: 32 values in 34 bytes, x = d * q.

byte  0   2                               34
      | d | q0 q1 q2 ...             q31 |
d  float16, the largest magnitude / 127; q  int8, -127 .. 127 as encoded (-128 is legal when read)
"""

import numpy as np
from numba import njit

from quant.blocks.floats import half_from_single


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 34 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 34)  # (n, 34)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    q = raw[:, 2:].view(np.int8).astype(np.float32)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (q * d).reshape(*blocks.shape[:-1], blocks.shape[-1] // 34 * 32)  # (..., 32 n)


def encode_q8_0(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 32 * 34): d = max|x| / 127, q = x / d rounded, halves away from zero.

    Byte-identical to GGML's quantize_row_q8_0_ref; there is no search, so weights change nothing.
    """
    out = np.empty((len(rows), rows.shape[1] // 32 * 34), np.uint8)  # (n, columns / 32 * 34)
    _encode(rows.reshape(-1, 32), rows.view(np.int32).reshape(-1, 32), out.reshape(-1, 34))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(x, bits, out):
    """out[b] = block of x[b]; x float32 (n, 32), bits the same memory as int32, out uint8 (n, 34)."""
    for b in range(len(x)):
        largest = np.int32(0)
        for i in range(32):  # magnitudes compare like integers, which LLVM vectorizes
            largest = max(largest, np.int32(bits[b, i] & 0x7FFFFFFF))
        d = np.int32(largest).view(np.float32) / np.float32(127)
        half = half_from_single(d)
        out[b, 0] = half & 255
        out[b, 1] = half >> 8
        inverse = np.float32(1) / d if d > 0 else np.float32(0)
        if not np.isfinite(inverse):  # d below 2**-128: its float16 is zero, and GGML's codes happen to be zero too
            inverse = np.float32(0)
        for i in range(32):
            scaled = x[b, i] * inverse
            whole = np.int32(scaled)  # toward zero
            rest = scaled - np.float32(whole)  # exact
            out[b, 2 + i] = whole + np.int32(rest >= np.float32(0.5)) - np.int32(rest <= np.float32(-0.5))
