"""Rows of Q8_0, IQ4_NL and MXFP4 times int8 activations, straight on the mapped blocks (layouts: quant/blocks).

    row . x = sum over blocks of 32 of  d dx (q . x),   with q . x = (q + 128) . x - 128 sum(x): one factor must be unsigned

q is what a code stands for: itself, or one of the format's 16 values. Two neighbouring blocks share a vector, four the work on
their scales; all 256 byte values of q are exact.
"""

from functools import partial

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.activations import minus_128_sums_of_4
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.address import Rows, ask_blocks, block_bytes, typed
from glmrun.kernels.formats.transpose import emit_q8_0_columns, emit_value_columns
from glmrun.kernels.formats.unpack import emit_q8_0_codes, emit_scales, emit_values, pick_two
from glmrun.kernels.simd.arithmetic import fma, to_f32, total
from glmrun.kernels.simd.dots import dot_codes_of
from glmrun.kernels.simd.memory import load_f32x8, load_half_u8x64, load_u8x64, store_f32, zero_f32x16
from glmrun.kernels.simd.types import I8, I16, I32, behind, constant, f32x8, f32x16, pointer, u7x64, u8x64
from quant.blocks import iq4, mxfp4

AHEAD = 8192  # bytes, as beside Q4_K
_sums, _CODES = types.UniTuple(f32x16, 2), (u8x64, u7x64)  # those of q4_1.py, too


def _of_values(name, values, scale):
    """Rows of blocks of a scale and 16 bytes of codes, each of which chooses among these 16 values."""
    at = scale.width // 8
    codes, columns = (partial(emit, at=at, values=values.tolist()) for emit in (emit_values, emit_value_columns))
    return Rows(name, at + 16, scale=scale, vector=u8x64, codes=codes, columns=columns, offset=0)


EACH = (
    Rows("Q8_0", 34, scale=I16, vector=u8x64, codes=emit_q8_0_codes, columns=emit_q8_0_columns, offset=0),
    _of_values("IQ4_NL", iq4.VALUES, I16),
    _of_values("MXFP4", mxfp4.VALUES, I8),
)
q8_0_at, iq4_nl_at, mxfp4_at = (typed(rows) for rows in EACH)


@intrinsic(prefer_literal=True)
def codes(context, block, count):
    """The codes of two neighbouring blocks, 32 each; or of one (count = 1) twice."""
    second = (count.literal_value - 1) * block.bytes
    return block.vector(block, count), lambda c, b, s, a: block.codes(b, a[0], behind(b, a[0], second))


def emit_some_scales(builder, block, address, n):
    """LLVM code for scales()."""
    lanes = constant(ir.VectorType(block.scale, 8), 0)
    for i in range(n):
        one = builder.load(pointer(builder, behind(builder, address, i * block.bytes), block.scale), align=1)
        lanes = builder.insert_element(lanes, one, ir.Constant(I32, i))
    return emit_scales(builder, lanes)


@intrinsic(prefer_literal=True)
def scales(context, block, count):
    """The scale at the address and those as far into the next blocks, `count` in the first lanes of 8 float32; zeros behind."""
    return f32x8(block, count), lambda c, b, s, a: emit_some_scales(b, block, a[0], count.literal_value)


@kernel([f32x16(codes, int64, int64, f32x16, f32x16) for codes in _CODES], inline="always")
def add_pair(codes, x, starts, scales, result):
    """result + scales (q . x) for two blocks of int8 x, with -128 times the sums of 4 of them at `starts`."""
    return fma(to_f32(dot_codes_of(codes, load_u8x64(x), starts)), scales, result)


@kernel([_sums(codes, codes, f32x8, int64, int64, int64, f32x16, f32x16) for codes in _CODES], inline="always")
def add_four(c0, c1, d, x, i, n_blocks, a, b):
    """Two sums of lanes with blocks i to i + 3 added: two, so that additions wait less. Lanes of d are the blocks' scales."""
    at, starts = x + i * 32, x + minus_128_sums_of_4(n_blocks * 32) + i * 32
    scales = d * load_f32x8(x + n_blocks * 32 + i * 4)
    a = add_pair(c0, at, starts, pick_two(scales, 0, 1), a)
    return a, add_pair(c1, at + 64, starts + 64, pick_two(scales, 2, 3), b)


@kernel([f32x16(codes, f32x8, int64, int64, int64, f32x16) for codes in _CODES], inline="always")
def add_two(codes, d, x, i, n_blocks, a):
    """A sum of lanes with blocks i and i + 1 added."""
    scales = d * load_f32x8(x + n_blocks * 32 + i * 4)
    return add_pair(codes, x + i * 32, x + minus_128_sums_of_4(n_blocks * 32) + i * 32, pick_two(scales, 0, 1), a)


@kernel([f32x16(codes, f32x8, int64, int64, f32x16) for codes in _CODES], inline="always")
def add_last(codes, d, x, n_blocks, a):
    """A sum of lanes with the last block of an odd number added: the upper half meets zeros."""
    i = n_blocks - 1
    dots = dot_codes_of(codes, load_half_u8x64(x + i * 32), x + minus_128_sums_of_4(n_blocks * 32) + i * 32)
    return fma(to_f32(dots), pick_two(d * load_f32x8(x + n_blocks * 32 + i * 4), 0, 1), a)


@kernel([types.void(rows, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x is laid out by quantize_row."""
    size = block_bytes(rows)
    for r in range(n_rows):
        row, a, b, i = rows + r * row_bytes, zero_f32x16(), zero_f32x16(), 0
        while i + 4 <= n_blocks:
            block = row + i * size
            ask_blocks(block + AHEAD, 4)
            a, b = add_four(codes(block, 2), codes(block + 2 * size, 2), scales(block, 4), x, i, n_blocks, a, b)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            a = add_two(codes(block, 2), scales(block, 2), x, i, n_blocks, a)
            block = block + 2 * size
        if n_blocks % 2:
            b = add_last(codes(block, 1), scales(block, 1), x, n_blocks, b)
        store_f32(out + r * 4, total(a + b))


@kernel([types.void(rows, int64, int64, int64, int64, int64, int64, int64) for rows in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    size = block_bytes(rows)
    for r in range(n_rows):
        row, i = rows + r * row_bytes, 0
        a0 = a1 = b0 = b1 = zero_f32x16()
        while i + 4 <= n_blocks:
            block = row + i * size
            ask_blocks(block + AHEAD, 4)
            c0, c1, d = codes(block, 2), codes(block + 2 * size, 2), scales(block, 4)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            c, d = codes(block, 2), scales(block, 2)
            a0, a1 = add_two(c, d, x0, i, n_blocks, a0), add_two(c, d, x1, i, n_blocks, a1)
            block = block + 2 * size
        if n_blocks % 2:
            c, d = codes(block, 1), scales(block, 1)
            b0, b1 = add_last(c, d, x0, n_blocks, b0), add_last(c, d, x1, n_blocks, b1)
        store_f32(out0 + r * 4, total(a0 + b0))
        store_f32(out1 + r * 4, total(a1 + b1))
