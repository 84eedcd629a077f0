"""What is asked of memory beside a step: blocks whose scales are infinite or NaN, and how fast it is read."""

from numba import int64, uint32

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.memory import load_f32x16, load_u32, store_f32x16, zero_f32x16
from glmrun.kernels.team import barrier

LINE = 256  # bytes read by one turn of read_memory()
TOGETHER = 64  # words between two looks at what was found


@kernel(int64(int64, int64, int64, uint32, uint32), entry=True)
def first_with_all(address, n, stride, mask, other):
    """The first of n unaligned words, stride bytes apart, with all bits of one mask set; -1 if there is none."""
    for start in range(0, n, TOGETHER):
        found = False
        for i in range(start, min(start + TOGETHER, n)):
            word = load_u32(address + i * stride)
            found |= ((word & mask) == mask) | ((word & other) == other)
        if found:
            for i in range(start, n):
                word = load_u32(address + i * stride)
                if (word & mask) == mask or (word & other) == other:
                    return i
    return -1


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
