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
# Those of ARM: features, target, what is compiled for.
ARM = {
    "apple-m1": ("+neon,+dotprod", "neon-dotprod", "arm64-apple-darwin"),
    "apple-m2": ("+neon,+dotprod,+i8mm", "neon-i8mm", "arm64-apple-darwin"),
    "cortex-a76": ("+neon,+dotprod", "neon-dotprod", "aarch64-unknown-linux-gnu"),
    "neoverse-v1": ("+neon,+dotprod,+i8mm", "neon-i8mm", "aarch64-unknown-linux-gnu"),
}


def loops_for(cpu: str, features: str, folder: Path, *arguments: str) -> dict:
    """What support/inner_loops.py finds for this CPU."""
    env = {
        **os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "GLMRUN_SIMD": "", "GLMRUN_CACHE_DIR": str(folder),
        "PYTHONPATH": os.getcwd(),
    }  # fmt: skip
    script = Path(__file__).parent / "support" / "inner_loops.py"
    result = subprocess.run([sys.executable, script, *arguments], env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86-64 target")
@pytest.mark.parametrize("cpu", CPUS)
def test_inner_loops_stay_in_registers(cpu: str, tmp_path: Path) -> None:
    features, target, most, wide = CPUS[cpu]
    found = loops_for(cpu, features, tmp_path)
    assert found["target"] == target and len(found["loops"]) == (38 if cpu == "haswell" else 36)  # there Q5_K has tiles of its own
    for name, loop in found["loops"].items():
        assert not loop["waits"], (name, loop)  # a row of Q4_K took three times as long for one such load
        if ".dot_rows" in name:
            continue
        assert loop["stack"] <= most * loop["instructions"] and not loop["astray"], (name, loop)  # see aligned_stack()
        assert loop["products"] >= 0.15 * loop["instructions"] and loop["zmm"] == wide, (name, loop)


@pytest.mark.parametrize("cpu", ARM)
def test_inner_loops_for_arm(cpu: str, tmp_path: Path) -> None:
    """Byte dots by lane, or products of pairs; no x86 name. Seen: 0 to 2 accesses of the stack in a tile's 66 to 151 instructions,
    0 to 6 % in attention's and the rows' loops; 15 % in gather for cortex-a76, whose scheduling holds more at once."""
    features, target, triple = ARM[cpu]
    found = loops_for(cpu, features, tmp_path, triple)
    assert found["target"] == target and len(found["loops"]) == 23
    for name, loop in found["loops"].items():
        least = 0.65 if ".q2_k." in name else 1  # its minimums meet 16-bit sums: a third of its tiles' instructions
        most = 3 if ".tile_in" in name else (0.16 if ".gather." in name else 0.08) * loop["instructions"]
        assert not loop["x86"] and loop["stack"] <= most, (name, loop)
        if ".scores." in name:  # its largest loop is the rope part, products of 16 bits
            assert loop["products"] >= 0.6 * loop["instructions"], loop
        elif ".dot_rows." in name:
            assert loop["dots"] >= 8, (name, loop)
        elif ".tile_in" in name and target == "neon-i8mm":
            assert loop["dots"] >= 0.18 * least * loop["instructions"], (name, loop)
        else:
            assert loop["by lane"] >= 0.37 * least * loop["instructions"], (name, loop)
