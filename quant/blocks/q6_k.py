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


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 210 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 210)  # (n, 210)
    d = raw[:, 208:].copy().view("<f2").astype(np.float32)  # (n, 1)
    s = raw[:, 192:208].view(np.int8).astype(np.float32)  # (n, 16)
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)  # (n, half, k, i)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3  # (n, half, k, i)
    q = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)  # (n, 16, 16)
    with np.errstate(invalid="ignore"):
        return ((d * s)[:, :, None] * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 210 * 256)  # (..., 256 n)
