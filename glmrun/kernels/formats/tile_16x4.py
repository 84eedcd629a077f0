"""A tile of 16 rows and 4 or 2 columns for 16 registers of 256 bits, and for any CPU (layout: tile.py): eight rows are a vector,
the sums of products stay in registers, the float32 sums in memory, where they are touched once in 32 columns.

With AVX2 and without vpdpbusd products are added up in 16 bits as long as they are exact: 8 * 2 * 15 * 127 of Q4_K fit, and
4 * 2 * 31 * 127 of Q5_K. Those of Q6_K begin at -32 times the sum of the activations and may wrap on the way: all that is left in
the end is the sum of 8 (q - 32) x, at most 8 * 32 * 127. Those of Q8_0 are signed: the size of a code times x with the code's sign
is at most 2 * 128 * 127 for two.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.tile import ENTRY, FACTOR, RESULT, ask, load, signatures, unpack
from glmrun.kernels.simd.dots import emit_dot, emit_dot_i16, emit_pair_sums, emit_pairs, emit_with_signs
from glmrun.kernels.simd.memory import aligned_stack
from glmrun.kernels.simd.target import sums_in_16_bits
from glmrun.kernels.simd.types import F32, I1, I8, I32, I64, V8F, V8I, V16H, behind, call, constant, opaque, pointer, splat

WIDTHS = (4, 2)
_SUMS = 2 * max(WIDTHS) * 32  # bytes of float32 (2, columns, 8), sums of the 16 rows
CELLS = 2 * _SUMS  # bytes in front of the panel: those of all columns, and what a sub-block leaves for its neighbour
_V32B = ir.VectorType(I8, 32)


@kernel(int64(int64))
def width_for(n):
    """How many columns the next tile has if n are left."""
    return 4 if n > 2 else 2


def _broadcast(builder, address, llvm_type):
    """The same 4 bytes in every lane: one operand of the instruction that uses it."""
    return splat(builder, load(builder, address, llvm_type), 8)


def _dots(builder, codes, columns, starts, groups, fit, signed):
    """starts[r, c] + sum over 4 * groups columns of codes[r] * column[c], int32 (8,); cells in the order r * len(columns) + c.

    fit      of so many groups the products can be added up in 16 bits
    signed   codes of Q8_0: where products are added up in 16 bits they are signed, and starts are None
    """
    sums, pairs_fit = list(starts), sums_in_16_bits() and not signed
    if pairs_fit and groups > fit:
        parts = [(behind(builder, codes, i * 128), [behind(builder, x, i * 4) for x in columns]) for i in range(0, groups, fit)]
        dots = [_dots(builder, *part, starts if i == 0 else [None] * len(sums), fit, fit, signed) for i, part in enumerate(parts)]
        return [opaque(builder, builder.add(*halves)) for halves in zip(*dots, strict=True)]
    for group in range(groups):
        rows = [load(builder, behind(builder, codes, group * 128 + r * 32), _V32B, 32) for r in range(2)]
        if signed and sums_in_16_bits():
            sizes = [call(builder, "llvm.abs.v32i8", _V32B, [row, ir.Constant(I1, 0)]) for row in rows]
        for c, column in enumerate(columns):
            x = builder.bitcast(_broadcast(builder, behind(builder, column, group * 4), I32), _V32B)
            for r in range(2):
                cell = r * len(columns) + c
                if pairs_fit:
                    product = emit_pairs(builder, rows[r], x)
                elif sums_in_16_bits():
                    product = emit_pair_sums(builder, emit_pairs(builder, sizes[r], emit_with_signs(builder, x, rows[r])))
                else:
                    sums[cell] = emit_dot(builder, sums[cell], rows[r], x)
                    continue
                sums[cell] = product if sums[cell] is None else opaque(builder, builder.add(sums[cell], product))
    return [emit_pair_sums(builder, one) for one in sums] if pairs_fit else sums


def _starts(builder, columns, signed):
    """What the dot products begin with, from what stands at the columns' addresses; None: nothing."""
    if columns is None:
        return None if sums_in_16_bits() else constant(V8I, 0)
    if signed and sums_in_16_bits():
        return None
    words = _broadcast(builder, columns, I32)
    return builder.bitcast(words, V16H) if sums_in_16_bits() else words


def _adding(fit=8, signed=False, has_minimums=False):
    @intrinsic
    def add(context, cells, codes, columns, at, factors, scale, extra):
        """cells[r, c] += factors[r] * scale[c] * (codes[r] . column[c]) over one sub-block of 32 columns.

        at, scale   how far behind a column's address its codes and its scale stand
        extra       likewise: the dot product's first value, or the sum that Q4_K's minimums meet; they stand behind the factors
        """

        def generate(c, b, s, a):
            cells, codes, factors, column = a[0], a[1], a[4], unpack(b, a[2], columns.count)
            starts = [_starts(b, b.add(x, a[6]) if signed else None, signed) for x in column] * 2
            dots = _dots(b, codes, [b.add(x, a[3]) for x in column], starts, 8, fit, signed)
            for k, x in enumerate(column):
                scale = _broadcast(b, b.add(x, a[5]), F32)
                sums = _broadcast(b, b.add(x, a[6]), F32) if has_minimums else None
                for r in range(2):
                    i = r * len(column) + k
                    place = pointer(b, behind(b, cells, i * 32), V8F)
                    both = b.fmul(load(b, behind(b, factors, r * 32), V8F, 32), scale)
                    cell = call(b, "llvm.fma.v8f32", V8F, [b.sitofp(dots[i], V8F), both, b.load(place, align=32)])
                    if has_minimums:
                        minimums = load(b, behind(b, factors, 1024 + r * 32), V8F, 32)
                        cell = call(b, "llvm.fma.v8f32", V8F, [minimums, sums, cell])
                    b.store(cell, place, align=32)
            return c.get_dummy_value()

        return types.void(cells, codes, columns, at, factors, scale, extra), generate

    return add


add_q4_k, add_q5_k = (_adding(fit, has_minimums=True) for fit in (8, 4))
add_32 = _adding(signed=True)


@intrinsic
def add_two_16(context, cells, codes, columns, at, factors, scale, extra):
    """add_32() over two sub-blocks of 16 columns, which share an activation's scale; so it multiplies both at once."""

    def generate(c, b, s, a):
        cells, codes, factors, column = a[0], a[1], a[4], unpack(b, a[2], columns.count)
        for second in range(2):
            starts = [_starts(b, b.add(x, behind(b, a[6], 4 * second)), False) for x in column] * 2
            met = [b.add(x, behind(b, a[3], 16 * second)) for x in column]
            dots = _dots(b, behind(b, codes, 512 * second), met, starts, 4, 4, False)
            for k, x in enumerate(column):
                scale = _broadcast(b, b.add(x, a[5]), F32) if second else None
                for r in range(2):
                    i = r * len(column) + k
                    place, between = (pointer(b, behind(b, cells, at + i * 32), V8F) for at in (0, _SUMS))
                    dot, factor = b.sitofp(dots[i], V8F), load(b, behind(b, factors, 128 * second + r * 32), V8F, 32)
                    if second:
                        both = call(b, "llvm.fma.v8f32", V8F, [dot, factor, b.load(between, align=32)])
                        b.store(call(b, "llvm.fma.v8f32", V8F, [both, scale, b.load(place, align=32)]), place, align=32)
                    else:
                        b.store(b.fmul(dot, factor), between, align=32)
        return c.get_dummy_value()

    return types.void(cells, codes, columns, at, factors, scale, extra), generate


@intrinsic
def add_minimums(context, cells, minimums, columns, sums, unit, scale):
    """cells[r, c] += unit[r] * scale[c] * (minimums[r] . sums[c]): those of two sub-blocks of 16, int16; unit, scale as above."""

    def generate(c, b, s, a):
        for k, column in enumerate(unpack(b, a[2], columns.count)):
            x = b.bitcast(_broadcast(b, b.add(column, a[3]), I32), V16H)
            for r in range(2):
                place = pointer(b, behind(b, a[0], (r * columns.count + k) * 32), V8F)
                dot = emit_dot_i16(b, constant(V8I, 0), load(b, behind(b, a[1], r * 32), V16H, 32), x)
                both = b.fmul(load(b, behind(b, a[4], r * 32), V8F, 32), _broadcast(b, b.add(column, a[5]), F32))
                b.store(call(b, "llvm.fma.v8f32", V8F, [b.sitofp(dot, V8F), both, b.load(place, align=32)]), place, align=32)
        return c.get_dummy_value()

    return types.void(cells, minimums, columns, sums, unit, scale), generate


@intrinsic
def clear(context, cells, columns):
    """Zeros in a tile's cells."""

    def generate(c, b, s, a):
        for i in range(2 * columns.count):
            b.store(constant(V8F, 0.0), pointer(b, behind(b, a[0], i * 32), V8F), align=32)
        return c.get_dummy_value()

    return types.void(cells, columns), generate


@intrinsic
def write(context, cells, columns, table, offset, add):
    """16 results of each column of the table, `offset` bytes behind their row's address, (= or +=) factor * cells[:, column]."""

    def generate(c, b, s, a):
        cells, _, table, offset, add = a
        added = b.icmp_unsigned("!=", add, ir.Constant(I64, 0))
        for column in range(columns.count):
            entry = behind(b, table, column * ENTRY)
            row = b.add(load(b, behind(b, entry, RESULT), I64, 8), offset)
            factor = _broadcast(b, behind(b, entry, FACTOR), F32)
            for r in range(2):
                out = pointer(b, behind(b, row, r * 32), V8F)
                before = b.select(added, b.load(out, align=4), constant(V8F, -0.0))
                value = b.fmul(load(b, behind(b, cells, (r * columns.count + column) * 32), V8F, 32), factor)
                b.store(b.fadd(value, before), out, align=4)
        return c.get_dummy_value()

    return types.void(cells, columns, table, offset, add), generate


@kernel(signatures(WIDTHS), apart=True)
def q4_k(panel, n, columns, table, offset, add, ahead, run, end):
    """A panel of Q4_K rows of n columns times activations as quantize_row lays them out, into what the table names.

    offset   bytes from the beginning of a row of results to this panel's 32
    add      0: the results are stored; 1: added to what is there
    For each 32 columns `run` bytes from `ahead` on are asked from memory, up to `end`.
    """
    aligned_stack()
    scales, sums, cells = n, n + n // 8, panel - CELLS
    for half in range(2):
        codes, factors = panel + half * 64, panel + n * 32 + half * 64
        clear(cells, columns)
        for j in range(n // 32):
            if half == 0:
                ask(ahead, run, j, end)
            add_q4_k(cells, codes + j * 1024, columns, j * 32, factors + (j // 8 * 16 + j % 8) * 128, scales + j * 4, sums + j * 4)
        write(cells, columns, table, offset + half * 64, add)


if sums_in_16_bits():

    @kernel(signatures(WIDTHS), apart=True)
    def q5_k(panel, n, columns, table, offset, add, ahead, run, end):
        """q4_k() for Q5_K rows."""
        aligned_stack()
        scales, sums, cells = n, n + n // 8, panel - CELLS
        for half in range(2):
            codes, factors = panel + half * 64, panel + n * 32 + half * 64
            clear(cells, columns)
            for j in range(n // 32):
                if half == 0:
                    ask(ahead, run, j, end)
                scale = factors + (j // 8 * 16 + j % 8) * 128
                add_q5_k(cells, codes + j * 1024, columns, j * 32, scale, scales + j * 4, sums + j * 4)
            write(cells, columns, table, offset + half * 64, add)
else:
    q5_k = q4_k  # codes up to 127 are all the same to it


@kernel(signatures(WIDTHS), apart=True)
def q6_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q6_K and Q3_K rows."""
    aligned_stack()
    scales, starts, cells = n, n + n // 2 + n // 8, panel - CELLS
    for half in range(2):
        codes, factors = panel + half * 64, panel + n * 32 + half * 64
        clear(cells, columns)
        for j in range(n // 32):
            if half == 0:
                ask(ahead, run, j, end)
            add_two_16(cells, codes + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
        write(cells, columns, table, offset + half * 64, add)


@kernel(signatures(WIDTHS), apart=True)
def q2_k(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q2_K rows."""
    aligned_stack()
    scales, starts, sums, cells = n, n + n // 2 + n // 8, n + n // 4 + n // 8, panel - CELLS
    for half in range(2):
        codes, factors = panel + half * 64, panel + n * 32 + half * 64
        clear(cells, columns)
        for j in range(n // 32):
            if half == 0:
                ask(ahead, run, j, end)
            add_two_16(cells, codes + j * 1024, columns, j * 32, factors + j * 256, scales + j * 4, starts + j * 8)
            minimums, unit = factors + n * 8 + j * 128, factors + n * 12 + j // 8 * 128
            add_minimums(cells, minimums, columns, sums + j * 4, unit, scales + j * 4)
        write(cells, columns, table, offset + half * 64, add)


@kernel(signatures(WIDTHS), apart=True)
def q8_0(panel, n, columns, table, offset, add, ahead, run, end):
    """q4_k() for Q8_0 rows and the like."""
    aligned_stack()
    scales, starts, cells = n, n + n // 2, panel - CELLS
    for half in range(2):
        codes, factors = panel + half * 64, panel + n * 32 + half * 64
        clear(cells, columns)
        for j in range(n // 32):
            if half == 0:
                ask(ahead, run, j, end)
            add_32(cells, codes + j * 1024, columns, j * 32, factors + j * 128, scales + j * 4, starts + j * 4)
        write(cells, columns, table, offset + half * 64, add)
