"""Q5_1: 32 values in 24 bytes, x = d * q + m. Read only.

byte  0   2   4        8                        24
      | d | m | high   | low0 low1 ...   low15 |
d, m  float16
high  uint32, bit i is bit 4 of q[i]
low   bits 0-3: lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 24 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 24)  # (n, 24)
    d, m = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    high = np.unpackbits(raw[:, 4:8], axis=1, bitorder="little")  # (n, 32)
    q = np.concatenate([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=1) | high << 4  # (n, 32)
    with np.errstate(invalid="ignore"):
        x = d * q  # (n, 32)
        x += m
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 24 * 32)  # (..., 32 n)
