"""Looking at the numbers of blocks, not at their codes."""

from numba import int64, uint32

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.memory import load_u32

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
