"""IQ4_NL, Q4_0 and MXFP4 rows times int8 activations, straight on the mapped blocks (layouts: iq4.py, q4_0.py, mxfp4.py of
quant/blocks).

    row . x = sum over blocks of 32 of  d dx (value[q] . x)

A block is a scale and 16 bytes of codes, each of which chooses among the format's 16 values. Codes become value + 128: then
everything else is as beside Q8_0. An address knows which of these blocks stand there: each function is compiled once for each.
"""

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic, models, register_model

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.q8_0 import AHEAD, add_four, add_last, add_two
from glmrun.kernels.formats.unpack import emit_spaced, emit_values
from glmrun.kernels.simd.arithmetic import total
from glmrun.kernels.simd.halves import emit_widen
from glmrun.kernels.simd.memory import prefetch, store_f32, zero_f32x16
from glmrun.kernels.simd.types import I8, I16, I64, V8F, V8I, constant, f32x8, u8x64
from quant.blocks import iq4, mxfp4, q4_0


class Blocks(types.Type):
    """Numba's type of an address of blocks: a scale, float16 or of one byte an exponent, and the codes of 16 values."""

    def __init__(self, name: str, values: list[int], scale: ir.Type) -> None:
        self.values, self.scale, self.codes = values, scale, scale.width // 8
        self.bytes = self.codes + 16
        super().__init__(name=name)


@register_model(Blocks)
class _BlocksModel(models.PrimitiveModel):
    def __init__(self, manager, blocks):
        super().__init__(manager, blocks, I64)


iq4_nl_blocks = Blocks("iq4_nl_blocks", iq4.VALUES.tolist(), I16)
q4_0_blocks = Blocks("q4_0_blocks", q4_0.VALUES.tolist(), I16)
mxfp4_blocks = Blocks("mxfp4_blocks", mxfp4.VALUES.tolist(), I8)
EACH = (iq4_nl_blocks, q4_0_blocks, mxfp4_blocks)


def _at(blocks):
    @intrinsic
    def at(context, address):
        """The address, typed."""
        return blocks(int64), lambda c, b, s, a: a[0]

    return at


iq4_nl_at, q4_0_at, mxfp4_at = (_at(blocks) for blocks in EACH)


@intrinsic
def _further(context, blocks, n):
    """The address n bytes further on, untyped."""
    return int64(blocks, int64), lambda c, b, s, a: b.add(*a)


@intrinsic
def block_bytes(context, blocks):
    """Bytes of one block."""
    return int64(blocks), lambda c, b, s, a: ir.Constant(I64, blocks.bytes)


def emit_scale(builder, blocks, scales):
    """LLVM code for a vector of scales as float32: float16 widened, or 2**(e - 128), where e = 0 becomes 0."""
    n = scales.type.count
    floats = ir.VectorType(V8F.element, n)
    if blocks.scale == I16:
        return emit_widen(builder, scales)
    bits = builder.zext(scales, ir.VectorType(V8I.element, n))
    bits = builder.shl(bits, constant(bits.type, 23))  # 2**(e - 127)
    return builder.fmul(builder.bitcast(bits, floats), constant(floats, 0.5))


@intrinsic(prefer_literal=True)
def _scales(context, blocks, block, count):
    """The scales of `count` neighbouring blocks in the first lanes of 8 float32; zeros behind."""
    n = count.literal_value

    def generate(c, b, s, a):
        return emit_scale(b, blocks, emit_spaced(b, a[1], blocks.scale, n, blocks.bytes))

    return f32x8(blocks, int64, count), generate


@intrinsic
def _values(context, blocks, first, second):
    """What the codes of two blocks stand for, plus 128, 32 each."""

    def generate(c, b, s, a):
        return emit_values(b, blocks.values, *(b.add(address, ir.Constant(I64, blocks.codes)) for address in a[1:]))

    return u8x64(blocks, int64, int64), generate


@kernel([types.void(blocks, int64, int64, int64, int64, int64) for blocks in EACH], apart=True)
def dot_rows(rows, row_bytes, n_rows, n_blocks, x, out):
    """out[r] = dequantize(row r) . x, float32 (n_rows,); rows are row_bytes apart, x as laid out by quantize_row."""
    size = block_bytes(rows)
    for r in range(n_rows):
        row, a, b, i = _further(rows, r * row_bytes), zero_f32x16(), zero_f32x16(), 0
        while i + 4 <= n_blocks:
            block = row + i * size
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
            c0, c1 = _values(rows, block, block + size), _values(rows, block + 2 * size, block + 3 * size)
            a, b = add_four(c0, c1, _scales(rows, block, 4), x, i, n_blocks, a, b)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            a = add_two(_values(rows, block, block + size), _scales(rows, block, 2), x, i, n_blocks, a)
            block += 2 * size
        if n_blocks % 2:
            b = add_last(_values(rows, block, block), _scales(rows, block, 1), x, n_blocks, b)
        store_f32(out + r * 4, total(a + b))


@kernel([types.void(blocks, int64, int64, int64, int64, int64, int64, int64) for blocks in EACH], apart=True)
def dot_rows_two(rows, row_bytes, n_rows, n_blocks, x0, x1, out0, out1):
    """dot_rows() of x0 into out0 and of x1 into out1: each row is unpacked once."""
    size = block_bytes(rows)
    for r in range(n_rows):
        row, i = _further(rows, r * row_bytes), 0
        a0 = a1 = b0 = b1 = zero_f32x16()
        while i + 4 <= n_blocks:
            block = row + i * size
            prefetch(block + AHEAD), prefetch(block + AHEAD + 64)
            c0, c1 = _values(rows, block, block + size), _values(rows, block + 2 * size, block + 3 * size)
            d = _scales(rows, block, 4)
            a0, b0 = add_four(c0, c1, d, x0, i, n_blocks, a0, b0)
            a1, b1 = add_four(c0, c1, d, x1, i, n_blocks, a1, b1)
            i += 4
        block = row + i * size
        if i + 2 <= n_blocks:
            codes, d = _values(rows, block, block + size), _scales(rows, block, 2)
            a0, a1 = add_two(codes, d, x0, i, n_blocks, a0), add_two(codes, d, x1, i, n_blocks, a1)
            block += 2 * size
        if n_blocks % 2:
            codes, d = _values(rows, block, block), _scales(rows, block, 1)
            b0, b1 = add_last(codes, d, x0, n_blocks, b0), add_last(codes, d, x1, n_blocks, b1)
        store_f32(out0 + r * 4, total(a0 + b0))
        store_f32(out1 + r * 4, total(a1 + b1))
