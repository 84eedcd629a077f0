"""From a MODEL argument to an open model; the first start on a machine compiles the kernels and says so."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from glmrun.terminal.console import note
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.engine import Model


def resolve_model(model: str | None) -> Path:
    """The file that a MODEL argument means; left out it is nano, the small model that comes with glmrun, and a line says so."""
    if model is None or model == "nano":
        from glmrun.builtin import nano_path

        if model is None:
            note("no model given: using nano, the small model that comes with glmrun")
        return nano_path()
    if not os.path.exists(model):
        raise UserError(f"{model}: no such file", 3)
    return Path(model)


def load_model(path: Path, ctx: int | None = None, threads: int | None = None) -> "Model":
    """glmrun.load() behind compile_kernels()."""
    import glmrun

    if not _compiled():
        from glmrun.gguf_file import open_gguf

        open_gguf(path)  # a file that is no model is refused at once, not after a minute of compiling
    compile_kernels()
    return glmrun.load(path, n_ctx=ctx, n_threads=threads)


def compile_kernels() -> float:
    """Load the kernels, compiling what this machine has not compiled before; returns the seconds it took, 0 if nothing was new."""
    from glmrun.terminal.progress import waiting

    before, began = _compiled(), time.monotonic()
    with waiting("compiling the kernels for this machine"):
        import glmrun.engine  # noqa: F401
    if _compiled() == before:
        return 0.0
    seconds = time.monotonic() - began
    note(f"compiled the kernels in {seconds:.0f} s, once for this machine")
    return seconds


def _compiled() -> int:
    """How many kernels are in the cache."""
    from glmrun.kernels import are_compiled
    from glmrun.terminal.progress import waiting

    if are_compiled():
        return 0.0
    began = time.monotonic()
    with waiting("compiling the kernels, once per machine"):
        import glmrun.forward  # noqa: F401
    seconds = time.monotonic() - began
    note(f"compiled the kernels in {seconds:.0f} s, once for this machine")
    return seconds


def _compiled() -> int:
    """How many kernels are in the cache."""
    import numba

    import glmrun.kernels  # noqa: F401  chooses the folder

    folder: str = getattr(numba.config, "CACHE_DIR", "")
    return len(list(Path(folder).rglob("*.nbi"))) if folder else 0
