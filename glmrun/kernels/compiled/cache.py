"""Where compiled kernels are kept.

`kernel(signature)` compiles a function when its module is first imported and keeps it in the folder chosen here: one folder for
each state of the kernels' sources, Numba and the CPU, because Numba itself notices changes in the defining file only. Wherever
glmrun is installed, and however often, the same sources find the same code there.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.runtime import rtsys

from glmrun.kernels.compiled.self_test import trusts_dot
from glmrun.kernels.simd import target
from glmrun.kernels.simd.types import FAST
from glmrun.machine import cache_folder


def _digest() -> str:
    package = Path(__file__).parents[2]
    sources = [*sorted((package / "kernels").rglob("*.py")), package / "forward.py"]
    sources += sorted((package.parent / "quant" / "blocks").glob("*.py"))  # encoders used beside us are cached here too
    digest = hashlib.sha256()
    for part in (
        numba.__version__,
        sys.version,
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        f"{sorted(target.features())} {numba.config.CPU_NAME} {numba.config.CPU_FEATURES}",
        str(sys.flags.optimize),  # without docstrings functions are others, and Numba finds nothing in the folder
    ):
        digest.update(part.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _has_all(chosen: Path) -> bool:
    return os.path.exists(chosen / "complete")  # False, too, where we may not look


def _choose_folder() -> Path | None:
    """Our folder of Numba's cache; None where nothing can be written and not all is there, and then every start compiles."""
    chosen = cache_folder() / "kernels" / _digest()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        probe = chosen / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        if not _has_all(chosen):
            return None
    numba.config.CACHE_DIR = str(chosen)
    return chosen


folder = _choose_folder()
if target.name() != "portable" and not trusts_dot(folder):
    target.distrust_dots()
    folder = _choose_folder()
registered: "list[Kernel]" = []  # since defer(): all kernels, each behind those that it calls
_deferred = False


def are_compiled() -> bool:
    """Whether a start on this machine has compiled all kernels before; if not, it takes part of a minute."""
    return folder is not None and _has_all(folder)


def note_compiled() -> None:
    """Called when all kernels have been imported, and so compiled unless that was deferred."""
    if folder is not None and not _deferred and not _has_all(folder):
        (folder / "complete").touch()


def defer() -> None:
    """From now on only list the kernels that are imported: warmup.py compiles them, in several processes."""
    global _deferred
    _deferred = True


class _Locator(UserProvidedCacheLocator):
    """Numba would name a subfolder after the place of the source, and compile again in the next virtual environment."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        return Path(py_file).parent.name

    def ensure_cache_path(self) -> None:
        try:
            super().ensure_cache_path()
        except OSError:  # what is complete is only read, from an image that can't be written, for instance
            if not are_compiled():
                raise

    def get_source_stamp(self) -> str:
        return ""  # the folder's name holds the sources' digest


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes: ClassVar = [_Locator]


class _Cache(FunctionCache):
    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Without reading what Numba knows of arrays, texts and dates, 0.3 s of a start: only compiling needs it, and reads it."""
        rtsys.initialize(target_context)  # what takes arrays from Python is found by name
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


@dataclass
class Kernel:
    """A function and the signature, or the list of them, that it is compiled for."""

    jitted: Any
    signature: Any
    entry: bool
    apart: bool
    inline: bool

    def compile(self) -> None:
        """Load the code from the cache, or compile it; what it calls has been compiled."""
        if not (self.jitted.overloads or self.inline):
            for signature in self.signature if isinstance(self.signature, list) else [self.signature]:
                self.jitted.compile(signature)
            self.jitted.disable_compile()
            for i, code in enumerate(self.jitted.overloads.values() if self.apart else ()):
                function, context, called = self.jitted.py_func, code.target_context, copy(code.fndesc)
                # Numba's own name differs from process to process, and callers stay in the cache with the one that they know.
                called.mangled_name = f"{function.__module__}.{function.__qualname__}.{i}"
                llvm.add_symbol(called.mangled_name, code.library.get_pointer_to_function(code.fndesc.llvm_func_name))
                context.remove_user_function(code.entry_point)  # callers got the whole library to link
                context.insert_user_function(code.entry_point, called)


def _pass_over(*overload: Any) -> None:
    """Numba's list of what Python may call stays empty: there would be no code at the address."""


def _refuse(*arguments: Any) -> None:
    raise TypeError("Python calls only kernels that are entries")


def callees(place: int) -> set[int]:
    """Places in `registered` of the kernels that one names, itself or as `module.kernel`; they stand before it."""
    function = registered[place].jitted.py_func
    names = function.__code__.co_names
    named = [function.__globals__.get(name) for name in names] + [cell.cell_contents for cell in function.__closure__ or ()]
    named += [getattr(module, name, None) for module in named if isinstance(module, ModuleType) for name in names]
    return {i for i, kernel in enumerate(registered[:place]) if any(kernel.jitted is value for value in named)}


def needed(place: int) -> list[int]:
    """Places of the kernels that must be loaded before one is compiled: those it calls, and all that stand apart below them."""
    direct = below = callees(place)
    while more := {i for j in below for i in callees(j)} - below:
        below = below | more
    return sorted(direct | {i for i in below if registered[i].apart})


def kernel(signature: Any, entry: bool = False, apart: bool = False, **options: Any) -> Callable[[Callable], Callable]:
    """Decorator: compile a function for one signature or each of a list, without checks and without holding the interpreter's lock.

    entry   called from Python; all others are called by kernels only, which spares a sixth of the time to compile. Only entries
            and those apart are loaded once all kernels have been compiled: an entry's cached code holds all else that it calls.
    apart   its code is not copied into what calls it, to be compiled again at each level: it is found by its name
    options  Numba's; what is inline stands in its callers only, and is not compiled for itself
    """

    def decorate(function: Callable) -> Callable:
        called_from = {"no_cpython_wrapper": not entry, "no_cfunc_wrapper": True}
        jitted = numba.njit(nogil=True, error_model="numpy", fastmath=FAST, **called_from, **options)(function)
        if not entry:
            jitted._insert, jitted._compile_for_args = _pass_over, _refuse
        if folder is not None:
            jitted._cache = _Cache(function)
        made = Kernel(jitted, signature, entry, apart, options.get("inline") == "always")
        if _deferred and function.__module__.startswith("glmrun."):
            registered.append(made)
        elif entry or apart or not are_compiled():
            made.compile()
        return jitted

    return decorate
