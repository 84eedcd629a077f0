"""A tile of 32 rows and 6 or 4 columns for 32 registers of 512 bits (layout: tile.py): 2 x 6 vectors of 16 results, as many again
for a sub-block's dot products, and room for operands.

Two widths, so that an expert with 27 tokens computes 28 columns and not 32.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.tile import ENTRY, FACTOR, RESULT, ask, behind, load, signatures, unpack
from glmrun.kernels.simd.dots import emit_dot
from glmrun.kernels.simd.types import F32, I32, I64, V16F, V16I, V64B, call, constant, f32x16, pointer, splat

WIDTHS = (6, 4)
CELLS = 0  # bytes in front of the panel that the tile uses


@kernel(int64(int64))
def width_for(n):
    """How many columns the next tile has if n are left: all together no more than n rounded up to 2, and to 4 if n is 1 or 2."""
    even = (n + 1) // 2 * 2
    return 6 if even == 6 or even > 8 else 4


def _tile(columns):
    """Numba's type of a tile with as many columns as there are addresses in this tuple."""
    return types.UniTuple(f32x16, 2 * columns.count)


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return splat(builder, load(builder, address, llvm_type), 16)


def _fused(builder, x, y, z):
    return call(builder, "llvm.fma.v16f32", V16F, [x, y, z])


def _dots(builder, codes, columns, starts, groups):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c], as float32; cells in the order r * len(columns) + c."""
    dots = list(starts)
    for group in range(groups):
        rows = [load(builder, behind(builder, codes, (group * 2 + r) * 64), V64B, 64) for r in range(2)]
        for c, column in enumerate(columns):
            x = builder.bitcast(_broadcast(builder, behind(builder, column, group * 4), I32), V64B)
            for r in range(2):
                cell = r * len(columns) + c
                dots[cell] = emit_dot(builder, dots[cell], rows[r], x)
    return [builder.sitofp(dot, V16F) for dot in dots]


@intrinsic
def zeros(context, columns):
    """A tile of float32 zeros."""
    tile = _tile(columns)
    return tile(columns), lambda c, b, s, a: c.make_tuple(b, tile, [constant(V16F, 0.0)] * tile.count)


def _add_32(has_starts):
    @intrinsic
    def add(context, tile, codes, columns, at, factors, scale, start):
        """tile[r, c] += factors[r] * scale[c] * (codes[r] . column[c]) over one sub-block of 32 columns.

        at, scale, start   how far behind a column's address its codes, its scale and the dot product's first value stand
        """

        def generate(c, b, s, a):
            cells, column = unpack(b, a[0], tile.count), unpack(b, a[2], columns.count)
            starts = [constant(V16I, 0)] * tile.count
            if has_starts:
                starts = [_broadcast(b, b.add(x, a[6]), I32) for x in column] * 2
            dots = _dots(b, a[1], [b.add(x, a[3]) for x in column], starts, 8)
            factor = [load(b, behind(b, a[4], r * 64), V16F, 64) for r in range(2)]
            out = []
            for i, cell in enumerate(cells):
                r, k = divmod(i, len(column))
                both = b.fmul(factor[r], _broadcast(b, b.add(column[k], a[5]), F32))
                out.append(_fused(b, dots[i], both, cell))
            return c.make_tuple(b, tile, out)

        return tile(tile, codes, columns, at, factors, scale, start), generate

    return add


add_32, add_32_from = _add_32(False), _add_32(True)


@intrinsic
def add_two_16(context, tile, codes, columns, at, factors, scale, start):
    """As add_32_from, of two sub-blocks of 16 columns with one scale: their sum is formed first, one multiplication less."""

    def generate(c, b, s, a):
        cells, column = unpack(b, a[0], tile.count), unpack(b, a[2], columns.count)

        sums = [None] * tile.count
        for half in range(2):
            starts = [_broadcast(b, behind(b, b.add(x, a[6]), half * 4), I32) for x in column] * 2
            dots = _dots(b, behind(b, a[1], half * 512), [behind(b, b.add(x, a[3]), half * 16) for x in column], starts, 4)
            for i, dot in enumerate(dots):
                factor = load(b, behind(b, a[4], half * 128 + i // len(column) * 64), V16F, 64)
                sums[i] = _fused(b, dot, factor, sums[i]) if half else b.fmul(dot, factor)
        scales = [_broadcast(b, b.add(x, a[5]), F32) for x in column] * 2
        return c.make_tuple(b, tile, [_fused(b, *three) for three in zip(sums, scales, cells, strict=True)])

    return tile(tile, codes, columns, at, factors, scale, start), generate


@intrinsic
def add_sums(context, tile, factors, columns, sums):
    """tile[r, c] += factors[r] * sum[c]: the minimums of one sub-block; sums: how far behind a column's address its sum stands."""

    def generate(c, b, s, a):
        out, column = [], unpack(b, a[2], columns.count)
        for i, cell in enumerate(unpack(b, a[0], tile.count)):
            factor = load(b, behind(b, a[1], i // len(column) * 64), V16F, 64)
            out.append(_fused(b, factor, _broadcast(b, b.add(column[i % len(column)], a[3]), F32), cell))
        return c.make_tuple(b, tile, out)

    return tile(tile, factors, columns, sums), generate


@intrinsic
def write(context, tile, table, offset, add):
    """32 results of each column of the table, `offset` bytes behind their row's address, (= or +=) factor * tile[:, column]."""

    def generate(c, b, s, a):
        table, offset, add = a[1:]
        added = b.icmp_unsigned("!=", add, ir.Constant(I64, 0))
        for column in range(tile.count // 2):
            entry = behind(b, table, column * ENTRY)
            row = b.add(load(b, behind(b, entry, RESULT), I64, 8), offset)
            factor = _broadcast(b, behind(b, entry, FACTOR), F32)
            for r in range(2):
                out = pointer(b, behind(b, row, r * 64), V16F)
                before = b.select(added, b.load(out, align=4), constant(V16F, -0.0))
                value = b.fmul(b.extract_value(a[0], r * tile.count // 2 + column), factor)
                b.store(b.fadd(value, before), out, align=4)
        return c.get_dummy_value()

    return types.void(tile, table, offset, add), generate


@kernel(signatures(WIDTHS), apart=True)
def q4_k(panel, n, columns, table, offset, add, ahead, run, end):
    """A panel of Q4_K rows of n columns times activations as quantize_row lays them out, into what the table names.

    offset   bytes from the beginning of a row of results to this panel's 32
    add      0: the results are stored; 1: added to what is there
    For each 32 columns `run` bytes from `ahead` on are asked from memory, up to `end`.
    """
    factors, scales, sums = panel + n * 32, n, n + n // 8
    tile = zeros(columns)
    for j in range(n // 32):
        ask(ahead, run, j, end)
        scale = factors + (j // 8 * 16 + j % 8) * 128
        tile = add_32(tile, panel + j * 1024, columns, j * 32, scale, scales + j * 4, 0)
        tile = add_sums(tile, scale + 1024, columns, sums + j * 4)
    write(tile, table, offset, add)


@kernel(signatures(WIDTHS), apart=True)
def q6_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q6_K rows."""
    factors, scales, starts = panel + n * 32, n, n + n // 2 + n // 8
    tile = zeros(columns)
    for j in range(n // 32):
        ask(ahead, run, j, end)
        tile = add_two_16(tile, panel + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
    write(tile, table, offset, add)


@kernel(signatures(WIDTHS), apart=True)
def q8_0(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q8_0 and Q5_0 rows."""
    factors, scales, starts = panel + n * 32, n, n + n // 2
    tile = zeros(columns)
    for j in range(n // 32):
        ask(ahead, run, j, end)
        tile = add_32_from(tile, panel + j * 1024, columns, j * 32, factors + j * 128, scales + j * 4, starts + j * 4)
    write(tile, table, offset, add)
