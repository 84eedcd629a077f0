"""The heart of reading a prompt: 32 rows of a matrix times 8 activation vectors, all in registers.

A panel holds 32 rows unpacked to one byte a weight, so that one instruction multiplies 16 rows by 4 columns:

    codes    uint8 (columns / 4, 2, 16, 4)   rows 0 to 15, rows 16 to 31; four neighbouring columns of a row together
    scales   one vector pair (2, 16) for every sub-block of a row: int32 for K-quants, float32 for Q8_0 and Q5_0
    d        float32 (blocks, 2, 16), K-quants only; Q4_K has as many dmin, and its minimums as int16 (blocks, 4, 2, 16, 2)

Weights are unsigned: codes of Q6_K carry +32, those of Q8_0 and Q5_0 +128. The sums that this adds are taken off where the
dot products start, from what quantize_256 and quantize_32 put beside the activations.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels import kernel
from glmrun.simd import _F32, _I16, _I32, _I64, _V16F, _V16I, _V64B, _call, _constant, _pointer, _splat, emit_dot, f32x16, i32x16

ROWS, COLUMNS = 32, 8  # of a tile: 2 x 8 vectors of 16 results
_CELLS = 2 * COLUMNS
_ints, _floats, _columns = types.UniTuple(i32x16, _CELLS), types.UniTuple(f32x16, _CELLS), types.UniTuple(int64, COLUMNS)
_V32H = ir.VectorType(_I16, 32)


def _unpack(builder, value, n):
    return [builder.extract_value(value, i) for i in range(n)]


def _offset(builder, address, n_bytes):
    return builder.add(address, ir.Constant(_I64, n_bytes))


def _load(builder, address, llvm_type, align=4):
    return builder.load(_pointer(builder, address, llvm_type), align=align)


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return _splat(builder, _load(builder, address, llvm_type), 16)


def _dots(builder, codes, columns, starts, groups):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c]; cells in the order r * COLUMNS + c."""
    dots = list(starts)
    for group in range(groups):
        rows = [_load(builder, _offset(builder, codes, (group * 2 + r) * 64), _V64B, 64) for r in range(2)]
        for c in range(COLUMNS):
            x = builder.bitcast(_broadcast(builder, _offset(builder, columns[c], group * 4), _I32), _V64B)
            for r in range(2):
                dots[r * COLUMNS + c] = emit_dot(builder, dots[r * COLUMNS + c], rows[r], x)
    return dots


@intrinsic
def int_zeros(context):
    """A tile of int32 zeros."""
    return _ints(), lambda c, b, s, a: c.make_tuple(b, _ints, [_constant(_V16I, 0)] * _CELLS)


@intrinsic
def float_zeros(context):
    """A tile of float32 zeros."""
    return _floats(), lambda c, b, s, a: c.make_tuple(b, _floats, [_constant(_V16F, 0.0)] * _CELLS)


def _scaled_block(groups, has_offsets):
    @intrinsic
    def block(context, tile, codes, columns, at, scales, offsets):
        """tile[r, c] += scales[r] * (codes[r] . column[c]) over one sub-block of a K-quant; columns begin at byte `at`.

        offsets: how far behind a column's address + `at` the int32 stands at which its dot products start (not read for Q4_K).
        """

        def generate(c, b, s, a):
            cells, code, column = _unpack(b, a[0], _CELLS), a[1], _unpack(b, a[2], COLUMNS)
            begin, scale, offset = a[3:]
            starts = [_constant(_V16I, 0)] * _CELLS
            if has_offsets:
                starts = [_broadcast(b, b.add(x, offset), _I32) for x in column] * 2
            dots = _dots(b, code, [b.add(x, begin) for x in column], starts, groups)
            out = []
            for r in range(2):
                factor = _load(b, _offset(b, scale, r * 64), _V16I, 64)
                out += [b.add(cells[i], b.mul(dots[i], factor)) for i in range(r * COLUMNS, (r + 1) * COLUMNS)]
            return c.make_tuple(b, _ints, out)

        return _ints(_ints, int64, _columns, int64, int64, int64), generate

    return block


block_of_32, block_of_16 = _scaled_block(8, False), _scaled_block(4, True)


@intrinsic
def add_block_32(context, tile, codes, columns, at, scales, offsets, column_scales):
    """tile[r, c] += scales[r] * column_scale[c] * (codes[r] . column[c]) over one block of Q8_0 or Q5_0."""

    def generate(c, b, s, a):
        cells, code, column = _unpack(b, a[0], _CELLS), a[1], _unpack(b, a[2], COLUMNS)
        begin, scale, offset, x_scale = a[3:]
        starts = [_broadcast(b, b.add(x, offset), _I32) for x in column] * 2
        dots = _dots(b, code, [b.add(x, begin) for x in column], starts, 8)
        out = []
        for r in range(2):
            factor = _load(b, _offset(b, scale, r * 64), _V16F, 64)
            for i in range(COLUMNS):
                both = b.fmul(factor, _broadcast(b, b.add(column[i], x_scale), _F32))
                cell = r * COLUMNS + i
                out.append(_call(b, "llvm.fma.v16f32", _V16F, [b.sitofp(dots[cell], _V16F), both, cells[cell]]))
        return c.make_tuple(b, _floats, out)

    return _floats(_floats, int64, _columns, int64, int64, int64, int64), generate


@intrinsic
def add_scaled(context, tile, dots, columns, d, column_scales):
    """tile[r, c] += d[r] * column_scale[c] * dots[r, c]."""

    def generate(c, b, s, a):
        (cells, ints), column = (_unpack(b, x, _CELLS) for x in a[:2]), _unpack(b, a[2], COLUMNS)
        factor_at, x_scale = a[3:]
        out = []
        for r in range(2):
            factor = _load(b, _offset(b, factor_at, r * 64), _V16F, 64)
            for i in range(COLUMNS):
                cell = r * COLUMNS + i
                both = b.fmul(factor, _broadcast(b, b.add(column[i], x_scale), _F32))
                out.append(_call(b, "llvm.fma.v16f32", _V16F, [b.sitofp(ints[cell], _V16F), both, cells[cell]]))
        return c.make_tuple(b, _floats, out)

    return _floats(_floats, _ints, _columns, int64, int64), generate


@intrinsic
def minimum_dots(context, columns, minimums, sums):
    """Cells [r, c] = sum over 8 sub-blocks of minimum[r] * sum of column[c], in int32 (Q4_K)."""

    def generate(c, b, s, a):
        column, minimum, sum_at = _unpack(b, a[0], COLUMNS), a[1], a[2]
        out = [_constant(_V16I, 0)] * _CELLS
        wide = ir.VectorType(_I32, 32)
        for j in range(4):
            for r in range(2):
                m = _load(b, _offset(b, minimum, (j * 2 + r) * 64), _V32H, 64)
                for i in range(COLUMNS):
                    x = b.bitcast(_broadcast(b, _offset(b, b.add(column[i], sum_at), j * 4), _I32), _V32H)
                    cell = r * COLUMNS + i
                    products = b.mul(b.sext(m, wide), b.sext(x, wide))
                    even = b.shuffle_vector(products, products, ir.Constant(_V16I, list(range(0, 32, 2))))
                    odd = b.shuffle_vector(products, products, ir.Constant(_V16I, list(range(1, 32, 2))))
                    out[cell] = b.add(out[cell], b.add(even, odd))
        return c.make_tuple(b, _ints, out)

    return _ints(_columns, int64, int64), generate


@intrinsic
def subtract_scaled(context, tile, dots, columns, d, column_scales):
    """tile[r, c] -= d[r] * column_scale[c] * dots[r, c]."""

    def generate(c, b, s, a):
        (cells, ints), column = (_unpack(b, x, _CELLS) for x in a[:2]), _unpack(b, a[2], COLUMNS)
        factor_at, x_scale = a[3:]
        out = []
        for r in range(2):
            factor = _load(b, _offset(b, factor_at, r * 64), _V16F, 64)
            for i in range(COLUMNS):
                cell = r * COLUMNS + i
                both = b.fneg(b.fmul(factor, _broadcast(b, b.add(column[i], x_scale), _F32)))
                out.append(_call(b, "llvm.fma.v16f32", _V16F, [b.sitofp(ints[cell], _V16F), both, cells[cell]]))
        return c.make_tuple(b, _floats, out)

    return _floats(_floats, _ints, _columns, int64, int64), generate


@intrinsic
def store_tile(context, tile, out):
    """Write float32 (COLUMNS, 32)."""

    def generate(c, b, s, a):
        for i, cell in enumerate(_unpack(b, a[0], _CELLS)):
            r, column = divmod(i, COLUMNS)
            b.store(cell, _pointer(b, _offset(b, a[1], column * ROWS * 4 + r * 64), _V16F), align=4)
        return c.get_dummy_value()

    return types.void(_floats, int64), generate


@kernel(types.void(int64, int64, _columns, int64))
def q4_k(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q4_K rows of n columns times activations in quantize_256's form."""
    scales, scale_at, sums_at = panel + n * 32, n, n + n // 64 + n // 2
    d = scales + n // 32 * 128
    dmin = d + n // 256 * 128
    minimums = dmin + n // 256 * 128
    tile = float_zeros()
    for b in range(n // 256):
        dots = int_zeros()
        for j in range(b * 8, b * 8 + 8):
            dots = block_of_32(dots, panel + j * 1024, columns, j * 32, scales + j * 128, 0)
        tile = add_scaled(tile, dots, columns, d + b * 128, scale_at + b * 4)
        below = minimum_dots(columns, minimums + b * 512, sums_at + b * 16)
        tile = subtract_scaled(tile, below, columns, dmin + b * 128, scale_at + b * 4)
    store_tile(tile, out)


@kernel(types.void(int64, int64, _columns, int64))
def q6_k(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q6_K rows of n columns times activations in quantize_256's form."""
    scales, scale_at, offsets_at = panel + n * 32, n, n + n // 64 + n // 4
    d = scales + n // 16 * 128
    tile = float_zeros()
    for b in range(n // 256):
        dots = int_zeros()
        for j in range(b * 16, b * 16 + 16):
            dots = block_of_16(dots, panel + j * 512, columns, j * 16, scales + j * 128, offsets_at + j * 4)
        tile = add_scaled(tile, dots, columns, d + b * 128, scale_at + b * 4)
    store_tile(tile, out)


@kernel(types.void(int64, int64, _columns, int64))
def q32(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q8_0 or Q5_0 rows of n columns times activations in quantize_32's form."""
    scales, scale_at, offsets_at = panel + n * 32, n, n + n // 8
    tile = float_zeros()
    for j in range(n // 32):
        tile = add_block_32(tile, panel + j * 1024, columns, j * 32, scales + j * 128, offsets_at + j * 4, scale_at + j * 4)
    store_tile(tile, out)
