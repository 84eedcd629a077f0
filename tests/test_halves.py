"""float16 and float32, turned into each other by the CPU and by arithmetic: the same bits as NumPy's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from glmrun.kernels.attention.rounding import store_f16
from glmrun.kernels.simd import halves, target
from glmrun.kernels.simd.memory import load_f16, load_f16x16, load_f32, load_f32x16, store_f16x16, store_f32, store_f32x16

HALVES = np.arange(1 << 16, dtype=np.uint16)  # uint16 (65536,)


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not target.converts_halves(), reason="no F16C")), False])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU's instruction or without."""
    monkeypatch.setattr(halves, "converts_halves", lambda: request.param)


def test_every_float16_becomes_the_same_number(way: None) -> None:
    @njit
    def sixteen(source, to):
        for i in range(0, 1 << 16, 16):
            store_f32x16(to + i * 4, load_f16x16(source + i * 2))

    @njit
    def one(source, to):
        for i in range(1 << 16):
            store_f32(to + i * 4, load_f16(source + i * 2))

    expected = HALVES.view(np.float16).astype(np.float32)  # float32 (65536,)
    for widen in (sixteen, one):
        found = np.empty(1 << 16, np.float32)  # float32 (65536,)
        widen(HALVES.ctypes.data, found.ctypes.data)
        real = ~np.isnan(expected)
        assert np.array_equal(found[real].view(np.uint32), expected[real].view(np.uint32))
        assert np.isnan(found[~real]).all()


def test_a_float32_becomes_the_nearest_float16(way: None) -> None:
    """All float16, what lies in the middle between two, what lies a bit above and below, and random bits."""

    @njit
    def sixteen(source, to, n):
        for i in range(0, n, 16):
            store_f16x16(to + i * 2, load_f32x16(source + i * 4))

    @njit
    def one(source, to, n):
        for i in range(n):
            store_f16(to + i * 2, load_f32(source + i * 4))

    exact = HALVES.view(np.float16).astype(np.float32).view(np.uint32)  # uint32 (65536,)
    bits = [exact + np.uint32(d) for d in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0xFFFFFFFF)]
    bits.append(np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32))
    tiny = np.concatenate([np.arange(0, 1 << 11), np.arange(1, 1 << 11, 2) + 2**-20]) * 2.0**-25  # below the normal numbers
    values = np.concatenate([np.concatenate(bits).view(np.float32), np.resize(tiny, 1 << 12).astype(np.float32)])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)  # float16 (n,)
    real = ~np.isnan(values)
    for narrow in (sixteen, one):
        found = np.empty(len(values), np.float16)  # float16 (n,)
        narrow(values.ctypes.data, found.ctypes.data, len(values))
        assert np.array_equal(found[real].view(np.uint16), expected[real].view(np.uint16))
        assert np.isnan(found[~real]).all()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86-64 processor")
def test_a_processor_without_the_instruction_runs_kernels(tmp_path: Path) -> None:
    """LLVM used to end the process: Symbol not found: __extendhfsf2."""
    env = {
        **os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "GLMRUN_SIMD": "",
        "GLMRUN_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_kernels.py", "-k", "Q4_K-1 and multiply"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
