"""Formats that are only read: decoding against gguf-py bit for bit, and what their conversion into ours keeps."""

import gguf
import numpy as np
import pytest
from support.foreign_file import READ_ONLY

from quant.formats import FOREIGN, READABLE, WRITTEN

SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q5_K": (0, 2),
    "MXFP4": (),
}
EXACT = ("Q3_K",)


def blocks_of(name: str, n_rows: int, n_blocks: int, size: float = 0.01) -> np.ndarray:
    """Random rows, uint8 (n_rows, n_blocks blocks); float16 fields are normal numbers of that size."""
    rng, f = np.random.default_rng(n_rows * n_blocks), READABLE[name]
    blocks = rng.integers(0, 256, (n_rows * n_blocks, f.block_bytes), dtype=np.uint8)
    for field in SCALES[name]:
        numbers = (size * rng.standard_normal((len(blocks), 1))).astype("<f2")
        blocks[:, field : field + 2] = numbers.view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(104, 144, len(blocks))  # exponents of scales that float16 has
    return blocks.reshape(n_rows, -1)


@pytest.mark.parametrize("name", READ_ONLY)
def test_decode_is_bit_identical_for_every_scale(name: str) -> None:
    f, patterns = READABLE[name], np.arange(1 << 16, dtype="<u2")
    for field in SCALES[name]:
        blocks = np.random.default_rng(field).integers(0, 256, (1 << 16, f.block_bytes), dtype=np.uint8)
        blocks[:, field : field + 2] = patterns.view(np.uint8).reshape(-1, 2)
        with np.errstate(invalid="ignore"):
            expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        decoded = f.decode(blocks)
        assert decoded.dtype == np.float32
        assert np.array_equal(decoded.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", READ_ONLY)
def test_decode_keeps_leading_axes(name: str) -> None:
    f = READABLE[name]
    blocks = blocks_of(name, 6, 3).reshape(2, 3, -1)
    assert f.decode(blocks).shape == (2, 3, 3 * f.block_length)
    assert np.array_equal(f.decode(blocks)[1, 2], f.decode(blocks[1, 2]))


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_conversion_keeps(name: str) -> None:
    f = FOREIGN[name]
    for n_rows, n_blocks in ((1, 8), (5, 16), (33, 8)):
        blocks = blocks_of(name, n_rows, n_blocks)
        values = f.decode(blocks)
        repacked = f.repack(blocks)
        assert repacked.shape == (n_rows, WRITTEN[f.runs_as].row_bytes(values.shape[1]))
        got = WRITTEN[f.runs_as].decode(repacked)
        assert (f.loss == "") == (name in EXACT)
        if name in EXACT:
            assert np.array_equal(got, values)
            continue
        allowed = np.abs(values).reshape(n_rows, -1, 32).max(-1).repeat(32, -1) / 254 * 1.1  # and the rounding of the scale
        assert (np.abs(got - values) <= allowed).all()


def test_mxfp4_with_every_exponent() -> None:
    """As gguf-py decodes it."""
    blocks = np.random.default_rng(0).integers(0, 256, (256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(READABLE["MXFP4"].decode(blocks), expected)
