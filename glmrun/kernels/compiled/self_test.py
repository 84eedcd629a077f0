"""At the first use on a machine: is the CPU's dot product of bytes right, as compiled here? If not, portable code replaces it.

The name of LLVM's function for it, the order of its operands and which of them is unsigned are not promised to us, and nothing
else would notice a wrong answer.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Dots = Callable[[int, int, int, int, int], None]


def trusts_dot(folder: Path | None, dots: Dots | None = None) -> bool:
    """Whether the CPU's instruction may be used; found out once for each cache folder and kept there, and said if it may not.

    dots    what is tested: see compiled()
    """
    mark = folder / "dot" if folder else None
    try:
        if mark and (known := mark.read_text()) in ("right", "wrong"):
            return known == "right"
    except OSError:
        pass
    right = is_right(dots or compiled())
    if not right:
        print("glmrun: this CPU's dot product of bytes gives wrong results; portable code is used instead", file=sys.stderr)
    try:
        if mark:
            mark.write_text("right" if right else "wrong")
    except OSError:
        pass
    return right


def is_right(dots: Dots) -> bool:
    """Whether dots agrees with NumPy on random bytes and on each pair of extremes."""
    rng = np.random.default_rng(0)
    unsigned, signed = (rng.integers(0, 256, (64, 64), dtype=np.uint8) for _ in range(2))  # uint8 (64, 64)
    for i, (u, s) in enumerate((u, s) for u in (0, 1, 127, 128, 255) for s in (0, 1, 127, 128, 255)):
        unsigned[i], signed[i] = u, s
    expected = unsigned.astype(np.int64) * signed.view(np.int8)  # int64 (64, 64)
    expected = expected.reshape(64, 16, 4).sum(-1)  # int64 (64, 16)
    once, twice = (np.full((64, 16), np.nan, np.float32) for _ in range(2))  # float32 (64, 16): all results are below 2**24
    dots(unsigned.ctypes.data, signed.ctypes.data, len(unsigned), once.ctypes.data, twice.ctypes.data)
    return np.array_equal(once, expected) and np.array_equal(twice, 2 * expected)


def compiled() -> Dots:
    """dots(unsigned, signed, n, once, twice): dot_u8s8 and add_dot_u8s8 of n rows of 64 bytes as float32 (n, 16), by address."""
    from numba import int64, njit, void

    from glmrun.kernels.simd.arithmetic import to_f32
    from glmrun.kernels.simd.dots import add_dot_u8s8, dot_u8s8
    from glmrun.kernels.simd.memory import load_u8x64, store_f32x16

    @njit(void(int64, int64, int64, int64, int64))
    def dots(unsigned, signed, n, once, twice):
        for i in range(n):
            u, s = load_u8x64(unsigned + 64 * i), load_u8x64(signed + 64 * i)
            d = dot_u8s8(u, s)
            store_f32x16(once + 64 * i, to_f32(d))
            store_f32x16(twice + 64 * i, to_f32(add_dot_u8s8(d, u, s)))

    return dots
