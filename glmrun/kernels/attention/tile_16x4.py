"""Attention's products for 16 registers of 256 bits, and for any CPU: 16 or 8 queries in the lanes, 4 positions or latent values
at a time; dot products stay in registers, the float32 sums in memory, where the result is wanted (panels: tile_32x8.py).

With NEON eight queries are two vectors, and no more than eight meet 4 columns at once; words of a column are taken by their lane.
With AVX2 and without vpdpbusd products of TOGETHER words are added up in 16 bits (columns.py).
"""

from functools import reduce

from llvmlite import ir
from numba import float32, int64, types
from numba.extending import intrinsic

from glmrun.kernels.attention.columns import BLOCK, QUERIES, SIGNED, TILE, TOGETHER, block_bytes, join_quarters, key_stride
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.tile import ask
from glmrun.kernels.layout import model_record
from glmrun.kernels.simd.dots import emit_dot, emit_dot_codes, emit_dot_i16, emit_pair_sums, emit_pairs, emit_word
from glmrun.kernels.simd.memory import aligned_stack, load_f32x8, splat_f32x8, store_f32x8
from glmrun.kernels.simd.target import has_neon
from glmrun.kernels.simd.types import F32, I8, I16, I32, I64, V8F, V8I, call, constant, opaque, pointer, shuffle, splat

COLUMNS = 4
_ROW = QUERIES * 4  # bytes of float32 results of a position, or of a latent value
_STEP = 32 if has_neon() else 64  # bytes of float32 results of the queries that meet columns at once
_OCTETS = _STEP // 32
_V32B, _V16H = ir.VectorType(I8, 32), ir.VectorType(I16, 16)


def _load(builder, address, n_bytes, llvm_type, align=4):
    return builder.load(pointer(builder, builder.add(address, ir.Constant(I64, n_bytes)), llvm_type), align=align)


def _key_dot(builder, start, rows, xs):
    """start + query codes (rows) times those of a key (xs): of TOGETHER words, or of one."""
    return emit_dot_codes(builder, start, rows[0], xs[0]) if SIGNED else _dot(builder, start, xs, rows)


def _value_dot(builder, start, rows, xs):
    """start + weights (rows) times latent values (xs), likewise."""
    return emit_dot_codes(builder, start, rows[0], xs[0]) if SIGNED else _dot(builder, start, rows, xs)


def _dot(builder, start, unsigned, signed):
    if not TOGETHER:
        return emit_dot(builder, start, unsigned[0], signed[0])
    pairs = [emit_pairs(builder, *factors) for factors in zip(unsigned, signed, strict=True)]
    return builder.add(start, emit_pair_sums(builder, reduce(builder.add, pairs)))


def _rope_dot(builder, start, rows, xs):
    return emit_dot_i16(builder, start, rows[0], xs[0])


def _four_words(builder, address, i, result):
    """emit_word() of four words, as often as they fill a register."""
    four = _load(builder, address, i * 4, ir.VectorType(I32, 4))
    return builder.bitcast(shuffle(builder, four, four, list(range(4)) * 2), result)


def _start(builder, value, lanes):
    """What the dot products of a column begin with: of so many lanes that add up only the first."""
    return shuffle(builder, splat(builder, value, 8), constant(V8I, 0), [lane if lane % lanes == 0 else 8 for lane in range(8)])


def _adding(dot, words, each=1):
    """An intrinsic for `words` times 4 bytes of a column; each lane takes one of so many neighbouring words, 1 or 4."""
    operand = _V16H if dot is _rope_dot else _V32B
    signed = SIGNED and dot is not _rope_dot
    together = 1 if dot is _rope_dot else max(1, TOGETHER)

    @intrinsic
    def add(context, cells, codes, factors, starts, column, stride, scale, scale_stride):
        """cells[c, q] += factors[q] * scale[c] * (start + codes[q] . column[c]) over one block; c = 0 to 3.

        cells                    address of float32 (4, QUERIES); of each row these queries' part
        codes, factors           of the panel's block, from the first of these queries on
        starts                   address of int32 that the dot products begin with: a key's of each query, a value's of each column
        column, stride           address of the first column's codes, bytes to the next column's
        scale, scale_stride      address of the first column's scale, bytes to the next
        """

        def generate(c, b, s, a):
            cells, codes, factors, starts, column, stride, scale, scale_stride = a
            addresses = [b.add(column, b.mul(stride, ir.Constant(I64, i))) for i in range(COLUMNS)]
            dots = [constant(V8I, 0)] * (_OCTETS * COLUMNS)
            if dot is _key_dot and not signed:
                dots = [_load(b, starts, r * 32, V8I) for r in range(_OCTETS)] * COLUMNS
            elif dot is _value_dot and signed:
                dots = [_start(b, _load(b, starts, i * 4, I32), each) for i in range(COLUMNS) for _ in range(_OCTETS)]
            for first in [at + i for at in range(0, words, 4 * together) for i in range(0, 4, each)]:
                met = range(first, first + 4 * together, 4)
                rows = [[_load(b, codes, word * 128 + r * 32, operand) for word in met] for r in range(_OCTETS)]
                for i, address in enumerate(addresses):
                    xs = [(_four_words if each == 4 else emit_word)(b, address, word, operand) for word in met]
                    for r in range(_OCTETS):
                        cell = i * _OCTETS + r
                        dots[cell] = opaque(b, dot(b, dots[cell], rows[r], xs))
            for i in range(COLUMNS):
                place = b.add(scale, b.mul(scale_stride, ir.Constant(I64, i)))
                x = splat(b, _load(b, place, 0, F32), 8)
                for r in range(_OCTETS):
                    both = b.fmul(_load(b, factors, r * 32, V8F), x)
                    cell = pointer(b, b.add(cells, ir.Constant(I64, i * _ROW + r * 32)), V8F)
                    operands = [b.sitofp(dots[i * _OCTETS + r], V8F), both, b.load(cell, align=4)]
                    b.store(call(b, "llvm.fma.v8f32", V8F, operands), cell, align=4)
            return c.get_dummy_value()

        return types.void(int64, int64, int64, int64, int64, int64, int64, int64), generate

    return add


_latent, _latent_quarters = _adding(_key_dot, BLOCK // 4), _adding(_key_dot, BLOCK // 4, 4)
_rope, _rope_quarters = _adding(_rope_dot, BLOCK // 2), _adding(_rope_dot, BLOCK // 2, 4)
_values, _values_quarters = _adding(_value_dot, BLOCK // 4), _adding(_value_dot, BLOCK // 4, 4)


@kernel(types.void(int64, int64), inline="always")
def _scale_rows(cells, factors):
    """Four rows of float32 results, times factors[q]; zeros where there is no address of factors."""
    for c in range(COLUMNS):
        for q in range(0, _ROW, 32):
            at = cells + c * _ROW + q
            if factors:
                store_f32x8(at, load_f32x8(at) * load_f32x8(factors + q))
            else:
                store_f32x8(at, splat_f32x8(float32(0.0)))


@kernel(types.void(model_record, int64, int64, int64, int64, int64, int64, int64), apart=True)
def scores(m, panel, columns, whole, tail, n, few, out):
    """out[p, q] = softmax_scale * query[q] . row[p], for n positions and some more.

    columns, whole   blocks that follow one another, and how many of them are still met; the one behind them is at `tail`
    few              whether there are no more than FEW queries: then memory is asked for these positions' values and the next keys
    """
    aligned_stack()
    keys, scales = key_stride(m), 2 * m.row - m.latent
    values = block_bytes(m) // BLOCK - keys  # bytes of a position's
    factors = panel + QUERIES * scales
    starts = factors + m.row // BLOCK * 128
    share, key_share = (COLUMNS * values * BLOCK // m.latent + 63) // 64 * 64, (COLUMNS * keys * BLOCK // m.latent + 63) // 64 * 64
    for p in range(0, n, COLUMNS):
        block = columns + p // BLOCK * block_bytes(m) if p // BLOCK < whole else tail
        column, row = block + p % BLOCK * keys, out + p * _ROW
        here, asked = block + BLOCK * keys + p % BLOCK * values, COLUMNS * values if p // BLOCK < whole else 0
        then, asked_keys = column + block_bytes(m), COLUMNS * keys if p // BLOCK + 1 < whole else 0
        _scale_rows(row, 0)
        for half in range(0, 128, _STEP):
            cells = row + half
            for k in range(0, m.latent, BLOCK):
                b = k // BLOCK * 128 + half
                if few and half == 0:
                    ask(here, share, k // BLOCK, here + asked)
                    ask(then, key_share, k // BLOCK, then + asked_keys)
                codes, scale = panel + k * QUERIES + half, column + scales + k // BLOCK * 4
                if few and half >= 64:
                    _latent_quarters(cells, codes, factors + b, starts + b, column + k, keys, scale, keys)
                else:
                    _latent(cells, codes, factors + b, starts + b, column + k, keys, scale, keys)
            for k in range(m.latent, m.row, BLOCK):
                b, at = k // BLOCK * 128 + half, 2 * k - m.latent
                codes, scale = panel + at * QUERIES + half, column + scales + k // BLOCK * 4
                if few and half >= 64:
                    _rope_quarters(cells, codes, factors + b, 0, column + at, keys, scale, keys)
                else:
                    _rope(cells, codes, factors + b, 0, column + at, keys, scale, keys)
        if few:
            join_quarters(row, COLUMNS)


@kernel(types.void(model_record, int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def gather(m, weights, columns, whole, tail, n, few, shrinks, out):
    """out[k, q] = shrinks[q] * out[k, q] + sum_p weights[q, p] * latent[p, k], of the blocks that scores() reads.

    For few queries memory is asked for the keys of the blocks that are met next.
    """
    aligned_stack()
    factors, blocks = weights + TILE * QUERIES, (n + BLOCK - 1) // BLOCK
    values = BLOCK * key_stride(m)
    scales = values + m.latent * BLOCK
    share = (values * COLUMNS // m.latent + 63) // 64 * 64
    for k in range(0, m.latent, COLUMNS):
        row = out + k * _ROW
        _scale_rows(row, shrinks)
        for half in range(0, 128, _STEP):
            for b in range(blocks):
                block = columns + b * block_bytes(m) if b < whole else tail
                codes, factor = weights + b * BLOCK * QUERIES + half, factors + b * 128 + half
                column, scale = block + values + k * BLOCK, block + scales + k * 4
                start = scale + m.latent * 4
                if few and half == 0 and b + blocks < whole:
                    ahead = block + blocks * block_bytes(m)
                    ask(ahead, share, k // COLUMNS, ahead + values)
                if few and half >= 64:
                    _values_quarters(row + half, codes, factor, start, column, BLOCK, scale, 4)
                else:
                    _values(row + half, codes, factor, start, column, BLOCK, scale, 4)
