"""What this machine is: cores, memory, processor, where caches belong. Asking loads no Numba."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quant.errors import UserError
from quant.system import arm_features, cpu_name
from quant.system import cores as available_cores

__all__ = [
    "Memory",
    "arm_features",
    "available_cores",
    "available_memory",
    "cache_folder",
    "cpu_name",
    "disk_bytes",
    "free_disk",
    "group_folders",
    "group_memory",
    "memory",
    "nearest",
    "network_error",
    "peak_memory",
    "state_folder",
]


def cache_folder() -> Path:
    """GLMRUN_CACHE_DIR, or the system's place for a user's caches."""
    import platformdirs

    return Path(os.path.expanduser(os.environ.get("GLMRUN_CACHE_DIR") or platformdirs.user_cache_dir("glmrun")))


def network_error(why: Exception) -> UserError | None:
    """The error for a connection that can't even be begun: variables that are set lead nowhere; None if none is set."""
    names = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"}
    given = sorted(name for name, value in os.environ.items() if name.casefold() in names and value)
    if not given:
        return None
    text = (why.strerror if isinstance(why, OSError) else None) or str(why).split(". ")[0]
    return UserError(f"{text}; set to something that can't be used: {' or '.join(given)}")


@dataclass(frozen=True)
class Memory:
    """Bytes: all there is for this process, and what can be had now. limited: a control group sets the limit, not the machine."""

    total: int
    available: int
    limited: bool


def state_folder() -> Path:
    """The system's place for what a user's programs remember."""
    import platformdirs

    return Path(platformdirs.user_state_dir("glmrun"))


def memory() -> Memory:
    """The machine's memory, or what control groups (containers, batch systems) leave of it. Cached files count as available."""
    import psutil

    found = psutil.virtual_memory()
    group = group_memory()
    if group is None or group[0] >= found.total:
        return Memory(found.total, found.available, False)
    return Memory(group[0], min(group[1], found.available), True)


def available_memory() -> int:
    """Bytes that this process could still fill."""
    return memory().available


def peak_memory(restart: bool = False) -> int | None:
    """The most bytes of memory that this process has held, mapped files included, since it or since the last restart.

    None where the system does not report it.
    """
    if restart:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk that a folder is on, or would be. OSError if the system does not tell."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def disk_bytes() -> int | None:
    """Bytes that this process has had read from disks since it began; None where the system does not tell."""
    for line in _lines(Path("/proc/self/io")):
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return None


def group_folders(controller: str, membership: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, whether its files are those of version 1) of the control groups around this process; some may not be there.

    Version 1 keeps each controller apart under root, version 2 has one tree; a group's limit holds for all groups inside it.
    A container may see its own group as the root.
    """
    for line in _lines(membership):
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for base in {root / controllers, root / controller} if controllers else {root}:
            inside = base / path.lstrip("/")
            yield from ((folder, bool(controllers)) for folder in (inside, *inside.parents) if folder.is_relative_to(base))


def group_memory(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, available) in bytes of the tightest control group around this process; None where there is no limit."""
    names = ("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    groups = [_group(folder, *names[is_first]) for folder, is_first in group_folders("memory", membership, root)]
    found = [group for group in groups if group is not None]
    return (min(limit for limit, _ in found), min(available for _, available in found)) if found else None


def _group(folder: Path, limit_name: str, usage_name: str, prefix: str) -> tuple[int, int] | None:
    """(limit, available) of one group; files that the system may forget at any time do not count as used."""
    try:
        limit, usage = (int((folder / name).read_text()) for name in (limit_name, usage_name))
    except (OSError, ValueError):  # not there, or "max"
        return None
    counts = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return limit, min(limit, max(0, limit - usage + files))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
