"""A text on a terminal while it is being written: Markdown, or thinking."""

import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from glmrun.terminal.layout import Layout, wrap
from glmrun.terminal.markdown import MAX_OPEN, MarkdownText
from glmrun.terminal.sanitize import VisibleStream, visible
from glmrun.terminal.tail import Tail, window

_PAUSE = 0.04  # seconds between two paintings at least, and
_SHARE = 8  # times as long as one takes: painting costs at most a ninth of the time


class _Painter:
    """What all texts share: a tail, the pace of painting, lines in the terminal's own codes."""

    def __init__(self, stream: TextIO, footer: Callable[[], str | None] = lambda: None, grows: bool = True) -> None:
        self.console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._stream, self._tail, self._footer = stream, Tail(stream, grows), footer
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether it is time to paint again."""
        return time.monotonic() >= self._next

    def paint(self, began: float, lines: list[Text]) -> None:
        """Show lines as they are now; what a very narrow terminal cannot hold is cut off until they are finished."""
        for line in lines:
            line.truncate(self.width)
        footer = self._footer()
        rows = [] if footer is None else self.codes([_styled(footer, width=self.width)])
        self._tail.paint(self.codes(lines), rows[0] if rows else None)
        now = time.monotonic()
        self._next = now + max(_PAUSE, _SHARE * (now - began))

    def finish(self, lines: list[Text]) -> None:
        """Leave lines on the screen for good."""
        self._tail.finish(self.codes(lines))

    def codes(self, lines: list[Text]) -> list[str]:
        if not lines:
            return []
        with self.console.capture() as captured:
            self.console.print(Text("\n").join(lines), soft_wrap=True, end="")
        return captured.get().split("\n")

    @property
    def width(self) -> int:
        return window(self._stream)[0]


class MarkdownScreen:
    """Markdown, laid out: blocks that are finished once, the open end again and again."""

    def __init__(self, stream: TextIO, footer: Callable[[], str | None] = lambda: None) -> None:
        self._painter = _Painter(stream, footer)
        self._text, self._layout = MarkdownText(), Layout(self._painter.console)

    def add(self, text: str) -> None:
        """More of the text; what there is of it is painted now and then."""
        self._text.add(text)
        if self._painter.is_due():
            self.paint()

    def paint(self) -> None:
        """Show all that came so far."""
        began, width = time.monotonic(), self._painter.width
        self._give_out(end=False)
        lines = [line for block in self._text.open() for line in self._layout.open(block, width)]
        self._painter.paint(began, lines)

    def close(self) -> None:
        """The text is over; a line that was begun is ended."""
        self._give_out(end=True)
        self._painter.finish([])

    def _give_out(self, end: bool) -> None:
        width = self._painter.width
        lines: list[Text] = []
        for block in self._text.finished(end):
            lines += self._layout.finished(block, width)
        if lines:
            self._painter.finish(lines)


class ThoughtScreen:
    """Thinking, dim: in a window of `rows` lines below a title, which goes away, or all of it (rows None)."""

    def __init__(self, stream: TextIO, rows: int | None, footer: Callable[[], str | None] = lambda: None) -> None:
        self._painter, self._n_rows = _Painter(stream, footer, grows=rows is None), rows
        self._safe, self._text = VisibleStream(), ""
        self.title = ""

    def add(self, text: str) -> None:
        self._text += self._safe.push(text)
        if self._n_rows is not None:
            self._text = self._text[-MAX_OPEN:]
        if self._painter.is_due():
            self.paint()

    def paint(self) -> None:
        """Show what came last."""
        began, width = time.monotonic(), self._painter.width
        if self._n_rows is None:
            done, newline, self._text = self._text.rpartition("\n")
            if len(self._text) > MAX_OPEN:
                done, newline, self._text = done + newline + self._text, "\n", ""
            if newline:
                self._painter.finish(wrap(_styled(done), width))
            self._painter.paint(began, wrap(_styled(self._text), width))
            return
        some = self._text.strip()[-width * (self._n_rows + 1) :]
        lines = wrap(_styled(some), max(width - 2, 1))[-self._n_rows :] if self._n_rows else []
        self._painter.paint(began, [_styled(self.title, width=width), *[_styled("  ") + line for line in lines]])

    def close(self) -> None:
        """The thinking is over: the window goes, a line that was begun is ended."""
        self._text += self._safe.flush()
        self._painter.finish(wrap(_styled(self._text), self._painter.width) if self._n_rows is None and self._text.strip() else [])


def print_lines(stream: TextIO, text: str, style: str, first: str = "", others: str = "") -> None:
    """A text that is complete, wrapped, on a terminal; what its first line and the others begin with."""
    painter = _Painter(stream)
    lines = wrap(_styled(visible(text), style), max(painter.width - len(first), 1))
    painter.finish([_styled(others if i else first, style) + line for i, line in enumerate(lines)])


def print_error(stream: TextIO, message: str) -> None:
    """`error: message`, wrapped, on a terminal."""
    painter = _Painter(stream)
    lines = wrap(Text.assemble(("error:", "bold red"), " ", message), painter.width)
    painter.finish(lines)


def _styled(text: str, style: str = "dim", width: int | None = None) -> Text:
    styled = Text(text, style)
    if width is not None:
        styled.truncate(width, overflow="ellipsis")
    return styled
