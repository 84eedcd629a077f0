"""Map a model file's pages ahead of the first token.

A page of a mapped file costs a fault when it is first touched, and a wait for the disk where it is not in the page cache; one by
one, in the order in which tokens happen to need them, both are slow. Linux can do it in bulk (MADV_POPULATE_READ, since 5.14):
some 70 ms a gigabyte when the file is in the page cache, the speed of the disk when it is not. Pages that are mapped also stay
when the system looks for cold ones to drop. Elsewhere nothing happens here, and pages come as they are touched.
"""

import mmap
import threading
import time

from glmrun.gguf.file import GGUFFile
from glmrun.machine import available_memory
from glmrun.tensors.repack import forms_to_run, tensors_in_place
from quant.config import Config
from quant.system import populate

SLICE = 64 << 20  # bytes of one request: an answer to Ctrl-C and a step of the bar
ROOM = 512 << 20  # bytes that must stay free beside the file
WARM = 4e9  # bytes a second: faster than disks, so what comes at this rate is in the page cache
PAGE = mmap.PAGESIZE


class Prefault:
    """A thread that maps what the model's tokens read.

    n_bytes   how much that is
    n_done    how much of it is mapped
    partial   why it is not the whole model: a line for the user, else None
    """

    def __init__(self, file: GGUFFile, config: Config, available: int | None = None) -> None:
        """available   bytes of memory that may be filled; by default as the system says"""
        self._file, self.n_done = file, 0  # while the thread runs, so does the mapping
        self.partial: str | None = None
        used = tensors_in_place(file, config)
        needed = sum(n_bytes for _, _, n_bytes in forms_to_run(file, config).values()) + ROOM
        available = available_memory() if available is None else available
        if needed > available:
            self.partial = (
                f"the model needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free: "
                "its experts are read from the disk again and again"
            )
            used = [t for t in used if "_exps." not in t.name]
            if sum(t.n_bytes for t in used) + ROOM > available:
                used = []
        addresses = ((t.data.ctypes.data, t.n_bytes) for t in used)
        self._ranges = _slices(sorted((address, address + n_bytes) for address, n_bytes in addresses))
        self.n_bytes = sum(end - start for start, end in self._ranges)
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._stop = False
        threading.Thread(target=self._run, daemon=True, name="prefault").start()

    def is_waiting_for_disk(self) -> bool:
        """Whether it goes on at the speed of a disk: then the first token is better waited for here."""
        seconds = time.monotonic() - self._began
        return not self._ended.is_set() and seconds > 0.1 and self.n_done < WARM * seconds

    def wait(self, seconds: float) -> bool:
        """Wait at most that long for the end; whether it has come."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Map no further."""
        self._stop = True

    def _run(self) -> None:
        try:
            for start, end in self._ranges:
                if self._stop or not populate(start, end - start):
                    return  # a system without it, or a file that cannot be read here: tokens will find out
                self.n_done += end - start
        finally:
            self._ended.set()


def _slices(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted extents, in addresses, as whole pages, neighbours joined, cut into pieces of at most SLICE."""
    joined: list[tuple[int, int]] = []
    for start, end in extents:
        start, end = start // PAGE * PAGE, -(-end // PAGE) * PAGE
        if joined and start <= joined[-1][1]:
            start, end = joined.pop()[0], max(end, start)
        joined.append((start, end))
    return [(at, min(at + SLICE, end)) for start, end in joined for at in range(start, end, SLICE)]
