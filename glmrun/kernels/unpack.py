"""Vector code that unpacks GGML's blocks: nibbles, 5-bit and 6-bit codes, scales spread over lanes, a transposition."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.simd import I1, I8, I16, I32, I64, V8F, V16B, V16F, V16I, V32B, V64B, constant, f32x8, f32x16, pointer, shuffle, u8x64


def _twice(builder, half):
    """32 bytes in both halves of 64."""
    return shuffle(builder, half, half, list(range(32)) * 2)


V32H = ir.VectorType(I16, 32)


def _shift(builder, vector, instruction, low, high):
    """Shift bytes by `low` bits in the low half and `high` bits in the high half; the caller masks what crosses a byte."""
    words = builder.bitcast(vector, V32H)
    return builder.bitcast(getattr(builder, instruction)(words, constant(V32H, low, high)), V64B)


@intrinsic
def nibbles_low_high(context, address):
    """32 bytes at the address -> their 32 low nibbles, then their 32 high nibbles (the order of two Q4_K sub-blocks)."""

    def generate(c, b, s, a):
        both = _twice(b, b.load(pointer(b, a[0], V32B), align=1))
        return b.and_(_shift(b, both, "lshr", 0, 4), constant(V64B, 15))

    return u8x64(types.int64), generate


@intrinsic(prefer_literal=True)
def six_bits(context, low_bits, high_bits, half):
    """64 of a Q6_K block's 6-bit codes: nibbles of 64 bytes at low_bits, pairs of bits of 32 bytes at high_bits.

    half = 0: elements 0 to 63 of 128 (low nibbles, bits 0-1 and 2-3); half = 1: the others (high nibbles, bits 4-5 and 6-7).
    """
    upper = half.literal_value

    def generate(c, b, s, a):
        nibbles = b.load(pointer(b, a[0], V64B), align=1)
        if upper:
            nibbles = _shift(b, nibbles, "lshr", 4, 4)
        pairs = _twice(b, b.load(pointer(b, a[1], V32B), align=1))
        pairs = _shift(b, pairs, "lshr", 0, 2) if upper else _shift(b, pairs, "shl", 4, 2)
        return b.or_(b.and_(nibbles, constant(V64B, 15)), b.and_(pairs, constant(V64B, 0x30)))

    return u8x64(types.int64, types.int64, half), generate


@intrinsic
def five_bits(context, first, second):
    """The 5-bit codes of two Q5_0 blocks' (qh, qs) at two addresses, 32 each; the second address may be 0 for none (zeros)."""

    def generate(c, b, s, a):
        def block(address):
            high = b.bitcast(b.load(pointer(b, address, I32), align=1), ir.VectorType(I1, 32))
            packed = b.load(pointer(b, b.add(address, ir.Constant(I64, 4)), V16B), align=1)
            both = shuffle(b, packed, packed, list(range(16)) * 2)
            words = ir.VectorType(I16, 16)
            shifted = b.bitcast(b.lshr(b.bitcast(both, words), constant(words, 0, 4)), V32B)
            low = b.and_(shifted, constant(V32B, 15))
            return b.or_(low, b.select(high, constant(V32B, 16), constant(V32B, 0)))

        return shuffle(b, block(a[0]), block(a[1]), list(range(64)))

    return u8x64(types.int64, types.int64), generate


@intrinsic
def bytes_to_f32x8(context, low, high):
    """Four bytes in each of two uint32 -> 8 float32."""

    def generate(c, b, s, a):
        pair = ir.Constant(ir.VectorType(I32, 2), ir.Undefined)
        for lane, value in enumerate(a):
            pair = b.insert_element(pair, value, ir.Constant(I32, lane))
        return b.uitofp(b.bitcast(pair, ir.VectorType(I8, 8)), V8F)

    return f32x8(types.uint32, types.uint32), generate


@intrinsic(prefer_literal=True)
def pick_two(context, x, low, high):
    """Lanes 0 to 7 = x[low], lanes 8 to 15 = x[high], of 8 float32."""
    lanes = [low.literal_value] * 8 + [high.literal_value] * 8
    return f32x16(f32x8, low, high), lambda c, b, s, a: shuffle(b, a[0], a[0], lanes)


@intrinsic
def join(context, low, high):
    """8 float32, then 8 more."""
    return f32x16(f32x8, f32x8), lambda c, b, s, a: shuffle(b, a[0], a[1], list(range(16)))


@intrinsic
def double_lanes(context, x):
    """x0 x0 x1 x1 ... x7 x7."""
    return f32x16(f32x8), lambda c, b, s, a: shuffle(b, a[0], a[0], [i // 2 for i in range(16)])


@intrinsic
def load_i8x16_as_f32(context, address):
    """16 int8 at the address as float32."""
    return f32x16(types.int64), lambda c, b, s, a: b.sitofp(b.load(pointer(b, a[0], V16B), align=1), V16F)


@intrinsic(prefer_literal=True)
def pick_four(context, x, first):
    """Lanes 4 i to 4 i + 3 = x[first + i], of 16 float32."""
    lanes = [first.literal_value + i // 4 for i in range(16)]
    return f32x16(f32x16, first), lambda c, b, s, a: shuffle(b, a[0], a[0], lanes)


@intrinsic
def transpose_words(context, source, out, stride):
    """out[j][i] = source[i][j] for 16 x 16 words of 4 bytes: source rows follow one another, out rows are `stride` bytes apart."""

    def generate(c, b, s, a):
        rows = [b.load(pointer(b, b.add(a[0], ir.Constant(I64, i * 64)), V16I), align=4) for i in range(16)]
        low = [lane for i in range(8) for lane in (i, i + 16)]
        high = [lane for i in range(8, 16) for lane in (i, i + 16)]
        for _ in range(4):  # four perfect shuffles of rows make a transposition
            pairs = [(rows[i], rows[i + 8]) for i in range(8)]
            rows = [shuffle(b, x, y, lanes) for x, y in pairs for lanes in (low, high)]
        for j, row in enumerate(rows):
            b.store(row, pointer(b, b.add(a[1], b.mul(a[2], ir.Constant(I64, j))), V16I), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
