"""How much memory the machine has left."""

from pathlib import Path


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
