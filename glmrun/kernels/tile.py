"""The heart of reading a prompt: 32 rows of a matrix times 8 activation vectors, all in registers.

A panel holds 32 rows unpacked to one byte a weight, so that one instruction multiplies 16 rows by 4 columns:

    codes    uint8 (columns / 4, 2, 16, 4)     rows 0 to 15, rows 16 to 31; four neighbouring columns of a row together
    factors  float32 (sub-blocks, 2, 16)       what a sub-block's dot product is worth in each row; of a Q4_K block first its
                                               eight scales, then its eight minimums, negative

Codes are unsigned: those of Q6_K carry +32, those of Q8_0 and Q5_0 +128. The sums that this adds are taken off where the
dot products start, from what quantize_row puts beside the activations.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels import kernel
from glmrun.simd import F32, I32, I64, V16F, V16I, V64B, call, constant, emit_dot, f32x16, pointer, splat

ROWS, COLUMNS = 32, 8  # of a tile: 2 x 8 vectors of 16 results
_CELLS = 2 * COLUMNS
_floats, _columns = types.UniTuple(f32x16, _CELLS), types.UniTuple(int64, COLUMNS)


def _unpack(builder, value, n):
    return [builder.extract_value(value, i) for i in range(n)]


def _offset(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _load(builder, address, llvm_type, align=4):
    return builder.load(pointer(builder, address, llvm_type), align=align)


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return splat(builder, _load(builder, address, llvm_type), 16)


def _dots(builder, codes, columns, starts, groups):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c]; cells in the order r * COLUMNS + c."""
    dots = list(starts)
    for group in range(groups):
        rows = [_load(builder, _offset(builder, codes, (group * 2 + r) * 64), V64B, 64) for r in range(2)]
        for c in range(COLUMNS):
            x = builder.bitcast(_broadcast(builder, _offset(builder, columns[c], group * 4), I32), V64B)
            for r in range(2):
                dots[r * COLUMNS + c] = emit_dot(builder, dots[r * COLUMNS + c], rows[r], x)
    return dots


@intrinsic
def zeros(context):
    """A tile of float32 zeros."""
    return _floats(), lambda c, b, s, a: c.make_tuple(b, _floats, [constant(V16F, 0.0)] * _CELLS)


def _sub_block(groups, has_starts):
    @intrinsic
    def add(context, tile, codes, columns, at, factors, scale, start):
        """tile[r, c] += factors[r] * scale[c] * (codes[r] . column[c]) over one sub-block of 4 * groups columns.

        at, scale, start   how far behind a column's address its codes, its scale and the dot product's first value stand
        """

        def generate(c, b, s, a):
            cells, code, column = _unpack(b, a[0], _CELLS), a[1], _unpack(b, a[2], COLUMNS)
            begin, factor_at, scale_at, start_at = a[3:]
            starts = [constant(V16I, 0)] * _CELLS
            if has_starts:
                starts = [_broadcast(b, b.add(x, start_at), I32) for x in column] * 2
            dots = _dots(b, code, [b.add(x, begin) for x in column], starts, groups)
            out = []
            for r in range(2):
                factor = _load(b, _offset(b, factor_at, r * 64), V16F, 64)
                for i in range(COLUMNS):
                    both = b.fmul(factor, _broadcast(b, b.add(column[i], scale_at), F32))
                    cell = r * COLUMNS + i
                    out.append(call(b, "llvm.fma.v16f32", V16F, [b.sitofp(dots[cell], V16F), both, cells[cell]]))
            return c.make_tuple(b, _floats, out)

        return _floats(_floats, int64, _columns, int64, int64, int64, int64), generate

    return add


add_32, add_32_from, add_16_from = _sub_block(8, False), _sub_block(8, True), _sub_block(4, True)


@intrinsic
def add_sums(context, tile, factors, columns, sums):
    """tile[r, c] += factors[r] * sum[c]: the minimums of one sub-block; sums: how far behind a column's address its sum stands."""

    def generate(c, b, s, a):
        cells, factor_at, column, sum_at = _unpack(b, a[0], _CELLS), a[1], _unpack(b, a[2], COLUMNS), a[3]
        out = []
        for r in range(2):
            factor = _load(b, _offset(b, factor_at, r * 64), V16F, 64)
            for i in range(COLUMNS):
                total = _broadcast(b, b.add(column[i], sum_at), F32)
                out.append(call(b, "llvm.fma.v16f32", V16F, [factor, total, cells[r * COLUMNS + i]]))
        return c.make_tuple(b, _floats, out)

    return _floats(_floats, int64, _columns, int64), generate


@intrinsic
def store(context, tile, out):
    """Write float32 (COLUMNS, 32)."""

    def generate(c, b, s, a):
        for i, cell in enumerate(_unpack(b, a[0], _CELLS)):
            r, column = divmod(i, COLUMNS)
            b.store(cell, pointer(b, _offset(b, a[1], column * ROWS * 4 + r * 64), V16F), align=4)
        return c.get_dummy_value()

    return types.void(_floats, int64), generate


@kernel(types.void(int64, int64, _columns, int64))
def q4_k(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q4_K rows of n columns times activations as quantize_row lays them out."""
    factors, scales, sums = panel + n * 32, n, n + n // 8
    tile = zeros()
    for j in range(n // 32):
        scale = factors + (j // 8 * 16 + j % 8) * 128
        tile = add_32(tile, panel + j * 1024, columns, j * 32, scale, scales + j * 4, 0)
        tile = add_sums(tile, scale + 1024, columns, sums + j * 4)
    store(tile, out)


@kernel(types.void(int64, int64, _columns, int64))
def q6_k(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q6_K rows of n columns times activations as quantize_row lays them out."""
    factors, scales, starts = panel + n * 32, n, n + n // 2 + n // 8
    tile = zeros()
    for j in range(n // 16):
        tile = add_16_from(tile, panel + j * 512, columns, j * 16, factors + j * 128, scales + j // 2 * 4, starts + j * 4)
    store(tile, out)


@kernel(types.void(int64, int64, _columns, int64))
def q8_0(panel, n, columns, out):
    """out float32 (COLUMNS, 32) = panel of Q8_0 or Q5_0 rows of n columns times activations as quantize_row lays them out."""
    factors, scales, starts = panel + n * 32, n, n + n // 2
    tile = zeros()
    for j in range(n // 32):
        tile = add_32_from(tile, panel + j * 1024, columns, j * 32, factors + j * 128, scales + j * 4, starts + j * 4)
    store(tile, out)
