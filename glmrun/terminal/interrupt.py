"""Ctrl-C, Esc and other keys during an answer.

Python runs signal handlers on the main thread only, between two of its own instructions. The main thread may make the answer,
for it does not compute: it waits for the threads of kernels/team.py, or for those of a connection, where signals reach it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Any, cast

from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatModel


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep typed keys off the screen; they wait for whoever reads next, Enter as a line break. Ctrl-C is a signal."""
    if not in_foreground():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    quiet = [before[0] | termios.ICRNL, *before[1:3], before[3] & ~termios.ECHO & ~termios.ICANON, *before[4:]]

    def set_again(*_: object) -> None:
        if in_foreground():  # Ctrl-Z and fg: the shell has set its own
            termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCONT, set_again) if on_main_thread else None
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        if on_main_thread:
            signal.signal(signal.SIGCONT, handler)
        _give_back(before)


def ask_key(question: str) -> str:
    """Ask on standard error; the key that is pressed then, as a character, on a terminal that nobody else reads."""
    import termios

    with quiet_keyboard():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before is no answer
        print(question, end="", file=sys.stderr, flush=True)
        try:
            return os.read(sys.stdin.fileno(), 1).decode("utf-8", "replace")
        except KeyboardInterrupt:
            print(file=sys.stderr, flush=True)  # what follows would overwrite the question
            raise


def _give_back(settings: list[Any]) -> None:
    """The terminal's settings as they were; not where it is gone or another program's, which would stop us for good."""
    import termios

    if in_foreground():
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)


@contextmanager
def orderly_end(at_once: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """A lost terminal or `kill` ends the program as sys.exit() does: what was said is kept, the terminal is as it was.

    What was begun is cleared away. A signal that is ignored, as nohup has it, stays so.
    at_once   whether there is nothing to keep and what runs would not end by an exception: the signal itself ends the program
    """
    import termios

    settings = termios.tcgetattr(sys.stdin) if in_foreground() else None

    def leave(number: int, _: FrameType | None) -> None:
        if at_once():
            if settings is not None:
                _give_back(settings)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise _Ended(number)

    def unraisable(forgotten: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a finalizer, or where an object that is gone is told of: the signal comes again."""
        if not isinstance(forgotten.exc_value, _Ended):
            hook(forgotten)
            return
        again = threading.Timer(0.02, os.kill, (os.getpid(), forgotten.exc_value.number))
        again.daemon = True
        again.start()

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in signals if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


class _Ended(SystemExit):
    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def in_foreground() -> bool:
    """Whether standard input is a terminal whose settings are ours to change: the system stops a background job that tries."""
    try:
        return sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # it is gone
        return False


@contextmanager
def interruptible(model: ChatModel, chunks: Iterator[Chunk]) -> Iterator[Callable[[], None]]:
    """Ctrl-C in the block, which reads the chunks, has the model stop, so that the last one says "cancelled".

    Gives what any other key may call for that. Ctrl-C behind that raises KeyboardInterrupt. The answer ends with the block. Enter
    it on the main thread.
    """
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        model.cancel()

    def pressed(*_: object) -> None:
        if asked:
            raise KeyboardInterrupt
        stop()

    before = signal.signal(signal.SIGINT, pressed)
    try:
        with closing(cast("Generator[Chunk]", chunks)):
            yield stop
    finally:
        signal.signal(signal.SIGINT, before)
