"""How fast this machine reads its memory, and a file from its disk."""

import contextlib
import json
import mmap
import os
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from glmrun.machine import available_cores, cache_folder, cpu_name, memory

if TYPE_CHECKING:
    from glmrun.kernels.team import Team

_PIECE, _READERS = 2 << 20, 4  # bytes that are read from a disk at once, and by how many threads


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


def disk_bandwidth(path: Path, seconds: float = 1.0) -> float | None:
    """Bytes a second at which this file comes from its disk, past the page cache, in pieces as large as an expert's matrices.

    None where the system can't read past its cache, or the file is too small to measure.
    """
    direct, size = getattr(os, "O_DIRECT", 0), path.stat().st_size
    if not direct or size < 64 * _PIECE:
        return None
    ends, n_bytes = time.perf_counter() + seconds, [0] * _READERS
    try:
        descriptor = os.open(path, os.O_RDONLY | direct)
    except OSError:
        return None

    def read(reader: int) -> None:
        at = reader
        with contextlib.suppress(OSError), mmap.mmap(-1, _PIECE) as into:  # a mapping: direct reads want whole pages
            while time.perf_counter() < ends:
                n_bytes[reader] += os.preadv(descriptor, [into], at * 7919 % (size // _PIECE) * _PIECE)  # here and there
                at += _READERS

    began = time.perf_counter()
    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    return sum(n_bytes) / (time.perf_counter() - began) or None


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
        with contextlib.suppress(OSError):  # a disk that can't be written says so of what is not there, too
            unfinished.unlink()
