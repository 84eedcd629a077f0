"""Where text goes: the answer to standard output, everything else to standard error, and no escape code into a pipe."""

import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from glmrun.terminal.sanitize import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console


_quiet = False


def be_quiet() -> None:
    """From now on no notes, thinking or progress: answers, results and errors alone."""
    global _quiet
    _quiet = True


def is_quiet() -> bool:
    """Whether that was asked for."""
    return _quiet


class _Lossy(io.FileIO):
    """A file that takes everything: what can't be written is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_streams() -> None:
    """Let no character of an answer fail to be written: pipes and files get UTF-8, a terminal what it can show.

    Where the shell closed standard error, it becomes the null device; standard output stays one that can't be written, since an
    answer that nobody gets is an error. No file that is opened later takes their numbers. Notes that can't be written, on a full
    disk or to a terminal that is gone, cost no answer.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        if number == 1:
            os.close(number)
            os.open(os.devnull, os.O_RDONLY)  # takes the number just left
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", **({} if stream.isatty() else {"encoding": "utf-8"}))
    original = sys.__stderr__
    if original is not None and sys.stderr is original:
        raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, original.encoding, errors="replace", line_buffering=True)


def error_console() -> "Console":
    """A Rich console on standard error; it sends escape codes only to a terminal that wants them (NO_COLOR, TERM=dumb)."""
    from rich.console import Console

    # FORCE_COLOR and the like mean colours: no bar moves in a file.
    console = Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, markup=False, emoji=False, quiet=_quiet)
    console.show_cursor = lambda show=True: False  # type: ignore[method-assign]  # a signal would leave it hidden for the shell
    return console


def shows_codes(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands colours and cursor movements."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def write_answer(text: str) -> None:
    """Write a piece of an answer to standard output, now.

    A terminal gets it with control characters made visible; a pipe or a file gets the model's text unchanged, since programs
    that read it want the bytes and know what they do with them.
    """
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def tell(text: str) -> None:
    """What a command found, on standard output. A terminal breaks it between words."""
    if sys.stdout.isatty():
        from glmrun.terminal.layout import folded
        from glmrun.terminal.tail import window

        text = folded(text, window(sys.stdout)[0])
    print(text)


def note(text: str) -> None:
    """One line on standard error, dim in a terminal; none if it is to be quiet."""
    if _quiet:
        return
    if shows_codes(sys.stderr):
        from glmrun.terminal.screen import print_lines

        print_lines(sys.stderr, one_line(text), "dim")
    else:
        print(one_line(text), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """What a command has to tell, on standard error: standard output carries answers only. A terminal breaks it between words."""
    if sys.stderr.isatty():
        from glmrun.terminal.layout import folded
        from glmrun.terminal.tail import window

        text = folded(visible(text), window(sys.stderr)[0])
    print(visible(text), file=sys.stderr, flush=True)


def question(text: str) -> str:
    """A question for standard error, with a blank behind it; for a terminal broken between words."""
    if not sys.stderr.isatty():
        return f"{visible(text)} "
    from glmrun.terminal.layout import folded
    from glmrun.terminal.tail import window

    return folded(visible(text), window(sys.stderr)[0] - 1) + " "


def show_error(message: str) -> None:
    """`error: message` on standard error: one line, harmless whatever the message quotes; a terminal breaks it between words."""
    if shows_codes(sys.stderr):
        from glmrun.terminal.screen import print_error

        print_error(sys.stderr, one_line(message))
    else:
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
