"""What reading a prompt multiplies in tiles: 32 rows of a matrix, unpacked once, times a few activation vectors at a time.

A panel holds 32 rows unpacked to one byte a weight, so that one instruction multiplies many rows by 4 columns:

    codes    uint8 (columns / 4, 2, 16, 4)     rows 0 to 15, rows 16 to 31; four neighbouring columns of a row together
    factors  float32 (sub-blocks, 2, 16)       what a sub-block's dot product is worth in each row; of a Q4_K block first its
                                               eight scales, then its eight minimums, negative
    minimums int16 (columns / 32, 2, 16, 2)    of Q2_K only: of two neighbouring sub-blocks of 16 together,
             float32 (blocks, 2, 16)           and what they are worth in each row, negative

A table tells what the columns read and where their results go, ENTRY bytes each: int64 address of the activation, int64 address of
the row of float32 results, float32 factor of the results.

Codes are unsigned: those of Q6_K, Q3_K and Q2_K carry +32, those of Q8_0 and of what shares its tiles +128. The sums that this adds
are taken off where the dot products start, from what quantize_row puts beside the activations. What a column holds does not depend
on the tile's width. Only where products are added up in 16 bits, which codes up to 255 don't allow, these are signed; with NEON all
codes are, and none carries anything.
The tiles themselves: tile_in_registers.py for 32 registers, tile_16x4.py for all others.
"""

from numba import int64, types
from numba.extending import intrinsic

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.memory import prefetch
from glmrun.kernels.simd.target import signed_factors
from glmrun.kernels.simd.types import I64, behind, pointer

ROWS = 32  # of a panel
OFFSET = 0 if signed_factors() else 128  # that codes of Q8_0 and the like carry
ENTRY, RESULT, FACTOR = 24, 8, 16  # bytes: of a column's entry in the table, and where its parts stand


def unpack(builder, value, n):
    """The elements of a tuple of n."""
    return [builder.extract_value(value, i) for i in range(n)]


def load(builder, address, llvm_type, align=4):
    """What stands at the address."""
    return builder.load(pointer(builder, address, llvm_type), align=align)


@intrinsic(prefer_literal=True)
def load_columns(context, table, n):
    """The addresses of the first n activations of a table, as a tuple."""
    columns = types.UniTuple(int64, n.literal_value)

    def generate(c, b, s, a):
        return c.make_tuple(b, columns, [load(b, behind(b, a[0], i * ENTRY), I64, 8) for i in range(columns.count)])

    return columns(int64, n), generate


@kernel(types.void(int64, int64, int64, int64), inline="always")
def ask(ahead, run, j, end):
    """Ask memory for the j-th run of bytes of what is unpacked next, as far as it goes."""
    for address in range(ahead + j * run, min(ahead + (j + 1) * run, end), 64):
        prefetch(address)


def signatures(widths):
    """Of a tile's function, one for each width: (panel, n, columns, table, offset, add, ahead, run, end)."""
    return [types.void(int64, int64, types.UniTuple(int64, width), int64, int64, int64, int64, int64, int64) for width in widths]
