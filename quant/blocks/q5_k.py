"""Q5_K: 256 values in 176 bytes, as 8 sub-blocks of 32; x = (d * s[j]) * q - (dmin * m[j]). Read only.

byte  0   2      4                 16        48                        176
      | d | dmin | s and m, 8 x 6  | high 32 | low: 4 runs of 32 bytes |
d, dmin   float16
s, m      6 bits each, packed as in Q4_K (q4_k.py)
q         5 bits: run k, byte i holds bits 0-3 of value i of sub-block 2k (lower nibble) and of sub-block 2k + 1 (upper nibble);
          bit j of high[i] is bit 4 of value i of sub-block j
"""

import numpy as np


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 176 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 176)  # (n, 176)
    d, dmin = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]  # (n, 4) each
    s = np.concatenate([a & 63, c & 15 | (a >> 2) & 48], axis=1)  # (n, 8)
    m = np.concatenate([b & 63, c >> 4 | (b >> 2) & 48], axis=1)  # (n, 8)
    runs = raw[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)  # (n, 8, 32)
    high = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    with np.errstate(invalid="ignore"):
        x = (d * s)[:, :, None] * (low | high << 4)  # (n, 8, 32)
        x -= (dmin * m)[:, :, None]
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 176 * 256)  # (..., 256 n)
