"""Where everything lies that can be made again: compiled kernels, nano's files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """GLMRUN_CACHE_DIR, or the system's place for a user's caches."""
    import platformdirs

    return Path(os.environ.get("GLMRUN_CACHE_DIR") or platformdirs.user_cache_dir("glmrun"))
