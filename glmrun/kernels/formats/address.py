"""Addresses that know what stands there: of a kernel that formats share, one is compiled for each format's type.

A typed address is added to, and goes wherever a plain one does. What its type knows decides what intrinsics make of it.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from glmrun.kernels.simd.memory import emit_prefetch
from glmrun.kernels.simd.types import I64, V8F, behind, constant, f32x8


class Rows(types.Type):
    """Numba's type of the address of a format's rows, or of a block in them: the bytes of a block, and what else kernels ask.

    codes             emits 64 codes of a block of 256, or those of two blocks of 32 (quarters.py, unpack.py)
    columns, factors  emit what a panel holds of 16 blocks (transpose.py)
    vector            Numba's type of the codes of two blocks of 32: u7x64, or u8x64 with 128 added to what they stand for
    scale             LLVM's type of what a block of 32 begins with; has_minimum: a minimum of that type follows it
    offset            what a minimum, or where there is none the scale, is multiplied by; then blocks of 32 add it to each value
                      (0: there is nothing to add), and blocks of 256 take it off
    Types are pickled into Numba's cache: a function that one knows has a name in a module.
    """

    def __init__(self, name: str, n_bytes: int, **known: Any) -> None:
        self.bytes = n_bytes
        self.__dict__.update(known)
        super().__init__(name=name)


@register_model(Rows)
class _RowsModel(models.PrimitiveModel):
    def __init__(self, manager, rows):
        super().__init__(manager, rows, I64)


@infer_global(operator.add)
class _Sum(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0], int64) if isinstance(args[0], Rows) and isinstance(args[1], types.Integer) else None


@lower_builtin(operator.add, Rows, types.Integer)
def _add(context, builder, sig, args):
    return builder.add(*args)


@lower_cast(Rows, int64)
def _plain(context, builder, from_type, to_type, address):
    """What is given to an intrinsic becomes what its signature says."""
    return address


def typed(rows):
    """The intrinsic that makes an address of these rows of a plain one."""

    @intrinsic
    def at(context, address):
        """The address, typed."""
        return rows(int64), lambda c, b, s, a: a[0]

    return at


@intrinsic
def block_bytes(context, rows):
    """Bytes of one block."""
    return int64(rows), lambda c, b, s, a: ir.Constant(I64, rows.bytes)


@intrinsic
def offset(context, rows):
    """The offset in 8 lanes."""
    return f32x8(rows), lambda c, b, s, a: constant(V8F, float(rows.offset))


@intrinsic(prefer_literal=True)
def ask_blocks(context, address, count):
    """Ask memory for so many blocks at the address."""
    lines = range(0, count.literal_value * address.bytes, 64)

    def generate(c, b, s, a):
        for line in lines:
            emit_prefetch(b, behind(b, a[0], line))
        return c.get_dummy_value()

    return types.void(address, count), generate
