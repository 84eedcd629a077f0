"""Dot products of bytes and of 16-bit numbers: the instructions that LLVM does not find by itself."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.simd.target import dot_bits, has_avx2, has_i8mm, has_neon, has_vnni, sums_in_16_bits
from glmrun.kernels.simd.types import (
    F32,
    I1,
    I16,
    I32,
    I64,
    V4I,
    V8F,
    V8I,
    V16F,
    V16H,
    V16I,
    V32B,
    V32H,
    V64B,
    call,
    constant,
    f32x16,
    fold_in_fours,
    i16x16,
    i32x8,
    i32x16,
    opaque,
    pointer,
    shuffle,
    splat,
    u7x64,
    u8x64,
)


def _lanes(builder, value, first, end):
    return shuffle(builder, value, value, list(range(first, end)))


def _in_registers(builder, bits, name, result, arguments):
    """The call in registers of so many bits: once, or for the lower and the upper halves of wider arguments, and so on."""
    if arguments[0].type.count * arguments[0].type.element.width == bits:
        return call(builder, name, result, arguments)
    results = []
    for half in range(2):
        picked = [(half * n // 2, (half + 1) * n // 2) for n in (value.type.count for value in arguments)]
        parts = [_lanes(builder, value, *some) for value, some in zip(arguments, picked, strict=True)]
        results.append(_in_registers(builder, bits, name, result, parts))
    return shuffle(builder, results[0], results[1], list(range(2 * results[0].type.count)))


def _at_256(builder, name, result, arguments):
    return _in_registers(builder, 256, name, result, arguments)


def _neon(builder, instruction, start, x, y):
    """start + the sums of four products of bytes: sdot, usdot, or smmla. A y that is one word in all lanes needs no instruction."""
    return _in_registers(builder, 128, f"llvm.aarch64.neon.{instruction}.v4i32.v16i8", V4I, [start, x, y])


def emit_pairs(builder, unsigned, signed):
    """LLVM code, AVX2: int16 (16,) of two neighbouring products of 32 bytes; what does not fit into int16 saturates."""
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", V16H, [unsigned, signed])


def emit_pair_sums(builder, pairs):
    """LLVM code, AVX2: int32 (8,) sums of two neighbouring int16."""
    return call(builder, "llvm.x86.avx2.pmadd.wd", V8I, [pairs, constant(V16H, 1)])


@intrinsic
def store_starts(context, address, codes, sums):
    """What dot products of 16 int8 codes with others that carry +32 begin with, of 256 codes at an address: int32 (16,), -32 times
    the sums of 16 codes.

    Where products are added up in 16 bits: two int16 each, of the codes 0 1, 4 5, 8 9, 12 13 and of the others: vpmaddubsw's pairs.
    With NEON no code carries anything, and nothing is stored.
    """

    def generate(c, b, s, a):
        if has_neon():
            return c.get_dummy_value()
        if not sums_in_16_bits():
            b.store(b.mul(a[2], constant(V16I, -32)), pointer(b, a[0], V16I), align=4)
            return c.get_dummy_value()
        for i in range(0, 256, 32):
            line = b.load(pointer(b, b.add(a[1], ir.Constant(I64, i)), V32B), align=1)
            sums = emit_pairs(b, constant(V32B, 1), line)
            for lanes in ((0, 1, 4, 5), (0, 1)):  # of each 8 or 4: what is added to its neighbours
                span = 2 * len(lanes)
                sums = b.add(
                    *(shuffle(b, sums, sums, [at + i + k for at in range(0, sums.type.count, span) for i in lanes]) for k in (0, 2))
                )
            b.store(b.mul(sums, constant(sums.type, -32)), pointer(b, b.add(a[0], ir.Constant(I64, i // 4)), sums.type), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64, i32x16), generate


@intrinsic
def sums_of_16(context, x0, x1, x2, x3):
    """int32 (16,): the sums of each 16 of 256 int8."""

    def generate(c, b, s, a):
        ones = constant(V64B, 1)
        rows = [_quads_avx2(b, ones, x) if sums_in_16_bits() else emit_dot_codes(b, constant(V16I, 0), ones, x) for x in a]
        rows = fold_in_fours(b, rows, b.add)
        return shuffle(b, rows[0], rows[0], [4 * i + j for j in range(4) for i in range(4)])

    return i32x16(u8x64, u8x64, u8x64, u8x64), generate


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
    if has_i8mm():
        return _neon(builder, "usdot", start, unsigned, signed)
    if has_neon():
        sums = _neon(builder, "sdot", start, builder.xor(unsigned, constant(unsigned.type, 0x80)), signed)
        return builder.sub(sums, _neon(builder, "sdot", constant(start.type, 0), constant(unsigned.type, -128), signed))
    if has_avx2():  # the codes' highest bit apart from the seven others
        low, high = (builder.and_(unsigned, constant(unsigned.type, mask)) for mask in (0x7F, 0x80))
        return builder.add(builder.add(start, _quads_avx2(builder, low, signed)), _quads_avx2(builder, high, signed))
    wide = ir.VectorType(I32, n * 4)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    parts = [shuffle(builder, products, products, list(range(j, n * 4, 4))) for j in range(4)]
    return builder.add(start, builder.add(builder.add(parts[0], parts[1]), builder.add(parts[2], parts[3])))


def emit_dot_codes(builder, start, codes, signed):
    """emit_dot() of codes up to 127; where signed_factors() says so without vpmaddubsw, of all int8."""
    return _neon(builder, "sdot", start, codes, signed) if has_neon() else emit_dot(builder, start, codes, signed)


def emit_word(builder, address, i, result):
    """LLVM code for word i of those at an address, repeated: a vector of int32, int16 or bytes.

    With NEON it is one of four that are loaded together, and products take it by its lane.
    """
    if not has_neon():
        word = builder.load(pointer(builder, builder.add(address, ir.Constant(I64, i * 4)), I32), align=4)
        return builder.bitcast(splat(builder, word, result.count * result.element.width // 32), result)
    element = I16 if result.element == I16 else I32
    each, lanes = 32 // element.width, result.count * result.element.width // element.width
    words = ir.VectorType(element, 4 * each)
    four = builder.load(pointer(builder, builder.add(address, ir.Constant(I64, i // 4 * 16)), words), align=4)
    return builder.bitcast(shuffle(builder, four, four, [i % 4 * each + lane % each for lane in range(lanes)]), result)


def emit_matrix_product(builder, start, x, y):
    """LLVM code, i8mm: start + [2 rows of x][2 rows of y] of dot products, int32 (4,), of two rows of 8 int8 each."""
    return _neon(builder, "smmla", start, x, y)


@intrinsic
def pairs_product(context, x, y):
    """emit_matrix_product() of each 16 of 64 int8, from zero: for the self-test."""
    return i32x16(u8x64, u8x64), lambda c, b, s, a: emit_matrix_product(b, constant(V16I, 0), *a)


@intrinsic
def dot_codes(context, codes, signed):
    """Lane i = sum over j of codes[4 i + j] * signed[4 i + j], exact in int32, for codes up to 127."""
    return i32x16(u8x64, u8x64), lambda c, b, s, a: emit_dot_codes(b, constant(V16I, 0), *a)


@intrinsic
def dot_u8s8(context, unsigned, signed):
    """Lane i = sum over j of unsigned[4 i + j] * signed[4 i + j], exact in int32: uint8 times int8, 64 of each."""
    return i32x16(u8x64, u8x64), lambda c, b, s, a: emit_dot(b, constant(V16I, 0), *a)


@intrinsic
def add_dot_u8s8(context, start, unsigned, signed):
    """start + dot_u8s8(unsigned, signed) in one instruction, where there is one."""
    return i32x16(i32x16, u8x64, u8x64), lambda c, b, s, a: emit_dot(b, *a)


@intrinsic
def dot_codes_of(context, codes, x, starts):
    """Lane i = sum over j of what codes[4 i + j] stands for times x[4 i + j], exact in int32: 64 of each, int8 x from -127 on.

    codes    u7x64: what they stand for, up to 127; u8x64: 128 more
    starts   beside u8x64, address of int32 (16,): -128 times the sums of four x. Read only where the instruction wants one factor
             unsigned; vpmaddubsw takes the size of the code instead, and x with the code's sign: 2 * 128 * 127 fits into its int16
    """

    def generate(c, b, s, a):
        if codes == u7x64:
            return _quads_avx2(b, a[0], a[1]) if sums_in_16_bits() else emit_dot_codes(b, constant(V16I, 0), a[0], a[1])
        if has_neon():
            return emit_dot_codes(b, constant(V16I, 0), b.xor(a[0], constant(V64B, 0x80)), a[1])
        if not sums_in_16_bits():
            return emit_dot(b, b.load(pointer(b, a[2], V16I), align=4), a[0], a[1])
        signed = b.xor(a[0], constant(V64B, 0x80))
        size = call(b, "llvm.abs.v64i8", V64B, [signed, ir.Constant(I1, 0)])
        return _quads_avx2(b, size, _at_256(b, "llvm.x86.avx2.psign.b", V32B, [a[1], signed]))

    return i32x16(codes, u8x64, types.int64), generate


def _narrow(builder, x, y):
    """32 int16 of the 16 int32 in x and in y, which must fit: four of x, four of y, the next four of x, ..."""
    if has_vnni():
        return call(builder, "llvm.x86.avx512.packssdw.512", V32H, [x, y])
    if has_avx2():
        return _at_256(builder, "llvm.x86.avx2.packssdw", V16H, [x, y])
    lanes = [first for i in range(0, 16, 4) for first in (i, i + 16)]
    return builder.trunc(shuffle(builder, x, y, [lane + i for lane in lanes for i in range(4)]), V32H)


def emit_dot_i16(builder, start, x, y):
    """LLVM code for start + the sums of two neighbouring products of int16: 16 or 8 lanes of int32."""
    wide, n = start.type, start.type.count
    if dot_bits() >= n * 32:
        words = [start, builder.bitcast(x, wide), builder.bitcast(y, wide)]
        return call(builder, f"llvm.x86.avx512.vpdpwssd.{n * 32}", wide, words)
    if dot_bits() == 256:
        words = [start, builder.bitcast(x, wide), builder.bitcast(y, wide)]
        return _at_256(builder, "llvm.x86.avx512.vpdpwssd.256", V8I, words)
    if has_neon():  # the factors' neighbours apart, before they are multiplied: smlal takes one of eight for all lanes
        for j in range(2):
            some = [shuffle(builder, value, value, list(range(j, 2 * n, 2))) for value in (x, y)]
            start = builder.add(start, builder.mul(*(builder.sext(value, wide) for value in some)))
        return start
    if has_avx2():
        return builder.add(start, _at_256(builder, "llvm.x86.avx2.pmadd.wd", V8I, [x, y]))
    both = ir.VectorType(I32, 2 * n)
    products = builder.mul(builder.sext(x, both), builder.sext(y, both))
    even, odd = (shuffle(builder, products, products, list(range(j, 2 * n, 2))) for j in range(2))
    return builder.add(start, builder.add(even, odd))


def emit_sum_products(builder, x, y):
    """LLVM code for 8 int32 whose sum is x . y, of 16 int16 each, or, AVX2, 4 of 8: which lane holds what is the CPU's choice."""
    if x.type.count == 8:
        return call(builder, "llvm.x86.sse2.pmadd.wd", V4I, [x, y])
    if not has_neon():
        return emit_dot_i16(builder, constant(V8I, 0), x, y)
    low, high = ([builder.sext(_lanes(builder, value, *half), V8I) for value in (x, y)] for half in ((0, 8), (8, 16)))
    return builder.add(builder.mul(*low), builder.mul(*high))


@intrinsic
def sum_products_i16(context, x, y):
    """emit_sum_products() of 16 int16."""
    return i32x8(i16x16, i16x16), lambda c, b, s, a: emit_sum_products(b, *a)


def products_with_scales(lower, upper):
    """Intrinsics (store_scales, add_lower, add_upper, add_block) for byte dots times their scales, 16 int16 of a block.

    Of what add_lower() adds the scales stand at these places: the first, third, ... for each 16 of c0, the others for those of c1.
    Where bytes meet in 16 bits, c0 and c1 hold two and two codes of a block's halves in turns (quarters.py), and the scales are
    pairs, one for each half: four for the lower lanes of registers and four for the upper, or, if 32 codes have one, four for both.
    """
    one_scale = lower[0] == lower[2]

    @intrinsic
    def store_scales(context, scales, address):
        """Leave 16 int16 at the address as add_lower() and add_upper() read them, in up to 32 bytes."""

        def generate(c, b, s, a):
            stored = _lanes(b, a[0], 0, 8) if sums_in_16_bits() and one_scale else a[0]
            b.store(stored, pointer(b, a[1], stored.type), align=32)
            return c.get_dummy_value()

        return types.void(i16x16, types.int64), generate

    def adding(part, places):
        def with_pairs(builder, sums, c0, x0, c1, x1, address):
            """Both vectors' products are added, and vpmaddwd multiplies them by a scale for each half of the block."""
            if not one_scale:  # opaque, or each pair is loaded apart
                scales = opaque(builder, builder.load(pointer(builder, address, V8I), align=32))
            products = []
            for i, (codes, x) in enumerate(((c0, x0), (c1, x1)), 2 * part):
                halves = [[_lanes(builder, value, at, at + 32) for value in (codes, x)] for at in (0, 32)]
                if one_scale:
                    pair = builder.load(pointer(builder, builder.add(address, ir.Constant(I64, 4 * i)), I32), align=4)
                    pair = splat(builder, pair, 8)
                else:
                    pair = shuffle(builder, scales, scales, [i] * 4 + [i + 4] * 4)
                four = builder.add(*(emit_pairs(builder, *half) for half in halves))
                products.append(call(builder, "llvm.x86.avx2.pmadd.wd", V8I, [four, builder.bitcast(pair, V16H)]))
            return builder.add(sums, shuffle(builder, products[0], products[1], list(range(16))))

        @intrinsic
        def add(context, sums, c0, x0, c1, x1, stored):
            """16 int32 whose sum is that of sums and of 128 codes up to 127 times int8 x times the scale that store_scales() left.

            The sum of four products must fit into int16. Which lane holds what is the CPU's choice.
            """

            def generate(c, b, s, a):
                if sums_in_16_bits():
                    return with_pairs(b, *a)
                sums, c0, x0, c1, x1, stored = a
                # Opaque, or LLVM loads 64 bytes where 32 were just stored, and the load waits until these are in the cache.
                scales = opaque(b, b.load(pointer(b, stored, V16H), align=32))
                x, y = (emit_dot_codes(b, constant(V16I, 0), *pair) for pair in ((c0, x0), (c1, x1)))
                if has_neon():
                    return _add_scaled_words(b, sums, [(x, places[::2]), (y, places[1::2])], scales)
                fours = shuffle(b, scales, scales, [i for i in places for _ in range(4)])
                return emit_dot_i16(b, sums, _narrow(b, x, y), fours)

            return i32x16(i32x16, u8x64, u8x64, u8x64, u8x64, types.int64), generate

        return add

    @intrinsic
    def add_block(context, sums, address, plus):
        """plus, 16 sums of lanes, some unused, with those of a block added, times the float32 at the address."""

        def generate(c, b, s, a):
            sums, address, plus = a
            d = b.load(pointer(b, address, F32), align=4)
            if not sums_in_16_bits():
                return call(b, "llvm.fma.v16f32", V16F, [b.sitofp(sums, V16F), splat(b, d, 16), plus])
            d, lanes, halves = splat(b, d, 8), _lanes(b, plus, 0, 8), [_lanes(b, sums, at, at + 8) for at in (0, 8)]
            for some in [b.add(*halves)] if one_scale else halves:  # else the sum of both may not fit into int32
                lanes = call(b, "llvm.fma.v8f32", V8F, [b.sitofp(some, V8F), d, lanes])
            return shuffle(b, lanes, constant(V8F, 0.0), list(range(16)))

        return f32x16(i32x16, types.int64, f32x16), generate

    return store_scales, adding(0, lower), adding(1, upper), add_block


def _add_scaled_words(builder, sums, terms, scales):
    """What add() of products_with_scales() does, in words: two neighbouring fours with one scale are added before they meet it."""
    # Opaque, or LLVM widens each scale apart, where one of four is an operand of the multiplication.
    wide = [opaque(builder, builder.sext(_lanes(builder, scales, i, i + 4), V4I)) for i in range(0, 16, 4)]
    fours, k = [_lanes(builder, sums, i, i + 4) for i in range(0, 16, 4)], 0
    for dots, places in terms:
        parts = [_lanes(builder, dots, i, i + 4) for i in range(0, 16, 4)]
        if places[0] == places[1] and places[2] == places[3]:
            parts, places = [builder.add(parts[0], parts[1]), builder.add(parts[2], parts[3])], places[::2]
        for part, place in zip(parts, places, strict=True):
            scale = shuffle(builder, wide[place // 4], wide[place // 4], [place % 4] * 4)
            fours[k % 4] = builder.add(fours[k % 4], builder.mul(part, scale))
            k += 1
    low, high = (shuffle(builder, fours[i], fours[i + 1], list(range(8))) for i in (0, 2))
    return shuffle(builder, low, high, list(range(16)))
