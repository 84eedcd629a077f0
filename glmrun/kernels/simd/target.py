"""What the CPU can do that Numba compiles for."""

import os
from functools import cache

import llvmlite.binding as llvm
from numba import config

from glmrun.machine import arm_features
from quant.errors import UserError

_X86, _ARM = ("avx512-vnni", "avx-vnni", "avx2"), ("neon-i8mm", "neon-dotprod")  # the best first
# Features, where a lesser target is asked for.
_LEFT_OUT = {"avx-vnni": {"avx512bw"}, "avx2": {"avx512vnni", "avxvnni"}, "neon-dotprod": {"i8mm"}}


@cache
def features() -> frozenset[str]:
    """What kernels may use of the CPU that Numba compiles for, under LLVM's names.

    GLMRUN_SIMD names a lesser target than the CPU's own. Raises UserError for a name that is none, or one that it can't run.
    """
    if config.CPU_NAME not in (None, "", "host"):  # NUMBA_CPU_NAME forces another CPU, as tests do
        has = frozenset((config.CPU_FEATURES or "").replace("+", "").split(","))
    else:
        found = llvm.get_host_cpu_features()
        has = frozenset(name for name, there in found.items() if there)
        if more := arm_features() - has:  # LLVM does not ask the system for them, and so must be told
            config.CPU_FEATURES = ",".join([*filter(None, [found.flatten()]), *(f"+{name}" for name in sorted(more))])
            has |= more
    asked, best = os.environ.get("GLMRUN_SIMD") or None, _name(has)
    if asked is None or asked == best:
        return has
    family = _X86 if best in _X86 else _ARM if best in _ARM else ()
    can = (*family[family.index(best) :], "portable") if family else ("portable",)
    if asked not in can:
        raise UserError(f"GLMRUN_SIMD is {asked!r}; this processor runs {', '.join(can)}", "usage")
    return frozenset() if asked == "portable" else has - _LEFT_OUT[asked]


def _name(has: frozenset[str]) -> str:
    if {"avx512vnni", "avx512bw"} <= has:
        return "avx512-vnni"
    if "avxvnni" in has or {"avx512vnni", "avx512vl"} <= has:
        return "avx-vnni"
    if "avx2" in has:
        return "avx2"
    if "dotprod" in has:
        return "neon-i8mm" if "i8mm" in has else "neon-dotprod"
    return "portable"


def name() -> str:
    """The target that kernels are compiled for: one of those above, or portable."""
    return _name(features())


def has_avx2() -> bool:
    """Whether the CPU multiplies 32 bytes at a time (vpmaddubsw) and adds their neighbours (vpmaddwd)."""
    return "avx2" in features()


def converts_halves() -> bool:
    """Whether the CPU turns float16 into float32 and back (F16C; NEON)."""
    return bool({"f16c", "neon"} & features())


def sums_in_16_bits() -> bool:
    """Whether bytes are multiplied by vpmaddubsw: what it gives is added up in 16 bits as long as that is exact."""
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


def has_neon() -> bool:
    """Whether the CPU has ARM's dot product of signed bytes (sdot), 128 bits at a time."""
    return name() in _ARM


def has_i8mm() -> bool:
    """Whether the CPU has ARM's products of small matrices of bytes (smmla), and of unsigned with signed ones (usdot)."""
    return name() == "neon-i8mm"


def signed_factors() -> bool:
    """Whether byte dots take both factors signed; else one of them is unsigned."""
    return sums_in_16_bits() or has_neon()


def distrust_dots() -> None:
    """From now on compile portable code: self_test.py found that this CPU's dot product is wrong."""
    os.environ["GLMRUN_SIMD"] = "portable"  # for the processes that compile, too
    features.cache_clear()
    dot_bits.cache_clear()
