"""`glmrun warmup`: compile the kernels now instead of at the first start."""

import time

from glmrun.cli import loading
from quant.errors import UserError


def warmup() -> None:
    """Compile the kernels for this machine, so that the first run or chat starts at once.

    They are compiled once for each version of glmrun, Numba and each kind of CPU, on all cores, and kept in the user's cache
    folder (GLMRUN_CACHE_DIR names another). Useful in an image or before going on stage.

    \b
    Examples:
      glmrun warmup
      GLMRUN_CACHE_DIR=/srv/cache glmrun warmup
    """
    from glmrun.kernels.compiled import cache as kernels
    from glmrun.machine import cache_folder

    if kernels.folder is None:
        raise UserError(
            f"{cache_folder()} can't be written, so every start compiles the kernels; GLMRUN_CACHE_DIR names another folder"
        )
    if kernels.are_compiled():
        print(f"everything is ready: the kernels are in {kernels.folder}")
        return
    began = time.monotonic()
    loading.compile_kernels()
    print(f"the kernels are ready after {time.monotonic() - began:.0f} s, in {kernels.folder}")
