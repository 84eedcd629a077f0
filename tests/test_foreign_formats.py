"""Formats that are only read: decoding against gguf-py bit for bit."""

import gguf
import numpy as np
import pytest
from support.foreign_file import READ_ONLY

from quant.formats import FORMATS


def blocks_of(name: str, n_rows: int, n_blocks: int, size: float = 0.01) -> np.ndarray:
    """Random rows, uint8 (n_rows, n_blocks blocks); float16 fields are normal numbers of that size."""
    rng, f = np.random.default_rng(n_rows * n_blocks), FORMATS[name]
    blocks = rng.integers(0, 256, (n_rows * n_blocks, f.block_bytes), dtype=np.uint8)
    for field in f.halves:
        numbers = (size * rng.standard_normal((len(blocks), 1))).astype("<f2")
        blocks[:, field : field + 2] = numbers.view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(104, 144, len(blocks))  # exponents of scales that float16 has
    return blocks.reshape(n_rows, -1)


@pytest.mark.parametrize("name", READ_ONLY)
def test_decode_is_bit_identical_for_every_scale(name: str) -> None:
    f, patterns = FORMATS[name], np.arange(1 << 16, dtype="<u2")
    for field in f.halves:
        blocks = np.random.default_rng(field).integers(0, 256, (1 << 16, f.block_bytes), dtype=np.uint8)
        blocks[:, field : field + 2] = patterns.view(np.uint8).reshape(-1, 2)
        with np.errstate(invalid="ignore"):
            expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        decoded = f.decode(blocks)
        assert decoded.dtype == np.float32
        assert np.array_equal(decoded.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", READ_ONLY)
def test_decode_keeps_leading_axes(name: str) -> None:
    f = FORMATS[name]
    blocks = blocks_of(name, 6, 3).reshape(2, 3, -1)
    assert f.decode(blocks).shape == (2, 3, 3 * f.block_length)
    assert np.array_equal(f.decode(blocks)[1, 2], f.decode(blocks[1, 2]))


def test_mxfp4_with_every_exponent() -> None:
    """As gguf-py decodes it."""
    blocks = np.random.default_rng(0).integers(0, 256, (256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(FORMATS["MXFP4"].decode(blocks), expected)
