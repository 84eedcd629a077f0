"""The inner loops of prompts and attention, compiled for processors that this one need not be: the instructions are there, and what
is kept in registers stays there. Nothing is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AVX2 = "+avx2,+fma,+f16c,+bmi,+bmi2"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd,+avx512vnni"
# CPU: its features, its target, the largest share of instructions that touch the stack (seen: 18 %, 22 %, 8 %), 512-bit registers
CPUS = {
    "haswell": (AVX2, "avx2", 0.20, False),
    "alderlake": (f"{AVX2},+avxvnni", "avx-vnni", 0.23, False),
    "znver4": (AVX512, "avx512-vnni", 0.10, True),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86-64 target")
@pytest.mark.parametrize("cpu", CPUS)
def test_inner_loops_stay_in_registers(cpu: str, tmp_path: Path) -> None:
    features, target, most, wide = CPUS[cpu]
    env = {
        **os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "GLMRUN_SIMD": "", "GLMRUN_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.getcwd(),
    }  # fmt: skip
    script = Path(__file__).parent / "support" / "inner_loops.py"
    result = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["target"] == target and len(found["loops"]) == 8
    for name, loop in found["loops"].items():
        assert loop["stack"] <= most * loop["instructions"], (name, loop)
        assert loop["products"] >= 0.15 * loop["instructions"] and loop["zmm"] == wide, (name, loop)
