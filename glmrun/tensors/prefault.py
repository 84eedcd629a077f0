"""Map a model file's pages ahead of the first token, as far as memory holds them.

A page of a mapped file costs a fault when it is first touched, and a wait for the disk where it is not in the page cache; one by
one, in the order in which tokens happen to need them, both are slow. Linux can do it in bulk (MADV_POPULATE_READ, since 5.14):
some 70 ms a gigabyte when the file is in the page cache, the speed of the disk when it is not. Pages that are mapped also stay
when the system looks for cold ones to drop. Elsewhere nothing happens here, and pages come as they are touched.

Of a model that is larger than memory, what all tokens read comes first and is locked where the system allows it. Then come
experts as far as they fit, those first that were used most until now (uses.py), else equally many of each layer, until the first
step begins: from there on steps ask for those they need. Memory that becomes less while the model runs is noticed between steps.
"""

import mmap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glmrun.gguf.file import GGUFFile, TensorInfo
from glmrun.kernels.disk import BLIND, LOOKS
from glmrun.machine import available_memory
from glmrun.tensors.split import forms_to_run, in_place
from glmrun.tensors.uses import known_uses
from quant.config import Config
from quant.system import ask, keep, let_go, populate

SLICE = 64 << 20  # bytes of one request: an answer to Ctrl-C and a step of the bar
EXPERT_SLICE, AHEAD = 8 << 20, 8  # likewise of experts, which stand apart: so many are on their way while one is waited for
BANDS = 4  # of experts by use, each read in the order in which it stands on the disk
LOOK_AGAIN = 2.0  # seconds after which a step asks whether memory has become less
ROOM = 512 << 20  # bytes that must stay free beside the file
WARM = 4e9  # bytes a second: faster than disks, so what comes at this rate is in the page cache
PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Fit:
    """What of a model stays in memory; bytes.

    needed    all its weights and room for the rest
    always    what every token reads and what was converted, with that room
    experts   of the file, read where they are mapped
    """

    needed: int
    always: int
    experts: int
    available: int

    @property
    def whole(self) -> bool:
        """Whether all of it stays."""
        return self.needed <= self.available

    @property
    def share(self) -> float:
        """Of the experts, 0 to 1, how many find room beside the rest."""
        return min(1.0, max(0.0, (self.available - self.always) / self.experts)) if self.experts else 1.0


def fit(file: GGUFFile, config: Config, available: int | None = None, ahead: bool = False) -> Fit:
    """Sizes against memory; `available` bytes may be filled, by default as the system and its control groups say.

    ahead   with the prediction layer
    """
    needed = sum(n_bytes for _, _, n_bytes in forms_to_run(file, config, ahead).values()) + ROOM
    experts = sum(t.n_bytes for t in in_place(file, config, ahead).values() if "_exps." in t.name)
    return Fit(needed, needed - experts, experts, available_memory() if available is None else available)


class Prefault:
    """A thread that maps what the model's tokens read.

    n_bytes   how much of it the first token should wait for: all that tokens read, or all but experts
    n_done    how much of that is mapped
    fit       what stays in memory
    populates whether the system maps pages in one call
    partial   why it is not the whole model: a line for the user, else None
    """

    def __init__(self, file: GGUFFile, config: Config, available: int | None = None, ahead: bool = False) -> None:
        """As in fit()."""
        self._file, self.n_done = file, 0  # while the thread runs, so does the mapping
        self.fit = f = fit(file, config, available, ahead)
        self.from_disk = 0 if f.whole else self._way()
        self.populates = populate(file.mappings[0].ctypes.data // PAGE * PAGE, PAGE)
        used = [t for t in in_place(file, config, ahead).values() if "nextn.embed_tokens." not in t.name]  # read row by row
        self._experts: list[tuple[int, int]] = []
        self.partial: str | None = None
        if not f.whole:
            self.partial = (
                f"the model needs {f.needed / 1e9:.1f} GB of memory and {f.available / 1e9:.1f} GB are free: "
                + (f"{f.share:.0%} of its experts stay there, the others are read from the disk when they are needed"
                   if f.share else "it is read from the disk again and again")
            )  # fmt: skip
            experts = [t for t in used if "_exps." in t.name]
            for band in likely_experts(experts, known_uses(file.watched, config), f.available - f.always):
                self._experts += _slices(band, EXPERT_SLICE)
            used = [t for t in used if "_exps." not in t.name] if f.always <= f.available else []
        self._ranges = _slices([extent for t in used for extent in _extents(t)])
        self.n_bytes = sum(end - start for start, end in self._ranges)
        # Locked pages are taken from everybody else: never more than half of what is free.
        self._locks = not f.whole and self.n_bytes <= f.available // 2
        self._locked: list[tuple[int, int]] = []
        self._looked = time.monotonic()
        self._began = time.monotonic()
        self._ready = threading.Event()
        self._stop = self._on_demand = False
        threading.Thread(target=self._run, daemon=True, name="prefault").start()

    def is_waiting_for_disk(self) -> bool:
        """Whether it goes on at the speed of a disk: then the first token is better waited for here."""
        seconds = time.monotonic() - self._began
        return not self._ready.is_set() and seconds > 0.1 and self.n_done < WARM * seconds

    def wait(self, seconds: float) -> bool:
        """Wait at most that long for what the first token needs; whether it is there."""
        return self._ready.wait(seconds)

    def way(self) -> int:
        """How the next step has experts read (kernels/disk.py); 0 while all of the model fits.

        Now and then it looks at the memory: a control group can shrink under a running model. What is locked is given back then.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_AGAIN:
            self._looked, available = now, available_memory()
            locked = sum(end - start for start, end in self._locked)
            if not self.from_disk and self.fit.needed - ROOM > available:
                self.from_disk = self._way()
            if locked > available:
                self._locks = False
                for start, end in self._locked:
                    let_go(start, end - start)
                self._locked = []
        return self.from_disk

    def _way(self) -> int:
        return LOOKS if all(watched.is_ours() for watched in self._file.watched) else BLIND

    def experts_on_demand(self) -> None:
        """A step begins: of a model that is larger than memory, read no further experts ahead. Its own come first."""
        self._on_demand = True

    def stop(self) -> None:
        """Map no further."""
        self._stop = True

    def _run(self) -> None:
        try:
            for start, end in self._ranges:
                if self._stop or not populate(start, end - start):
                    return  # a system without it, or a file that cannot be read here: tokens will find out
                if self._locks:
                    self._locks = keep(start, end - start)
                    self._locked += [(start, end)] if self._locks else []
                self.n_done += end - start
            self._ready.set()
            for i, (start, end) in enumerate(self._experts):
                if self._stop or self._on_demand:
                    return
                for first, after in self._experts[i + AHEAD : i + AHEAD + 1] if i else self._experts[: AHEAD + 1]:
                    ask(first, after - first)
                if not populate(start, end - start):
                    return
        finally:
            self._ready.set()


def _extents(tensor: TensorInfo, first: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """The addresses (first, behind the last) of each of a tensor's matrices, or of matrices first to end - 1 of a stack."""
    stack = tensor.matrices
    starts = stack.ctypes.data + np.arange(len(stack))[first:end] * stack.strides[0]  # int64 (matrices,)
    return [(start, start + stack.shape[1]) for start in starts.tolist()]


def likely_experts(tensors: Sequence[TensorInfo], uses: np.ndarray, room: int) -> list[list[tuple[int, int]]]:
    """Extents of the experts that were used most, as many as fit into `room` bytes, in bands, most used first.

    tensors   the experts' matrices in place, stacked
    uses      int64 (num_hidden_layers + 1, n_routed_experts); of equally much used ones equally many of each layer
    """
    layers: dict[int, list[TensorInfo]] = {}
    for tensor in tensors:
        layers.setdefault(int(tensor.name.split(".")[1]), []).append(tensor)
    order = sorted((-int(uses[layer, e]), e, layer) for layer in layers for e in range(uses.shape[1]))
    sizes = {layer: sum(t.n_bytes // t.shape[0] for t in stack) for layer, stack in layers.items()}
    ends = np.cumsum([sizes[layer] for _, _, layer in order])
    chosen = order[: int(np.searchsorted(ends, room, "right"))]
    band = -(-len(chosen) // BANDS)
    return [
        [extent for _, e, layer in chosen[at : at + band] for t in layers[layer] for extent in _extents(t, e, e + 1)]
        for at in range(0, len(chosen), max(band, 1))
    ]


def _slices(extents: list[tuple[int, int]], most: int = SLICE) -> list[tuple[int, int]]:
    """Extents, in addresses, as sorted whole pages, neighbours joined, cut into pieces of at most so many bytes."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(extent for extent in extents if extent[0] < extent[1]):
        start, end = start // PAGE * PAGE, -(-end // PAGE) * PAGE
        if joined and start <= joined[-1][1]:
            start, end = joined.pop()[0], max(end, start)
        joined.append((start, end))
    return [(at, min(at + most, end)) for start, end in joined for at in range(start, end, most)]
