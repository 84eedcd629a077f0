"""The machine's limits, beside which every figure stands: memory read bandwidth and int8 multiply-adds.

python benchmarks/machine.py
"""

import time

import numpy as np
from numba import int64, types

from glmrun.kernels import kernel
from glmrun.simd import add_dot_u8s8, bytes_of, dot_u8s8, i32x16, load_f32x16, load_u8x64, store_f32x16, to_f32, zero_f32x16
from glmrun.team import Team, barrier

LINE = 256  # bytes read by one turn of the loop


@kernel(int64(int64, int64, int64, int64, int64, int64), entry=True)
def _read(address, n_bytes, out, flags, thread, n_threads):
    """Read n_bytes once, each thread its own part; 64 bytes a thread at `out` keep it honest."""
    part = n_bytes // n_threads // LINE * LINE
    start = address + thread * part
    barrier(flags, n_threads)
    a = b = c = d = zero_f32x16()
    for p in range(start, start + part, LINE):
        a, b = a + load_f32x16(p), b + load_f32x16(p + 64)
        c, d = c + load_f32x16(p + 128), d + load_f32x16(p + 192)
    store_f32x16(out + thread * 64, (a + b) + (c + d))
    barrier(flags, n_threads)
    return 0


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


def read_bandwidth(team: Team, n_bytes: int = 1 << 30, rounds: int = 5) -> float:
    """Bytes a second that all threads together read from memory: the best of some rounds over n_bytes of it."""
    memory, out = np.ones(n_bytes // 4, np.float32), np.zeros(16 * team.n_threads, np.float32)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        team.run(_read, memory.ctypes.data, n_bytes, out.ctypes.data)
        best = max(best, n_bytes / (time.perf_counter() - start))
    return best


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
