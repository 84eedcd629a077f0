"""What attention reads: cached rows as columns, each value rounded once for all queries that meet it.

A block of them: BLOCK key columns, each int8 (latent,) codes + KEY_OFFSET, int16 (rope,) codes and float32 (row / BLOCK,) scales;
then `latent` value columns, int8 (latent, BLOCK); then their float32 (latent,) scales and, where SIGNED, int32 (latent,) 128 times
the sums of their codes.

A value's scale belongs to all positions of a block. So a block is rounded once, when it is whole, and kept beside the rows; the
last one, until then, in each step anew. What is kept is what would be computed again, bit for bit.

Byte dots take one factor unsigned: keys carry +128 beside the queries' int8, and weights are never negative. NEON takes both
signed: there all factors are SIGNED, keys as they are, weights less 128. Where products are added up in 16 bits, those of
TOGETHER words are, which stand 16 bytes apart: four codes of a query, or four weights, whose sum a block's scale limits so that it
is exact. A weight that stands out keeps its 255 steps, and the errors of many like ones cancel; queries lose a bit
(benchmarks/LOG.md).
"""

from numba import float32, int64, types

from glmrun.kernels.attention.cached_row import load_cached
from glmrun.kernels.attention.rounding import (
    add_beside,
    larger_f16_magnitude,
    round_in_order,
    round_in_turn,
    round_two_bytes,
    sum_fours,
    where_less,
)
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.unpack import transpose_words
from glmrun.kernels.layout import F16, layer_record, model_record, run_at, run_record, step_record, worker_record
from glmrun.kernels.simd.arithmetic import larger_magnitude, largest_of_magnitudes
from glmrun.kernels.simd.dots import add_dot_u8s8
from glmrun.kernels.simd.memory import (
    bytes_of,
    load_f16x16,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i32x16,
    store_i64,
    store_u8x64,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.target import has_neon, sums_in_16_bits
from glmrun.kernels.simd.types import f32x16
from glmrun.kernels.team import first_piece, leave, next_piece

BLOCK = 64  # values that share a scale
TILE = 256  # positions between two updates of the softmax
QUERIES = 32  # of a panel
FEW = 20  # queries, the heads of a token: so few that each in a panel's second half has four lanes, for a quarter of its products
LATENT_STEPS, ROPE_STEPS = float32(127.0), float32(4095.0)  # 64 products of 4,095**2 fit into int32
SIGNED = has_neon()
TOGETHER = 2 if sums_in_16_bits() else 0  # words of a column whose products are added up in 16 bits
KEY_OFFSET = 0 if SIGNED else 128
_void = types.void


@kernel(int64(model_record), inline="always")
def key_stride(m):
    return 2 * m.row - m.latent + m.row // BLOCK * 4


@kernel(int64(model_record), entry=True)
def block_bytes(m):
    """Bytes of a block of columns; 0: attention in float32 reads the rows."""
    if m.float_attention:
        return 0
    return BLOCK * key_stride(m) + m.latent * (BLOCK + 8 if SIGNED else BLOCK + 4)


@kernel(int64(model_record, layer_record, run_record, int64), inline="always")
def block_at(m, layer, run, p):
    """Address of the columns of the run's block that begins at position p: the sequence's, or the run's own if it is not whole."""
    if p + BLOCK > run.position + run.n_tokens:
        return run.tail
    return run.columns + layer.index * run.columns_bytes + p // BLOCK * block_bytes(m)


@kernel(_void(int64, int64))
def join_quarters(scores, n):
    """Add up the four lanes of each query in the second half of n rows: the sums of four rows stand in the first of them."""
    for p in range(0, n, 4):
        at = scores + p * QUERIES * 4 + 64
        rows = load_f32x16(at), load_f32x16(at + 128), load_f32x16(at + 256), load_f32x16(at + 384)
        store_f32x16(at, sum_fours(rows[0], rows[1], rows[2], rows[3]))


@kernel(float32(f32x16, f32x16, f32x16, f32x16), inline="always")
def top_of(a, b, c, d):
    return largest_of_magnitudes(larger_magnitude(larger_magnitude(a, b), larger_magnitude(c, d)))


@kernel(float32(f32x16, f32x16, f32x16, f32x16), inline="always")
def top_of_sums(a, b, c, d):
    """Of 64 values the largest sum of four magnitudes: two neighbours and the two 16 values behind them."""
    zero = zero_f32x16()
    first = larger_magnitude(a, zero) + larger_magnitude(b, zero)
    second = larger_magnitude(c, zero) + larger_magnitude(d, zero)
    return largest_of_magnitudes(larger_magnitude(add_beside(first), add_beside(second)))


@kernel(_void(model_record, int64, int64))
def _key_column(m, row, out):
    """Round one cached row."""
    scales = out + 2 * m.row - m.latent
    for k in range(0, m.row, BLOCK):
        a, b = load_cached(m, row, k), load_cached(m, row, k + 16)
        c, d = load_cached(m, row, k + 32), load_cached(m, row, k + 48)
        top = top_of(a, b, c, d)
        steps = LATENT_STEPS if k < m.latent else ROPE_STEPS
        inverse = splat_f32(float32(0.0) if top == 0 else steps / top)
        if k < m.latent:
            store_u8x64(out + k, round_in_order(a, b, c, d, inverse, KEY_OFFSET))
        else:
            store_u8x64(out + 2 * k - m.latent, round_two_bytes(a, b, inverse))
            store_u8x64(out + 2 * k - m.latent + 64, round_two_bytes(c, d, inverse))
        store_f32(scales + k // BLOCK * 4, top / steps)


@kernel(_void(model_record, int64, int64, int64, int64), apart=True)
def _value_columns(m, rows, n, out, words):
    """Round the latent values of n (1 to BLOCK) positions; what lies beyond repeats the last, with a weight of zero.

    words   scratch, 2,048 bytes
    """
    scales = out + m.latent * BLOCK
    starts = scales + m.latent * 4
    last = rows + (n - 1) * m.row_bytes
    for k in range(0, m.latent, 16):
        if m.cache_type == F16:  # the largest of 32 at once, without widening them
            if k % 32 == 0:
                tops = bytes_of(0)
                for p in range(n):
                    tops = larger_f16_magnitude(tops, rows + p * m.row_bytes + k * 2)
                store_u8x64(words + 1024, tops)
            top = load_f16x16(words + 1024 + k % 32 * 2)
        else:
            top = zero_f32x16()
            for p in range(n):
                top = larger_magnitude(top, load_cached(m, rows + p * m.row_bytes, k))
        inverse = where_less(zero_f32x16(), top, splat_f32(float32(127.0)) / top, zero_f32x16())
        sums = zero_i32x16()
        for p in range(0, BLOCK, 4):
            row = rows + p * m.row_bytes
            x0, x1 = load_cached(m, min(row, last), k), load_cached(m, min(row + m.row_bytes, last), k)
            x2 = load_cached(m, min(row + 2 * m.row_bytes, last), k)
            x3 = load_cached(m, min(row + 3 * m.row_bytes, last), k)
            codes = round_in_turn(x0, x1, x2, x3, inverse, 0)
            store_u8x64(words + p * 16, codes)
            if SIGNED:
                sums = add_dot_u8s8(sums, bytes_of(128), codes)
        if SIGNED:
            store_i32x16(starts + k * 4, sums)
        transpose_words(words, out + k * BLOCK, BLOCK)
        store_f32x16(scales + k * 4, top / splat_f32(float32(127.0)))


@kernel(_void(model_record, layer_record, step_record, worker_record))
def round_cache(m, layer, s, w):
    """Columns of the blocks of every run that have none yet, the last one included, from its cached rows."""
    if m.float_attention:
        return
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        cache, end = run.cache + layer.index * run.layer_bytes, run.position + run.n_tokens
        first = load_i64(run.rounded + layer.index * 8) // BLOCK
        n, piece = 2 * ((end + BLOCK - 1) // BLOCK - first), first_piece(w)
        while piece < n:
            p = (first + piece // 2) * BLOCK
            rows, n_rows, out = cache + p * m.row_bytes, min(BLOCK, end - p), block_at(m, layer, run, p)
            if piece % 2:
                _value_columns(m, rows, n_rows, out + BLOCK * key_stride(m), w.attention)
            else:
                for i in range(n_rows):
                    _key_column(m, rows + i * m.row_bytes, out + i * key_stride(m))
            piece = next_piece(w)
        leave(w, n)


@kernel(_void(layer_record, step_record))
def note_rounded(layer, s):
    """Remember which columns of the runs are kept now; no thread reads that before the next step."""
    for r in range(s.n_runs):
        run = run_at(s.runs, r)
        store_i64(run.rounded + layer.index * 8, (run.position + run.n_tokens) // BLOCK * BLOCK)
