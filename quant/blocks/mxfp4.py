"""MXFP4: 32 values in 17 bytes, x = 2**(e - 128) * value[q].

byte  0   1                          17
      | e | q0 q1 ...            q15 |
e  an exponent; q  a sign and a float of three bits, doubled: the lower nibble of byte i is q[i], the upper one q[i + 16]
Source: OCP Microscaling Formats (MX) 1.0; GGML stores e as it is there.
"""

import numpy as np

VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 17 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 17)  # (n, 17)
    scale = np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128)  # (n, 1)
    values = VALUES[np.concatenate([raw[:, 1:] & 15, raw[:, 1:] >> 4], axis=1)]  # (n, 32)
    with np.errstate(over="ignore"):
        return (scale * values).reshape(*blocks.shape[:-1], blocks.shape[-1] // 17 * 32)  # (..., 32 n)
