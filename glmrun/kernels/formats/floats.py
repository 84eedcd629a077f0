"""F32, F16 and BF16 rows times float32 activations; nothing is rounded but the sums.

A row is an address that knows what stands there: each function is compiled once for each of the three types.
"""

from llvmlite import ir
from numba import float32, int64, types
from numba.extending import intrinsic, models, register_model

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.arithmetic import fma, total
from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.memory import load_f32, load_f32x16, store_f32, zero_f32x16
from glmrun.kernels.simd.types import F16, F32, I16, I32, I64, f32x16, pointer, splat


class Values(types.Type):
    """Numba's type of the address of values of one kind: float32, float16 or bfloat16."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.element, self.bytes = element, 4 if element is F32 else 2
        super().__init__(name=name)


@register_model(Values)
class _ValuesModel(models.PrimitiveModel):
    def __init__(self, manager, values):
        super().__init__(manager, values, I64)


f32_values, f16_values, bf16_values = Values("f32_values", F32), Values("f16_values", F16), Values("bf16_values", I16)
_EACH = (f32_values, f16_values, bf16_values)


def _at(values):
    @intrinsic
    def at(context, address):
        """The address, typed."""
        return values(int64), lambda c, b, s, a: a[0]

    return at


f32_at, f16_at, bf16_at = (_at(values) for values in _EACH)


@intrinsic
def _further(context, values, n_bytes):
    """The address so many bytes further on."""
    return values(values, int64), lambda c, b, s, a: b.add(*a)


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


def _load(builder, values, address, k, llvm_type):
    place = builder.add(address, builder.mul(k, ir.Constant(I64, values.bytes)))
    return _widened(builder, builder.load(pointer(builder, place, llvm_type), align=values.bytes))


@intrinsic
def _load_16(context, values, k):
    """The values k to k + 15 as float32."""
    sixteen = ir.VectorType(values.element, 16)
    return f32x16(values, int64), lambda c, b, s, a: _load(b, values, a[0], a[1], sixteen)


@intrinsic
def _load_one(context, values, k):
    """The value k as float32."""
    return float32(values, int64), lambda c, b, s, a: _load(b, values, a[0], a[1], values.element)


@kernel([float32(values, int64, int64) for values in _EACH])
def dot(row, n, x):
    """row . x, x float32 (n,)."""
    result, whole = zero_f32x16(), n // 16 * 16
    for k in range(0, whole, 16):
        result = fma(_load_16(row, k), load_f32x16(x + k * 4), result)
    rest = total(result)
    for k in range(whole, n):
        rest += _load_one(row, k) * load_f32(x + k * 4)
    return rest


@kernel([types.void(values, int64, int64, int64, int64, int64) for values in _EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n, x, out):
    """out[r] = row r . x, float32 (n_rows,); rows are row_bytes apart."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot(_further(rows, r * row_bytes), n, x))


@kernel([types.void(values, int64, int64, int64, int64, int64, int64, int64) for values in _EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1."""
    whole = n // 16 * 16
    for r in range(n_rows):
        row, r0, r1 = _further(rows, r * row_bytes), zero_f32x16(), zero_f32x16()
        for k in range(0, whole, 16):
            w = _load_16(row, k)
            r0, r1 = fma(w, load_f32x16(x0 + k * 4), r0), fma(w, load_f32x16(x1 + k * 4), r1)
        t0, t1 = total(r0), total(r1)
        for k in range(whole, n):
            w = _load_one(row, k)
            t0, t1 = t0 + w * load_f32(x0 + k * 4), t1 + w * load_f32(x1 + k * 4)
        store_f32(out0 + r * 4, t0)
        store_f32(out1 + r * 4, t1)
