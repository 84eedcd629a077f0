"""At the first use on a machine: are the CPU's dot products of bytes right, as compiled here? If not, portable code replaces it.

The names of LLVM's functions for them, the order of its operands and which of them is unsigned are not promised to us, and nothing
else would notice a wrong answer.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glmrun.kernels.simd.target import has_i8mm, has_neon

Dots = Callable[[int, int, int, int, int, int, int], None]


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
    codes = unsigned.view(np.int8).astype(np.int64)  # int64 (64, 64): the same bytes, signed
    of_codes = (codes * signed.view(np.int8)).reshape(64, 16, 4).sum(-1)  # int64 (64, 16)
    x, y = codes.reshape(64, 4, 2, 8), signed.view(np.int8).astype(np.int64).reshape(64, 4, 2, 8)
    of_pairs = (x @ y.swapaxes(-1, -2)).reshape(64, 16)  # int64 (64, 16)
    found = np.full((4, 64, 16), np.nan, np.float32)  # float32 (4, 64, 16): all results are below 2**24
    dots(unsigned.ctypes.data, signed.ctypes.data, len(unsigned), *(one.ctypes.data for one in found))
    wanted = [expected, 2 * expected, of_codes if has_neon() else expected, of_pairs]
    n = 4 if has_i8mm() else 3
    return all(np.array_equal(*two) for two in zip(found[:n], wanted[:n], strict=True))


def compiled() -> Dots:
    """dots(unsigned, signed, n, once, twice, codes, pairs), by address: of n rows of 64 bytes float32 (n, 16) each.

    once, twice   dot_u8s8 and add_dot_u8s8
    codes         dot_codes, which takes the unsigned bytes as signed ones with NEON
    pairs         with i8mm pairs_product, which does so too
    """
    from numba import int64, njit, void

    from glmrun.kernels.simd.arithmetic import to_f32
    from glmrun.kernels.simd.dots import add_dot_u8s8, dot_codes, dot_u8s8, pairs_product
    from glmrun.kernels.simd.memory import load_u8x64, store_f32x16

    has_pairs = has_i8mm()

    @njit(void(int64, int64, int64, int64, int64, int64, int64))
    def dots(unsigned, signed, n, once, twice, codes, pairs):
        for i in range(n):
            u, s = load_u8x64(unsigned + 64 * i), load_u8x64(signed + 64 * i)
            d = dot_u8s8(u, s)
            store_f32x16(once + 64 * i, to_f32(d))
            store_f32x16(twice + 64 * i, to_f32(add_dot_u8s8(d, u, s)))
            store_f32x16(codes + 64 * i, to_f32(dot_codes(u, s)))
            if has_pairs:
                store_f32x16(pairs + 64 * i, to_f32(pairs_product(u, s)))

    return dots
