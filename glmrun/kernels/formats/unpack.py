"""Vector code that unpacks GGML's blocks of 32: nibbles and 5-bit codes, scales spread over lanes; a transposition."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.tables import emit_look_up
from glmrun.kernels.simd.target import dot_bits, has_neon, signed_factors, sums_in_16_bits
from glmrun.kernels.simd.types import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    V8F,
    V8H,
    V8I,
    V16B,
    V16F,
    V16H,
    V16I,
    V32B,
    V64B,
    behind,
    constant,
    f32x8,
    f32x16,
    opaque,
    pointer,
    shuffle,
    splat,
    u8x64,
)
from quant.blocks import iq4


def load_at(builder, block, at, llvm_type):
    """What stands `at` bytes into a block."""
    return builder.load(pointer(builder, behind(builder, block, at), llvm_type), align=1)


@intrinsic
def four_f16_times(context, address, factor):
    """The four float16 at the address times factor, in lanes 0 to 3 of 8 float32.

    Whoever wants one of them gets it sooner this way: LLVM loads a single float16 into a register that something else still fills.
    """

    def generate(c, b, s, a):
        wide = emit_widen(b, b.load(pointer(b, a[0], ir.VectorType(I16, 4)), align=2))
        product = b.fmul(wide, splat(b, a[1], 4))
        return shuffle(b, product, product, list(range(4)) * 2)

    return f32x8(types.int64, types.float32), generate


def emit_scales(builder, scales):
    """LLVM code for a vector of scales as float32: float16 widened, or, of one byte, 2**(e - 128), where e = 0 becomes 0."""
    if scales.type.element == I16:
        return emit_widen(builder, scales)
    n = scales.type.count
    floats, bits = ir.VectorType(F32, n), ir.VectorType(I32, n)
    bits = builder.shl(builder.zext(scales, bits), constant(bits, 23))  # 2**(e - 127)
    return builder.fmul(builder.bitcast(bits, floats), constant(floats, 0.5))


@intrinsic(prefer_literal=True)
def first_f32(context, address, count):
    """`count` (1, 2 or 4) float32 in the first lanes of 8; zeros behind."""
    n = count.literal_value

    def generate(c, b, s, a):
        some = ir.VectorType(F32, n)
        lanes = [min(lane, n) for lane in range(8)]  # the n-th is the other operand's first
        return shuffle(b, b.load(pointer(b, a[0], some), align=4), constant(some, 0.0), lanes)

    return f32x8(types.int64, count), generate


@intrinsic(prefer_literal=True)
def lane(context, x, i):
    """x[i] of 8 float32."""
    return types.float32(f32x8, i), lambda c, b, s, a: b.extract_element(a[0], ir.Constant(I32, i.literal_value))


@intrinsic(prefer_literal=True)
def splat_lane_x8(context, x, lane):
    """x[lane] in 8 lanes, of 8 float32."""
    return f32x8(f32x8, lane), lambda c, b, s, a: shuffle(b, a[0], a[0], [lane.literal_value] * 8)


def _truths(builder, word):
    """32 truth values from 32 bits: in one move where the CPU has registers of them, else each byte spread over its eight bits."""
    if dot_bits() == 512:
        return builder.bitcast(word, ir.VectorType(I1, 32))
    four = builder.bitcast(word, ir.VectorType(I8, 4))
    spread = shuffle(builder, four, four, [i // 8 for i in range(32)])
    bit = ir.Constant(V32B, [1 << i % 8 for i in range(32)])
    return builder.icmp_unsigned("!=", builder.and_(spread, bit), constant(V32B, 0))


def _joined(builder, lower, upper):
    """Two times 32 bytes."""
    return shuffle(builder, lower, upper, list(range(64)))


def emit_q8_0_codes(builder, first, second):
    """LLVM code for the codes of two Q8_0 blocks, 32 each, plus 128."""
    codes = _joined(builder, load_at(builder, first, 2, V32B), load_at(builder, second, 2, V32B))
    return builder.xor(codes, constant(V64B, 0x80))


def _nibbles_of_16(builder, block, at):
    """The low nibbles of 16 bytes, then the high ones, with other bits above."""
    packed = load_at(builder, block, at, V16B)
    if sums_in_16_bits():
        # Opaque, or LLVM moves each lane by a number of its own: Zen 1 does four times the work for that, Haswell three times.
        high = opaque(builder, builder.lshr(builder.bitcast(packed, V8H), constant(V8H, 4)))
        return shuffle(builder, packed, builder.bitcast(high, V16B), list(range(32)))
    both = shuffle(builder, packed, packed, list(range(16)) * 2)
    return builder.bitcast(builder.lshr(builder.bitcast(both, V16H), constant(V16H, 0, 4)), V32B)


def emit_four_bits(builder, first, second, at):
    """LLVM code for two blocks' 4-bit codes: of 16 bytes `at` into each the low nibbles, then the high."""
    if sums_in_16_bits():
        codes = _joined(builder, _nibbles_of_16(builder, first, at), _nibbles_of_16(builder, second, at))
    else:
        lower, upper = load_at(builder, first, at, V16B), load_at(builder, second, at, V16B)
        packed = shuffle(builder, lower, upper, [*range(16), *range(16), *range(16, 32), *range(16, 32)])
        lanes = V64B if has_neon() else V16I  # the smallest that the CPU shifts, each by its own number
        codes = builder.bitcast(builder.lshr(builder.bitcast(packed, lanes), constant(lanes, 0, 4, 0, 4)), V64B)
    return builder.and_(codes, constant(V64B, 15))


def _five_bits(builder, block, at):
    """The 5-bit codes of a block: 32 high bits `at` bytes into it, then the low nibbles."""
    high = _truths(builder, load_at(builder, block, at, I32))
    low = builder.and_(_nibbles_of_16(builder, block, at + 4), constant(V32B, 15))
    return builder.or_(low, builder.select(high, constant(V32B, 16), constant(V32B, 0)))


def emit_five_bits(builder, first, second, at):
    """LLVM code for two blocks' 5-bit codes: 32 high bits `at` bytes into each, then the low nibbles."""
    return _joined(builder, _five_bits(builder, first, at), _five_bits(builder, second, at))


def emit_values(builder, first, second, at, values):
    """LLVM code for what 4-bit codes stand for, plus 128."""
    # Where dot_codes_of() takes 128 off again, LLVM sees two flips of a bit and leaves out both.
    flip = 0x80 if signed_factors() else 0
    found = emit_look_up(builder, [value & 0xFF ^ 0x80 ^ flip for value in values], emit_four_bits(builder, first, second, at))
    return builder.xor(found, constant(V64B, flip))


@intrinsic
def iq4_values(context, first, second):
    """emit_values() of IQ4_XS codes at two addresses."""
    return u8x64(types.int64, types.int64), lambda c, b, s, a: emit_values(b, a[0], a[1], 0, iq4.VALUES.tolist())


@intrinsic
def iq4_xs_scales(context, block):
    """d (s_j - 32) of an IQ4_XS block's eight sub-blocks, exact in float32 (layout: quant/blocks/iq4.py)."""

    def generate(c, b, s, a):
        d = emit_widen(b, splat(b, b.load(pointer(b, a[0], I16), align=1), 8))
        first, second = (b.load(pointer(b, b.add(a[0], ir.Constant(I64, i)), I32), align=1) for i in (0, 4))
        high = b.lshr(splat(b, first, 8), ir.Constant(V8I, [*range(12, 28, 2)]))
        low = b.lshr(splat(b, second, 8), ir.Constant(V8I, [*range(0, 32, 4)]))
        six = b.or_(b.and_(high, constant(V8I, 0x30)), b.and_(low, constant(V8I, 15)))
        return b.fmul(d, b.sitofp(b.sub(six, constant(V8I, 32)), V8F))

    return f32x8(types.int64), generate


@intrinsic
def upper_half(context, x):
    """Lanes 4 to 7 of 8 float32 twice."""
    return f32x8(f32x8), lambda c, b, s, a: shuffle(b, a[0], a[0], [*range(4, 8)] * 2)


@intrinsic(prefer_literal=True)
def pick_two(context, x, low, high):
    """Lanes 0 to 7 = x[low], lanes 8 to 15 = x[high], of 8 float32."""
    lanes = [low.literal_value] * 8 + [high.literal_value] * 8
    return f32x16(f32x8, low, high), lambda c, b, s, a: shuffle(b, a[0], a[0], lanes)


@intrinsic
def load_i8x16_as_f32(context, address):
    """16 int8 at the address as float32."""
    return f32x16(types.int64), lambda c, b, s, a: b.sitofp(b.load(pointer(b, a[0], V16B), align=1), V16F)


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
