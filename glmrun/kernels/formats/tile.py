"""The heart of reading a prompt: 32 rows of a matrix times 6 or 4 activation vectors, all in registers.

A panel holds 32 rows unpacked to one byte a weight, so that one instruction multiplies 16 rows by 4 columns:

    codes    uint8 (columns / 4, 2, 16, 4)     rows 0 to 15, rows 16 to 31; four neighbouring columns of a row together
    factors  float32 (sub-blocks, 2, 16)       what a sub-block's dot product is worth in each row; of a Q4_K block first its
                                               eight scales, then its eight minimums, negative

A table tells what the columns read and where their results go, ENTRY bytes each: int64 address of the activation, int64 address of
the row of float32 results, float32 factor of the results.

Two widths, so that an expert with 27 tokens computes 28 columns and not 32. What a column holds does not depend on the width.
Codes are unsigned: those of Q6_K carry +32, those of Q8_0 and Q5_0 +128. The sums that this adds are taken off where the
dot products start, from what quantize_row puts beside the activations.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import Q4_K, Q6_K
from glmrun.kernels.simd.dots import emit_dot, emit_pair_sums, emit_pairs, emit_with_signs
from glmrun.kernels.simd.memory import prefetch
from glmrun.kernels.simd.target import few_registers
from glmrun.kernels.simd.types import (
    F32,
    I1,
    I8,
    I32,
    I64,
    V8F,
    V16F,
    V16I,
    V64B,
    call,
    constant,
    f32x16,
    pointer,
    shuffle,
    splat,
)

ROWS, COLUMNS = 32, 6  # of the larger tile: 2 x 6 vectors of 16 results, as many again for a sub-block, and room for operands
_WIDTHS = (6, 4)
ENTRY, RESULT, FACTOR = 24, 8, 16  # bytes: of a column's entry in the table, and where its parts stand


def _cells(columns):
    """Numba's type of a tile with as many columns as there are addresses in this tuple."""
    return types.UniTuple(f32x16, 2 * columns.count)


def _unpack(builder, value, n):
    return [builder.extract_value(value, i) for i in range(n)]


def _offset(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _load(builder, address, llvm_type, align=4):
    return builder.load(pointer(builder, address, llvm_type), align=align)


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return splat(builder, _load(builder, address, llvm_type), 16)


def _fused(builder, x, y, z):
    return call(builder, "llvm.fma.v16f32", V16F, [x, y, z])


def _dots(builder, codes, columns, starts, groups):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c], as float32; cells in the order r * len(columns) + c."""
    dots = list(starts)
    for group in range(groups):
        rows = [_load(builder, _offset(builder, codes, (group * 2 + r) * 64), V64B, 64) for r in range(2)]
        for c, column in enumerate(columns):
            x = builder.bitcast(_broadcast(builder, _offset(builder, column, group * 4), I32), V64B)
            for r in range(2):
                cell = r * len(columns) + c
                dots[cell] = emit_dot(builder, dots[cell], rows[r], x)
    return [builder.sitofp(dot, V16F) for dot in dots]


# ---- 16 registers of 256 bits -----------------------------------------------------------------------------------------
# Eight rows at a time: their dot products with all columns stay in registers, the tile's float sums in memory. Products of codes up
# to 63 are added up in 16 bits as far as they are exact: 63 * 127 * 2 * 2 and 15 * 127 * 2 * 8 fit. Codes up to 255 carry +128,
# which is taken off here: the size of a code times x with the code's sign is at most 128 * 127 * 2 for two.

NARROW, HALF, WIDE = 15, 63, 255  # the largest code
_V8H = ir.VectorType(I8, 32)


def _kept(builder, value):
    """The same value; LLVM may not look through it: else it adds a whole row of products as a tree, and spills it."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=x,0", [value], False)


def _fence(builder):
    """No load is kept in a register from before to behind: else LLVM reads all columns once, and spills them."""
    builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)


def _octet_dots(builder, codes, columns, starts, groups, largest):
    """Eight rows: starts[c] + sum over 4 * groups columns of codes . column[c], int32 (8,) for each column."""
    flip = constant(_V8H, 0x80)
    sums, dots = [None] * len(columns), list(starts)
    for group in range(groups):
        rows = _load(builder, _offset(builder, codes, group * 128), _V8H, 32)
        if largest == WIDE:
            rows = builder.xor(rows, flip)
            sizes = call(builder, "llvm.abs.v32i8", _V8H, [rows, ir.Constant(I1, 0)])
        for c, column in enumerate(columns):
            word = _load(builder, _offset(builder, column, group * 4), I32)
            x = builder.bitcast(splat(builder, word, 8), _V8H)
            if largest == WIDE:
                pairs = emit_pairs(builder, sizes, emit_with_signs(builder, x, rows))
            else:
                pairs = emit_pairs(builder, rows, x)
            sums[c] = pairs if sums[c] is None else _kept(builder, builder.add(sums[c], pairs))
            full = largest == WIDE or (largest == HALF and group % 2 == 1) or group == groups - 1
            if full:
                quads = emit_pair_sums(builder, sums[c])
                dots[c], sums[c] = quads if dots[c] is None else builder.add(dots[c], quads), None
    return dots


def _octets(builder, tile, n_columns, compute):
    """The tile with compute(row, cells) in the place of each eight rows' cells; row: bytes of float32 rows in front of them."""
    out = [[None, None] for _ in tile]
    for octet in range(4):
        r, half = divmod(octet, 2)
        lanes = list(range(half * 8, half * 8 + 8))
        cells = [shuffle(builder, tile[r * n_columns + c], tile[r * n_columns + c], lanes) for c in range(n_columns)]
        for c, cell in enumerate(compute(octet * 32, cells)):
            out[r * n_columns + c][half] = cell
        _fence(builder)
    return [shuffle(builder, low, high, list(range(16))) for low, high in out]


def _fused_8(builder, x, y, z):
    return call(builder, "llvm.fma.v8f32", V8F, [x, y, z])


def _broadcast_8(builder, address, llvm_type):
    return splat(builder, _load(builder, address, llvm_type), 8)


# ---- additions to a tile ----------------------------------------------------------------------------------------------


@intrinsic
def zeros(context, columns):
    """A tile of float32 zeros."""
    cells = _cells(columns)
    return cells(columns), lambda c, b, s, a: c.make_tuple(b, cells, [constant(V16F, 0.0)] * cells.count)


def _add_32(has_starts, largest):
    @intrinsic
    def add(context, tile, codes, columns, at, factors, scale, start):
        """tile[r, c] += factors[r] * scale[c] * (codes[r] . column[c]) over one sub-block of 32 columns.

        at, scale, start   how far behind a column's address its codes, its scale and the dot product's first value stand
        """

        def generate(c, b, s, a):
            cells, column = _unpack(b, a[0], tile.count), _unpack(b, a[2], columns.count)

            def eight_rows(row, eight):
                starts = [None] * len(column)
                if has_starts and largest != WIDE:
                    starts = [_broadcast_8(b, b.add(x, a[6]), I32) for x in column]
                dots = _octet_dots(b, _offset(b, a[1], row), [b.add(x, a[3]) for x in column], starts, 8, largest)
                factor = _load(b, _offset(b, a[4], row), V8F, 32)
                both = [b.fmul(factor, _broadcast_8(b, b.add(x, a[5]), F32)) for x in column]
                return [_fused_8(b, b.sitofp(dot, V8F), y, z) for dot, y, z in zip(dots, both, eight, strict=True)]

            if few_registers():
                return c.make_tuple(b, tile, _octets(b, cells, len(column), eight_rows))
            starts = [constant(V16I, 0)] * tile.count
            if has_starts:
                starts = [_broadcast(b, b.add(x, a[6]), I32) for x in column] * 2
            dots = _dots(b, a[1], [b.add(x, a[3]) for x in column], starts, 8)
            factor = [_load(b, _offset(b, a[4], r * 64), V16F, 64) for r in range(2)]
            out = []
            for i, cell in enumerate(cells):
                r, k = divmod(i, len(column))
                both = b.fmul(factor[r], _broadcast(b, b.add(column[k], a[5]), F32))
                out.append(_fused(b, dots[i], both, cell))
            return c.make_tuple(b, tile, out)

        return tile(tile, codes, columns, at, factors, scale, start), generate

    return add


add_32, add_32_from = _add_32(False, NARROW), _add_32(True, WIDE)


@intrinsic
def add_two_16(context, tile, codes, columns, at, factors, scale, start):
    """As add_32_from, of two sub-blocks of 16 columns with one scale: their sum is formed first, one multiplication less."""

    def generate(c, b, s, a):
        cells, column = _unpack(b, a[0], tile.count), _unpack(b, a[2], columns.count)

        def eight_rows(row, eight):
            sums = [None] * len(column)
            for half in range(2):
                starts = [_broadcast_8(b, _offset(b, b.add(x, a[6]), half * 4), I32) for x in column]
                at = [_offset(b, b.add(x, a[3]), half * 16) for x in column]
                dots = _octet_dots(b, _offset(b, a[1], row + half * 512), at, starts, 4, HALF)
                factor = _load(b, _offset(b, a[4], row + half * 128), V8F, 32)
                for i, dot in enumerate(dots):
                    value = b.sitofp(dot, V8F)
                    sums[i] = _fused_8(b, value, factor, sums[i]) if half else b.fmul(value, factor)
            scales = [_broadcast_8(b, b.add(x, a[5]), F32) for x in column]
            return [_fused_8(b, *three) for three in zip(sums, scales, eight, strict=True)]

        if few_registers():
            return c.make_tuple(b, tile, _octets(b, cells, len(column), eight_rows))
        sums = [None] * tile.count
        for half in range(2):
            starts = [_broadcast(b, _offset(b, b.add(x, a[6]), half * 4), I32) for x in column] * 2
            dots = _dots(b, _offset(b, a[1], half * 512), [_offset(b, b.add(x, a[3]), half * 16) for x in column], starts, 4)
            for i, dot in enumerate(dots):
                factor = _load(b, _offset(b, a[4], half * 128 + i // len(column) * 64), V16F, 64)
                sums[i] = _fused(b, dot, factor, sums[i]) if half else b.fmul(dot, factor)
        scales = [_broadcast(b, b.add(x, a[5]), F32) for x in column] * 2
        return c.make_tuple(b, tile, [_fused(b, *three) for three in zip(sums, scales, cells, strict=True)])

    return tile(tile, codes, columns, at, factors, scale, start), generate


@intrinsic
def add_sums(context, tile, factors, columns, sums):
    """tile[r, c] += factors[r] * sum[c]: the minimums of one sub-block; sums: how far behind a column's address its sum stands."""

    def generate(c, b, s, a):
        out, column = [], _unpack(b, a[2], columns.count)
        for i, cell in enumerate(_unpack(b, a[0], tile.count)):
            factor = _load(b, _offset(b, a[1], i // len(column) * 64), V16F, 64)
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
            entry = _offset(b, table, column * ENTRY)
            row = b.add(_load(b, _offset(b, entry, RESULT), I64, 8), offset)
            factor = _broadcast(b, _offset(b, entry, FACTOR), F32)
            for r in range(2):
                out = pointer(b, _offset(b, row, r * 64), V16F)
                before = b.select(added, b.load(out, align=4), constant(V16F, -0.0))
                value = b.fmul(b.extract_value(a[0], r * tile.count // 2 + column), factor)
                b.store(b.fadd(value, before), out, align=4)
        return c.get_dummy_value()

    return types.void(tile, table, offset, add), generate


@intrinsic(prefer_literal=True)
def load_columns(context, table, n):
    """The addresses of the first n activations of a table, as a tuple."""
    columns = types.UniTuple(int64, n.literal_value)

    def generate(c, b, s, a):
        return c.make_tuple(b, columns, [_load(b, _offset(b, a[0], i * ENTRY), I64, 8) for i in range(columns.count)])

    return columns(int64, n), generate


_each_width = [
    types.void(int64, int64, types.UniTuple(int64, width), int64, int64, int64, int64, int64, int64) for width in _WIDTHS
]


@kernel(types.void(int64, int64, int64, int64), inline="always")
def _ask(ahead, run, j, end):
    """Ask memory for the j-th run of bytes of what is unpacked next, as far as it goes."""
    for address in range(ahead + j * run, min(ahead + (j + 1) * run, end), 64):
        prefetch(address)


@kernel(_each_width)
def q4_k(panel, n, columns, table, offset, add, ahead, run, end):
    """A panel of Q4_K rows of n columns times activations as quantize_row lays them out, into what the table names.

    offset   bytes from the beginning of a row of results to this panel's 32
    add      0: the results are stored; 1: added to what is there
    For each 32 columns `run` bytes from `ahead` on are asked from memory, up to `end`.
    """
    factors, scales, sums = panel + n * 32, n, n + n // 8
    tile = zeros(columns)
    for j in range(n // 32):
        _ask(ahead, run, j, end)
        scale = factors + (j // 8 * 16 + j % 8) * 128
        tile = add_32(tile, panel + j * 1024, columns, j * 32, scale, scales + j * 4, 0)
        tile = add_sums(tile, scale + 1024, columns, sums + j * 4)
    write(tile, table, offset, add)


@kernel(_each_width)
def q6_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q6_K rows."""
    factors, scales, starts = panel + n * 32, n, n + n // 2 + n // 8
    tile = zeros(columns)
    for j in range(n // 32):
        _ask(ahead, run, j, end)
        tile = add_two_16(tile, panel + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
    write(tile, table, offset, add)


@kernel(_each_width)
def q8_0(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q8_0 and Q5_0 rows."""
    factors, scales, starts = panel + n * 32, n, n + n // 2
    tile = zeros(columns)
    for j in range(n // 32):
        _ask(ahead, run, j, end)
        tile = add_32_from(tile, panel + j * 1024, columns, j * 32, factors + j * 128, scales + j * 4, starts + j * 4)
    write(tile, table, offset, add)


@kernel([types.void(int64, *signature.args) for signature in _each_width])
def _of_format(weight_format, panel, n, columns, table, offset, add, ahead, run, end):
    if weight_format == Q4_K:
        q4_k(panel, n, columns, table, offset, add, ahead, run, end)
    elif weight_format == Q6_K:
        q6_k(panel, n, columns, table, offset, add, ahead, run, end)
    else:
        q8_0(panel, n, columns, table, offset, add, ahead, run, end)


@kernel(int64(int64))
def width_for(n):
    """How many columns the next tile has if n are left: all together no more than n rounded up to 2, and to 4 if n is 1 or 2."""
    even = (n + 1) // 2 * 2
    return 6 if even == 6 or even > 8 else 4


@kernel(types.void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64))
def multiply_tile(weight_format, panel, n, table, width, offset, add, ahead, run, end):
    """q4_k() and so on for a panel of this format and the first `width` columns of a table."""
    if width == 6:
        _of_format(weight_format, panel, n, load_columns(table, 6), table, offset, add, ahead, run, end)
    else:
        _of_format(weight_format, panel, n, load_columns(table, 4), table, offset, add, ahead, run, end)
