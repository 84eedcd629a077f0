"""Compile all kernels, once per machine, into the folder that later starts load them from.

Numba holds a lock while it compiles, so the work goes to one process for each core. All of them import the kernels without
compiling, which gives each the same list; the first one hands out one kernel after another, and none before all that it calls
is in the cache: a kernel's code holds the code of everything below it.
"""

import gc
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from glmrun.kernels.compiled import cache as kernels
from quant.errors import UserError
from quant.system import lock

KEPT_DAYS = 30  # for how long a cache folder of other sources or another machine is kept after its last use
MOST_WORKERS = 8  # more find nothing to do: kernels wait for each other

Progress = Callable[[str, int, int], None]


def compile_all(progress: Progress = lambda text, done, total: None) -> None:
    """Have all kernels compiled and loaded; returns at once if they are.

    progress    called with what is being done, the number of kernels that are done, and of all
    Raises UserError where NUMBA_DISABLE_JIT is set: it asks for nothing to be compiled.
    Two programs that call this at once share the work of the first. A folder that can't be written is not an error: the kernels
    are then compiled in this process, for this process. KeyboardInterrupt ends the workers; what is compiled is kept.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise UserError("NUMBA_DISABLE_JIT is set, so nothing can be compiled; unset it")
    if kernels.are_compiled():
        _note_use(kernels.folder)
        import glmrun.forward

        return
    kernels.defer()
    import glmrun.forward  # noqa: F401  # all kernels are below it
    from glmrun.kernels.team import available_cores

    todo = kernels.registered
    n_workers = min(available_cores(), MOST_WORKERS)
    if kernels.folder is not None:
        with _alone(kernels.folder, progress):
            if not kernels.are_compiled() and (n_workers < 2 or not _share_out(todo, n_workers, progress)):
                _compile_here(todo, progress)
            (kernels.folder / "complete").touch()
        _remove_old(kernels.folder)
    else:
        _compile_here(todo, progress)
    for kernel in todo:
        if kernel.entry or kernel.apart:
            kernel.compile()


def _compile_here(todo: list[kernels.Kernel], progress: Progress) -> None:
    for done, kernel in enumerate(todo):
        progress("compiling kernels, once for this machine", done, len(todo))
        kernel.compile()


def _share_out(todo: list[kernels.Kernel], n_workers: int, progress: Progress) -> bool:
    """Compile in n_workers processes; False if one of them failed, with whatever was compiled until then in the cache."""
    callees = [kernels.callees(i) for i in range(len(todo))]
    events: queue.SimpleQueue = queue.SimpleQueue()
    workers: list[_Worker] = []
    try:
        workers += (_Worker(events) for _ in range(n_workers))
        return _hand_out(callees, events, progress)
    except OSError:  # no process can be started, or one no longer listens
        return False
    finally:
        for worker in workers:
            worker.end()


def _hand_out(callees: list[set[int]], events: queue.SimpleQueue, progress: Progress) -> bool:
    """Give each worker one kernel after another; events are (worker, line), first the number of kernels that it found."""
    height, done, idle, n = _heights(callees), set[int](), [], len(callees)
    left = sorted(range(n), key=lambda i: -height[i])  # first what most others wait for, one after another
    progress("compiling kernels, once for this machine", 0, n)
    while len(done) < n:
        worker, said = events.get()
        if said != str(n if worker.kernel is None else worker.kernel):
            return False
        if worker.kernel is not None:
            done.add(worker.kernel)
            progress("compiling kernels, once for this machine", len(done), n)
        idle.append(worker)
        for i in [i for i in left if callees[i] <= done][: len(idle)]:
            left.remove(i)
            idle.pop().compile(i)
    return True


def _heights(callees: list[set[int]]) -> list[int]:
    """For each kernel the longest chain of kernels that call it, directly or not; kernels stand behind all that they call."""
    height = [0] * len(callees)
    for i in reversed(range(len(callees))):
        for callee in callees[i]:
            height[callee] = max(height[callee], height[i] + 1)
    return height


class _Worker:
    """A process that runs serve(), and a thread that passes on what it says as (worker, line) events; an empty line is its end."""

    def __init__(self, events: queue.SimpleQueue) -> None:
        self.kernel: int | None = None  # what it compiles now
        code = f"import sys; sys.path[:] = {sys.path!r}; from glmrun.warmup import serve; serve(sys.stdin, sys.stdout)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,  # Ctrl-C is for us; we end it
            env={**os.environ, "PYTHONOPTIMIZE": str(sys.flags.optimize)},  # else it would fill another folder
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.SimpleQueue) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, line.strip()))
        events.put((self, ""))

    def compile(self, kernel: int) -> None:
        assert self._process.stdin is not None
        self.kernel = kernel
        self._process.stdin.write(f"{kernel}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Numba writes its files under other names first, so that an end at any moment leaves a usable cache."""
        self._process.kill()
        self._process.wait()


def serve(orders: TextIO, answers: TextIO) -> None:
    """A worker's life: say how many kernels there are; compile those whose numbers come in, and say when each is in the cache."""
    gc.disable()  # looking for rings in all that Numba holds takes 6 % of the time, and the process ends soon
    kernels.defer()
    import glmrun.forward  # noqa: F401

    print(len(kernels.registered), file=answers, flush=True)
    for line in orders:
        for i in [*kernels.needed(int(line)), int(line)]:
            kernels.registered[i].compile()
        print(int(line), file=answers, flush=True)


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock, waiting for whoever has it. Without locks two programs compile the same, and nothing breaks."""
    with open(folder / "lock", "w") as file:
        with suppress(OSError):  # a file system without locks
            if not lock(file.fileno()):
                progress("waiting for the kernels that another glmrun compiles", 0, 0)
                lock(file.fileno(), wait=True)
        yield


def _note_use(folder: Path | None) -> None:
    """Keep the date of the mark within a day of the last use."""
    try:
        if folder is not None and time.time() - (folder / "complete").stat().st_mtime > 24 * 3600:
            os.utime(folder / "complete")
    except OSError:
        pass


def _remove_old(folder: Path, now: float | None = None) -> None:
    """Remove the folders beside this one that nothing has used for KEPT_DAYS: an update leaves one behind."""
    limit = (time.time() if now is None else now) - KEPT_DAYS * 24 * 3600
    for other in folder.parent.iterdir():
        mark = other / "complete"
        try:
            used = (mark if mark.exists() else other).stat().st_mtime
            if other != folder and used < limit:
                mark.unlink(missing_ok=True)  # first: without it nobody takes the rest for whole
                shutil.rmtree(other, ignore_errors=True)
        except OSError:
            pass
