"""Ctrl-C, Esc and other keys during an answer.

Python runs signal handlers on the main thread only, between two of its own instructions. The main thread may make the answer,
for it does not compute: it waits for the threads of kernels/team.py, or for those of a connection, where signals reach it.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

    from glmrun.chat.chunk import Chunk
    from glmrun.chat.request import ChatModel

_ESCAPE_SECONDS = 0.1  # an Esc with nothing behind it for so long is the key, not the beginning of another one


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep typed keys off the screen while something is printed; they wait, Enter included, for the next prompt. Ctrl-C works."""
    with _keyboard(line_by_line=True):
        yield


@contextmanager
def listening(source: "Input", actions: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Run actions at their keys, named as prompt_toolkit names them ("escape", "c-o"); other keys wait for the next prompt.

    Actions run on a thread of their own. Ctrl-C stays a signal.
    """
    if not _in_foreground():
        yield
        return
    from prompt_toolkit.input.typeahead import store_typeahead

    typed: list[Any] = []
    ended, end = os.pipe()
    listener = threading.Thread(target=_listen, args=(source, actions, ended, typed), name="keys", daemon=True)
    try:
        with _keyboard(line_by_line=False):
            listener.start()
            try:
                yield
            finally:
                os.write(end, b".")
                listener.join()
    finally:
        os.close(end)
        os.close(ended)
        store_typeahead(source, typed)


def _listen(source: "Input", actions: Mapping[str, Callable[[], None]], ended: int, typed: list) -> None:
    waiting = False  # for what belongs to an escape character
    while not source.closed:
        ready, _, _ = select.select([source.fileno(), ended], [], [], _ESCAPE_SECONDS if waiting else None)
        if ended in ready:
            break
        waiting = bool(ready)
        pressed = source.read_keys() if ready else source.flush_keys()
        for press in pressed:
            name = getattr(press.key, "value", press.key)
            alone = name != "escape" or (not ready and len(pressed) == 1)  # Alt+key begins with an escape, too
            if name in actions and alone:
                actions[name]()
            else:
                typed.append(press)


@contextmanager
def _keyboard(line_by_line: bool) -> Iterator[None]:
    """The terminal's keyboard without echo, and Enter as it is; line_by_line: keys are given out with Enter. Ctrl-C is a signal."""
    if sys.platform == "win32" or not _in_foreground():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    local = before[3] & ~termios.ECHO & (-1 if line_by_line else ~termios.ICANON)
    quiet = [before[0] & ~termios.ICRNL, *before[1:3], local, *before[4:]]

    def set_again(*_: object) -> None:
        if _in_foreground():  # Ctrl-Z and fg: the shell has set its own
            termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCONT, set_again) if on_main_thread else None
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        if on_main_thread:
            signal.signal(signal.SIGCONT, handler)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


@contextmanager
def orderly_end() -> Iterator[None]:
    """A lost terminal or `kill` ends the program as sys.exit() does: what was said is kept, the terminal is as it was."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether standard input is a terminal whose settings are ours to change: the system stops a background job that tries."""
    return sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


def interruptible(model: "ChatModel", chunks: "Iterator[Chunk]", asked: threading.Event | None = None) -> "Generator[Chunk]":
    """The same chunks; Ctrl-C, or whoever sets `asked`, has the model stop, so that the last one says "cancelled".

    A second Ctrl-C raises KeyboardInterrupt. Call it on the main thread. Leaving the loop early ends the answer.
    """
    asked = asked or threading.Event()

    def stop(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        model.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        with closing(cast("Generator[Chunk]", chunks)):
            for chunk in chunks:
                yield chunk
                if asked.is_set() and chunk.finish_reason is None:
                    model.cancel()  # again, in case the first call came before the answer had begun
    finally:
        signal.signal(signal.SIGINT, before)
