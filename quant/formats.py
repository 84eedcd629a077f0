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
    module: str  # under quant/blocks/; it has decode_<name> and encode_<name>, or decode_<name> and perhaps repack_<name>
    runs_as: str = ""  # for a format that is only read: the one that the kernels are given instead
    loss: str = ""  # what that changes, in words; nothing if empty

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

    def repack(self, blocks: np.ndarray) -> np.ndarray:
        """Rows of a format that is only read as rows of WRITTEN[runs_as]: uint8 (n, bytes of a row) -> uint8 (n, bytes of a row).

        The same values, except for what `loss` says.
        """
        module = import_module(f"quant.blocks.{self.module}")
        if repack := getattr(module, f"repack_{self.name.lower()}", None):
            return repack(blocks)
        return WRITTEN[self.runs_as].encode(self.decode(blocks))

    def _codec(self, verb: str):
        return getattr(import_module(f"quant.blocks.{self.module}"), f"{verb}_{self.name.lower()}")


WRITTEN = {
    f.name: f
    for f in (
        Format("F32", 0, 1, 4, "floats"),
        Format("F16", 1, 1, 2, "floats"),
        Format("BF16", 30, 1, 2, "floats"),
        Format("Q8_0", 8, 32, 34, "q8_0"),
        Format("Q5_0", 6, 32, 22, "q5_0"),
        Format("Q6_K", 14, 256, 210, "q6_k"),
        Format("Q4_K", 12, 256, 144, "q4_k"),
    )
}

# Formats of published files that kernels read where they stand, and convert does not write.
_READ = {
    f.name: f
    for f in (
        Format("Q4_0", 2, 32, 18, "q4_0"),
        Format("IQ4_NL", 20, 32, 18, "iq4"),
        Format("IQ4_XS", 23, 256, 136, "iq4"),
        Format("MXFP4", 39, 32, 17, "mxfp4"),
    )
}

# Formats of published files that no kernel reads: converted once, when a model is opened. Q8_0's 127 steps add little to the 15 or
# 31 of a format with a minimum, at half the size of F16 and on the fast kernels.
_ROUNDED = "rounded to 1/254 of the largest of 32 neighbours"
FOREIGN = {
    f.name: f
    for f in (
        Format("Q4_1", 3, 32, 20, "q4_1", "Q8_0", _ROUNDED),
        Format("Q5_1", 7, 32, 24, "q5_1", "Q8_0", _ROUNDED),
        Format("Q2_K", 10, 256, 84, "q2_k", "Q8_0", _ROUNDED),
        Format("Q3_K", 11, 256, 110, "q3_k", "Q6_K"),
        Format("Q5_K", 13, 256, 176, "q5_k", "Q8_0", _ROUNDED),
    )
}

FORMATS = WRITTEN | _READ  # what the kernels read
READABLE = FORMATS | FOREIGN
_BY_TYPE = {f.ggml_type: f for f in READABLE.values()}


def by_ggml_type(n: int) -> Format | None:
    """The format with GGML's type number n, or None if glmrun does not read it."""
    return _BY_TYPE.get(n)


def ggml_type_name(n: int) -> str | None:
    """GGML's name for type number n, also for types that glmrun does not read; None if gguf-py knows of none."""
    from gguf import GGMLQuantizationType  # slow to import, and only an error needs it

    return next((kind.name for kind in GGMLQuantizationType if kind == n), None)
