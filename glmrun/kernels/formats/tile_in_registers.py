"""Tiles whose sums stay in registers (layout: tile.py): 2 vectors of rows times some columns, as many vectors again for the dot
products of a sub-block, and room for operands. 32 rows and 6 or 4 columns in 32 registers of 512 bits; 8 rows and 4 or 2 columns in
NEON's 32 registers of 128 bits, where four such tiles make the panel's 32 rows.

Two widths, so that an expert with 27 tokens computes 28 columns and not 30 or 32.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.tile import ENTRY, FACTOR, RESULT, ROWS, ask, load, signatures, unpack
from glmrun.kernels.simd.dots import emit_dot_codes, emit_dot_i16, emit_matrix_product, emit_word
from glmrun.kernels.simd.memory import aligned_stack
from glmrun.kernels.simd.target import has_i8mm, has_neon
from glmrun.kernels.simd.types import F32, I8, I16, I32, I64, Vector, behind, call, constant, f32x16, pointer, shuffle, splat

_LANES = 4 if has_neon() else 16
_FLOATS, _WORDS, _BYTES = ir.VectorType(F32, _LANES), ir.VectorType(I32, _LANES), ir.VectorType(I8, 4 * _LANES)
_VECTOR = Vector("f32x4", _FLOATS) if has_neon() else f32x16
_SIZE, _PART = 4 * _LANES, 8 * _LANES  # bytes of a vector, and of a column's results
_PARTS, _PAIRS = ROWS // (2 * _LANES), has_i8mm()  # tiles that make a panel's rows; whether _dots_of_pairs() reads them
WIDTHS = (4, 2) if has_neon() else (6, 4)
CELLS = 0  # bytes in front of the panel that the tile uses


@kernel(int64(int64))
def width_for(n):
    """How many columns the next tile has if n are left: all together no more than n rounded up to 2, and to 4 if n is 1 or 2."""
    even = (n + 1) // 2 * 2
    return WIDTHS[0] if even == WIDTHS[0] or even > 8 else WIDTHS[1]


def _tile(columns):
    """Numba's type of a tile with as many columns as there are addresses in this tuple."""
    return types.UniTuple(_VECTOR, 2 * columns.count)


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return splat(builder, load(builder, address, llvm_type), _LANES)


def _fused(builder, x, y, z):
    return call(builder, f"llvm.fma.v{_LANES}f32", _FLOATS, [x, y, z])


def _dots(builder, codes, columns, starts, groups):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c], as float32; cells in the order r * len(columns) + c."""
    if _PAIRS:
        return _dots_of_pairs(builder, codes, columns, groups)
    dots = list(starts)
    for group in range(groups):
        rows = [load(builder, behind(builder, codes, group * 128 + r * _SIZE), _BYTES, _SIZE) for r in range(2)]
        for c, column in enumerate(columns):
            x = emit_word(builder, column, group, _BYTES)
            for r in range(2):
                cell = r * len(columns) + c
                dots[cell] = emit_dot_codes(builder, dots[cell], rows[r], x)
    return [builder.sitofp(dot, _FLOATS) for dot in dots]


def _dots_of_pairs(builder, codes, columns, groups):
    """_dots() where eight neighbouring columns of a row stand together (transpose.py): two rows times two columns at a time."""
    pairs = len(columns) // 2
    dots = [constant(_WORDS, 0)] * (4 * pairs)  # [two rows][two columns]
    for eight in range(groups // 2):
        both = []
        for p in range(pairs):
            x, y = (load(builder, behind(builder, columns[2 * p + i], eight * 8), ir.VectorType(I8, 8)) for i in range(2))
            both.append(shuffle(builder, x, y, list(range(16))))
        for r in range(4):
            rows = load(builder, behind(builder, codes, eight * 256 + r * 16), _BYTES, 16)
            for p in range(pairs):
                dots[r * pairs + p] = emit_matrix_product(builder, dots[r * pairs + p], rows, both[p])
    cells = []
    for r in range(2):
        for c in range(len(columns)):
            upper, lower = (dots[(2 * r + i) * pairs + c // 2] for i in range(2))
            cells.append(builder.sitofp(shuffle(builder, upper, lower, list(range(c % 2, 8, 2))), _FLOATS))
    return cells


@intrinsic
def zeros(context, columns):
    """A tile of float32 zeros."""
    tile = _tile(columns)
    return tile(columns), lambda c, b, s, a: c.make_tuple(b, tile, [constant(_FLOATS, 0.0)] * tile.count)


def _add_32(has_starts):
    @intrinsic
    def add(context, tile, codes, columns, at, factors, scale, start):
        """tile[r, c] += factors[r] * scale[c] * (codes[r] . column[c]) over one sub-block of 32 columns.

        at, scale, start   how far behind a column's address its codes, its scale and the dot product's first value stand
        """

        def generate(c, b, s, a):
            cells, column = unpack(b, a[0], tile.count), unpack(b, a[2], columns.count)
            starts = [constant(_WORDS, 0)] * tile.count
            if has_starts and not has_neon():
                starts = [_broadcast(b, b.add(x, a[6]), I32) for x in column] * 2
            dots = _dots(b, a[1], [b.add(x, a[3]) for x in column], starts, 8)
            factor = [load(b, behind(b, a[4], r * _SIZE), _FLOATS, _SIZE) for r in range(2)]
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
            starts = [constant(_WORDS, 0)] * tile.count
            if not has_neon():
                starts = [_broadcast(b, behind(b, b.add(x, a[6]), half * 4), I32) for x in column] * 2
            dots = _dots(b, behind(b, a[1], half * 512), [behind(b, b.add(x, a[3]), half * 16) for x in column], starts, 4)
            for i, dot in enumerate(dots):
                factor = load(b, behind(b, a[4], half * 128 + i // len(column) * _SIZE), _FLOATS, _SIZE)
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
            factor = load(b, behind(b, a[1], i // len(column) * _SIZE), _FLOATS, _SIZE)
            out.append(_fused(b, factor, _broadcast(b, b.add(column[i % len(column)], a[3]), F32), cell))
        return c.make_tuple(b, tile, out)

    return tile(tile, factors, columns, sums), generate


@intrinsic
def add_minimums(context, tile, minimums, columns, sums, unit, scale):
    """tile[r, c] += unit[r] * scale[c] * (minimums[r] . sums[c]): those of two sub-blocks of 16, int16; unit, scale as above."""

    def generate(c, b, s, a):
        out, column, pairs = [], unpack(b, a[2], columns.count), ir.VectorType(I16, 2 * _LANES)
        for i, cell in enumerate(unpack(b, a[0], tile.count)):
            r, k = divmod(i, len(column))
            rows = b.bitcast(load(b, behind(b, a[1], r * _SIZE), _WORDS, _SIZE), pairs)
            x = b.bitcast(_broadcast(b, b.add(column[k], a[3]), I32), pairs)
            dot = emit_dot_i16(b, constant(_WORDS, 0), rows, x)
            both = b.fmul(load(b, behind(b, a[4], r * _SIZE), _FLOATS, _SIZE), _broadcast(b, b.add(column[k], a[5]), F32))
            out.append(_fused(b, b.sitofp(dot, _FLOATS), both, cell))
        return c.make_tuple(b, tile, out)

    return tile(tile, minimums, columns, sums, unit, scale), generate


@intrinsic
def write(context, tile, table, offset, add):
    """The results of each column of the table, `offset` bytes behind their row's address, (= or +=) factor * tile[:, column]."""

    def generate(c, b, s, a):
        table, offset, add = a[1:]
        added = b.icmp_unsigned("!=", add, ir.Constant(I64, 0))
        for column in range(tile.count // 2):
            entry = behind(b, table, column * ENTRY)
            row = b.add(load(b, behind(b, entry, RESULT), I64, 8), offset)
            factor = _broadcast(b, behind(b, entry, FACTOR), F32)
            for r in range(2):
                out = pointer(b, behind(b, row, r * _SIZE), _FLOATS)
                before = b.select(added, b.load(out, align=4), constant(_FLOATS, -0.0))
                value = b.fmul(b.extract_value(a[0], r * tile.count // 2 + column), factor)
                b.store(b.fadd(value, before), out, align=4)
        return c.get_dummy_value()

    return types.void(tile, table, offset, add), generate


@kernel(int64(int64, int64), inline="always")
def _codes(panel, part):
    """Where the codes of a part of the panel's rows begin."""
    return panel + (part % 2 * 128 + part // 2 * 64 if _PAIRS else part * _PART)


@kernel(signatures(WIDTHS), apart=True)
def q4_k(panel, n, columns, table, offset, add, ahead, run, end):
    """A panel of Q4_K rows of n columns times activations as quantize_row lays them out, into what the table names.

    offset   bytes from the beginning of a row of results to this panel's 32
    add      0: the results are stored; 1: added to what is there
    For each 32 columns `run` bytes from `ahead` on are asked from memory, up to `end`.
    """
    aligned_stack()
    for part in range(_PARTS):
        factors, scales, sums = panel + n * 32 + part * _PART, n, n + n // 8
        codes, tile = _codes(panel, part), zeros(columns)
        for j in range(n // 32):
            if part == 0:
                ask(ahead, run, j, end)
            scale = factors + (j // 8 * 16 + j % 8) * 128
            tile = add_32(tile, codes + j * 1024, columns, j * 32, scale, scales + j * 4, 0)
            tile = add_sums(tile, scale + 1024, columns, sums + j * 4)
        write(tile, table, offset + part * _PART, add)


q5_k = q4_k  # codes up to 127 are all the same to it


@kernel(signatures(WIDTHS), apart=True)
def q6_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q6_K and Q3_K rows."""
    aligned_stack()
    for part in range(_PARTS):
        factors, scales, starts = panel + n * 32 + part * _PART, n, n + n // 2 + n // 8
        codes, tile = _codes(panel, part), zeros(columns)
        for j in range(n // 32):
            if part == 0:
                ask(ahead, run, j, end)
            tile = add_two_16(tile, codes + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
        write(tile, table, offset + part * _PART, add)


@kernel(signatures(WIDTHS), apart=True)
def q2_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q2_K rows."""
    aligned_stack()
    for part in range(_PARTS):
        factors, scales, starts, sums = panel + n * 32 + part * _PART, n, n + n // 2 + n // 8, n + n // 4 + n // 8
        codes, tile = _codes(panel, part), zeros(columns)
        for j in range(n // 32):
            if part == 0:
                ask(ahead, run, j, end)
            tile = add_two_16(tile, codes + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
            minimums, unit = factors + n * 8 + j * 128, factors + n * 12 + j // 8 * 128
            tile = add_minimums(tile, minimums, columns, sums + j * 4, unit, scales + j * 4)
        write(tile, table, offset + part * _PART, add)


@kernel(signatures(WIDTHS), apart=True)
def q8_0(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q8_0 rows and the like."""
    aligned_stack()
    for part in range(_PARTS):
        factors, scales, starts = panel + n * 32 + part * _PART, n, n + n // 2
        codes, tile = _codes(panel, part), zeros(columns)
        for j in range(n // 32):
            if part == 0:
                ask(ahead, run, j, end)
            tile = add_32_from(tile, codes + j * 1024, columns, j * 32, factors + j * 128, scales + j * 4, starts + j * 4)
        write(tile, table, offset + part * _PART, add)
