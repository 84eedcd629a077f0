"""What this machine is: cores, memory, where caches belong. Asking loads no Numba."""

import os
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that this process could still fill, caches of files counted as free; without a number, a very large one."""
    found = [1 << 60]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's own, versions 2, 1
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        found += [int(text)] if text.isdigit() else []
    return min(found)


def cache_folder() -> Path:
    """GLMRUN_CACHE_DIR, or the system's place for a user's caches."""
    import platformdirs

    return Path(os.environ.get("GLMRUN_CACHE_DIR") or platformdirs.user_cache_dir("glmrun"))
