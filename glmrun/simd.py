"""Vectors for Numba: 16 float32, 16 int32 or 64 bytes in one value that LLVM keeps in registers.

Addresses are plain int64 (no bounds, no reference counts); loads and stores are unaligned. Everything is LLVM's portable
vector code, so any CPU that Numba knows runs it; the one instruction LLVM does not find by itself, the dot product of
unsigned and signed bytes (`vpdpbusd`), is named where the CPU has it.  GLMRUN_SIMD=portable turns that one off.
"""

import operator
import os
from functools import cache

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

# Flags for kernels: NaN and infinity stay detectable, sums may be regrouped, a product and a sum may fuse.
FAST = {"contract", "reassoc", "nsz", "arcp"}

_I1, _I8, _I16, _I32, _I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F16, _F32 = ir.HalfType(), ir.FloatType()
_V16F, _V16I, _V64B = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16), ir.VectorType(_I8, 64)
_V8F, _V32B, _V16B = ir.VectorType(_F32, 8), ir.VectorType(_I8, 32), ir.VectorType(_I8, 16)


@cache
def has_vnni() -> bool:
    """Whether dot_u8s8 becomes AVX-512 VNNI's vpdpbusd on this machine (512 bits at a time)."""
    features = llvm.get_host_cpu_features()
    wanted = os.environ.get("GLMRUN_SIMD", "auto")
    return wanted != "portable" and bool(features.get("avx512vnni")) and bool(features.get("avx512bw"))


class Vector(types.Type):
    """A Numba type whose values are LLVM vectors."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm_type)


f32x16, i32x16, u8x64, f32x8 = Vector("f32x16", _V16F), Vector("i32x16", _V16I), Vector("u8x64", _V64B), Vector("f32x8", _V8F)


def _pointer(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def _constant(llvm_type, *values):
    """A vector constant: one value for every lane, or one run of equal lanes for each value."""
    return ir.Constant(llvm_type, [value for value in values for _ in range(llvm_type.count // len(values))])


def _splat(builder, value, count):
    vector = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return _shuffle(builder, one, one, [0] * count)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [value.type for value in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _twice(builder, half):
    """32 bytes in both halves of 64."""
    return _shuffle(builder, half, half, list(range(32)) * 2)


# ---- operators -----------------------------------------------------------------------------------------------------


def _operator(python_operator, float_instruction, integer_instruction):
    @infer_global(python_operator)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(python_operator, Vector, Vector)
    def lower(context, builder, sig, args):
        is_float = sig.args[0] in (f32x16, f32x8)
        return getattr(builder, float_instruction if is_float else integer_instruction)(*args)


_operator(operator.add, "fadd", "add")
_operator(operator.sub, "fsub", "sub")
_operator(operator.mul, "fmul", "mul")
_operator(operator.truediv, "fdiv", "sdiv")


# ---- loads, stores, constants --------------------------------------------------------------------------------------


@intrinsic
def load_f32x16(context, address):
    """16 float32 at the address."""
    return f32x16(types.int64), lambda c, b, s, a: b.load(_pointer(b, a[0], _V16F), align=4)


@intrinsic
def load_f32x8(context, address):
    """8 float32 at the address."""
    return f32x8(types.int64), lambda c, b, s, a: b.load(_pointer(b, a[0], _V8F), align=4)


@intrinsic
def load_f16x16(context, address):
    """16 float16 at the address, widened to float32."""
    half = ir.VectorType(_F16, 16)
    return f32x16(types.int64), lambda c, b, s, a: b.fpext(b.load(_pointer(b, a[0], half), align=2), _V16F)


@intrinsic
def load_bf16x16(context, address):
    """16 bfloat16 at the address, widened to float32."""
    short = ir.VectorType(_I16, 16)

    def generate(c, b, s, a):
        wide = b.zext(b.load(_pointer(b, a[0], short), align=2), _V16I)
        return b.bitcast(b.shl(wide, _constant(_V16I, 16)), _V16F)

    return f32x16(types.int64), generate


@intrinsic
def load_u8x64(context, address):
    """64 bytes at the address."""
    return u8x64(types.int64), lambda c, b, s, a: b.load(_pointer(b, a[0], _V64B), align=1)


@intrinsic
def load_two_u8x32(context, low, high):
    """32 bytes at each of two addresses: low half, high half."""

    def generate(c, b, s, a):
        lower, upper = (b.load(_pointer(b, address, _V32B), align=1) for address in a)
        return _shuffle(b, lower, upper, list(range(64)))

    return u8x64(types.int64, types.int64), generate


@intrinsic
def load_half_u8x64(context, address):
    """32 bytes at the address in the low half, zeros above."""

    def generate(c, b, s, a):
        half = b.load(_pointer(b, a[0], _V32B), align=1)
        return _shuffle(b, half, _constant(_V32B, 0), list(range(64)))

    return u8x64(types.int64), generate


@intrinsic
def store_f32x16(context, address, value):
    """Write 16 float32."""

    def generate(c, b, s, a):
        b.store(a[1], _pointer(b, a[0], _V16F), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_f16x16(context, address, value):
    """Write 16 float32 rounded to float16 (to nearest even)."""
    half = ir.VectorType(_F16, 16)

    def generate(c, b, s, a):
        b.store(b.fptrunc(a[1], half), _pointer(b, a[0], half), align=2)
        return c.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_u8x64(context, address, value):
    """Write 64 bytes."""

    def generate(c, b, s, a):
        b.store(a[1], _pointer(b, a[0], _V64B), align=1)
        return c.get_dummy_value()

    return types.void(types.int64, u8x64), generate


@intrinsic
def store_i8x16(context, address, value):
    """Write the low bytes of 16 int32."""

    def generate(c, b, s, a):
        b.store(b.trunc(a[1], _V16B), _pointer(b, a[0], _V16B), align=1)
        return c.get_dummy_value()

    return types.void(types.int64, i32x16), generate


def _scalar_load(numba_type, llvm_type, align):
    @intrinsic
    def load(context, address):
        return numba_type(types.int64), lambda c, b, s, a: b.load(_pointer(b, a[0], llvm_type), align=align)

    return load


def _scalar_store(numba_type, llvm_type, align):
    @intrinsic
    def store(context, address, value):
        def generate(c, b, s, a):
            b.store(a[1], _pointer(b, a[0], llvm_type), align=align)
            return c.get_dummy_value()

        return types.void(types.int64, numba_type), generate

    return store


load_f32, store_f32 = _scalar_load(types.float32, _F32, 4), _scalar_store(types.float32, _F32, 4)
load_i64, store_i64 = _scalar_load(types.int64, _I64, 8), _scalar_store(types.int64, _I64, 8)
store_i32 = _scalar_store(types.int32, _I32, 4)
load_u32 = _scalar_load(types.uint32, _I32, 1)


@intrinsic
def load_f16(context, address):
    """One float16 at the address, as float32."""
    return types.float32(types.int64), lambda c, b, s, a: b.fpext(b.load(_pointer(b, a[0], _F16), align=1), _F32)


@intrinsic
def load_bf16(context, address):
    """One bfloat16 at the address, as float32."""

    def generate(c, b, s, a):
        wide = b.zext(b.load(_pointer(b, a[0], _I16), align=1), _I32)
        return b.bitcast(b.shl(wide, ir.Constant(_I32, 16)), _F32)

    return types.float32(types.int64), generate


@intrinsic
def splat_f32(context, value):
    """One float32 in all 16 lanes."""
    return f32x16(types.float32), lambda c, b, s, a: _splat(b, a[0], 16)


@intrinsic
def splat_f32x8(context, value):
    """One float32 in all 8 lanes."""
    return f32x8(types.float32), lambda c, b, s, a: _splat(b, a[0], 8)


@intrinsic
def zero_f32x8(context):
    """8 zeros."""
    return f32x8(), lambda c, b, s, a: _constant(_V8F, 0.0)


@intrinsic
def zero_f32x16(context):
    """16 zeros."""
    return f32x16(), lambda c, b, s, a: _constant(_V16F, 0.0)


@intrinsic
def two_f32(context, low, high):
    """Lanes 0 to 7 hold the first value, lanes 8 to 15 the second: the scales of two neighbouring blocks of 32."""

    def generate(c, b, s, a):
        pair = ir.Constant(ir.VectorType(_F32, 2), ir.Undefined)
        for lane, value in enumerate(a):
            pair = b.insert_element(pair, value, ir.Constant(_I32, lane))
        return _shuffle(b, pair, pair, [0] * 8 + [1] * 8)

    return f32x16(types.float32, types.float32), generate


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@intrinsic
def fma(context, x, y, z):
    """x * y + z in every lane, rounded once; 16 or 8 float32."""

    def generate(c, b, s, a):
        return _call(b, f"llvm.fma.v{x.llvm_type.count}f32", x.llvm_type, list(a))

    return x(x, x, x), generate


@intrinsic
def maximum(context, x, y):
    """The larger one in every lane."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


@intrinsic
def absolute(context, x):
    """|x| in every lane."""
    return f32x16(f32x16), lambda c, b, s, a: _call(b, "llvm.fabs.v16f32", _V16F, [a[0]])


@intrinsic
def total(context, x):
    """The sum of 16 or 8 float32, always in the same order (a tree)."""

    def generate(c, b, s, a):
        name = f"llvm.vector.reduce.fadd.v{x.llvm_type.count}f32"
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_F32, [_F32, x.llvm_type]), name)
        return b.call(function, [ir.Constant(_F32, -0.0), a[0]], fastmath=("reassoc",))

    return types.float32(x), generate


@intrinsic
def largest(context, x):
    """The largest of the 16 lanes; NaN is ignored."""
    return types.float32(f32x16), lambda c, b, s, a: _call(b, "llvm.vector.reduce.fmax.v16f32", _F32, [a[0]])


@intrinsic
def to_f32(context, x):
    """16 int32 as float32."""
    return f32x16(i32x16), lambda c, b, s, a: b.sitofp(a[0], _V16F)


@intrinsic
def round_to_i32(context, x):
    """16 float32 rounded to int32, halves to even; NaN becomes some number, never a trap."""

    def generate(c, b, s, a):
        rounded = _call(b, "llvm.rint.v16f32", _V16F, [a[0]])
        return _call(b, "llvm.fptosi.sat.v16i32.v16f32", _V16I, [rounded])

    return i32x16(f32x16), generate


@intrinsic
def minimum_i32(context, x, y):
    """The smaller int32 in every lane."""
    return i32x16(i32x16, i32x16), lambda c, b, s, a: b.select(b.icmp_signed("<", a[0], a[1]), a[0], a[1])


@intrinsic
def splat_i32(context, value):
    """One int32 in all 16 lanes."""
    return i32x16(types.int32), lambda c, b, s, a: _splat(b, a[0], 16)


@intrinsic
def total_i32(context, x):
    """The sum of 16 int32."""
    return types.int32(i32x16), lambda c, b, s, a: _call(b, "llvm.vector.reduce.add.v16i32", _I32, [a[0]])


@intrinsic
def exp(context, x):
    """e**x in every lane, within 2 units in the last place; 0 below -87, e**88 above 88, NaN for NaN.

    2**n * p(f) with x = (n + f) ln 2 and |f| <= 1/2; p is the Taylor polynomial of 2**f to the seventh power.
    """
    ln2 = 0.6931471805599453
    coefficients, term = [], 1.0
    for power in range(8):
        coefficients.append(term)
        term *= ln2 / (power + 1)

    def generate(c, b, s, a):
        def fused(x, y, z):
            return _call(b, "llvm.fma.v16f32", _V16F, [x, y, z])

        x = b.select(b.fcmp_unordered("<", a[0], _constant(_V16F, -87.0)), _constant(_V16F, -87.0), a[0])
        x = b.select(b.fcmp_ordered(">", x, _constant(_V16F, 88.0)), _constant(_V16F, 88.0), x)
        n = _call(b, "llvm.rint.v16f32", _V16F, [b.fmul(x, _constant(_V16F, 1 / ln2))])
        # f * ln 2 = x - n ln 2, with ln 2 in two parts so that nothing is lost
        r = fused(n, _constant(_V16F, -0.693359375), x)
        r = fused(n, _constant(_V16F, 2.12194440e-4), r)
        f = b.fmul(r, _constant(_V16F, 1 / ln2))
        p = _constant(_V16F, coefficients[7])
        for coefficient in coefficients[6::-1]:
            p = fused(p, f, _constant(_V16F, coefficient))
        bits = b.shl(b.add(b.fptosi(n, _V16I), _constant(_V16I, 127)), _constant(_V16I, 23))
        value = b.fmul(p, b.bitcast(bits, _V16F))
        tiny = b.fcmp_ordered("<=", a[0], _constant(_V16F, -87.0))
        value = b.select(tiny, _constant(_V16F, 0.0), value)
        return b.select(b.fcmp_unordered("uno", a[0], a[0]), a[0], value)  # NaN in, NaN out

    return f32x16(f32x16), generate


def emit_dot(builder, start, unsigned, signed):
    """LLVM code for start + dot_u8s8(unsigned, signed): what larger intrinsics are built from."""
    if has_vnni():
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _V16I, [start, unsigned, signed])
    wide = ir.VectorType(_I32, 64)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    parts = [_shuffle(builder, products, products, list(range(j, 64, 4))) for j in range(4)]
    return builder.add(start, builder.add(builder.add(parts[0], parts[1]), builder.add(parts[2], parts[3])))


@intrinsic
def dot_u8s8(context, unsigned, signed):
    """Lane i = sum over j of unsigned[4 i + j] * signed[4 i + j], exact in int32: uint8 times int8, 64 of each."""
    return i32x16(u8x64, u8x64), lambda c, b, s, a: emit_dot(b, _constant(_V16I, 0), *a)


@intrinsic(prefer_literal=True)
def bytes_of(context, value):
    """The same byte 64 times."""
    byte = value.literal_value
    return u8x64(value), lambda c, b, s, a: _constant(_V64B, byte)


@intrinsic
def flip_sign_bit(context, x):
    """int8 -> uint8 with 128 added, 64 at once."""
    return u8x64(u8x64), lambda c, b, s, a: b.xor(a[0], _constant(_V64B, 0x80))


# ---- unpacking -----------------------------------------------------------------------------------------------------

_V32H = ir.VectorType(_I16, 32)


def _shift(builder, vector, instruction, low, high):
    """Shift bytes by `low` bits in the low half and `high` bits in the high half; the caller masks what crosses a byte."""
    words = builder.bitcast(vector, _V32H)
    return builder.bitcast(getattr(builder, instruction)(words, _constant(_V32H, low, high)), _V64B)


@intrinsic
def nibbles_low_high(context, address):
    """32 bytes at the address -> their 32 low nibbles, then their 32 high nibbles (the order of two Q4_K sub-blocks)."""

    def generate(c, b, s, a):
        both = _twice(b, b.load(_pointer(b, a[0], _V32B), align=1))
        return b.and_(_shift(b, both, "lshr", 0, 4), _constant(_V64B, 15))

    return u8x64(types.int64), generate


@intrinsic(prefer_literal=True)
def six_bits(context, low_bits, high_bits, half):
    """64 of a Q6_K block's 6-bit codes: nibbles of 64 bytes at low_bits, pairs of bits of 32 bytes at high_bits.

    half = 0: elements 0 to 63 of 128 (low nibbles, bits 0-1 and 2-3); half = 1: the others (high nibbles, bits 4-5 and 6-7).
    """
    upper = half.literal_value

    def generate(c, b, s, a):
        nibbles = b.load(_pointer(b, a[0], _V64B), align=1)
        if upper:
            nibbles = _shift(b, nibbles, "lshr", 4, 4)
        pairs = _twice(b, b.load(_pointer(b, a[1], _V32B), align=1))
        pairs = _shift(b, pairs, "lshr", 0, 2) if upper else _shift(b, pairs, "shl", 4, 2)
        return b.or_(b.and_(nibbles, _constant(_V64B, 15)), b.and_(pairs, _constant(_V64B, 0x30)))

    return u8x64(types.int64, types.int64, half), generate


@intrinsic
def five_bits(context, first, second):
    """The 5-bit codes of two Q5_0 blocks' (qh, qs) at two addresses, 32 each; the second address may be 0 for none (zeros)."""

    def generate(c, b, s, a):
        def block(address):
            high = b.bitcast(b.load(_pointer(b, address, _I32), align=1), ir.VectorType(_I1, 32))
            packed = b.load(_pointer(b, b.add(address, ir.Constant(_I64, 4)), _V16B), align=1)
            both = _shuffle(b, packed, packed, list(range(16)) * 2)
            words = ir.VectorType(_I16, 16)
            shifted = b.bitcast(b.lshr(b.bitcast(both, words), _constant(words, 0, 4)), _V32B)
            low = b.and_(shifted, _constant(_V32B, 15))
            return b.or_(low, b.select(high, _constant(_V32B, 16), _constant(_V32B, 0)))

        return _shuffle(b, block(a[0]), block(a[1]), list(range(64)))

    return u8x64(types.int64, types.int64), generate


@intrinsic
def bytes_to_f32x8(context, low, high):
    """Four bytes in each of two uint32 -> 8 float32."""

    def generate(c, b, s, a):
        pair = ir.Constant(ir.VectorType(_I32, 2), ir.Undefined)
        for lane, value in enumerate(a):
            pair = b.insert_element(pair, value, ir.Constant(_I32, lane))
        return b.uitofp(b.bitcast(pair, ir.VectorType(_I8, 8)), _V8F)

    return f32x8(types.uint32, types.uint32), generate


@intrinsic(prefer_literal=True)
def pick_two(context, x, low, high):
    """Lanes 0 to 7 = x[low], lanes 8 to 15 = x[high], of 8 float32."""
    lanes = [low.literal_value] * 8 + [high.literal_value] * 8
    return f32x16(f32x8, low, high), lambda c, b, s, a: _shuffle(b, a[0], a[0], lanes)


@intrinsic
def join(context, low, high):
    """8 float32, then 8 more."""
    return f32x16(f32x8, f32x8), lambda c, b, s, a: _shuffle(b, a[0], a[1], list(range(16)))


@intrinsic
def double_lanes(context, x):
    """x0 x0 x1 x1 ... x7 x7."""
    return f32x16(f32x8), lambda c, b, s, a: _shuffle(b, a[0], a[0], [i // 2 for i in range(16)])


@intrinsic
def load_i8x16_as_f32(context, address):
    """16 int8 at the address as float32."""
    return f32x16(types.int64), lambda c, b, s, a: b.sitofp(b.load(_pointer(b, a[0], _V16B), align=1), _V16F)


@intrinsic(prefer_literal=True)
def pick_four(context, x, first):
    """Lanes 4 i to 4 i + 3 = x[first + i], of 16 float32."""
    lanes = [first.literal_value + i // 4 for i in range(16)]
    return f32x16(f32x16, first), lambda c, b, s, a: _shuffle(b, a[0], a[0], lanes)


@intrinsic
def transpose_words(context, source, out, stride):
    """out[j][i] = source[i][j] for 16 x 16 words of 4 bytes: source rows follow one another, out rows are `stride` bytes apart."""

    def generate(c, b, s, a):
        rows = [b.load(_pointer(b, b.add(a[0], ir.Constant(_I64, i * 64)), _V16I), align=4) for i in range(16)]
        low = [lane for i in range(8) for lane in (i, i + 16)]
        high = [lane for i in range(8, 16) for lane in (i, i + 16)]
        for _ in range(4):  # four perfect shuffles of rows make a transposition
            pairs = [(rows[i], rows[i + 8]) for i in range(8)]
            rows = [_shuffle(b, x, y, lanes) for x, y in pairs for lanes in (low, high)]
        for j, row in enumerate(rows):
            b.store(row, _pointer(b, b.add(a[1], b.mul(a[2], ir.Constant(_I64, j))), _V16I), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


# ---- between threads -----------------------------------------------------------------------------------------------


@intrinsic
def atomic_add(context, address, value):
    """Add to the int64 at the address; returns what stood there before."""
    return types.int64(types.int64, types.int64), lambda c, b, s, a: b.atomic_rmw("add", _pointer(b, a[0], _I64), a[1], "seq_cst")


@intrinsic
def atomic_load(context, address):
    """The int64 at the address, with everything written before it was stored."""
    return types.int64(types.int64), lambda c, b, s, a: b.load_atomic(_pointer(b, a[0], _I64), "acquire", 8)


@intrinsic
def atomic_store(context, address, value):
    """Publish an int64 and everything written before."""

    def generate(c, b, s, a):
        b.store_atomic(a[1], _pointer(b, a[0], _I64), "release", 8)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def pause(context):
    """Tell the core that this is a spinning loop."""

    def generate(c, b, s, a):
        if llvm.get_process_triple().startswith(("x86_64", "i686")):
            _call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return c.get_dummy_value()

    return types.void(), generate
