"""Q4_K and Q5_K rows times int8 activations, straight on the mapped blocks (layouts: quant/blocks).

    row . x = sum over blocks of 256 of  d D sum_j (s_j k_j) (q_j . x_j)  -  dmin D sum_j (m_j k_j) (sum of x_j)

over 8 sub-blocks j of 32; D k_j is the scale of the activations' codes x_j (quantize_row). All but d D and dmin D are integers.
Where a block's products of bytes take many instructions, the scales of several blocks are multiplied before their codes: else the
long way from the one to the other holds the vector registers.
"""

from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.activations import k_quant_codes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, typed
from glmrun.kernels.formats.quarters import add_minimums, emit_q4_k_codes, emit_q5_k_codes, packed_scales, times_multiples
from glmrun.kernels.formats.transpose import emit_q4_k_columns, emit_q4_k_factors, emit_q5_k_columns
from glmrun.kernels.formats.unpack import four_f16_times, lane
from glmrun.kernels.simd.arithmetic import add_halves, total
from glmrun.kernels.simd.dots import products_with_scales
from glmrun.kernels.simd.memory import (
    load_f32,
    load_u8x64,
    room_for,
    store_f32,
    zero_f32x8,
    zero_f32x16,
    zero_i32x16,
)
from glmrun.kernels.simd.target import dot_bits
from glmrun.kernels.simd.types import f32x8, i16x16, i32x16, u8x64

AHEAD = 8192  # bytes: across the pages at which the hardware's own prefetching stops, far enough for memory to answer
SOME = 1 if dot_bits() else 8  # blocks whose scales are multiplied together; one: LLVM shall see no loop
SCALES, D = 64, 32  # bytes for those of a block, and how far behind them its d D stands
ROOM = SOME * SCALES
EACH = (
    Rows("Q4_K", 144, codes=emit_q4_k_codes, columns=emit_q4_k_columns, factors=emit_q4_k_factors),
    Rows("Q5_K", 176, codes=emit_q5_k_codes, columns=emit_q5_k_columns, factors=emit_q4_k_factors),
)
q4_k_at, q5_k_at = (typed(rows) for rows in EACH)
# The sub-block of each 16 products, in the lower and the upper half of a block.
_store_scales, _add_lower, _add_upper, _add_block = products_with_scales((0, 1, 0, 1, 2, 3, 2, 3), (8, 9, 8, 9, 10, 11, 10, 11))


@intrinsic(prefer_literal=True)
def codes(context, block, quarter):
    """64 codes of a block of 256."""
    return u8x64(block, quarter), lambda c, b, s, a: block.codes(b, a[0], quarter.literal_value)


@kernel(f32x8(int64, i16x16, int64, int64, int64, f32x8, int64), inline="always")
def _minimums(block, scales, codes, i, n_blocks, minus, out):
    """minus, the sums of lanes, with the minimums' part of block i added; the products of scales and d D are left at `out`.

    scales   s_j and m_j in the order of packed_scales()
    codes    where x has its codes in the order of the block's, and what belongs to them
    The largest magnitude of an int16 is 63 * 127 in `products` and 4 * 31 * 127 in a dot product, of an int32 8 * 15748 * 8001.
    """
    behind = codes + n_blocks * 256
    products = times_multiples(scales, behind + n_blocks * 32 + i * 32)
    _store_scales(products, out)
    factors = four_f16_times(block, load_f32(behind + n_blocks * 96 + i * 4))
    store_f32(out + D, lane(factors, 0))
    return add_minimums(minus, products, behind + i * 32, factors)


@kernel([i32x16(block, int64, int64) for block in EACH], inline="always")
def _lower(block, x, scales):
    """Sums of sub-blocks 0 to 3 times x's codes times the scales that _minimums() left."""
    c0, c1 = codes(block, 0), codes(block, 1)
    return _add_lower(zero_i32x16(), c0, load_u8x64(x), c1, load_u8x64(x + 64), scales)


@kernel([i32x16(i32x16, block, int64, int64) for block in EACH], inline="always")
def _and_upper(sums, block, x, scales):
    """The same with sub-blocks 4 to 7 added."""
    c0, c1 = codes(block, 2), codes(block, 3)
    return _add_upper(sums, c0, load_u8x64(x + 128), c1, load_u8x64(x + 192), scales)


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    codes, room, size = x + k_quant_codes(n_blocks * 256), room_for(ROOM), block_bytes(rows)
    for r in range(n_rows):
        row, plus, minus = rows + r * row_bytes, zero_f32x16(), zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * size, room + (i - first) * SCALES
                minus = _minimums(block, packed_scales(block), codes, i, n_blocks, minus, at)
            for i in range(first, after):
                block, at, k = row + i * size, room + (i - first) * SCALES, codes + i * 256
                ask_blocks(block + AHEAD, 1)
                plus = _add_block(_and_upper(_lower(block, k, at), block, k, at), at + D, plus)
        store_f32(out + r * 4, total(add_halves(plus) - minus))


@kernel([types.void(rows, int64, int64, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    codes0, codes1 = x0 + k_quant_codes(n_blocks * 256), x1 + k_quant_codes(n_blocks * 256)
    room0, room1, size = room_for(ROOM), room_for(ROOM), block_bytes(rows)
    for r in range(n_rows):
        row = rows + r * row_bytes
        p0 = p1 = zero_f32x16()
        m0 = m1 = zero_f32x8()
        for first in range(0, n_blocks, SOME):
            after = min(first + SOME, n_blocks) if SOME > 1 else first + 1
            for i in range(first, after):
                block, at = row + i * size, (i - first) * SCALES
                scales = packed_scales(block)
                m0 = _minimums(block, scales, codes0, i, n_blocks, m0, room0 + at)
                m1 = _minimums(block, scales, codes1, i, n_blocks, m1, room1 + at)
            for i in range(first, after):
                block, at, k = row + i * size, (i - first) * SCALES, i * 256
                ask_blocks(block + AHEAD, 1)
                s0, s1 = _lower(block, codes0 + k, room0 + at), _lower(block, codes1 + k, room1 + at)
                s0, s1 = _and_upper(s0, block, codes0 + k, room0 + at), _and_upper(s1, block, codes1 + k, room1 + at)
                p0, p1 = _add_block(s0, room0 + at + D, p0), _add_block(s1, room1 + at + D, p1)
        store_f32(out0 + r * 4, total(add_halves(p0) - m0))
        store_f32(out1 + r * 4, total(add_halves(p1) - m1))
