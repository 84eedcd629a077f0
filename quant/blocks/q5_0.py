"""Q5_0: 32 values in 22 bytes, x = d * (q - 16).

byte  0   2        6                        22
      | d | high   | low0 low1 ...   low15 |
d     float16, the value of largest magnitude / -16, so that this value is hit exactly by q = 0
high  uint32, bit i is bit 4 of q[i]
low   bits 0-3: lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 22 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 22)  # (n, 22)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    high = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little")  # (n, 32)
    low = np.concatenate([raw[:, 6:] & 15, raw[:, 6:] >> 4], axis=1)  # (n, 32)
    q = (low | high << 4).astype(np.float32) - np.float32(16)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (d * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 22 * 32)  # (..., 32 n)
