"""F32, F16 and BF16 rows times float32 activations; nothing is rounded but the sums."""

from llvmlite import ir
from numba import float32, int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, block_bytes, typed
from glmrun.kernels.simd.arithmetic import fma, total
from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.memory import load_f32, load_f32x16, store_f32, zero_f32x16
from glmrun.kernels.simd.types import F16, F32, I16, I32, f32x16, pointer, splat

EACH = Rows("F32", 4, element=F32), Rows("F16", 2, element=F16), Rows("BF16", 2, element=I16)
f32_at, f16_at, bf16_at = (typed(rows) for rows in EACH)


def _widened(builder, value):
    """Values of one kind as float32."""
    n = getattr(value.type, "count", 0)
    wide, bits = (ir.VectorType(F32, n), ir.VectorType(I32, n)) if n else (F32, I32)
    element = value.type.element if n else value.type
    if element == F32:
        return value
    if element == F16:
        return emit_widen(builder, value)
    half = ir.Constant(I32, 16)
    return builder.bitcast(builder.shl(builder.zext(value, bits), splat(builder, half, n) if n else half), wide)


@intrinsic(prefer_literal=True)
def _load(context, address, n):
    """The value at the address (n = 1), or 16 of them in a vector, as float32."""
    alone = n.literal_value == 1

    def generate(c, b, s, a):
        element = address.element if alone else ir.VectorType(address.element, 16)
        return _widened(b, b.load(pointer(b, a[0], element), align=address.bytes))

    return (float32 if alone else f32x16)(address, n), generate


@kernel([float32(row, int64, int64) for row in EACH])
def dot(row, n, x):
    """row . x, x float32 (n,)."""
    result, whole, size = zero_f32x16(), n // 16 * 16, block_bytes(row)
    for k in range(0, whole, 16):
        result = fma(_load(row + k * size, 16), load_f32x16(x + k * 4), result)
    rest = total(result)
    for k in range(whole, n):
        rest += _load(row + k * size, 1) * load_f32(x + k * 4)
    return rest


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n, x, out):
    """out[r] = row r . x, float32 (n_rows,); rows are row_bytes apart."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot(rows + r * row_bytes, n, x))


@kernel([types.void(rows, int64, int64, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1."""
    whole, size = n // 16 * 16, block_bytes(rows)
    for r in range(n_rows):
        row, r0, r1 = rows + r * row_bytes, zero_f32x16(), zero_f32x16()
        for k in range(0, whole, 16):
            w = _load(row + k * size, 16)
            r0, r1 = fma(w, load_f32x16(x0 + k * 4), r0), fma(w, load_f32x16(x1 + k * 4), r1)
        t0, t1 = total(r0), total(r1)
        for k in range(whole, n):
            w = _load(row + k * size, 1)
            t0, t1 = t0 + w * load_f32(x0 + k * 4), t1 + w * load_f32(x1 + k * 4)
        store_f32(out0 + r * 4, t0)
        store_f32(out1 + r * 4, t1)
