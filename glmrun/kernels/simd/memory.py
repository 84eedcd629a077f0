"""Loads, stores and constants: vectors and single numbers at plain addresses, unaligned."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glmrun.kernels.simd.halves import emit_narrow, emit_widen
from glmrun.kernels.simd.types import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V8F,
    V8I,
    V16B,
    V16F,
    V16H,
    V16I,
    V32B,
    V64B,
    constant,
    f32x8,
    f32x16,
    i16x16,
    i32x8,
    i32x16,
    pointer,
    shuffle,
    splat,
    u8x64,
)


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
    return f32x16(types.int64), lambda c, b, s, a: emit_widen(b, b.load(pointer(b, a[0], V16H), align=2))


@intrinsic
def load_u8x64(context, address):
    """64 bytes at the address."""
    return u8x64(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V64B), align=1)


@intrinsic
def load_half_u8x64(context, address):
    """32 bytes at the address in the low half, zeros above."""

    def generate(c, b, s, a):
        half = b.load(pointer(b, a[0], V32B), align=1)
        return shuffle(b, half, constant(V32B, 0), list(range(64)))

    return u8x64(types.int64), generate


@intrinsic
def store_f16x16(context, address, value):
    """Write 16 float32 rounded to float16 (to nearest even)."""

    def generate(c, b, s, a):
        b.store(emit_narrow(b, a[1]), pointer(b, a[0], V16H), align=2)
        return c.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def load_i16x16(context, address):
    """16 int16 at the address."""
    return i16x16(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], V16H), align=2)


@intrinsic
def store_i8x16(context, address, value):
    """Write the low bytes of 16 int32."""

    def generate(c, b, s, a):
        b.store(b.trunc(a[1], V16B), pointer(b, a[0], V16B), align=1)
        return c.get_dummy_value()

    return types.void(types.int64, i32x16), generate


def _load(numba_type, llvm_type, align):
    @intrinsic
    def load(context, address):
        return numba_type(types.int64), lambda c, b, s, a: b.load(pointer(b, a[0], llvm_type), align=align)

    return load


def _store(numba_type, llvm_type, align):
    @intrinsic
    def store(context, address, value):
        def generate(c, b, s, a):
            b.store(a[1], pointer(b, a[0], llvm_type), align=align)
            return c.get_dummy_value()

        return types.void(types.int64, numba_type), generate

    return store


load_f32, store_f32 = _load(types.float32, F32, 4), _store(types.float32, F32, 4)
load_i64, store_i64 = _load(types.int64, I64, 8), _store(types.int64, I64, 8)
load_u32 = _load(types.uint32, I32, 1)
store_f32x16, store_f32x8, store_i32x16 = _store(f32x16, V16F, 4), _store(f32x8, V8F, 4), _store(i32x16, V16I, 4)
store_i32x8, store_i16x16 = _store(i32x8, V8I, 4), _store(i16x16, V16H, 2)
store_u8x64 = _store(u8x64, V64B, 1)


@intrinsic
def load_f16(context, address):
    """One float16 at the address, as float32."""
    return types.float32(types.int64), lambda c, b, s, a: emit_widen(b, b.load(pointer(b, a[0], I16), align=1))


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


@intrinsic
def zero_i32x16(context):
    """16 zeros."""
    return i32x16(), lambda c, b, s, a: constant(V16I, 0)


@intrinsic(prefer_literal=True)
def bytes_of(context, value):
    """The same byte 64 times."""
    byte = value.literal_value
    return u8x64(value), lambda c, b, s, a: constant(V64B, byte)


def emit_prefetch(builder, address, writes=0, level=2):
    """LLVM code that asks for the 64 bytes at the address; no fault if there is nothing."""
    numbers = [ir.Constant(I32, n) for n in (writes, level, 1)]  # 1: data
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, I8), *numbers])


def _asking(**how):
    @intrinsic
    def ask(context, address):
        """emit_prefetch()."""

        def generate(c, b, s, a):
            emit_prefetch(b, a[0], **how)
            return c.get_dummy_value()

        return types.void(types.int64), generate

    return ask


prefetch = _asking(writes=0, level=2)  # to read, into the second-level cache
prefetch_to_write = _asking(writes=1, level=3)  # into the first-level cache, and taken from every other core's


@intrinsic(prefer_literal=True)
def room_for(context, n):
    """The address of n bytes that live as long as the call of the kernel, at the beginning of a cache line."""
    size = n.literal_value

    def generate(c, b, s, a):
        with b.goto_entry_block():
            room = b.alloca(ir.ArrayType(I8, size))  # Numba's own alloca_once() fills it with zeros at each call
        room.align = 64
        return b.ptrtoint(room, I64)

    return types.int64(n), generate


@intrinsic
def aligned_stack(context):
    """First in a kernel: its vectors that find no register stand in cache lines of their own.

    LLVM leaves them where the caller's stack ends, and storing one that lies in two pages holds up all that follows it.
    """

    def generate(c, b, s, a):
        b.function.attributes.add("nounwind")  # true of all kernels, and llvmlite writes no alignment alone
        b.function.attributes.alignstack = 64
        return c.get_dummy_value()

    return types.void(), generate
