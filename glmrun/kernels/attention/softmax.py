"""The softmax of a tile of positions, kept up to date tile by tile, and its weights rounded for the second product.

Queries lie side by side, so nothing is added up across lanes; of few queries the second half's lanes are four positions of each.
Source: Milakov and Gimelshein 2018.
"""

from numba import float32, int64, types
from numba.extending import intrinsic

from glmrun.kernels.attention.columns import BLOCK, QUERIES, SIGNED, TILE, TOGETHER
from glmrun.kernels.attention.rounding import add_beside, maximum_or_nan, round_in_fours, round_in_turn, where_less
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.arithmetic import MAGIC, exp, flip_sign_bit, fma, maximum, to_f32
from glmrun.kernels.simd.dots import add_dot_u8s8
from glmrun.kernels.simd.memory import (
    bytes_of,
    load_f32,
    load_f32x16,
    splat_f32,
    store_f32x16,
    store_u8x64,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.types import V16F, V16I, call, constant, f32x16, shuffle

LOWEST = float32(-1e30)  # below every score, and finite: a query that sees nothing of a segment leaves no NaN
STEPS = 255  # of a weight: never negative, so no bit for a sign
# STEPS * 2**f within 3e-6 for |f| <= 1/2, the polynomial of the fourth power whose largest error is least.
_POWER_OF_TWO = tuple(STEPS * c for c in (0.99999926, 0.69312181, 0.24024745, 0.05591786, 0.0095701))
_SUM = float32(256.0)  # of four weights before they are rounded, where their products are added up: 258 * 127 fits into int16
_LOG2_E, _LEAST = 1.4426950408889634, -20.0
_void = types.void


@intrinsic
def weight(context, score, top):
    """STEPS * e**(score - top) within 3e-6 where score <= top; far below top something less than half a step."""

    def generate(c, b, s, a):
        below = b.fsub(a[0], a[1])
        below = b.select(b.fcmp_ordered(">", below, constant(V16F, _LEAST)), below, constant(V16F, _LEAST))
        whole = call(b, "llvm.fma.v16f32", V16F, [below, constant(V16F, _LOG2_E), constant(V16F, MAGIC)])
        rounded = b.fsub(constant(V16F, MAGIC), whole)
        rest = call(b, "llvm.fma.v16f32", V16F, [below, constant(V16F, _LOG2_E), rounded])
        power = constant(V16F, _POWER_OF_TWO[-1])
        for coefficient in _POWER_OF_TWO[-2::-1]:
            power = call(b, "llvm.fma.v16f32", V16F, [power, rest, constant(V16F, coefficient)])
        exponent = b.shl(b.bitcast(whole, V16I), constant(V16I, 23))
        return b.bitcast(b.add(b.bitcast(power, V16I), exponent), V16F)

    return f32x16(f32x16, f32x16), generate


@intrinsic
def largest_of_fours(context, x):
    """In every lane the largest of its four neighbouring ones."""

    def generate(c, b, s, a):
        x = a[0]
        for swapped in ((1, 0, 3, 2), (2, 3, 0, 1)):
            other = shuffle(b, x, x, [i + lane for i in range(0, 16, 4) for lane in swapped])
            x = b.select(b.fcmp_ordered(">", x, other), x, other)
        return x

    return f32x16(f32x16), generate


@kernel(_void(int64, int64, int64, int64, f32x16))
def _hide(scores, first, after, step, limits):
    """Set scores of positions from limits[q] on to the lowest."""
    for p in range(first, after, step):
        at = scores + p * QUERIES * 4
        store_f32x16(at, where_less(splat_f32(float32(p)), limits, load_f32x16(at), splat_f32(LOWEST)))


@kernel(f32x16(int64, int64, int64, int64))
def _largest(scores, first, after, step):
    """The largest score of a block of positions; NaN if one is NaN."""
    line, wrong = step * QUERIES * 4, zero_f32x16()
    top0 = top1 = top2 = top3 = splat_f32(LOWEST)
    for p in range(first, after, 4 * step):
        at = scores + p * QUERIES * 4
        x0, x1, x2, x3 = load_f32x16(at), load_f32x16(at + line), load_f32x16(at + 2 * line), load_f32x16(at + 3 * line)
        top0, top1, top2, top3 = maximum(x0, top0), maximum(x1, top1), maximum(x2, top2), maximum(x3, top3)
        wrong = fma((x0 + x1) + (x2 + x3), zero_f32x16(), wrong)
    top = maximum(maximum(top0, top1), maximum(top2, top3))
    if step == 4:
        top = largest_of_fours(top)
    return top + wrong


@kernel(f32x16(int64, int64, int64, int64, f32x16))
def _place_weights(scores, first, after, step, top):
    """Weights in the place of a block's scores; of each lane's query the largest sum of those that are added up in 16 bits.

    These are two neighbours and the two 16 positions behind them.
    """
    largest, behind = zero_f32x16(), 16 * QUERIES * 4
    for group in range(first, after, 32):
        for p in range(group, group + 16, 2 * step):
            x, y = scores + p * QUERIES * 4, scores + (p + step) * QUERIES * 4
            x0, x1 = weight(load_f32x16(x), top), weight(load_f32x16(x + behind), top)
            y0, y1 = weight(load_f32x16(y), top), weight(load_f32x16(y + behind), top)
            store_f32x16(x, x0)
            store_f32x16(x + behind, x1)
            store_f32x16(y, y0)
            store_f32x16(y + behind, y1)
            x0, y0 = x0 + x1, y0 + y1
            largest = maximum(x0 + y0 if step == 1 else maximum(add_beside(x0), add_beside(y0)), largest)
    return largest if step == 1 else largest_of_fours(largest)


@kernel(_void(int64, int64, int64, int64, int64, int64, int64), apart=True)
def softmax(scores, n, limits, state, shrinks, weights, few):
    """Scores of n positions into a panel of weights e**(score - largest so far); positions from limits[q] on weigh nothing.

    state    largest score and sum of weights so far, updated
    shrinks  takes what older sums must be multiplied by
    few      whether the second half's lanes are four positions of each of four queries
    """
    one = splat_f32(float32(1.0))
    blocks, factors = (n + BLOCK - 1) // BLOCK, weights + TILE * QUERIES
    for half in range(0, QUERIES * 4, 64):
        step = 4 if few and half else 1
        before = load_f32x16(state + half)
        now, whole, line = before, int64(load_f32(limits + half)) // BLOCK, step * QUERIES * 4
        for b in range(blocks):
            if b >= whole:
                _hide(scores + half, b * BLOCK, (b + 1) * BLOCK, step, load_f32x16(limits + half))
            top = _largest(scores + half, b * BLOCK, (b + 1) * BLOCK, step)
            store_f32x16(factors + b * 128 + half, top)
            now = maximum_or_nan(now, top)
        shrink = exp(before - now)
        total = load_f32x16(state + 128 + half) * shrink
        for b in range(blocks):
            top, sums = load_f32x16(factors + b * 128 + half), zero_i32x16()
            factor, scale = exp(top - now) * splat_f32(float32(1 / STEPS)), one
            if TOGETHER:
                bound = maximum(_place_weights(scores + half, b * BLOCK, (b + 1) * BLOCK, step, top), splat_f32(_SUM))
                scale, factor = splat_f32(_SUM) / bound, factor * bound * splat_f32(float32(1 / _SUM))
            for p in range(b * BLOCK, (b + 1) * BLOCK, 4 * step):
                at = scores + p * QUERIES * 4 + half
                w0, w1, w2, w3 = load_f32x16(at), load_f32x16(at + line), load_f32x16(at + 2 * line), load_f32x16(at + 3 * line)
                if TOGETHER:
                    w0, w1, w2, w3 = w0 * scale, w1 * scale, w2 * scale, w3 * scale
                else:
                    w0, w1, w2, w3 = weight(w0, top), weight(w1, top), weight(w2, top), weight(w3, top)
                rounded = round_in_turn(w0, w1, w2, w3, one, 0) if step == 1 else round_in_fours(w0, w1, w2, w3)
                store_u8x64(weights + p * QUERIES + half, flip_sign_bit(rounded) if SIGNED else rounded)
                sums = add_dot_u8s8(sums, rounded, bytes_of(1))
            store_f32x16(factors + b * 128 + half, factor)
            total = fma(to_f32(sums), factor, total)
        store_f32x16(state + half, now)
        store_f32x16(state + 128 + half, total)
        store_f32x16(shrinks + half, shrink)
