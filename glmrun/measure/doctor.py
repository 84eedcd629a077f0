"""What glmrun finds on this machine and what is wrong with it, as plain data: for `glmrun doctor`.

Every part is examined on its own, and one that fails becomes a problem: a broken installation is what this is for.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from glmrun.machine import available_cores, cache_folder, cpu_name, group_folders, memory, nearest, state_folder
from glmrun.measure.bandwidth import memory_bandwidth
from glmrun.store.hub import cache_folder as hub_folder

LIBRARIES = (
    "numpy", "numba", "llvmlite", "tokenizers", "jinja2", "typer", "rich", "markdown-it-py", "prompt_toolkit",
    "huggingface_hub", "httpx2", "pydantic", "docstring_parser", "llguidance", "psutil", "platformdirs", "safetensors", "gguf",
    "filelock", "starlette", "uvicorn", "prometheus_client",
)  # fmt: skip
# LLVM's names of what our kernels gain by, on x86 and ARM.
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avxvnni", "avx512bf16", "neon", "dotprod", "i8mm", "sve")
LEAST_FREE = 1 << 30  # bytes of memory or disk below which nothing useful can be done


@dataclass
class Report:
    """facts by section; problems and hints as (what was found, what to do about it). Hints are no reason to worry."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    hints: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, found: str, cure: str) -> None:
        self.problems.append((found, cure))

    def hint(self, found: str, cure: str) -> None:
        self.hints.append((found, cure))


def examine(measure_again: bool = False) -> Report:
    """Look at everything; measures the memory's speed if that has not been done (about a second)."""
    report = Report()
    sections: dict[str, Callable[[Report], dict[str, Any]]] = {
        "versions": _versions,
        "processor": _processor,
        "kernels": _kernels,
        "memory": lambda r: _memory(r, measure_again),
        "folders": _folders,
    }
    for name, examiner in sections.items():
        try:
            report.facts[name] = examiner(report)
        except Exception as why:  # whatever is broken is the finding
            report.facts[name] = {}
            report.problem(f"{name} can't be examined: {type(why).__name__}: {why}", "reinstall glmrun in a fresh environment")
    return report


def _versions(report: Report) -> dict[str, Any]:
    from glmrun import __version__

    found: dict[str, Any] = {
        "glmrun": __version__,
        "python": f"{platform.python_version()} in {sys.prefix}",
        "system": platform.platform(),
    }
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            report.problem(f"the library {name} is not installed", f"pip install {name}")
    return found


def _processor(report: Report) -> dict[str, Any]:
    import psutil

    threads, quota = available_cores(), cpu_quota()
    if quota is not None and quota < threads:
        report.problem(
            f"a control group allows {quota:.1f} processors, {threads} are visible: threads would be stopped again and again",
            f"run with fewer threads (GLMRUN_THREADS={max(1, int(quota))})",
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * available_cores():
        report.hint(f"other programs are computing (load {load:.1f})", "speeds measured now are too low")
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor == "powersave" and "pstate" not in _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"):
        report.hint("the processor is kept at its lowest clock (governor powersave)", "choose the governor performance")
    return {
        "name": cpu_name(),
        "architecture": platform.machine(),
        "features": cpu_features(),
        "cores": psutil.cpu_count(logical=False),
        "logical": psutil.cpu_count(),
        "threads": threads,
        "quota": quota,
        "load": round(load, 2),
    }


def cpu_features() -> list[str]:
    """Those of FEATURES that kernels may use on this processor."""
    from glmrun.kernels.simd.target import features

    return [name for name in FEATURES if name in features()]


def kernel_target() -> str:
    """Which of the kernels' targets runs here: avx2, neon-dotprod, ..."""
    from glmrun.kernels.simd import target

    return target.name()


def _kernels(report: Report) -> dict[str, Any]:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        report.problem("NUMBA_DISABLE_JIT is set: nothing is compiled, and nothing works", "unset NUMBA_DISABLE_JIT")
        return {}
    from glmrun.kernels.compiled import cache as kernels

    folder = kernels.folder
    if folder is None:
        report.problem(
            f"{cache_folder()} can't be written: every start compiles the kernels", "set GLMRUN_CACHE_DIR to a folder that can be"
        )
    elif not kernels.are_compiled():
        report.hint("the kernels are not compiled yet: the first start takes longer", "run glmrun warmup")
    if folder is not None and _text(folder / "dot") == "wrong":
        report.problem(
            "this CPU's dot product of bytes gives wrong results; slower code replaces it",
            "update Numba and report it, with this page",
        )
    elif kernel_target() == "portable":
        report.hint("kernels of plain vector code: several times slower than with AVX2 or better", "nothing; it is correct")
    return {
        "target": kernel_target(),
        "compiled": kernels.are_compiled(),
        "folder": str(folder) if folder else None,
        "bytes": folder_bytes(folder) if folder else 0,
        "for_cpu": os.environ.get("NUMBA_CPU_NAME"),
    }


def _memory(report: Report, measure_again: bool) -> dict[str, Any]:
    found = memory()
    if found.available < LEAST_FREE:
        report.problem(f"only {found.available:,} bytes of memory are available", "close other programs")
    speed = memory_bandwidth(again=measure_again)
    if speed.busy:
        report.hint("other programs were computing while the memory's speed was measured", "measure again later")
    return {
        "total": found.total,
        "available": found.available,
        "limited_by_control_group": found.limited,
        "bytes_per_second": speed.bytes_per_second,
        "threads": speed.n_threads,
        "measured": speed.measured,
    }


def _folders(report: Report) -> dict[str, Any]:
    import platformdirs

    places = {
        "cache": cache_folder(),
        "hub": hub_folder(),
        "state": state_folder(),
        "config": Path(platformdirs.user_config_dir("glmrun")),
    }
    found: dict[str, Any] = {}
    for name, folder in places.items():
        there = nearest(folder)
        found[name] = {"path": str(folder), "exists": folder.is_dir(), "bytes": folder_bytes(folder), "free": _free(there)}
        if not os.access(there, os.W_OK):
            report.problem(f"{there} can't be written", "correct its owner or permissions, or name another folder")
        elif name in ("cache", "hub") and found[name]["free"] < LEAST_FREE:
            report.problem(f"the disk of {folder} is full: {found[name]['free']:,} bytes are free", "glmrun list; glmrun rm NAME")
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes on disk of all files below a folder; links are not followed, what can't be read is left out."""
    total, todo = 0, [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def cpu_quota(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors that control groups let this process use at a time; None without a limit. Of both versions, the tightest."""
    return min((quota for folder, _ in group_folders("cpu", membership, root) for quota in _quota(folder)), default=None)


def _quota(folder: Path) -> Iterator[float]:
    """The limit of one group, if it has one: quota / period."""
    parts = _text(folder / "cpu.max").split() or [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]):
        yield int(parts[0]) / int(parts[1])


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
