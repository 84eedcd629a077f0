"""Ctrl-C and other keys during an answer.

Python runs signal handlers only on the main thread and only between two of its own instructions; a jitted call of some
seconds on that thread would hold them up. So the answer is made on another thread while the main thread waits on a queue.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmrun.chunk import Chunk
    from glmrun.engine import Model
    from glmrun.remote import RemoteModel


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep typed keys off the screen while something is printed; they wait, Enter included, for the next prompt. Ctrl-C works."""
    if sys.platform == "win32" or not _in_foreground():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    quiet = [before[0] & ~termios.ICRNL, *before[1:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _in_foreground() -> bool:
    """Whether standard input is a terminal whose settings are ours to change: the system stops a background job that tries."""
    return sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


def interruptible(model: "Model | RemoteModel", chunks: "Iterator[Chunk]") -> "Generator[Chunk]":
    """The same chunks; Ctrl-C asks the model to stop, so that the last one says "cancelled".

    A second Ctrl-C raises KeyboardInterrupt. Call it on the main thread. Leaving the loop early cancels the answer and waits
    until the model is free again.
    """
    results: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
    asked = threading.Event()

    def produce() -> None:
        try:
            for chunk in chunks:
                results.put(chunk)
            results.put(None)
        except BaseException as why:  # whatever it is, the main thread raises it
            results.put(why)

    def stop(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        model.cancel()

    worker = threading.Thread(target=produce, name="answer", daemon=True)
    before = signal.signal(signal.SIGINT, stop)
    worker.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            if asked.is_set() and item.finish_reason is None:
                model.cancel()  # again, in case the first call came before the answer had begun
    except GeneratorExit:
        model.cancel()
        worker.join()
        raise
    finally:
        signal.signal(signal.SIGINT, before)
