"""Q4_0: 32 values in 18 bytes, x = d * (q - 8). Read only: it runs as Q5_0, which holds the same values.

byte  0   2                          18
      | d | q0 q1 ...            q15 |
d  float16; q  lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np

from quant.blocks.q5_0 import blocks_of


def _codes(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 18) -> int8 (n, 32), -8 .. 7."""
    return np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1).view(np.int8) - np.int8(8)  # (n, 32)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 18 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 18)  # (n, 18)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    with np.errstate(invalid="ignore"):
        return (d * _codes(raw)).reshape(*blocks.shape[:-1], blocks.shape[-1] // 18 * 32)  # (..., 32 n)


def repack_q4_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (rows, 18 n) -> the same values as Q5_0, uint8 (rows, 22 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 18)  # (n, 18)
    return blocks_of(raw[:, :2], _codes(raw)).reshape(len(blocks), -1)  # (rows, 22 n)
