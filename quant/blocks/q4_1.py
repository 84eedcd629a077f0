"""Q4_1: 32 values in 20 bytes, x = d * q + m. Read only.

byte  0   2   4                          20
      | d | m | q0 q1 ...            q15 |
d, m  float16; q  lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 20 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 20)  # (n, 20)
    d, m = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    q = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)  # (n, 32)
    with np.errstate(invalid="ignore"):
        x = d * q  # (n, 32)
        x += m
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 20 * 32)  # (..., 32 n)
