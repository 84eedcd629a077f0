"""Jitted loops over plain addresses. They trust their arguments: whoever calls them has proven every extent.

`kernel(signature)` compiles a function when its module is first imported and keeps it in the folder chosen here: one folder for
each state of the kernels' sources, Numba and the CPU, because Numba itself notices changes in the defining file only.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import platformdirs

from glmrun import simd


def _digest() -> str:
    package = Path(__file__).parent
    sources = [*sorted(package.glob("*.py")), package.parent / "simd.py", package.parent / "team.py", package.parent / "forward.py"]
    sources += sorted((package.parent.parent / "quant" / "blocks").glob("*.py"))  # encoders used beside us are cached here too
    digest = hashlib.sha256()
    for part in (
        numba.__version__,
        sys.version,
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        f"{simd.has_vnni()} {numba.config.CPU_NAME} {numba.config.CPU_FEATURES}",
    ):
        digest.update(part.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _choose_folder() -> Path | None:
    """Our folder of Numba's cache; None where nothing can be written, and then every start compiles."""
    folder = Path(os.environ.get("GLMRUN_CACHE_DIR") or platformdirs.user_cache_dir("glmrun")) / "kernels" / _digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return None
    numba.config.CACHE_DIR = str(folder)
    return folder


_folder = _choose_folder()


def are_compiled() -> bool:
    """Whether a start on this machine has compiled all kernels before; if not, importing them takes part of a minute."""
    return _folder is not None and (_folder / "complete").exists()


def note_compiled() -> None:
    """Called when all kernels have been imported."""
    if _folder is not None:
        (_folder / "complete").touch()


def kernel(signature: Any, entry: bool = False, **options: Any) -> Callable[[Callable], Callable]:
    """Decorator: compile a function for one signature, without checks and without holding the interpreter's lock.

    entry   called from Python at run time. Only these are loaded once all kernels have been compiled: an entry's cached code
            holds everything that it calls.
    """

    def decorate(function: Callable) -> Callable:
        jitted = numba.njit(
            nogil=True, cache=_folder is not None, error_model="numpy", fastmath=simd.FAST, **options
        )(function)  # fmt: skip
        if entry or not are_compiled():
            jitted.compile(signature)
            jitted.disable_compile()
        return jitted

    return decorate
