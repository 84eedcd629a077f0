"""The threads that run one jitted function together.

Each thread calls the same function with its own number; inside, barrier() holds them until all have arrived. The main
thread does not compute: it waits where a signal can reach it, so Ctrl-C sets the cancel flag even in a long step.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int32, int64, types, uint32

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import worker_record
from glmrun.kernels.simd.atomic import atomic_add, atomic_load, atomic_store, pause
from glmrun.machine import available_cores
from quant.errors import UserError
from quant.system import core_wait

# Offsets in bytes: each counter has its own pair of cache lines.
ARRIVED, PHASE, CANCEL, STOP, DONE_PARTS, NEXT, SIZE = 0, 128, 256, 384, 512, 640, 768
SPINS = 200  # then whatever else wants the core gets it at once, such as the thread that is waited for
YIELDS = 6000  # some milliseconds: then the core rests
NAP = 20  # microseconds

_sched_yield = types.ExternalFunction("sched_yield", int32())
_usleep = types.ExternalFunction("usleep", int32(uint32))


@kernel(types.void(int64, int64))
def barrier(flags, n_threads):
    """Return when n_threads threads have called it; what they wrote before is then visible to all."""
    phase = atomic_load(flags + PHASE)
    if atomic_add(flags + ARRIVED, 1) == n_threads - 1:
        atomic_store(flags + ARRIVED, 0)
        atomic_store(flags + NEXT, 0)
        atomic_store(flags + PHASE, phase + 1)
        return
    spins = 0
    while atomic_load(flags + PHASE) == phase:
        spins += 1
        if spins < SPINS:
            pause()
        elif spins < YIELDS:
            _sched_yield()
        else:
            _usleep(uint32(NAP))


# Work is shared out at run time. Between two waits all threads pass the same loops over pieces, in the same order; a thread draws
# a ticket, a number in the row of all those pieces, and keeps it until it comes to the loop that the ticket belongs to. So a core
# that is slow or busy costs a piece and not the step. Which thread computes a piece never changes what it computes.


@kernel(types.void(worker_record))
def wait(w):
    """Return when all threads have come here; what they wrote before is then visible to all."""
    barrier(w.flags, w.n_threads)
    w.ticket = -1
    w.passed = 0


@kernel(int64(worker_record))
def first_piece(w):
    """The first piece of this loop that is this thread's, counted from the loop's first; beyond the last if there is none."""
    if w.ticket < 0:
        w.ticket = atomic_add(w.flags + NEXT, 1)
    return w.ticket - w.passed


@kernel(int64(worker_record))
def next_piece(w):
    """The next piece of this loop for this thread."""
    w.ticket = atomic_add(w.flags + NEXT, 1)
    return w.ticket - w.passed


@kernel(types.void(worker_record, int64))
def leave(w, n_pieces):
    """Behind a loop of so many pieces."""
    w.passed += n_pieces


@kernel(int64(int64, worker_record, int64))
def piece_size(n, w, most):
    """How many of n things make a piece: some pieces for each thread, at most so many things."""
    return max(1, min(most, n // (4 * w.n_threads)))


class Team:
    """n_threads daemon threads, at most one for each available core: a spinning thread without a core stalls all others.

    n_active    how many of them the next runs have
    waited      seconds that they had no core for in the last run, in all
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = self.n_active = max(1, min(n_threads or available_cores(), available_cores()))
        self.waited = 0.0
        self._flags = np.zeros(SIZE + 128, np.uint8)  # uint8 (SIZE and room to align)
        self.flags = -(-self._flags.ctypes.data // 128) * 128
        aligned = self._flags[self.flags - self._flags.ctypes.data :].view(np.int64)[: SIZE // 8]  # int64 (SIZE / 8,)
        self._cancel, self._parts = aligned[CANCEL // 8 :], aligned[DONE_PARTS // 8 :]
        self._work: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(self.n_threads)]
        self._threads: list[threading.Thread] = []
        self._runs = 0
        weakref.finalize(self, _dismiss, self._work)
        for thread, work in enumerate(self._work):
            arguments = (work, self._flags, self.flags, thread)
            starting = threading.Thread(target=_serve, args=arguments, daemon=True, name=f"glmrun-{thread}")
            try:
                starting.start()
            except RuntimeError:
                self.close()
                raise UserError(
                    f"{self.n_threads} threads are to compute, and the system starts only {thread}; "
                    "ask for fewer, or raise this user's or container's limit on processes"
                ) from None
            self._threads.append(starting)

    def close(self) -> None:
        """End the threads; nothing runs on them any more."""
        _dismiss(self._work)
        for thread in self._threads:
            thread.join()

    def run(self, function: Callable[..., int], *arguments: Any) -> int:
        """function(*arguments, flags, thread, n_active) on every active thread; the largest result when all have returned.

        An exception from a signal cancels the function and waits for its end: no thread stays behind in the caller's buffers.
        """
        self._parts[0] = 0
        self._runs += 1
        done: queue.SimpleQueue = queue.SimpleQueue()
        # The threads fill it: an exception that a signal raises here can lose a wake-up, but no result.
        results: list[tuple[Any, float]] = []
        working = self._work[: self.n_active]
        job = (self._runs, function, arguments, len(working), results, done)
        interrupted: BaseException | None = None
        handed_out = False
        while len(results) < len(working):
            try:
                if not handed_out:
                    for work in working:  # again after an exception: a job that only some threads get would hold them for ever
                        work.put(job)
                    handed_out = True
                done.get(timeout=0.1 if interrupted else None)
            except queue.Empty:
                continue
            except BaseException as error:
                self.cancel()
                interrupted = error
        self.waited = sum(waited for _, waited in results)
        for result, _ in results:
            if isinstance(result, BaseException):
                raise result
        if interrupted is not None:
            self.resume()
            raise interrupted
        return max(result for result, _ in results)

    @property
    def parts(self) -> int:
        """How many parts (layers) of what runs are done, as it tells."""
        return int(self._parts[0])

    @parts.setter
    def parts(self, n: int) -> None:
        self._parts[0] = n

    def cancel(self) -> None:
        """Ask the running step to end at the next layer; safe from any thread and from a signal handler."""
        self._cancel[0] = 1

    def resume(self) -> None:
        """Forget an earlier cancel()."""
        self._cancel[0] = 0


def _serve(work: queue.SimpleQueue, memory: np.ndarray, flags: int, thread: int) -> None:
    """A thread's life; it holds on to the flags' memory, not to the Team, so that a forgotten Team ends."""
    last = 0
    with core_wait() as waited:
        while (job := work.get()) is not None:
            run, function, arguments, n_active, results, done = job
            if run == last:
                continue  # handed out twice
            last, before, result = run, waited(), None
            try:
                result = function(*arguments, flags, thread, n_active)
            except BaseException as error:
                result = error
            results.append((result, waited() - before))
            done.put(None)
            del job, function, arguments, results, result, done  # what it worked on may be freed while it waits


def _dismiss(works: list[queue.SimpleQueue]) -> None:
    for work in works:
        work.put(None)
