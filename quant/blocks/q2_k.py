"""Q2_K: 256 values in 84 bytes, as 16 sub-blocks of 16; x = (d * s[j]) * q - (dmin * m[j]). Read, not written.

byte  0              16                          80   82     84
      | s and m 16x1 | q: 2 halves of 32 bytes   | d  | dmin |
s, m     4 bits each: lower and upper nibble of byte j
q        2 bits. For half h and i = 0 .. 31, value 128h + 32k + i is bits 2k, 2k + 1 of byte 32h + i
d, dmin  float16
"""

import numpy as np

_SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 84 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 84)  # (n, 84)
    d, dmin = raw[:, 80:].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    q = (raw[:, 16:80].reshape(-1, 2, 1, 32) >> _SHIFTS & 3).reshape(-1, 16, 16)  # (n, 16, 16)
    with np.errstate(invalid="ignore"):
        x = (d * (raw[:, :16] & 15))[:, :, None] * q  # (n, 16, 16)
        x -= (dmin * (raw[:, :16] >> 4))[:, :, None]
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 84 * 256)  # (..., 256 n)
