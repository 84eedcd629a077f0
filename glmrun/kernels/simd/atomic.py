"""Between threads."""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glmrun.kernels.simd.types import I32, I64, call, pointer


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
def pause(context):
    """Tell the core that this is a spinning loop."""

    def generate(c, b, s, a):
        triple = llvm.get_process_triple()
        if triple.startswith(("x86_64", "i686")):
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif triple.startswith(("aarch64", "arm64")):
            call(b, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(I32, 1)])  # yield
        return c.get_dummy_value()

    return types.void(), generate
