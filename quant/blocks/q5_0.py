"""Q5_0: 32 values in 22 bytes, x = d * (q - 16).

byte  0   2        6                        22
      | d | high   | low0 low1 ...   low15 |
d     float16, the value of largest magnitude / -16, so that this value is hit exactly by q = 0
high  uint32, bit i is bit 4 of q[i]
low   bits 0-3: lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np
from numba import njit

from quant.blocks.floats import half_from_single


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 22 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 22)  # (n, 22)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    high = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little")  # (n, 32)
    low = np.concatenate([raw[:, 6:] & 15, raw[:, 6:] >> 4], axis=1)  # (n, 32)
    q = (low | high << 4).view(np.int8) - np.int8(16)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (d * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 22 * 32)  # (..., 32 n)


def encode_q5_0(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 32 * 22): d = (largest magnitude, signed) / -16, q = floor(x / d + 16.5) <= 31.

    Byte-identical to GGML's quantize_row_q5_0_ref; there is no search, so weights change nothing.
    """
    out = np.empty((len(rows), rows.shape[1] // 32 * 22), np.uint8)  # (n, columns / 32 * 22)
    _encode(rows.reshape(-1, 32), rows.view(np.int32).reshape(-1, 32), out.reshape(-1, 22))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(x, bits, out):
    """out[b] = block of x[b]; x float32 (n, 32), bits the same memory as int32, out uint8 (n, 22)."""
    q = np.empty(32, np.int32)  # (32,)
    for b in range(len(x)):
        largest = np.int32(0)
        for i in range(32):  # magnitudes compare like integers, which LLVM vectorizes
            largest = max(largest, np.int32(bits[b, i] & 0x7FFFFFFF))
        first = 0
        while (bits[b, first] & 0x7FFFFFFF) != largest:
            first += 1
        extreme = x[b, first] if largest else np.float32(0)  # for zeros of either sign GGML's d is -0.0
        d = extreme / np.float32(-16)
        inverse = np.float32(1) / d if d != 0 else np.float32(0)
        if not np.isfinite(inverse):  # |d| below 2**-128: its float16 is zero, and GGML's codes happen to be zero too
            q[:] = 0
        else:
            for i in range(32):
                q[i] = min(np.int32(x[b, i] * inverse + np.float32(16.5)), np.int32(31))
        half = half_from_single(d)
        out[b, 0] = half & 255
        out[b, 1] = half >> 8
        for byte in range(4):
            high = 0
            for i in range(8):
                high |= (q[8 * byte + i] >> 4) << i
            out[b, 2 + byte] = high
        for i in range(16):
            out[b, 6 + i] = q[i] & 15 | (q[i + 16] & 15) << 4
