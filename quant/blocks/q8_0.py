"""Q8_0: 32 values in 34 bytes, x = d * q.

byte  0   2                               34
      | d | q0 q1 q2 ...             q31 |
d  float16; q  int8, -127 .. 127 as encoded (-128 is legal when read)
"""

import numpy as np

from quant.blocks.compiled import compiled
from quant.blocks.floats import half_from_single
from quant.blocks.lanes import load, store_bytes
from quant.blocks.one_scale import encode_sixteen, weights_by_lane

# The codes tried for the largest magnitude: GGML's 127, a little above (it is cut), and below.
_LEVELS = np.concatenate([[127], np.linspace(127.4, 119.4, 23)]).astype(np.float32)  # (24,)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (..., 34 n) -> float32 (..., 32 n)."""
    raw = np.ascontiguousarray(blocks).reshape(-1, 34)  # (n, 34)
    d = raw[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    q = raw[:, 2:].view(np.int8).astype(np.float32)  # (n, 32)
    with np.errstate(invalid="ignore"):
        return (q * d).reshape(*blocks.shape[:-1], blocks.shape[-1] // 34 * 32)  # (..., 32 n)


def encode_q8_0(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """float32 (n, columns) -> uint8 (n, columns / 32 * 34), d searched for the least sum(weights * (x - y)**2) of each block.

    Deterministic, and independent of which rows share a call.
    """
    out = np.empty((len(rows), rows.shape[1] // 32 * 34), np.uint8)  # (n, columns / 32 * 34)
    by_lane = weights_by_lane(weights, rows.shape[1])
    _encode(rows.reshape(-1), by_lane, rows.shape[1] // 32, _LEVELS, out.reshape(-1))
    return out


@compiled(nogil=True, error_model="numpy")
def _encode(rows, weights, blocks_per_row, levels, out):
    """out[34 b :] = block of rows[32 b :]; weights of one_scale.weights_by_lane() or None, levels float32 (4 n,)."""
    codes = np.empty(512, np.float32)  # (block, value)
    scales = np.empty(16, np.float32)  # (block,)
    n = len(rows) // 32
    for first in range(0, n, 16):
        k = 512 * (first % blocks_per_row)
        encode_sixteen(rows, 32 * first, weights, k, levels, np.float32(-127), np.float32(127), codes, scales)
        for b in range(min(16, n - first)):
            at = 34 * (first + b)
            half = half_from_single(scales[b])
            out[at], out[at + 1] = half & 255, half >> 8
            store_bytes(out, at + 2, load(codes, 32 * b))
            store_bytes(out, at + 18, load(codes, 32 * b + 16))
