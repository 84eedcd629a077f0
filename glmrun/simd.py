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
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

# Flags for kernels: NaN and infinity stay detectable, a product and a sum may fuse, sums keep their order: a row's product is the
# same number whatever else is computed beside it.
FAST = {"contract", "nsz", "arcp"}

I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
V16F, V16I, V64B = ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(I8, 64)
V8F, V32B, V16B = ir.VectorType(F32, 8), ir.VectorType(I8, 32), ir.VectorType(I8, 16)
V8I, V16H, V32H = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I16, 32)


@cache
def dot_bits() -> int:
    """Width of vpdpbusd on the CPU that Numba compiles for: 512, 256 or, where there is none, 0."""
    if os.environ.get("GLMRUN_SIMD") == "portable":
        return 0
    if config.CPU_NAME not in (None, "", "host"):  # NUMBA_CPU_NAME forces another CPU, as tests do
        has = (config.CPU_FEATURES or "").replace("+", "").split(",")
    else:
        has = [name for name, there in llvm.get_host_cpu_features().items() if there]
    if "avx512vnni" in has:
        return 512 if "avx512bw" in has else 256 if "avx512vl" in has else 0
    return 256 if "avxvnni" in has else 0


def has_vnni() -> bool:
    """Whether dot_u8s8 becomes AVX-512 VNNI's vpdpbusd, 512 bits at a time."""
    return dot_bits() == 512


def distrust_vnni() -> None:
    """From now on compile portable code: self_test.py found that this CPU's vpdpbusd is wrong."""
    os.environ["GLMRUN_SIMD"] = "portable"  # for the processes that compile, too
    dot_bits.cache_clear()


class Vector(types.Type):
    """A Numba type whose values are LLVM vectors."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm_type)


f32x16, i32x16, u8x64, f32x8 = Vector("f32x16", V16F), Vector("i32x16", V16I), Vector("u8x64", V64B), Vector("f32x8", V8F)
i32x8, i16x16, i16x32 = Vector("i32x8", V8I), Vector("i16x16", V16H), Vector("i16x32", V32H)


def pointer(builder, address, llvm_type):
    return builder.inttoptr(address, llvm_type.as_pointer())


def constant(llvm_type, *values):
    """A vector constant: one value for every lane, or one run of equal lanes for each value."""
    return ir.Constant(llvm_type, [value for value in values for _ in range(llvm_type.count // len(values))])


def splat(builder, value, count):
    vector = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return shuffle(builder, one, one, [0] * count)


def shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [value.type for value in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


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
    return f32x16(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V16F), align=4)


@intrinsic
def load_f32x8(context, address):
    """8 float32 at the address."""
    return f32x8(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V8F), align=4)


@intrinsic
def load_f16x16(context, address):
    """16 float16 at the address, widened to float32."""
    half = ir.VectorType(F16, 16)
    return f32x16(types.int64), lambda c, b, s, a: b.fpext(b.load(pointer(b, a[0], half), align=2), V16F)


@intrinsic
def load_bf16x16(context, address):
    """16 bfloat16 at the address, widened to float32."""
    short = ir.VectorType(I16, 16)

    def generate(c, b, s, a):
        wide = b.zext(b.load(pointer(b, a[0], short), align=2), V16I)
        return b.bitcast(b.shl(wide, constant(V16I, 16)), V16F)

    return f32x16(types.int64), generate


@intrinsic
def load_u8x64(context, address):
    """64 bytes at the address."""
    return u8x64(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V64B), align=1)


@intrinsic
def load_two_u8x32(context, low, high):
    """32 bytes at each of two addresses: low half, high half."""

    def generate(c, b, s, a):
        lower, upper = (b.load(pointer(b, address, V32B), align=1) for address in a)
        return shuffle(b, lower, upper, list(range(64)))

    return u8x64(types.int64, types.int64), generate


@intrinsic
def load_half_u8x64(context, address):
    """32 bytes at the address in the low half, zeros above."""

    def generate(c, b, s, a):
        half = b.load(pointer(b, a[0], V32B), align=1)
        return shuffle(b, half, constant(V32B, 0), list(range(64)))

    return u8x64(types.int64), generate


@intrinsic
def store_f32x16(context, address, value):
    """Write 16 float32."""

    def generate(c, b, s, a):
        b.store(a[1], pointer(b, a[0], V16F), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_f16x16(context, address, value):
    """Write 16 float32 rounded to float16 (to nearest even)."""
    half = ir.VectorType(F16, 16)

    def generate(c, b, s, a):
        b.store(b.fptrunc(a[1], half), pointer(b, a[0], half), align=2)
        return c.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_u8x64(context, address, value):
    """Write 64 bytes."""

    def generate(c, b, s, a):
        b.store(a[1], pointer(b, a[0], V64B), align=1)
        return c.get_dummy_value()

    return types.void(types.int64, u8x64), generate


@intrinsic
def load_i32x16(context, address):
    """16 int32 at the address."""
    return i32x16(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V16I), align=4)


@intrinsic
def load_i16x16(context, address):
    """16 int16 at the address."""
    return i16x16(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V16H), align=2)


@intrinsic
def store_i32x16(context, address, value):
    """Write 16 int32."""

    def generate(c, b, s, a):
        b.store(a[1], pointer(b, a[0], V16I), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, i32x16), generate


@intrinsic
def store_i8x16(context, address, value):
    """Write the low bytes of 16 int32."""

    def generate(c, b, s, a):
        b.store(b.trunc(a[1], V16B), pointer(b, a[0], V16B), align=1)
        return c.get_dummy_value()

    return types.void(types.int64, i32x16), generate


def _scalar_load(numba_type, llvm_type, align):
    @intrinsic
    def load(context, address):
        return numba_type(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], llvm_type), align=align)

    return load


def _scalar_store(numba_type, llvm_type, align):
    @intrinsic
    def store(context, address, value):
        def generate(c, b, s, a):
            b.store(a[1], pointer(b, a[0], llvm_type), align=align)
            return c.get_dummy_value()

        return types.void(types.int64, numba_type), generate

    return store


load_f32, store_f32 = _scalar_load(types.float32, F32, 4), _scalar_store(types.float32, F32, 4)
load_i64, store_i64 = _scalar_load(types.int64, I64, 8), _scalar_store(types.int64, I64, 8)
store_i32, store_i16 = _scalar_store(types.int32, I32, 4), _scalar_store(types.int16, I16, 2)
load_u32 = _scalar_load(types.uint32, I32, 1)


@intrinsic
def load_f16(context, address):
    """One float16 at the address, as float32."""
    return types.float32(types.int64), lambda c, b, s, a: b.fpext(b.load(pointer(b, a[0], F16), align=1), F32)


@intrinsic
def load_bf16(context, address):
    """One bfloat16 at the address, as float32."""

    def generate(c, b, s, a):
        wide = b.zext(b.load(pointer(b, a[0], I16), align=1), I32)
        return b.bitcast(b.shl(wide, ir.Constant(I32, 16)), F32)

    return types.float32(types.int64), generate


@intrinsic
def splat_f32(context, value):
    """One float32 in all 16 lanes."""
    return f32x16(types.float32), lambda c, b, s, a: splat(b, a[0], 16)


@intrinsic
def splat_f32x8(context, value):
    """One float32 in all 8 lanes."""
    return f32x8(types.float32), lambda c, b, s, a: splat(b, a[0], 8)


@intrinsic
def zero_f32x8(context):
    """8 zeros."""
    return f32x8(), lambda c, b, s, a: constant(V8F, 0.0)


@intrinsic
def zero_f32x16(context):
    """16 zeros."""
    return f32x16(), lambda c, b, s, a: constant(V16F, 0.0)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@intrinsic
def fma(context, x, y, z):
    """x * y + z in every lane, rounded once; 16 or 8 float32."""

    def generate(c, b, s, a):
        return call(b, f"llvm.fma.v{x.llvm_type.count}f32", x.llvm_type, list(a))

    return x(x, x, x), generate


@intrinsic
def maximum(context, x, y):
    """The larger one in every lane."""
    return f32x16(f32x16, f32x16), lambda c, b, s, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


@intrinsic
def absolute(context, x):
    """|x| in every lane."""
    return f32x16(f32x16), lambda c, b, s, a: call(b, "llvm.fabs.v16f32", V16F, [a[0]])


@intrinsic
def total(context, x):
    """The sum of 16 or 8 float32, always in the same order (a tree)."""

    def generate(c, b, s, a):
        name = f"llvm.vector.reduce.fadd.v{x.llvm_type.count}f32"
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(F32, [F32, x.llvm_type]), name)
        return b.call(function, [ir.Constant(F32, -0.0), a[0]], fastmath=("reassoc",))

    return types.float32(x), generate


@intrinsic
def add_halves(context, x):
    """Lane i = x[i] + x[i + 8] of 16 float32."""

    def generate(c, b, s, a):
        return b.fadd(shuffle(b, a[0], a[0], list(range(8))), shuffle(b, a[0], a[0], list(range(8, 16))))

    return f32x8(f32x16), generate


@intrinsic
def largest(context, x):
    """The largest of the 16 lanes; NaN is ignored."""

    def generate(c, b, s, a):  # LLVM's own reduction heeds NaN at every step, one lane at a time
        x = b.select(b.fcmp_ordered("ord", a[0], a[0]), a[0], constant(V16F, float("-inf")))
        for half in (8, 4, 2, 1):
            low, high = (shuffle(b, x, x, list(range(first, first + half))) for first in (0, half))
            x = b.select(b.fcmp_ordered(">", low, high), low, high)
        return b.extract_element(x, ir.Constant(I32, 0))

    return types.float32(f32x16), generate


@intrinsic
def zero_i32x16(context):
    """16 zeros."""
    return i32x16(), lambda c, b, s, a: constant(V16I, 0)


@intrinsic
def zero_i32x8(context):
    """8 zeros."""
    return i32x8(), lambda c, b, s, a: constant(V8I, 0)


@intrinsic(prefer_literal=True)
def shift_left(context, x, bits):
    """x * 2**bits in every lane of 16 int32."""
    n = bits.literal_value
    return i32x16(i32x16, bits), lambda c, b, s, a: b.shl(a[0], constant(V16I, n))


@intrinsic
def to_f32(context, x):
    """16 or 8 int32 as float32."""
    wide = f32x16 if x == i32x16 else f32x8
    return wide(x), lambda c, b, s, a: b.sitofp(a[0], wide.llvm_type)


@intrinsic
def round_to_i32(context, x):
    """16 float32 rounded to int32, halves to even; what int32 cannot hold becomes its largest or smallest, NaN the smallest."""

    def generate(c, b, s, a):
        x = call(b, "llvm.rint.v16f32", V16F, [a[0]])  # the two bounds are what int32 holds: LLVM's saturation goes lane by lane
        x = b.select(b.fcmp_ordered(">", x, constant(V16F, -2147483648.0)), x, constant(V16F, -2147483648.0))
        x = b.select(b.fcmp_ordered("<", x, constant(V16F, 2147483520.0)), x, constant(V16F, 2147483520.0))
        return b.fptosi(x, V16I)

    return i32x16(f32x16), generate


@intrinsic
def total_i32(context, x):
    """The sum of 16 int32."""
    return types.int32(i32x16), lambda c, b, s, a: call(b, "llvm.vector.reduce.add.v16i32", I32, [a[0]])


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
            return call(b, "llvm.fma.v16f32", V16F, [x, y, z])

        x = b.select(b.fcmp_unordered("<", a[0], constant(V16F, -87.0)), constant(V16F, -87.0), a[0])
        x = b.select(b.fcmp_ordered(">", x, constant(V16F, 88.0)), constant(V16F, 88.0), x)
        n = call(b, "llvm.rint.v16f32", V16F, [b.fmul(x, constant(V16F, 1 / ln2))])
        # f * ln 2 = x - n ln 2, with ln 2 in two parts so that nothing is lost
        r = fused(n, constant(V16F, -0.693359375), x)
        r = fused(n, constant(V16F, 2.12194440e-4), r)
        f = b.fmul(r, constant(V16F, 1 / ln2))
        p = constant(V16F, coefficients[7])
        for coefficient in coefficients[6::-1]:
            p = fused(p, f, constant(V16F, coefficient))
        bits = b.shl(b.add(b.fptosi(n, V16I), constant(V16I, 127)), constant(V16I, 23))
        value = b.fmul(p, b.bitcast(bits, V16F))
        tiny = b.fcmp_ordered("<=", a[0], constant(V16F, -87.0))
        value = b.select(tiny, constant(V16F, 0.0), value)
        return b.select(b.fcmp_unordered("uno", a[0], a[0]), a[0], value)  # NaN in, NaN out

    return f32x16(f32x16), generate


def _in_halves(builder, name, arguments):
    """The call for the lower and the upper halves: AVX-VNNI's registers; LLVM chooses between its encoding and AVX-512's."""
    results = []
    for half in range(2):
        lanes = [range(half * n // 2, (half + 1) * n // 2) for n in (value.type.count for value in arguments)]
        parts = [shuffle(builder, value, value, list(picked)) for value, picked in zip(arguments, lanes, strict=True)]
        results.append(call(builder, name, parts[0].type if "dp" in name else V16H, parts))
    return shuffle(builder, results[0], results[1], list(range(2 * results[0].type.count)))


def emit_dot(builder, start, unsigned, signed):
    """LLVM code for start + dot_u8s8(unsigned, signed): what larger intrinsics are built from."""
    if dot_bits() == 512:
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", V16I, [start, unsigned, signed])
    if dot_bits() == 256:
        return _in_halves(builder, "llvm.x86.avx512.vpdpbusd.256", [start, unsigned, signed])
    wide = ir.VectorType(I32, 64)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    parts = [shuffle(builder, products, products, list(range(j, 64, 4))) for j in range(4)]
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
def narrow(context, x, y):
    """32 int16 of the 16 int32 in x and in y, which must fit: four of x, four of y, the next four of x, ..."""

    def generate(c, b, s, a):
        if has_vnni():
            return call(b, "llvm.x86.avx512.packssdw.512", V32H, list(a))
        if dot_bits() == 256:
            return _in_halves(b, "llvm.x86.avx2.packssdw", list(a))
        lanes = [first for i in range(0, 16, 4) for first in (i, i + 16)]
        return b.trunc(shuffle(b, a[0], a[1], [lane + i for lane in lanes for i in range(4)]), V32H)

    return i16x32(i32x16, i32x16), generate


@intrinsic
def add_dot_i16(context, start, x, y):
    """Lane i = start[i] + x[2 i] * y[2 i] + x[2 i + 1] * y[2 i + 1], exact in int32: 32 or 16 int16 each."""
    wide = start.llvm_type
    n = wide.count

    def generate(c, b, s, a):
        words = [a[0], *(b.bitcast(value, wide) for value in a[1:])]
        if dot_bits() >= n * 32:
            return call(b, f"llvm.x86.avx512.vpdpwssd.{n * 32}", wide, words)
        if dot_bits() == 256:
            return _in_halves(b, "llvm.x86.avx512.vpdpwssd.256", words)
        both = ir.VectorType(I32, 2 * n)
        products = b.mul(b.sext(a[1], both), b.sext(a[2], both))
        even, odd = (shuffle(b, products, products, list(range(j, 2 * n, 2))) for j in range(2))
        return b.add(a[0], b.add(even, odd))

    return start(start, x, y), generate


@intrinsic(prefer_literal=True)
def bytes_of(context, value):
    """The same byte 64 times."""
    byte = value.literal_value
    return u8x64(value), lambda c, b, s, a: constant(V64B, byte)


@intrinsic
def flip_sign_bit(context, x):
    """int8 -> uint8 with 128 added, 64 at once."""
    return u8x64(u8x64), lambda c, b, s, a: b.xor(a[0], constant(V64B, 0x80))


# ---- between threads -----------------------------------------------------------------------------------------------


@intrinsic
def atomic_add(context, address, value):
    """Add to the int64 at the address; returns what stood there before."""
    return types.int64(types.int64, types.int64), lambda c, b, s, a: b.atomic_rmw("add", pointer(b, a[0], I64), a[1], "seq_cst")


@intrinsic
def atomic_load(context, address):
    """The int64 at the address, with everything written before it was stored."""
    return types.int64(types.int64), lambda c, b, s, a: b.load_atomic(pointer(b, a[0], I64), "acquire", 8)


@intrinsic
def atomic_store(context, address, value):
    """Publish an int64 and everything written before."""

    def generate(c, b, s, a):
        b.store_atomic(a[1], pointer(b, a[0], I64), "release", 8)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def prefetch(context, address):
    """Ask for the 64 bytes at the address, into the second-level cache; no fault if there is nothing."""

    def generate(c, b, s, a):
        numbers = [ir.Constant(I32, n) for n in (0, 2, 1)]  # to read, into the second-level cache, data
        _prefetch = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        b.call(cgutils.get_or_insert_function(b.module, _prefetch, "llvm.prefetch.p0"), [pointer(b, a[0], I8), *numbers])
        return c.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def pause(context):
    """Tell the core that this is a spinning loop."""

    def generate(c, b, s, a):
        if llvm.get_process_triple().startswith(("x86_64", "i686")):
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return c.get_dummy_value()

    return types.void(), generate
