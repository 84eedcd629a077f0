"""The table of tensor formats: GGML type number -> name, block length, bytes, decode, encode.

Importing this page loads no Numba: a format's module under quant/blocks/ is imported when the first block passes through it.
Source   GGML's block formats; sizes are checked against gguf-py in tests/test_blocks.py
"""

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from quant.errors import UserError


def _plain(x: np.ndarray) -> np.ndarray:
    """x as the one kind of array the encoders are compiled for; a read-only or unaligned one would make Numba compile again."""
    return np.require(x, np.float32, ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))


@dataclass(frozen=True)
class Format:
    """One way to store a row of weights: whole blocks of block_length values in block_bytes bytes each."""

    name: str
    ggml_type: int
    block_length: int
    block_bytes: int
    module: str  # under quant/blocks/; it has decode_<name> and, if convert writes it, encode_<name>
    halves: tuple[int, ...] = (0,)  # where a block keeps its float16 numbers

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of one row; raises UserError when a row is not whole blocks."""
        if n_columns % self.block_length:
            raise UserError(f"{self.name} rows are whole blocks of {self.block_length} values; this row has {n_columns}")
        return n_columns // self.block_length * self.block_bytes

    def decode(self, blocks: np.ndarray) -> np.ndarray:
        """The values of blocks: uint8 (..., n * block_bytes) -> float32 (..., n * block_length).

        Bit-identical to gguf-py's dequantize for every bit pattern, including scales that are subnormal, infinite or not numbers.
        """
        return self._codec("decode")(blocks)

    def encode(self, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Blocks of rows of finite values: float32 (n, columns) -> uint8 (n, row_bytes(columns)).

        weights  float32 (columns,), importance of each column, not negative, the same for all rows: the block formats search for
                 the least sum(weights * (x - y)**2); F32, F16 and BF16 have nothing to search. None = all columns alike.
        Releases the GIL while it works; columns must be a multiple of block_length (UserError).
        """
        rows = _plain(rows)  # (n, columns)
        if rows.ndim != 2:
            raise ValueError(f"rows have shape {rows.shape}, expected (n, columns)")
        self.row_bytes(rows.shape[1])
        if weights is not None:
            weights = _plain(weights)  # (columns,)
            if weights.shape != (rows.shape[1],):
                raise ValueError(f"weights have shape {weights.shape}, expected ({rows.shape[1]},)")
        return self._codec("encode")(rows, weights)

    def _codec(self, verb: str):
        return getattr(import_module(f"quant.blocks.{self.module}"), f"{verb}_{self.name.lower()}")


WRITTEN = {
    f.name: f
    for f in (
        Format("F32", 0, 1, 4, "floats", ()),
        Format("F16", 1, 1, 2, "floats"),
        Format("BF16", 30, 1, 2, "floats", ()),
        Format("Q8_0", 8, 32, 34, "q8_0"),
        Format("Q5_0", 6, 32, 22, "q5_0"),
        Format("Q6_K", 14, 256, 210, "q6_k", (208,)),
        Format("Q4_K", 12, 256, 144, "q4_k", (0, 2)),
    )
}

# Formats of published files that convert does not write.
_READ = {
    f.name: f
    for f in (
        Format("Q4_0", 2, 32, 18, "q4_0"),
        Format("Q4_1", 3, 32, 20, "q4_1", (0, 2)),
        Format("Q5_1", 7, 32, 24, "q5_1", (0, 2)),
        Format("IQ4_NL", 20, 32, 18, "iq4"),
        Format("MXFP4", 39, 32, 17, "mxfp4", ()),
        Format("Q2_K", 10, 256, 84, "q2_k", (80, 82)),
        Format("Q3_K", 11, 256, 110, "q3_k", (108,)),
        Format("Q5_K", 13, 256, 176, "q5_k", (0, 2)),
        Format("IQ4_XS", 23, 256, 136, "iq4"),
    )
}

FORMATS = WRITTEN | _READ
_BY_TYPE = {f.ggml_type: f for f in FORMATS.values()}


def by_ggml_type(n: int) -> Format | None:
    """The format with GGML's type number n, or None if glmrun does not read it."""
    return _BY_TYPE.get(n)


def ggml_type_name(n: int) -> str | None:
    """GGML's name for type number n, also for types that glmrun does not read; None if gguf-py knows of none."""
    from gguf import GGMLQuantizationType  # slow to import, and only an error needs it

    return next((kind.name for kind in GGMLQuantizationType if kind == n), None)
