"""Weights that are infinite or no numbers are found in every format, wherever they stand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.foreign_file import READ_ONLY, Parts, random_blocks
from support.tiny_model import Tiny

import glmrun
from glmrun.gguf.file import TensorInfo
from glmrun.gguf.open import open_gguf
from glmrun.tensors.finite import FiniteCheck, first_not_finite
from quant.errors import UserError
from quant.formats import FORMATS, WRITTEN

BAD = {
    "F32": (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001),
    "BF16": (0x7F80, 0xFF80, 0x7FC0),
    "F16": (0x7C00, 0xFC00, 0x7C01, 0x7FFF),
    "MXFP4": (0xA0, 0xBF, 0xC0, 0xFF),
}


def tensor_of(name: str, n_rows: int, n_columns: int) -> TensorInfo:
    if name in READ_ONLY:
        blocks = random_blocks(name, n_rows, n_columns, 0.1)
    else:
        blocks = WRITTEN[name].encode(np.random.default_rng(1).standard_normal((n_rows, n_columns), np.float32))
    return TensorInfo("t", (n_rows, n_columns), name, blocks.reshape(-1))


@pytest.mark.parametrize("name", FORMATS)
def test_one_number_among_many(name: str) -> None:
    f, rng = FORMATS[name], np.random.default_rng(2)
    tensor = tensor_of(name, 33, 768 if f.block_length > 1 else 77)
    assert first_not_finite(tensor) is None
    assert np.isfinite(tensor.floats()).all()
    n_blocks = tensor.n_bytes // f.block_bytes
    patterns = BAD.get(name, BAD["F16"])
    for block in {0, 1, n_blocks // 2, n_blocks - 2, n_blocks - 1, *rng.integers(0, n_blocks, 20).tolist()}:
        for field in f.halves or (0,):
            for bits in patterns:
                raw = bits.to_bytes(4 if name == "F32" else 2, "little")
                at = block * f.block_bytes + field
                damaged = tensor.data.copy()
                damaged[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
                found = first_not_finite(TensorInfo("t", tensor.shape, name, damaged))
                assert found is not None and abs(found - at) < max(4, f.block_bytes)


@pytest.mark.parametrize("name", FORMATS)
def test_every_block_finite_or_not_as_its_values_are(name: str) -> None:
    """Random bytes: the scan agrees with decoding, except that a zero code hides an infinite scale from neither."""
    f = FORMATS[name]
    blocks = np.random.default_rng(3).integers(0, 256, (500, f.block_bytes), dtype=np.uint8)
    for block in blocks:
        scan = first_not_finite(TensorInfo("t", (1, f.block_length), name, block.copy()))
        is_finite = block[0] < 160 if name == "MXFP4" else np.isfinite(f.decode(block)).all()
        assert is_finite or scan is not None
        if scan is None:
            assert is_finite


def test_a_model_with_one_is_refused_before_the_first_token(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    """Class G40, in a quantized matrix."""
    parts = Parts.read(tiny_gguf("Q4_K_M").path)
    parts.blocks["blk.1.ffn_up_exps.weight"][777, 144:146] = 0xFF  # a NaN in the second block of one row of one expert
    model = glmrun.load(parts.write(tmp_path / "nan.gguf"), n_ctx=64)
    where = r"blk\.1\.ffn_up_exps\.weight at byte [\d,]+: a weight that is not a finite number"
    with pytest.raises(UserError, match=where):
        model.logits([1, 2, 3])
    with pytest.raises(UserError, match=where):
        list(model.generate([1, 2, 3], max_tokens=3))


@pytest.mark.parametrize("name", READ_ONLY)
def test_one_in_a_format_that_is_converted(tiny_gguf: Callable[..., Tiny], tmp_path: Path, name: str) -> None:
    """What the kernels are given would not show it."""
    parts, tensor = Parts.read(tiny_gguf("Q4_K_M").path), "blk.1.ffn_up_exps.weight"
    n_rows, n_columns = np.prod(parts.shapes[tensor][:-1]), parts.shapes[tensor][-1]
    parts.blocks[tensor], parts.formats[tensor] = random_blocks(name, int(n_rows), n_columns, 0.1), name
    at = (FORMATS[name].halves or (0,))[-1]
    parts.blocks[tensor][777, at : at + 2] = 0xFF
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up_exps\.weight at byte [\d,]+: a weight that is not a finite number"):
        glmrun.load(parts.write(tmp_path / "nan.gguf"), n_ctx=64).logits([1])


def test_a_norm_is_looked_at_too(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    parts = Parts.read(tiny_gguf("F32").path)
    parts.blocks["output_norm.weight"][0, 3] = 0x7F
    parts.blocks["output_norm.weight"][0, 2] = 0x80
    with pytest.raises(UserError, match=r"output_norm\.weight at byte"):
        glmrun.load(parts.write(tmp_path / "inf.gguf"), n_ctx=64).logits([1])


def test_a_large_file_that_passed_is_remembered(
    tiny_gguf: Callable[..., Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmrun.tensors.finite._REMEMBERED_FROM", 1)
    monkeypatch.setenv("GLMRUN_CACHE_DIR", str(tmp_path))
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    assert FiniteCheck(file, file.tensors.values()).wait(60)
    assert len(list((tmp_path / "checked").iterdir())) == 1
    assert FiniteCheck(file, []).wait(0)  # at once, without a thread


def test_zeros_stay_zeros(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    """All-zero blocks are legal: 0, not 0 / 0 (class G42)."""
    parts = Parts.read(tiny_gguf("Q4_K_M").path)
    for name in ("output.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_k_b.weight"):
        parts.blocks[name][:] = 0
    assert not glmrun.load(parts.write(tmp_path / "zeros.gguf"), n_ctx=64).logits([1, 2, 3]).any()
