"""This machine: its processor, the memory that is free for a model, and how fast it is read."""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from glmrun.machine import available_cores, cache_folder

if TYPE_CHECKING:
    from glmrun.kernels.team import Team


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


# ---- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes: all there is for this process, and what can be had now. limited: a control group sets the limit, not the machine."""

    total: int
    available: int
    limited: bool


def memory() -> Memory:
    """The machine's memory, or what control groups (containers, batch systems) leave of it. Cached files count as available."""
    import psutil

    found = psutil.virtual_memory()
    group = group_memory()
    if group is None or group[0] >= found.total:
        return Memory(found.total, found.available, False)
    return Memory(group[0], min(group[1], found.available), True)


def peak_memory(restart: bool = False) -> int | None:
    """The most bytes of memory that this process has held, mapped files included, since it or since the last restart.

    None where the system does not tell.
    """
    if restart:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def group_memory(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, available) in bytes of the tightest control group around this process; None where there is no limit.

    Version 1 keeps memory apart under root/memory, version 2 has one tree; a group's limit holds for all groups inside it.
    A container may see its own group as the root, so folders that are not there are left out.
    """
    found: list[tuple[int, int]] = []
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if controllers else ("memory.max", "memory.current", "")
        )
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(base):
                break
            if (limit := _group(folder, *names)) is not None:
                found.append(limit)
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


# ---- bandwidth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that n_threads threads of a CPU read together, and when that was measured (ISO 8601)."""

    bytes_per_second: float
    n_threads: int
    cpu: str
    measured: str
    busy: bool = False  # other programs had the processor meanwhile: the figure is too low


def read_bandwidth(team: "Team", n_bytes: int = 1 << 30, rounds: int = 5) -> float:
    """Bytes a second that all threads together read from memory: the best of some rounds over n_bytes of it."""
    import numpy as np

    from glmrun.kernels.checks import read_memory

    memory, out = np.ones(n_bytes // 4, np.float32), np.zeros(16 * team.n_threads, np.float32)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        team.run(read_memory, memory.ctypes.data, n_bytes, out.ctypes.data)
        best = max(best, n_bytes / (time.perf_counter() - start))
    return best


def memory_bandwidth(n_threads: int | None = None, again: bool = False) -> Bandwidth:
    """The remembered figure for this CPU and number of threads; measured now (about a second) if there is none or `again`.

    What was measured on a busy machine is not remembered.
    """
    cpu, n_threads = cpu_name(), min(n_threads or available_cores(), available_cores())
    path = cache_folder() / "bandwidth.json"
    known = _read_known(path)
    for entry in known:
        if not again and (entry.cpu, entry.n_threads) == (cpu, n_threads):
            return entry

    from glmrun.kernels.team import Team

    n_bytes = min(512 << 20, memory().available // 4)  # far more than caches hold
    began, used = time.perf_counter(), time.process_time()
    speed = read_bandwidth(Team(n_threads), n_bytes, rounds=8)
    busy = _others_compute(time.perf_counter() - began, time.process_time() - used)
    found = Bandwidth(speed, n_threads, cpu, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), busy)
    if not busy:
        _write_known(path, [*(entry for entry in known if (entry.cpu, entry.n_threads) != (cpu, n_threads)), found])
    return found


def _others_compute(seconds: float, processor_seconds: float) -> bool:
    """Whether this process got clearly less of the processor than the one thread that it needed all the time."""
    return processor_seconds < 0.8 * seconds


def _read_known(path: Path) -> list[Bandwidth]:
    """What was measured before; nothing if the file is missing or is not what we write."""
    try:
        entries = [Bandwidth(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return [e for e in entries if isinstance(e.bytes_per_second, float) and e.bytes_per_second > 0 and isinstance(e.measured, str)]


def _write_known(path: Path, known: list[Bandwidth]) -> None:
    """Replace the file; where nothing can be written, the next call measures again."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps([asdict(entry) for entry in known], indent=1), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
