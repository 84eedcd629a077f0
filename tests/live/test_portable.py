"""The kernels compiled for CPUs without AVX-512: the same tests, in a process of its own, as Numba chooses its target at import."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {"portable vectors": {"GLMRUN_SIMD": "portable"}}
if platform.machine() in ("x86_64", "AMD64"):
    TARGETS["AVX2"] = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_on_another_target(target: str, tmp_path: Path) -> None:
    environment = {**os.environ, **TARGETS[target], "GLMRUN_CACHE_DIR": str(tmp_path)}
    tests = Path(__file__).parent.parent / "test_kernels.py"
    result = subprocess.run([sys.executable, "-m", "pytest", tests], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
