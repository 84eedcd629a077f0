"""Q4_K: 256 values in 144 bytes, as 8 sub-blocks of 32; x = (d * s[j]) * q - (dmin * m[j]).

byte  0   2      4                 16                                144
      | d | dmin | s and m, 8 x 6  | q: 4 runs of 32 bytes           |
d, dmin   float16
s, m      6 bits each: byte j     holds s[j]     | s[j+4] bits 4-5 << 6     (j = 0 .. 3)
                       byte 4 + j holds m[j]     | m[j+4] bits 4-5 << 6
                       byte 8 + j holds s[j+4] bits 0-3 | m[j+4] bits 0-3 << 4
q         4 bits: run k, byte i holds value i of sub-block 2k (lower nibble) and of sub-block 2k + 1 (upper nibble)
"""

import numpy as np


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 144 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 144)  # (n, 144)
    d, dmin = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]  # (n, 1) each
    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]  # (n, 4) each
    s = np.concatenate([a & 63, c & 15 | (a >> 2) & 48], axis=1).astype(np.float32)  # (n, 8)
    m = np.concatenate([b & 63, c >> 4 | (b >> 2) & 48], axis=1).astype(np.float32)  # (n, 8)
    runs = raw[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)  # (n, 8, 32)
    with np.errstate(invalid="ignore"):
        x = (d * s)[:, :, None] * q - (dmin * m)[:, :, None]  # (n, 8, 32)
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 144 * 256)  # (..., 256 n)
