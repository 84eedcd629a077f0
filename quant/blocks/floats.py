"""F32, F16 and BF16: one value is one block; and the half-precision conversions the other encoders inline.

F32   seeeeeeeemmmmmmmmmmmmmmmmmmmmmmm   4 bytes, little endian
F16   seeeeemmmmmmmmmm                   2 bytes
BF16  seeeeeeeemmmmmmm                   2 bytes, the upper half of an F32
"""

import numpy as np

from quant.blocks.compiled import compiled


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
    """float32 (n, columns) -> uint8 (n, 2 columns): nearest even, infinite from 65,520, a NaN keeps only its sign."""
    out = np.empty(rows.shape, "<u2")  # (n, columns)
    _encode_f16(rows.reshape(-1), out.reshape(-1))
    return out.view(np.uint8)  # (n, 2 columns)


@compiled(nogil=True)
def _encode_f16(x, out):
    for i in range(len(x)):
        out[i] = half_from_single(x[i])


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 2 n) -> float32 (..., n)."""
    raw = np.require(blocks, np.uint8, ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE")).view("<u2")  # (..., n)
    out = np.empty(raw.shape, np.float32)  # (..., n)
    _decode_bf16(raw.reshape(-1), out.view(np.uint32).reshape(-1))
    return out


@compiled(nogil=True)
def _decode_bf16(bits, out):
    for i in range(len(bits)):
        out[i] = np.uint32(bits[i]) << np.uint32(16)


def encode_bf16(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, 2 columns): nearest even, a NaN keeps its upper bits and becomes quiet."""
    out = np.empty(rows.shape, "<u2")  # (n, columns)
    _encode_bf16(rows.view(np.uint32).reshape(-1), out.reshape(-1))
    return out.view(np.uint8)  # (n, 2 columns)


@compiled(nogil=True)
def _encode_bf16(bits, out):
    for i in range(len(bits)):
        b = bits[i]
        nan = (b & 0x7FFFFFFF) > 0x7F800000
        out[i] = (b >> 16) | 64 if nan else (b + 0x7FFF + (b >> 16 & 1)) >> 16


@compiled(forceinline=True)
def half_from_single(x):
    """The float16 bits (0 .. 65535) of a float32: round to nearest even; infinite or NaN only if x is, or from 65,520 up."""
    bits = int(np.float32(x).view(np.int32))
    size = bits & 0x7FFFFFFF
    if size < 0x38800000:  # below 2**-14: adding 0.5 makes the float unit round to a multiple of 2**-24
        half = int(np.float32(np.int32(size).view(np.float32) + np.float32(0.5)).view(np.int32)) - 0x3F000000
    elif size >= 0x47800000:  # 65536
        half = 0x7E00 if size > 0x7F800000 else 0x7C00
    else:
        half = (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13
    return half | (bits >> 16 & 0x8000)


@compiled(forceinline=True)
def single_from_half(half):
    """The float32 of float16 bits (0 .. 65535) that stand for a finite number."""
    size = np.int32(half & 0x7FFF)
    x = np.float32(size) * np.float32(2.0**-24) if size < 0x400 else np.int32((size + 0x1C000) << 13).view(np.float32)
    return -x if half & 0x8000 else x


@compiled(nogil=True)
def largest_bits(bits):
    """The largest of the bits of float32 numbers (int32), their signs left out: magnitudes compare like these, NaN above all."""
    largest = np.int32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))
    return largest
