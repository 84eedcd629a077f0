"""The machine's limits, beside which every figure stands: memory read bandwidth and int8 multiply-adds.

python benchmarks/machine.py
"""

import time

import numpy as np
from numba import int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.arithmetic import to_f32
from glmrun.kernels.simd.dots import add_dot_u8s8, dot_u8s8
from glmrun.kernels.simd.memory import bytes_of, load_u8x64, store_f32x16
from glmrun.kernels.simd.types import i32x16
from glmrun.kernels.team import Team, barrier
from glmrun.measure.bandwidth import read_bandwidth


@kernel(i32x16(i32x16, types.int64), inline="always")
def _dots(total, x):
    return add_dot_u8s8(total, bytes_of(3), load_u8x64(x))


@kernel(int64(int64, int64, int64, int64, int64, int64), entry=True)
def _multiply(times, x, out, flags, thread, n_threads):
    """8 * times dot products of 64 bytes on each thread, from the first-level cache."""
    zero = dot_u8s8(bytes_of(0), load_u8x64(x))
    a = b = c = d = e = f = g = h = zero
    barrier(flags, n_threads)
    for i in range(times):
        p = x + (i & 7) * 512
        a, b, c, d = _dots(a, p), _dots(b, p + 64), _dots(c, p + 128), _dots(d, p + 192)
        e, f, g, h = _dots(e, p + 256), _dots(f, p + 320), _dots(g, p + 384), _dots(h, p + 448)
    store_f32x16(out + thread * 64, to_f32(((a + b) + (c + d)) + ((e + f) + (g + h))))
    barrier(flags, n_threads)
    return 0


def int8_peak(team: Team, times: int = 4_000_000, rounds: int = 3) -> float:
    """int8 multiply-adds a second of all threads together."""
    x, out = np.ones(4096, np.int8), np.zeros(16 * team.n_threads, np.float32)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        team.run(_multiply, times, x.ctypes.data, out.ctypes.data)
        best = max(best, times * 8 * 64 * team.n_threads / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    for n in range(1, Team().n_threads + 1):
        team = Team(n)
        print(f"{n} threads: {read_bandwidth(team) / 1e9:.1f} GB/s, {int8_peak(team) / 1e9:.0f} GMAC/s int8")
