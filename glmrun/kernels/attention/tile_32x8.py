"""Attention's products for 32 registers of 512 bits: 32 queries in the lanes, scores of 8 positions, or 8 latent values, at a time.

Because queries lie side by side, the softmax between the two products needs no sum or maximum across lanes.

    query panel    int8 (latent / 4, 2, 16, 4) codes, queries 0 to 15, then 16 to 31, and int16 (rope / 2, 2, 16, 2);
                   float32 (row / BLOCK, 2, 16) what a block's dot product is worth;
                   int32 (latent / BLOCK, 2, 16) -128 times the sums of a block's int8 codes: those of keys carry +128
    weight panel   uint8 (positions / 4, 2, 16, 4); float32 (positions / BLOCK, 2, 16)

Of few queries (columns.FEW) each in the second half has four lanes: a lane takes 4 of each 16 neighbouring bytes of a block. Where
such 16 bytes begin stand the four queries' codes for them, and nothing between; what belongs to a lane is there for all four.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.attention.columns import BLOCK, QUERIES, TILE, block_bytes, join_quarters, key_stride
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.tile import ask
from glmrun.kernels.layout import model_record
from glmrun.kernels.simd.dots import emit_dot, emit_dot_i16
from glmrun.kernels.simd.memory import aligned_stack
from glmrun.kernels.simd.types import (
    F32,
    I32,
    I64,
    V16F,
    V16I,
    V32H,
    V64B,
    behind,
    call,
    constant,
    f32x16,
    opaque,
    pointer,
    shuffle,
    splat,
)

COLUMNS = 8
_CELLS = 2 * COLUMNS  # of a tile: 2 vectors for each column
_tile = types.UniTuple(f32x16, _CELLS)


def _load(builder, address, llvm_type):
    return builder.load(pointer(builder, address, llvm_type), align=4)


def _columns(builder, first, stride):
    return [builder.add(first, builder.mul(stride, ir.Constant(I64, c))) for c in range(COLUMNS)]


def _four_words(builder, address):
    """16 bytes of a column, four times over; opaque: words are taken from it by a shuffle, not from memory."""
    words = _load(builder, address, ir.VectorType(I32, 4))
    return opaque(builder, shuffle(builder, words, words, list(range(4)) * 4))


def _u8_s8(builder, start, codes, x):
    return emit_dot(builder, start, codes, x)


def _s8_u8(builder, start, codes, x):
    return emit_dot(builder, start, x, codes)


def _s16_s16(builder, start, codes, x):
    return emit_dot_i16(builder, start, builder.bitcast(codes, V32H), builder.bitcast(x, V32H))


def _block(dot, words, has_starts, few):
    @intrinsic
    def add(context, tile, codes, factors, starts, column, stride, scale, scale_stride):
        """tile[c, q] += factors[q] * scale[c] * (starts[q] + codes[q] . column[c]) over one block; c = 0 to 7, q in the lanes.

        codes, factors, starts   of the panel's block
        column, stride           address of the first column's codes, bytes to the next column's
        scale, scale_stride      address of the first column's scale, bytes to the next
        """

        def generate(c, b, s, a):
            codes, factors, starts, column, stride, scale, scale_stride = a[1:]
            addresses, scales = _columns(b, column, stride), _columns(b, scale, scale_stride)
            dots = [constant(V16I, 0)] * _CELLS
            if has_starts:
                dots = [_load(b, behind(b, starts, r * 64), V16I) for r in range(2)] * COLUMNS
            for first in range(0, words, 4):
                fours = [_four_words(b, behind(b, address, first * 4)) for address in addresses]
                for word in range(first, first + 4):
                    halves = range(2) if not few or word == first else (0,)
                    rows = [_load(b, behind(b, codes, word * 128 + r * 64), V64B) for r in halves]
                    for i, four in enumerate(fours):
                        x = shuffle(b, four, four, [lane + word % 4 for lane in range(0, 16, 4) for _ in range(4)])
                        for r, row in enumerate(rows):
                            dots[i * 2 + r] = dot(b, dots[i * 2 + r], row, b.bitcast(four if few and r else x, V64B))
            factor = [_load(b, behind(b, factors, r * 64), V16F) for r in range(2)]
            out = []
            for i in range(_CELLS):
                both = b.fmul(factor[i % 2], splat(b, _load(b, scales[i // 2], F32), 16))
                out.append(call(b, "llvm.fma.v16f32", V16F, [b.sitofp(dots[i], V16F), both, b.extract_value(a[0], i)]))
            return c.make_tuple(b, tile, out)

        return tile(tile, int64, int64, int64, int64, int64, int64, int64), generate

    return add


add_latent_scores, add_latent_scores_few = (_block(_s8_u8, BLOCK // 4, True, few) for few in (False, True))
add_rope_scores, add_rope_scores_few = (_block(_s16_s16, BLOCK // 2, False, few) for few in (False, True))
add_values, add_values_few = (_block(_u8_s8, BLOCK // 4, False, few) for few in (False, True))


@intrinsic
def zeros(context):
    """A tile of float32 zeros."""
    return _tile(), lambda c, b, s, a: c.make_tuple(b, _tile, [constant(V16F, 0.0)] * _CELLS)


@intrinsic
def load_scaled(context, address, factors):
    """The tile float32 (8, 32) at the address times factors[q], float32 (32,) at an address."""

    def generate(c, b, s, a):
        factor = [_load(b, behind(b, a[1], r * 64), V16F) for r in range(2)]
        return c.make_tuple(b, _tile, [b.fmul(_load(b, behind(b, a[0], i * 64), V16F), factor[i % 2]) for i in range(_CELLS)])

    return _tile(int64, int64), generate


@intrinsic
def store(context, tile, address):
    """Write a tile as float32 (8, 32)."""

    def generate(c, b, s, a):
        for i in range(_CELLS):
            b.store(b.extract_value(a[0], i), pointer(b, behind(b, a[1], i * 64), V16F), align=4)
        return c.get_dummy_value()

    return types.void(_tile, int64), generate


@kernel(types.void(model_record, int64, int64, int64, int64, int64, int64, int64), apart=True)
def scores(m, panel, columns, whole, tail, n, few, scores):
    """scores[p, q] = softmax_scale * query[q] . row[p], for n positions and some more.

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
        column = block + p % BLOCK * keys
        here, asked = block + BLOCK * keys + p % BLOCK * values, COLUMNS * values if p // BLOCK < whole else 0
        then, asked_keys = column + block_bytes(m), COLUMNS * keys if p // BLOCK + 1 < whole else 0
        tile = zeros()
        for k in range(0, m.latent, BLOCK):
            b = k // BLOCK
            codes, scale = panel + k * QUERIES, column + scales + b * 4
            if few:
                ask(here, share, b, here + asked)
                ask(then, key_share, b, then + asked_keys)
                tile = add_latent_scores_few(tile, codes, factors + b * 128, starts + b * 128, column + k, keys, scale, keys)
            else:
                tile = add_latent_scores(tile, codes, factors + b * 128, starts + b * 128, column + k, keys, scale, keys)
        for k in range(m.latent, m.row, BLOCK):
            b, at = k // BLOCK, 2 * k - m.latent
            codes, scale = panel + at * QUERIES, column + scales + b * 4
            if few:
                tile = add_rope_scores_few(tile, codes, factors + b * 128, 0, column + at, keys, scale, keys)
            else:
                tile = add_rope_scores(tile, codes, factors + b * 128, 0, column + at, keys, scale, keys)
        store(tile, scores + p * QUERIES * 4)
        if few:
            join_quarters(scores + p * QUERIES * 4, COLUMNS)


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
        tile = load_scaled(out + k * QUERIES * 4, shrinks)
        for b in range(blocks):
            block = columns + b * block_bytes(m) if b < whole else tail
            codes, factor, x = weights + b * BLOCK * QUERIES, factors + b * 128, block + values + k * BLOCK
            if few:
                if b + blocks < whole:
                    ahead = block + blocks * block_bytes(m)
                    ask(ahead, share, k // COLUMNS, ahead + values)
                tile = add_values_few(tile, codes, factor, 0, x, BLOCK, block + scales + k * 4, 4)
            else:
                tile = add_values(tile, codes, factor, 0, x, BLOCK, block + scales + k * 4, 4)
        store(tile, out + k * QUERIES * 4)
