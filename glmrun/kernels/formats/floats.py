"""F32, F16 and BF16 rows times float32 activations; nothing is rounded but the sums."""

from numba import types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.arithmetic import fma, total
from glmrun.kernels.simd.memory import load_bf16, load_bf16x16, load_f16, load_f16x16, load_f32, load_f32x16, store_f32, zero_f32x16

_four = types.UniTuple(types.float32, 4)
_dot = types.float32(types.int64, types.int64, types.int64)
_rows = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64)
_dot4 = _four(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64)


@kernel(_dot)
def dot_f32(row, n, x):
    """row . x, both float32 (n,)."""
    result, whole = zero_f32x16(), n // 16 * 16
    for k in range(0, whole, 16):
        result = fma(load_f32x16(row + k * 4), load_f32x16(x + k * 4), result)
    rest = total(result)
    for k in range(whole, n):
        rest += load_f32(row + k * 4) * load_f32(x + k * 4)
    return rest


@kernel(_dot)
def dot_f16(row, n, x):
    """row . x, row float16 (n,), x float32 (n,)."""
    result, whole = zero_f32x16(), n // 16 * 16
    for k in range(0, whole, 16):
        result = fma(load_f16x16(row + k * 2), load_f32x16(x + k * 4), result)
    rest = total(result)
    for k in range(whole, n):
        rest += load_f16(row + k * 2) * load_f32(x + k * 4)
    return rest


@kernel(_dot)
def dot_bf16(row, n, x):
    """row . x, row bfloat16 (n,), x float32 (n,)."""
    result, whole = zero_f32x16(), n // 16 * 16
    for k in range(0, whole, 16):
        result = fma(load_bf16x16(row + k * 2), load_f32x16(x + k * 4), result)
    rest = total(result)
    for k in range(whole, n):
        rest += load_bf16(row + k * 2) * load_f32(x + k * 4)
    return rest


@kernel(_dot4)
def dot4_f32(row, n, x0, x1, x2, x3):
    """dot_f32() with four activation vectors at once."""
    r0 = r1 = r2 = r3 = zero_f32x16()
    whole = n // 16 * 16
    for k in range(0, whole, 16):
        w = load_f32x16(row + k * 4)
        r0, r1 = fma(w, load_f32x16(x0 + k * 4), r0), fma(w, load_f32x16(x1 + k * 4), r1)
        r2, r3 = fma(w, load_f32x16(x2 + k * 4), r2), fma(w, load_f32x16(x3 + k * 4), r3)
    t0, t1, t2, t3 = total(r0), total(r1), total(r2), total(r3)
    for k in range(whole, n):
        w = load_f32(row + k * 4)
        t0, t1 = t0 + w * load_f32(x0 + k * 4), t1 + w * load_f32(x1 + k * 4)
        t2, t3 = t2 + w * load_f32(x2 + k * 4), t3 + w * load_f32(x3 + k * 4)
    return t0, t1, t2, t3


@kernel(_dot4)
def dot4_f16(row, n, x0, x1, x2, x3):
    """dot_f16() with four activation vectors at once."""
    r0 = r1 = r2 = r3 = zero_f32x16()
    whole = n // 16 * 16
    for k in range(0, whole, 16):
        w = load_f16x16(row + k * 2)
        r0, r1 = fma(w, load_f32x16(x0 + k * 4), r0), fma(w, load_f32x16(x1 + k * 4), r1)
        r2, r3 = fma(w, load_f32x16(x2 + k * 4), r2), fma(w, load_f32x16(x3 + k * 4), r3)
    t0, t1, t2, t3 = total(r0), total(r1), total(r2), total(r3)
    for k in range(whole, n):
        w = load_f16(row + k * 2)
        t0, t1 = t0 + w * load_f32(x0 + k * 4), t1 + w * load_f32(x1 + k * 4)
        t2, t3 = t2 + w * load_f32(x2 + k * 4), t3 + w * load_f32(x3 + k * 4)
    return t0, t1, t2, t3


@kernel(_dot4)
def dot4_bf16(row, n, x0, x1, x2, x3):
    """dot_bf16() with four activation vectors at once."""
    r0 = r1 = r2 = r3 = zero_f32x16()
    whole = n // 16 * 16
    for k in range(0, whole, 16):
        w = load_bf16x16(row + k * 2)
        r0, r1 = fma(w, load_f32x16(x0 + k * 4), r0), fma(w, load_f32x16(x1 + k * 4), r1)
        r2, r3 = fma(w, load_f32x16(x2 + k * 4), r2), fma(w, load_f32x16(x3 + k * 4), r3)
    t0, t1, t2, t3 = total(r0), total(r1), total(r2), total(r3)
    for k in range(whole, n):
        w = load_bf16(row + k * 2)
        t0, t1 = t0 + w * load_f32(x0 + k * 4), t1 + w * load_f32(x1 + k * 4)
        t2, t3 = t2 + w * load_f32(x2 + k * 4), t3 + w * load_f32(x3 + k * 4)
    return t0, t1, t2, t3


@kernel(_rows)
def dot_rows_f32(rows, row_bytes, n_rows, n, x, out):
    """out[r] = row r . x, float32 (n_rows,); rows are row_bytes apart."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot_f32(rows + r * row_bytes, n, x))


@kernel(_rows)
def dot_rows_f16(rows, row_bytes, n_rows, n, x, out):
    """dot_rows_f32() for float16 rows."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot_f16(rows + r * row_bytes, n, x))


@kernel(_rows)
def dot_rows_bf16(rows, row_bytes, n_rows, n, x, out):
    """dot_rows_f32() for bfloat16 rows."""
    for r in range(n_rows):
        store_f32(out + r * 4, dot_bf16(rows + r * row_bytes, n, x))
