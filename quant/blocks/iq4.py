"""IQ4_NL and IQ4_XS: 4-bit codes that choose among 16 values.

IQ4_NL: 32 values in 18 bytes, x = d * value[q].
byte  0   2                          18
      | d | q0 q1 ...            q15 |
IQ4_XS: 256 values in 136 bytes, as 8 sub-blocks of 32; x = (d * (s[j] - 32)) * value[q].
byte  0   2        4       8                           136
      | d | s high | s low | q: 8 sub-blocks of 16     |
d  float16
s  6 bits: bits 0-3 are the lower (even j) or upper nibble of byte j / 2 of `s low`, bits 4-5 bits 2j, 2j + 1 of the uint16 `s high`
q  4 bits: of a sub-block's 16 bytes, the lower nibble of byte i is q[i], the upper one q[i + 16]
"""

import numpy as np

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _values(q: np.ndarray) -> np.ndarray:
    """uint8 (n, 16) of two codes each -> int8 (n, 32)."""
    return VALUES[np.concatenate([q & 15, q >> 4], axis=1)]  # (n, 32)


def _scales(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 136) -> d * (s - 32), float32 (8 n, 1)."""
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    high = raw[:, 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3  # (n, 8)
    low = (raw[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)  # (n, 8)
    with np.errstate(invalid="ignore"):
        return (d * ((low | high << 4).astype(np.int8) - np.int8(32))).reshape(-1, 1)  # (8 n, 1)


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 18 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 18)  # (n, 18)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    with np.errstate(invalid="ignore"):
        return (d * _values(raw[:, 2:])).reshape(*blocks.shape[:-1], blocks.shape[-1] // 18 * 32)  # (..., 32 n)


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 136 n) -> float32 (..., 256 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 136)  # (n, 136)
    with np.errstate(invalid="ignore"):
        x = _scales(raw) * _values(raw[:, 8:].reshape(-1, 16))  # (8 n, 32)
    return x.reshape(*blocks.shape[:-1], blocks.shape[-1] // 136 * 256)  # (..., 256 n)
