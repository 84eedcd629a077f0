"""What the CPU can do that Numba compiles for.  GLMRUN_SIMD=portable leaves the dot products to plain LLVM vectors."""

import os
from functools import cache

import llvmlite.binding as llvm
from numba import config


@cache
def features() -> frozenset[str]:
    """What the CPU has that Numba compiles for, under LLVM's names; nothing where GLMRUN_SIMD asks for portable code."""
    if os.environ.get("GLMRUN_SIMD") == "portable":
        return frozenset()
    if config.CPU_NAME not in (None, "", "host"):  # NUMBA_CPU_NAME forces another CPU, as tests do
        return frozenset((config.CPU_FEATURES or "").replace("+", "").split(","))
    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def has_avx2() -> bool:
    """Whether the CPU multiplies 32 bytes at a time (vpmaddubsw) and adds their neighbours (vpmaddwd)."""
    return "avx2" in features()


def few_registers() -> bool:
    """Whether there are 16 vector registers of 256 bits and no vpdpbusd: tiles then go eight rows at a time."""
    return has_avx2() and dot_bits() == 0


@cache
def dot_bits() -> int:
    """Width of vpdpbusd on the CPU that Numba compiles for: 512, 256 or, where there is none, 0."""
    has = features()
    if "avx512vnni" in has:
        return 512 if "avx512bw" in has else 256 if "avx512vl" in has else 0
    return 256 if "avxvnni" in has else 0


def has_vnni() -> bool:
    """Whether dot_u8s8 becomes AVX-512 VNNI's vpdpbusd, 512 bits at a time."""
    return dot_bits() == 512


def distrust_vnni() -> None:
    """From now on compile portable code: self_test.py found that this CPU's vpdpbusd is wrong."""
    os.environ["GLMRUN_SIMD"] = "portable"  # for the processes that compile, too
    features.cache_clear()
    dot_bits.cache_clear()
