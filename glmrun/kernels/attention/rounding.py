"""Vector code that attention rounds with: largest magnitudes, and float32 to bytes or int16 in the order that panels want."""

from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.simd.arithmetic import MAGIC
from glmrun.kernels.simd.halves import emit_narrow
from glmrun.kernels.simd.types import (
    I16,
    V16F,
    V16I,
    V32H,
    V64B,
    call,
    constant,
    f32x16,
    fold_in_fours,
    pointer,
    shuffle,
    u8x64,
)

# Of 64 bytes and 64 more: the lowest bytes of each four words of the first and of the second, twice.
_FOURS = [at + i for i in range(0, 64, 16) for at in (*range(0, 16, 4), *range(64, 80, 4)) * 2]


def _rounded(b, x, factor, offset):
    return b.bitcast(call(b, "llvm.fma.v16f32", V16F, [x, factor, constant(V16F, MAGIC + offset)]), V16I)


@intrinsic(prefer_literal=True)
def round_in_turn(context, x0, x1, x2, x3, factor, offset):
    """The low bytes of round(x * factor) + offset: lane by lane x0, x1, x2, x3 of that lane."""
    added = offset.literal_value

    def generate(c, b, s, a):
        word = constant(V16I, 0)
        for i in range(4):
            byte = _rounded(b, a[i], a[4], added)
            if i < 3:
                byte = b.and_(byte, constant(V16I, 255))
            word = b.or_(word, b.shl(byte, constant(V16I, 8 * i)))
        return b.bitcast(word, V64B)

    return u8x64(f32x16, f32x16, f32x16, f32x16, f32x16, offset), generate


@intrinsic(prefer_literal=True)
def round_in_order(context, x0, x1, x2, x3, factor, offset):
    """The low bytes of round(x * factor) + offset: all of x0, then x1, x2, x3."""
    added = offset.literal_value

    def generate(c, b, s, a):
        parts = [b.bitcast(_rounded(b, a[i], a[4], added), V64B) for i in range(4)]
        low, high = (shuffle(b, x, y, list(range(0, 128, 4))) for x, y in (parts[:2], parts[2:]))
        return shuffle(b, low, high, list(range(64)))

    return u8x64(f32x16, f32x16, f32x16, f32x16, f32x16, offset), generate


@intrinsic
def round_in_fours(context, x0, x1, x2, x3):
    """The low bytes of round(x): of each four neighbouring lanes those of x0, x1, x2 and x3, 16 bytes."""

    def generate(c, b, s, a):
        parts = [b.bitcast(b.fadd(x, constant(V16F, MAGIC)), V64B) for x in a]
        low, high = (shuffle(b, x, y, _FOURS) for x, y in (parts[:2], parts[2:]))
        return shuffle(b, low, high, [at + i for i in range(0, 64, 16) for at in (*range(8), *range(64, 72))])

    return u8x64(f32x16, f32x16, f32x16, f32x16), generate


@intrinsic
def round_two_bytes(context, x0, x1, factor):
    """round(x * factor) as int16: all of x0, then x1; up to 2**15 in size."""

    def generate(c, b, s, a):
        parts = [b.bitcast(_rounded(b, x, a[2], 0), V32H) for x in a[:2]]
        return b.bitcast(shuffle(b, parts[0], parts[1], list(range(0, 64, 2))), V64B)

    return u8x64(f32x16, f32x16, f32x16), generate


@intrinsic
def larger_f16_magnitude(context, x, address):
    """max(|x|, |y|) of 32 float16, x in 64 bytes and y at the address; NaN counts as the largest."""

    def generate(c, b, s, a):
        y = b.and_(b.load(pointer(b, a[1], V32H), align=4), constant(V32H, 0x7FFF))
        return b.bitcast(call(b, "llvm.umax.v32i16", V32H, [b.bitcast(a[0], V32H), y]), V64B)

    return u8x64(u8x64, int64), generate


@intrinsic
def sum_fours(context, x0, x1, x2, x3):
    """Of each four neighbouring lanes the sums of x0's, x1's, x2's and x3's."""
    return f32x16(f32x16, f32x16, f32x16, f32x16), lambda c, b, s, a: fold_in_fours(b, list(a), b.fadd)[0]


@intrinsic
def add_beside(context, x):
    """In every lane its sum with the neighbour's: of lanes 0 and 1, 2 and 3, ..."""

    def generate(c, b, s, a):
        return b.fadd(a[0], shuffle(b, a[0], a[0], [lane ^ 1 for lane in range(16)]))

    return f32x16(f32x16), generate


@intrinsic
def fold_fours(context, x):
    """Lane i = the sum of lanes 4 i to 4 i + 3, and again for the next four lanes, and so on."""

    def generate(c, b, s, a):
        first, second, third, fourth = (shuffle(b, a[0], a[0], list(range(i, 16, 4)) * 4) for i in range(4))
        return b.fadd(b.fadd(first, third), b.fadd(second, fourth))

    return f32x16(f32x16), generate


@intrinsic
def maximum_or_nan(context, x, y):
    """The larger one in every lane; NaN if one is NaN."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: call(b, "llvm.maximum.v16f32", V16F, [a[0], a[1]])


@intrinsic
def where_less(context, x, y, then, otherwise):
    """then in lanes where x < y, otherwise in the others."""

    def generate(c, b, s, a):
        return b.select(b.fcmp_ordered("<", a[0], a[1]), a[2], a[3])

    return f32x16(f32x16, f32x16, f32x16, f32x16), generate


@intrinsic
def store_f16(context, address, value):
    """Write one float32 rounded to float16."""

    def generate(c, b, s, a):
        b.store(emit_narrow(b, a[1]), pointer(b, a[0], I16), align=2)
        return c.get_dummy_value()

    return types.void(int64, types.float32), generate
