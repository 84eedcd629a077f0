"""Attention's products for 32 registers of 512 bits: 32 queries in the lanes, scores of 8 positions, or 8 latent values, at a time.

Because queries lie side by side, the softmax between the two products needs no sum or maximum across lanes.

    query panel    int8 (latent / 4, 2, 16, 4) codes, queries 0 to 15, then 16 to 31, and int16 (rope / 2, 2, 16, 2);
                   float32 (row / BLOCK, 2, 16) what a block's dot product is worth;
                   int32 (latent / BLOCK, 2, 16) -128 times the sums of a block's int8 codes: those of keys carry +128
    weight panel   uint8 (positions / 4, 2, 16, 4); float32 (positions / BLOCK, 2, 16)
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.attention.columns import BLOCK, FEW, QUERIES, TILE, ask_for, block_bytes, key_stride
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import model_record
from glmrun.kernels.simd.dots import emit_dot, emit_dot_i16
from glmrun.kernels.simd.types import F32, I8, I16, I32, I64, V16F, call, constant, f32x8, f32x16, pointer, splat

COLUMNS = 8
_CELLS = 2 * COLUMNS


def _tile(lanes):
    """Numba's type of a tile: 2 vectors for each column."""
    return types.UniTuple(f32x16, _CELLS) if lanes == QUERIES else types.Tuple([f32x16, f32x8] * COLUMNS)


def _at(builder, address, n_bytes):
    return builder.add(address, ir.Constant(I64, n_bytes))


def _load(builder, address, llvm_type):
    return builder.load(pointer(builder, address, llvm_type), align=4)


def _columns(builder, first, stride):
    return [builder.add(first, builder.mul(stride, ir.Constant(I64, c))) for c in range(COLUMNS)]


def _cells(lanes):
    """LLVM types of a tile's cells, queries 0 to 15 and the others of each column."""
    return [V16F, ir.VectorType(F32, lanes - 16)] * COLUMNS


def _of(llvm_type, element, per_lane=1):
    return ir.VectorType(element, llvm_type.count * per_lane)


def _u8_s8(builder, start, codes, x):
    return emit_dot(builder, start, codes, builder.bitcast(x, codes.type))


def _s8_u8(builder, start, codes, x):
    return emit_dot(builder, start, builder.bitcast(x, codes.type), codes)


def _s16_s16(builder, start, codes, x):
    halves = _of(start.type, I16, 2)
    return emit_dot_i16(builder, start, builder.bitcast(codes, halves), builder.bitcast(x, halves))


def _block(dot, words, has_starts, lanes):
    cells = _cells(lanes)

    @intrinsic
    def add(context, tile, codes, factors, starts, column, stride, scale, scale_stride):
        """tile[c, q] += factors[q] * scale[c] * (starts[q] + codes[q] . column[c]) over one block; c = 0 to 7, q = 0 to lanes - 1.

        codes, factors, starts   of the panel's block
        column, stride           address of the first column's codes, bytes to the next column's
        scale, scale_stride      address of the first column's scale, bytes to the next
        """

        def generate(c, b, s, a):
            codes, factors, starts, column, stride, scale, scale_stride = a[1:]
            addresses, scales = _columns(b, column, stride), _columns(b, scale, scale_stride)
            numbers = [_of(cell, I32) for cell in cells]
            dots = [constant(kind, 0) for kind in numbers]
            if has_starts:
                dots = [_load(b, _at(b, starts, i % 2 * 64), kind) for i, kind in enumerate(numbers)]
            for word in range(words):
                rows = [_load(b, _at(b, codes, (word * 2 + r) * 64), _of(cells[r], I8, 4)) for r in range(2)]
                for i, address in enumerate(addresses):
                    x = _load(b, _at(b, address, word * 4), I32)
                    for r in range(2):
                        dots[i * 2 + r] = dot(b, dots[i * 2 + r], rows[r], splat(b, x, cells[r].count))
            factor = [_load(b, _at(b, factors, r * 64), cells[r]) for r in range(2)]
            out = []
            for i, cell in enumerate(cells):
                both = b.fmul(factor[i % 2], splat(b, _load(b, scales[i // 2], F32), cell.count))
                operands = [b.sitofp(dots[i], cell), both, b.extract_value(a[0], i)]
                out.append(call(b, f"llvm.fma.v{cell.count}f32", cell, operands))
            return c.make_tuple(b, tile, out)

        return tile(tile, int64, int64, int64, int64, int64, int64, int64), generate

    return add


add_latent_scores, add_latent_scores_few = (_block(_s8_u8, BLOCK // 4, True, lanes) for lanes in (QUERIES, FEW))
add_rope_scores, add_rope_scores_few = (_block(_s16_s16, BLOCK // 2, False, lanes) for lanes in (QUERIES, FEW))
add_values, add_values_few = (_block(_u8_s8, BLOCK // 4, False, lanes) for lanes in (QUERIES, FEW))


def _zeros(lanes):
    @intrinsic
    def make(context):
        """A tile of float32 zeros."""
        return _tile(lanes)(), lambda c, b, s, a: c.make_tuple(b, _tile(lanes), [constant(kind, 0.0) for kind in _cells(lanes)])

    return make


def _load_scaled(lanes):
    @intrinsic
    def load(context, address, factors):
        """The tile float32 (8, 32) at the address times factors[q], float32 (32,) at an address."""

        def generate(c, b, s, a):
            cells = _cells(lanes)
            factor = [_load(b, _at(b, a[1], r * 64), cells[r]) for r in range(2)]
            values = [b.fmul(_load(b, _at(b, a[0], i * 64), cell), factor[i % 2]) for i, cell in enumerate(cells)]
            return c.make_tuple(b, _tile(lanes), values)

        return _tile(lanes)(int64, int64), generate

    return load


zeros, zeros_few = _zeros(QUERIES), _zeros(FEW)
load_scaled, load_scaled_few = _load_scaled(QUERIES), _load_scaled(FEW)


@intrinsic
def store(context, tile, address):
    """Write a tile as float32 (8, 32); of few queries, what it has."""

    def generate(c, b, s, a):
        for i in range(_CELLS):
            cell = b.extract_value(a[0], i)
            b.store(cell, pointer(b, _at(b, a[1], i * 64), cell.type), align=4)
        return c.get_dummy_value()

    return types.void(tile, int64), generate


@kernel(types.void(model_record, int64, int64, int64, int64, int64, int64, int64), apart=True)
def scores(m, panel, columns, whole, tail, n, few, scores):
    """scores[p, q] = softmax_scale * query[q] . row[p], for n positions and some more; few: no more than FEW queries count.

    columns, whole   blocks that follow one another, and how many of them there are; the one behind them is at `tail`
    """
    keys, scales = key_stride(m), 2 * m.row - m.latent
    values = block_bytes(m) // BLOCK - keys  # bytes of a position's
    factors = panel + QUERIES * scales
    starts = factors + m.row // BLOCK * 128
    for p in range(0, n, COLUMNS):
        block = columns + p // BLOCK * block_bytes(m) if p // BLOCK < whole else tail
        column = block + p % BLOCK * keys
        if few:  # a position's share of what follows: its block's values, then the next block's keys
            asked = COLUMNS * values if p // BLOCK < whole else 0
            then = COLUMNS * keys if p // BLOCK + 1 < whole else 0
            half_tile = zeros_few()
            for k in range(0, m.latent, BLOCK):
                b = k // BLOCK
                ask_for(block + BLOCK * keys + p % BLOCK * values, asked, b, m.latent // BLOCK)
                ask_for(column + block_bytes(m), then, b, m.latent // BLOCK)
                codes, scale = panel + k * QUERIES, column + scales + b * 4
                half_tile = add_latent_scores_few(
                    half_tile, codes, factors + b * 128, starts + b * 128, column + k, keys, scale, keys
                )
            for k in range(m.latent, m.row, BLOCK):
                b, at = k // BLOCK, 2 * k - m.latent
                codes, scale = panel + at * QUERIES, column + scales + b * 4
                half_tile = add_rope_scores_few(half_tile, codes, factors + b * 128, 0, column + at, keys, scale, keys)
            store(half_tile, scores + p * QUERIES * 4)
        else:
            tile = zeros()
            for k in range(0, m.latent, BLOCK):
                b = k // BLOCK
                codes, scale = panel + k * QUERIES, column + scales + b * 4
                tile = add_latent_scores(tile, codes, factors + b * 128, starts + b * 128, column + k, keys, scale, keys)
            for k in range(m.latent, m.row, BLOCK):
                b, at = k // BLOCK, 2 * k - m.latent
                codes, scale = panel + at * QUERIES, column + scales + b * 4
                tile = add_rope_scores(tile, codes, factors + b * 128, 0, column + at, keys, scale, keys)
            store(tile, scores + p * QUERIES * 4)


@kernel(types.void(model_record, int64, int64, int64, int64, int64, int64, int64, int64), apart=True)
def gather(m, weights, columns, whole, tail, n, few, shrinks, out):
    """out[k, q] = shrinks[q] * out[k, q] + sum_p weights[q, p] * latent[p, k], of the blocks that scores() reads."""
    factors, blocks = weights + TILE * QUERIES, (n + BLOCK - 1) // BLOCK
    values = BLOCK * key_stride(m)
    scales = values + m.latent * BLOCK
    for k in range(0, m.latent, COLUMNS):
        at = out + k * QUERIES * 4
        if few:
            half_tile = load_scaled_few(at, shrinks)
            for b in range(blocks):
                block = columns + b * block_bytes(m) if b < whole else tail
                codes, factor, x = weights + b * BLOCK * QUERIES, factors + b * 128, block + values + k * BLOCK
                half_tile = add_values_few(half_tile, codes, factor, 0, x, BLOCK, block + scales + k * 4, 4)
            store(half_tile, at)
        else:
            tile = load_scaled(at, shrinks)
            for b in range(blocks):
                block = columns + b * block_bytes(m) if b < whole else tail
                codes, factor, x = weights + b * BLOCK * QUERIES, factors + b * 128, block + values + k * BLOCK
                tile = add_values(tile, codes, factor, 0, x, BLOCK, block + scales + k * 4, 4)
            store(tile, at)
