"""MXFP4: 32 values in 17 bytes, x = 2**(e - 128) * value[q]. Read only: it runs as Q5_0, whose codes hold the values.

byte  0   1                          17
      | e | q0 q1 ...            q15 |
e  an exponent; q  a sign and a float of three bits, doubled: the lower nibble of byte i is q[i], the upper one q[i + 16]
Source: OCP Microscaling Formats (MX) 1.0; GGML stores e as it is there.
"""

import numpy as np

from quant.blocks.q5_0 import blocks_of

_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _codes(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 17) -> int8 (n, 32), -12 .. 12."""
    return _VALUES[np.concatenate([raw[:, 1:] & 15, raw[:, 1:] >> 4], axis=1)]  # (n, 32)


def _scales(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, 17) -> 2**(e - 128), float32 (n, 1)."""
    return np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128)  # (n, 1)


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 17 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 17)  # (n, 17)
    with np.errstate(over="ignore"):
        return (_scales(raw) * _codes(raw)).reshape(*blocks.shape[:-1], blocks.shape[-1] // 17 * 32)  # (..., 32 n)


def repack_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """uint8 (rows, 17 n) -> the same values as Q5_0, uint8 (rows, 22 n).

    float16 has no scale below 2**-24: what is less than 4e-7 in size becomes zero. Beyond 2**15 it is infinite, and is found to be.
    """
    raw = np.ascontiguousarray(blocks).reshape(-1, 17)  # (n, 17)
    with np.errstate(over="ignore"):
        scales = _scales(raw).astype("<f2").view(np.uint8)  # (n, 2)
    return blocks_of(scales, _codes(raw)).reshape(len(blocks), -1)  # (rows, 22 n)
