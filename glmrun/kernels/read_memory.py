"""Reading memory and nothing else: the limit of every kernel that sees a weight once."""

from numba import int64

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.memory import load_f32x16, store_f32x16, zero_f32x16
from glmrun.kernels.team import barrier

LINE = 256  # bytes read by one turn of the loop


@kernel(int64(int64, int64, int64, int64, int64, int64), entry=True)
def read_memory(address, n_bytes, out, flags, thread, n_threads):
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
