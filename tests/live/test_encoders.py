"""Encoders and recipes against GGML's and llama.cpp's own quantizers, in this process."""

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from make_golden_blocks import KINDS, ggml_encode, mean_squared_error, patterns, sample_rows, sample_weights
from support import llama
from support.tiny_model import ODD, ODDER, write_tiny

import glmrun
from glmrun.engine.importance import Collector
from glmrun.gguf.open import open_gguf
from glmrun.gguf.source import GGUFSource, read_importance
from quant.config import Config
from quant.convert import convert, plan
from quant.formats import FORMATS
from quant.recipes import RECIPES, choose_format

SMALL = replace(ODD, hidden_size=256, intermediate_size=256, n_routed_experts=4, num_experts_per_tok=2, num_attention_heads=2)
NARROW = replace(SMALL, hidden_size=64, intermediate_size=96, moe_intermediate_size=100, q_lora_rank=64, qk_nope_head_dim=40)


def any_rows(n: int) -> np.ndarray:
    """float32 (n, 256): a third of them any finite bits, a third of one magnitude each, a third ordinary."""
    rng = np.random.default_rng()
    bits = rng.integers(0, 1 << 32, (n // 3, 256), dtype=np.uint32).view(np.float32)
    levels = np.ldexp(rng.uniform(-1, 1, (n // 3, 256)), rng.integers(-149, 128, (n // 3, 1)))
    ordinary = rng.standard_t(3, (n - 2 * (n // 3), 256))
    return np.concatenate([np.where(np.isfinite(bits), bits, 0), levels, ordinary]).astype(np.float32)


@pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
def test_byte_for_byte(name: str) -> None:
    for rows in (any_rows(12_000), patterns()):
        ours, theirs = FORMATS[name].encode(rows), ggml_encode(name, rows)
        different = np.flatnonzero((ours != theirs).any(axis=1))
        assert len(different) == 0, f"{len(different)} rows of {len(rows)} differ, the first is {rows[different[0]].tolist()}"


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0"])
def test_no_block_has_more_error(name: str) -> None:
    rows = any_rows(12_000)
    with np.errstate(invalid="ignore"):
        ours, theirs = (
            ((FORMATS[name].decode(blocks) - rows.astype(np.float64)) ** 2).reshape(-1, 32).sum(axis=1)
            for blocks in (FORMATS[name].encode(rows), ggml_encode(name, rows))
        )
    worse = np.flatnonzero(ours > theirs * (1 + 1e-5))  # also false where GGML's scale is infinite
    assert len(worse) == 0, f"{len(worse)} blocks, the first is {rows.reshape(-1, 32)[worse[0]].tolist()}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q5_0", "Q8_0"])
def test_search_leaves_less_error(name: str, kind: str) -> None:
    rows, weights = sample_rows(kind), sample_weights()
    for w in (None, weights):
        ours = mean_squared_error(name, rows, FORMATS[name].encode(rows, w), w)
        theirs = mean_squared_error(name, rows, ggml_encode(name, rows, w), w)
        print(f"{name} {kind}, {'plain' if w is None else 'weighted'}: ours / GGML's {ours / theirs:.4f}")
        assert ours <= theirs


@pytest.mark.parametrize(
    "config",
    [ODD, ODDER, NARROW, replace(SMALL, num_hidden_layers=17), replace(SMALL, num_hidden_layers=12, num_nextn_predict_layers=1)],
    ids=["odd", "odder", "narrow", "17 blocks", "12 + 1 blocks"],
)
def test_formats_are_those_of_llama_quantize(config: Config, tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_tiny(source, config, "BF16")
    for recipe in RECIPES:
        llama.quantize(source, target, recipe)
        theirs = {t.name: (tuple(map(int, t.shape[::-1])), t.tensor_type.name) for t in gguf.GGUFReader(target).tensors}
        ours = {
            name: (shape, choose_format(RECIPES[recipe], name, shape, config.n_blocks, config.n_routed_experts))
            for name, (shape, _) in theirs.items()
        }
        assert ours == theirs, recipe


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q6_K"])
def test_llama_quantize_takes_our_importance_matrix(recipe: str, tmp_path: Path) -> None:
    """Names and sizes are those it looks for, and at the same size ours leaves less weighted error in every class of tensors."""
    source, theirs, ours, matrix = (tmp_path / name for name in ("source.gguf", "theirs.gguf", "ours.gguf", "imatrix.gguf"))
    write_tiny(source, SMALL, "BF16")
    collector = Collector(glmrun.load(source, n_ctx=64), ["random"])
    for seed in range(4):
        collector.read(np.random.default_rng(seed).integers(0, SMALL.vocab_size, 64).tolist())
    matrix.write_bytes(collector.result().packed())
    importance = read_importance(matrix)
    means = {name: sums / importance.counts[name][:, None].clip(1) for name, sums in importance.sums.items()}
    llama.quantize(source, theirs, recipe, means)
    for _ in convert(plan(GGUFSource.open(source), recipe, importance=importance), ours):
        pass
    errors: dict[str, np.ndarray] = {}
    for name, exact in open_gguf(source).tensors.items():
        files = [open_gguf(path).tensors[name] for path in (ours, theirs)]
        if name in means and FORMATS[files[0].format].block_length > 1:
            x, y, z = (tensor.floats().astype(np.float64) for tensor in (exact, *files))
            weights = means[name].reshape(*x.shape[:-2], 1, x.shape[-1])
            pair = np.array([np.sum(weights * (y - x) ** 2), np.sum(weights * (z - x) ** 2)])
            kind = re.sub(r"^blk\.\d+\.", "", name)
            errors[kind] = errors.get(kind, np.zeros(2)) + pair
    assert len(errors) >= 10
    for kind, (our_error, their_error) in errors.items():
        print(f"{recipe} {kind}: ours / llama-quantize's {our_error / their_error:.4f}")
        assert our_error <= their_error, kind
