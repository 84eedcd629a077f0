"""Q4_0: 32 values in 18 bytes, x = d * (q - 8).

byte  0   2                          18
      | d | q0 q1 ...            q15 |
d  float16; q  lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np

VALUES = np.arange(-8, 8, dtype=np.int8)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 18 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 18)  # (n, 18)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    q = VALUES[np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)]  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (d * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 18 * 32)  # (..., 32 n)
