"""Models from a hub: where they are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads, shared with every program that uses it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub").expanduser()
