"""Dot products of bytes and of 16-bit numbers: the instructions that LLVM does not find by itself."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.simd.target import dot_bits, has_avx2, has_vnni, sums_in_16_bits
from glmrun.kernels.simd.types import (
    I1,
    I16,
    I32,
    V8I,
    V16B,
    V16H,
    V16I,
    V32B,
    V32H,
    V64B,
    call,
    constant,
    i16x32,
    i32x16,
    pointer,
    shuffle,
    u8x64,
)


def _at_256(builder, name, result, arguments):
    """The call in registers of 256 bits: once, or for the lower and the upper halves of arguments of 512 bits."""
    lanes = arguments[0].type.count * arguments[0].type.element.width // 256
    if lanes == 1:
        return call(builder, name, result, arguments)
    results = []
    for half in range(2):
        picked = [range(half * n // 2, (half + 1) * n // 2) for n in (value.type.count for value in arguments)]
        parts = [shuffle(builder, value, value, list(some)) for value, some in zip(arguments, picked, strict=True)]
        results.append(call(builder, name, result, parts))
    return shuffle(builder, results[0], results[1], list(range(2 * result.count)))


def emit_pairs(builder, unsigned, signed):
    """LLVM code, AVX2: int16 (16,) of two neighbouring products of 32 bytes; what does not fit into int16 saturates."""
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", V16H, [unsigned, signed])


def emit_pair_sums(builder, pairs):
    """LLVM code, AVX2: int32 (8,) sums of two neighbouring int16."""
    return call(builder, "llvm.x86.avx2.pmadd.wd", V8I, [pairs, constant(V16H, 1)])


@intrinsic
def store_start(context, address, codes):
    """What the dot product of 16 int8 codes with others that carry +32 begins with: int32, -32 times the sum of the codes.

    Where products are added up in 16 bits: two int16, of the codes 0 1, 4 5, 8 9, 12 13 and of the others: vpmaddubsw's pairs.
    """

    def generate(c, b, s, a):
        folds: list = [[range(8), range(8, 16)], [range(4), range(4, 8)], [(0, 2), (1, 3)], [(0,), (1,)]]
        element = I16 if sums_in_16_bits() else I32
        if sums_in_16_bits():
            folds = folds[:3]
        sixteen = b.load(pointer(b, a[1], V16B), align=1)
        sums = b.sext(sixteen, ir.VectorType(element, 16))
        for lanes in folds:
            sums = b.add(*(shuffle(b, sums, sums, list(some)) for some in lanes))
        sums = b.mul(sums, constant(sums.type, -32))
        out = pointer(b, a[0], sums.type)
        b.store(sums, out, align=4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def emit_with_signs(builder, x, signs):
    """LLVM code, AVX2: 32 int8 x, each times the sign (-1, 0 or 1) of the other; x from -127 on."""
    return call(builder, "llvm.x86.avx2.psign.b", x.type, [x, signs])


def _quads_avx2(builder, unsigned, signed):
    """Sums of four products of bytes up to 128: two of them fit into int16, so vpmaddubsw does not saturate."""
    pairs = _at_256(builder, "llvm.x86.avx2.pmadd.ub.sw", V16H, [unsigned, signed])
    return _at_256(builder, "llvm.x86.avx2.pmadd.wd", V8I, [pairs, constant(pairs.type, 1)])


def emit_dot(builder, start, unsigned, signed):
    """LLVM code for start + dot_u8s8(unsigned, signed), 16 or 8 lanes of int32: what larger intrinsics are built from."""
    n = start.type.count
    if dot_bits() >= n * 32:
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{n * 32}", start.type, [start, unsigned, signed])
    if dot_bits() == 256:
        return _at_256(builder, "llvm.x86.avx512.vpdpbusd.256", V8I, [start, unsigned, signed])
    if has_avx2():  # the codes' highest bit apart from the seven others
        low, high = (builder.and_(unsigned, constant(unsigned.type, mask)) for mask in (0x7F, 0x80))
        return builder.add(builder.add(start, _quads_avx2(builder, low, signed)), _quads_avx2(builder, high, signed))
    wide = ir.VectorType(I32, n * 4)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    parts = [shuffle(builder, products, products, list(range(j, n * 4, 4))) for j in range(4)]
    return builder.add(start, builder.add(builder.add(parts[0], parts[1]), builder.add(parts[2], parts[3])))


@intrinsic
def dot_u8s8(context, unsigned, signed):
    """Lane i = sum over j of unsigned[4 i + j] * signed[4 i + j], exact in int32: uint8 times int8, 64 of each."""
    return i32x16(u8x64, u8x64), lambda c, b, s, a: emit_dot(b, constant(V16I, 0), *a)


@intrinsic
def add_dot_u8s8(context, start, unsigned, signed):
    """start + dot_u8s8(unsigned, signed) in one instruction, where there is one."""
    return i32x16(i32x16, u8x64, u8x64), lambda c, b, s, a: emit_dot(b, *a)


@intrinsic
def dot_offset_128(context, codes, x, starts):
    """Lane i = sum over j of (codes[4 i + j] - 128) * x[4 i + j], exact in int32: uint8 and int8 from -127 on, 64 of each.

    starts   address of int32 (16,): -128 times the sums of four x. Read only where the instruction wants one factor unsigned;
             vpmaddubsw takes the size of the code instead, and x with the code's sign: 2 * 128 * 127 fits into its int16
    """

    def generate(c, b, s, a):
        if not sums_in_16_bits():
            return emit_dot(b, b.load(pointer(b, a[2], V16I), align=4), a[0], a[1])
        signed = b.xor(a[0], constant(V64B, 0x80))
        size = call(b, "llvm.abs.v64i8", V64B, [signed, ir.Constant(I1, 0)])
        pairs = _at_256(b, "llvm.x86.avx2.pmadd.ub.sw", V16H, [size, _at_256(b, "llvm.x86.avx2.psign.b", V32B, [a[1], signed])])
        return _at_256(b, "llvm.x86.avx2.pmadd.wd", V8I, [pairs, constant(pairs.type, 1)])

    return i32x16(u8x64, u8x64, types.int64), generate


@intrinsic
def narrow(context, x, y):
    """32 int16 of the 16 int32 in x and in y, which must fit: four of x, four of y, the next four of x, ..."""

    def generate(c, b, s, a):
        if has_vnni():
            return call(b, "llvm.x86.avx512.packssdw.512", V32H, list(a))
        if has_avx2():
            return _at_256(b, "llvm.x86.avx2.packssdw", V16H, list(a))
        lanes = [first for i in range(0, 16, 4) for first in (i, i + 16)]
        return b.trunc(shuffle(b, a[0], a[1], [lane + i for lane in lanes for i in range(4)]), V32H)

    return i16x32(i32x16, i32x16), generate


def emit_dot_i16(builder, start, x, y):
    """LLVM code for start + the sums of two neighbouring products of int16: 16 or 8 lanes of int32."""
    wide, n = start.type, start.type.count
    if dot_bits() >= n * 32:
        words = [start, builder.bitcast(x, wide), builder.bitcast(y, wide)]
        return call(builder, f"llvm.x86.avx512.vpdpwssd.{n * 32}", wide, words)
    if dot_bits() == 256:
        words = [start, builder.bitcast(x, wide), builder.bitcast(y, wide)]
        return _at_256(builder, "llvm.x86.avx512.vpdpwssd.256", V8I, words)
    if has_avx2():
        return builder.add(start, _at_256(builder, "llvm.x86.avx2.pmadd.wd", V8I, [x, y]))
    both = ir.VectorType(I32, 2 * n)
    products = builder.mul(builder.sext(x, both), builder.sext(y, both))
    even, odd = (shuffle(builder, products, products, list(range(j, 2 * n, 2))) for j in range(2))
    return builder.add(start, builder.add(even, odd))


@intrinsic
def add_dot_i16(context, start, x, y):
    """Lane i = start[i] + x[2 i] * y[2 i] + x[2 i + 1] * y[2 i + 1], exact in int32: 32 or 16 int16 each."""
    return start(start, x, y), lambda c, b, s, a: emit_dot_i16(b, *a)
