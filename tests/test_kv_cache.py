"""The cache: its types, and memory that is used only where tokens have been."""

from pathlib import Path

import numpy as np
import pytest
from support.comparison import errors
from support.tiny_model import ODD
from typer.testing import CliRunner

import glmrun
from glmrun.cli import app
from glmrun.engine.sequence import Sequence
from glmrun.engine.workspace import ANGLES, Workspace, rope_table
from quant.errors import UserError

TOKENS = np.random.default_rng(5).integers(0, 950, 40).tolist()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(("kv_type", "size"), [("f32", 4.0), ("f16", 2.0), ("q8_0", 34 / 32)])
def test_types_of_cached_rows(tiny_gguf, kv_type, size):
    """On float weights, so that nothing but the cache and its attention is rounded."""
    tiny = tiny_gguf("F32", ODD)
    model = glmrun.load(tiny.path, n_ctx=64, n_threads=2, kv_type=kv_type)
    error = np.median(errors(model.logits(TOKENS), tiny.naive().logits(TOKENS)))
    assert error <= {"f32": 1e-10, "f16": 1e-3, "q8_0": 1e-3}[kv_type]
    assert model.latest.rows.nbytes == 3 * 64 * (256 + 64) * size


def test_an_unknown_type_is_refused(tiny_gguf):
    path = tiny_gguf("F32", ODD).path
    with pytest.raises(UserError, match="q4_0") as why:
        glmrun.load(path, n_ctx=64, kv_type="q4_0")
    assert why.value.kind == "usage"
    result = CliRunner().invoke(app, ["run", str(path), "x", "--kv-type", "q4_0"])
    assert result.exit_code == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory as Linux tells it")
@pytest.mark.parametrize("choice", ["F32", "Q8_0"])
def test_a_large_context_takes_no_memory_before_its_tokens(tiny_gguf, choice):
    weights = glmrun.load(tiny_gguf(choice, ODD).path, n_ctx=64).weights
    before = resident()
    large = Workspace(weights, 50_000_000, 64, 2)
    large.reach(10)
    shape = n_layers, n_ctx, row_bytes, *_ = weights.cache_shape(50_000_000)
    sequence = Sequence(*shape)  # 100 GB and more
    assert sequence.rows.nbytes == n_layers * n_ctx * row_bytes
    assert resident() - before <= 50_000_000


def test_what_the_system_refuses_is_told(tiny_gguf):
    weights = glmrun.load(tiny_gguf("F32", ODD).path, n_ctx=64).weights
    with pytest.raises(UserError, match="smaller context"):
        Workspace(weights, 1 << 45, 64, 2)
    with pytest.raises(UserError, match="smaller context"):
        Sequence(*weights.cache_shape(1 << 45))


def test_angles_appear_as_positions_are_reached(tiny_gguf):
    weights = glmrun.load(tiny_gguf("F32", ODD).path, n_ctx=64).weights
    state = Workspace(weights, 3 * ANGLES, 64, 1)
    for n in (1, ANGLES, ANGLES + 1, 3 * ANGLES):
        state.reach(n)
        expected = rope_table(0, n, weights.config.qk_rope_head_dim, weights.config.rope_theta)
        np.testing.assert_array_equal(state._rope[:n], expected)
