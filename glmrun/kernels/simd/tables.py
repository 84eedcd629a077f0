"""Tables of 16 bytes, one of which each 4-bit code chooses: an instruction that LLVM does not find by itself."""

from collections.abc import Sequence

from llvmlite import ir

from glmrun.kernels.simd.target import dot_bits, has_avx2, has_neon
from glmrun.kernels.simd.types import I8, call, constant, shuffle


def _instruction() -> tuple[str, int] | None:
    """LLVM's name for the CPU's look-up and how many bytes it gives at once; None: there is none."""
    if dot_bits() == 512:
        return "llvm.x86.avx512.pshuf.b.512", 64
    if has_avx2():
        return "llvm.x86.avx2.pshuf.b", 32
    return ("llvm.aarch64.neon.tbl1.v16i8", 16) if has_neon() else None


def emit_look_up(builder, table: Sequence[int], codes):
    """LLVM code for table[code], 64 bytes: the table of 16 bytes is known now, the codes are from 0 to 15."""
    found = _instruction()
    if found is None:
        return _chosen(builder, table, codes)
    name, n = found
    part = ir.VectorType(I8, n)
    values = ir.Constant(part, [*table] * (n // 16))
    parts = [
        call(builder, name, part, [values, shuffle(builder, codes, codes, list(range(i, i + n)))])
        for i in range(0, codes.type.count, n)
    ]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffle(builder, low, high, list(range(2 * low.type.count))) for low, high in pairs]
    return parts[0]


def _chosen(builder, table, codes):
    """emit_look_up() on any CPU: each bit of the codes halves what is left of the table."""
    left = [constant(codes.type, value) for value in table]
    for bit in range(4):
        is_set = builder.icmp_unsigned("!=", builder.and_(codes, constant(codes.type, 1 << bit)), constant(codes.type, 0))
        left = [builder.select(is_set, odd, even) for even, odd in zip(left[::2], left[1::2], strict=True)]
    return left[0]
