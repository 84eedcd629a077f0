"""F32, F16 and BF16: one value is one block; and the half-precision conversions the other encoders inline.

F32   seeeeeeeemmmmmmmmmmmmmmmmmmmmmmm   4 bytes, little endian
F16   seeeeemmmmmmmmmm                   2 bytes
BF16  seeeeeeeemmmmmmm                   2 bytes, the upper half of an F32
"""

import numpy as np


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 4 n) -> float32 (..., n)."""
    return np.ascontiguousarray(blocks).view("<f4")  # (..., n)


def encode_f32(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, 4 columns)."""
    return rows.astype("<f4").view(np.uint8)  # (n, 4 columns)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 2 n) -> float32 (..., n)."""
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)  # (..., n)


def encode_f16(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, 2 columns): round to nearest even, beyond 65,519 infinite, any NaN becomes the quiet one."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        halves = rows.astype("<f2")  # (n, columns)
    bits = halves.view("<u2")
    nan = np.isnan(halves)
    if nan.any():  # GGML keeps the sign and drops the payload
        bits[nan] = bits[nan] & 0x8000 | 0x7E00
    return bits.view(np.uint8)  # (n, 2 columns)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 2 n) -> float32 (..., n)."""
    bits = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)  # (..., n)
    bits <<= 16
    return bits.view(np.float32)  # (..., n)


def encode_bf16(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, 2 columns): round to nearest even; a NaN keeps its upper payload and becomes quiet."""
    bits = rows.view(np.uint32)  # (n, columns)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")  # (n, columns); only a NaN can wrap around
    np.copyto(rounded, (bits >> 16 | 64).astype("<u2"), where=nan)
    return rounded.view(np.uint8)  # (n, 2 columns)
