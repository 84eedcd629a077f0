"""Q8_0: 32 values in 34 bytes, x = d * q.

byte  0   2                               34
      | d | q0 q1 q2 ...             q31 |
d  float16, the largest magnitude / 127; q  int8, -127 .. 127 as encoded (-128 is legal when read)
"""

import numpy as np


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 34 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 34)  # (n, 34)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    q = raw[:, 2:].view(np.int8).astype(np.float32)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (q * d).reshape(*blocks.shape[:-1], blocks.shape[-1] // 34 * 32)  # (..., 32 n)
