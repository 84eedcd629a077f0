"""Q3_K: 256 values in 110 bytes, as 16 sub-blocks of 16; x = (d * (s[j] - 32)) * (q - 4). Read, not written.

byte  0            32                         96           108  110
      | high 32    | low: 2 halves of 32      | s 16 x 6   | d  |
q     3 bits. For half h and i = 0 .. 31, value 128h + 32k + i has
      bits 0-1  bits 2k, 2k + 1 of low[32h + i]
      bit 2     bit 4h + k of high[i]
s     6 bits: byte j (j = 0 .. 7) holds s[j] bits 0-3 | s[j + 8] bits 0-3 << 4
              byte 8 + j (j = 0 .. 3) holds bits 4-5 of s[j], s[j + 4], s[j + 8], s[j + 12], two bits each
d     float16
"""

import numpy as np

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def _scales(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 110) -> int8 (n, 16), -32 .. 31."""
    low = np.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=1)  # (n, 16)
    high = (raw[:, None, 104:108] >> _SHIFTS[:, None] & 3).reshape(-1, 16)  # (n, 16)
    return (low | high << 4).view(np.int8) - np.int8(32)  # (n, 16)


def _codes(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 110) -> uint8 (n, 8, 32), 0 .. 7; axis 1 is 4 h + k."""
    low = (raw[:, 32:96].reshape(-1, 2, 1, 32) >> _SHIFTS[:, None] & 3).reshape(-1, 8, 32)  # (n, 8, 32)
    high = raw[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    return low | high << 2  # (n, 8, 32)


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 110 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 110)  # (n, 110)
    d = raw[:, 108:].copy().view("<f2").astype(np.float32)  # (n, 1)
    q = _codes(raw).view(np.int8).reshape(-1, 16, 16) - np.int8(4)  # (n, 16, 16)
    with np.errstate(invalid="ignore"):
        return ((d * _scales(raw))[:, :, None] * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 110 * 256)  # (..., 256 n)
