"""Q5_0: 32 values in 22 bytes, x = d * (q - 16).

byte  0   2        6                        22
      | d | high   | low0 low1 ...   low15 |
d     float16, of either sign
high  uint32, bit i is bit 4 of q[i]
low   bits 0-3: lower nibble of byte i is q[i], upper nibble is q[i + 16]
"""

import numpy as np

from quant.blocks.compiled import compiled
from quant.blocks.floats import half_from_single
from quant.blocks.lanes import lane, load, nearest, splat, store_bytes, total_of_all
from quant.blocks.one_scale import encode_sixteen, weights_by_lane

# The codes (q - 16) tried for the value of largest magnitude: GGML's -16, somewhat beyond (it is cut), and closer.
_LEVELS = np.concatenate([[-16], np.linspace(-17.5, -13.5, 23)]).astype(np.float32)  # (24,)
_BITS = (2.0 ** np.arange(16)).astype(np.float32)  # (16,)


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 22 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 22)  # (n, 22)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    high = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little")  # (n, 32)
    low = np.concatenate([raw[:, 6:] & 15, raw[:, 6:] >> 4], axis=1)  # (n, 32)
    q = (low | high << 4).view(np.int8) - np.int8(16)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (d * q).reshape(*blocks.shape[:-1], blocks.shape[-1] // 22 * 32)  # (..., 32 n)


def encode_q5_0(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 32 * 22), d searched for the least sum(weights * (x - y)**2) of each block.

    Deterministic, and independent of which rows share a call.
    """
    out = np.empty((len(rows), rows.shape[1] // 32 * 22), np.uint8)  # (n, columns / 32 * 22)
    by_lane = weights_by_lane(weights, rows.shape[1])
    _encode(rows.reshape(-1), by_lane, rows.shape[1] // 32, _LEVELS, _BITS, out.reshape(-1))
    return out


@compiled(nogil=True, error_model="numpy")
def _encode(rows, weights, blocks_per_row, levels, bits, out):
    """out[22 b :] = block of rows[32 b :]; weights of one_scale.weights_by_lane() or None, levels float32 (4 n,)."""
    codes = np.empty(512, np.float32)  # (block, value)
    scales = np.empty(16, np.float32)  # (block,)
    n = len(rows) // 32
    for first in range(0, n, 16):
        k = 512 * (first % blocks_per_row)
        encode_sixteen(rows, 32 * first, weights, k, levels, np.float32(-16), np.float32(15), codes, scales)
        for b in range(min(16, n - first)):
            at = 22 * (first + b)
            half = half_from_single(scales[b])
            out[at], out[at + 1] = half & 255, half >> 8
            low, high = splat(np.float32(0)), splat(np.float32(0))
            for part in range(2):
                q = load(codes, 32 * b + 16 * part) + splat(np.float32(16))
                high = nearest(q * splat(np.float32(1 / 16)) - splat(np.float32(15 / 32)))  # q / 16, rounded down
                low = low + (q - splat(np.float32(16)) * high) * splat(np.float32(1 + 15 * part))
                word = int(lane(total_of_all(high * load(bits, 0)), 0))
                out[at + 2 + 2 * part], out[at + 3 + 2 * part] = word & 255, word >> 8
            store_bytes(out, at + 6, low)
