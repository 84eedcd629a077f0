"""The open end of a text on a terminal: rows that are painted over until they are finished.

Only rows that changed are written, in one write, and never more rows than the window has: what has left it at the top cannot
be painted over. A terminal may draw a character wider than we think; while rows are open, it is told to cut lines off instead
of folding them, so that the rows above are always as many as we count. The cursor is hidden for no longer than one write: a signal
may stop or end the program between two.
"""

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TextIO

_CODES = re.compile(r"(\x1b\[[0-9;]*m)")
_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_CUT_LINES, _FOLD_LINES = "\x1b[?7l", "\x1b[?7h"


def window(stream: TextIO) -> tuple[int, int]:
    """(columns, rows) of the terminal behind a stream."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return columns or 80, rows or 24


class Tail:
    """Rows at the cursor, which stands at the beginning of a line when there are none. Rows may hold colours, nothing else.

    grows   whether rows are painted over by rows that begin as they did
    """

    def __init__(self, stream: TextIO, grows: bool = True) -> None:
        self._stream, self._grows = stream, grows
        self._rows: list[str] = []  # on the screen; the cursor is in the last one
        self._has_footer = False
        self._cut = False  # whether rows above these did not fit into the window
        self._given_up = ""  # printable characters of this tail that stand further up, out of reach

    @property
    def is_open(self) -> bool:
        """Whether something is painted that can still change."""
        return bool(self._rows)

    def paint(self, rows: Sequence[str], footer: str | None = None) -> None:
        """Show rows as they are now, none wider than the window; of too many the last. The footer stays below whatever comes."""
        self._follow_resize()
        _, height = window(self._stream)
        rows = _without(rows, len(_shared(rows, self._given_up)))
        room = max(1, height - 1 - (footer is not None))
        cut, shown = len(rows) > room, [*rows[-room:], *([footer] if footer is not None else [])]
        out: list[str] = []
        at = max(len(self._rows) - 1, 0)
        for i, row in enumerate(shown):
            if i < len(self._rows) and self._rows[i] == row:
                continue
            out += [_move(at, i), "\r", _ERASE_LINE, row]
            at = i
        if len(shown) < len(self._rows):
            out += [_move(at, len(shown)), "\r", _erased(len(self._rows) - len(shown))]
            at = len(shown)
        out.append(_move(at, max(len(shown) - 1, 0)))
        if any(out):
            self._write(_HIDE_CURSOR, _CUT_LINES, *out, _FOLD_LINES, _SHOW_CURSOR)
        self._rows, self._has_footer, self._cut = shown, footer is not None, cut

    def finish(self, lines: Sequence[str] = ()) -> None:
        """Leave lines, of any width, in the place of the rows, and begin anew below them."""
        self._follow_resize()
        shared = _shared(lines, self._given_up)
        left = self._given_up[len(shared) :] if lines and shared == _printable(lines) else ""  # of the rows below these lines
        lines = _without(lines, len(shared))
        kept = 0
        while kept < min(len(lines), len(self._rows)) and lines[kept] == self._rows[kept]:
            kept += 1
        at = max(len(self._rows) - 1, 0)
        if kept == len(lines) == len(self._rows):
            out = ["\n"] if kept else []
        else:
            out = [_move(at, kept), "\r", _erased(len(self._rows) - kept), *(f"{line}\n" for line in lines[kept:])]
        self._rows, self._has_footer, self._cut, self._given_up = [], False, False, left
        self._write(*out)

    def _follow_resize(self) -> None:
        """Give up rows that a smaller window has folded or scrolled away: nobody can tell where they are now."""
        from rich.cells import cell_len

        width, height = window(self._stream)
        if all(cell_len(_CODES.sub("", row)) <= width for row in self._rows) and len(self._rows) < max(height, 2):
            return
        rows = self._rows[:-1] if self._has_footer else self._rows
        self._given_up = "" if self._cut or not self._grows else self._given_up + _printable(rows)
        self._write("\r", _ERASE_LINE if self._has_footer else "", "" if self._has_footer else "\n", _FOLD_LINES)
        self._rows = []

    def _write(self, *pieces: str) -> None:
        if text := "".join(pieces):
            self._stream.write(text)
            self._stream.flush()


def _move(at: int, to: int) -> str:
    return f"\x1b[{at - to}A" if to < at else "\n" * (to - at)


def _erased(n_rows: int) -> str:
    """Erases rows from the cursor's on; tmux would keep what is erased at once from the first row of the window to the last."""
    below = f"\n{_ERASE_BELOW}{_move(1, 0)}" if n_rows > 1 else ""
    return _ERASE_LINE + below if n_rows > 0 else ""


def _printable(rows: Sequence[str]) -> str:
    return "".join("".join(_CODES.sub("", row).split()) for row in rows)


def _shared(rows: Sequence[str], gone: str) -> str:
    """The printable characters that the rows and `gone` both begin with."""
    pairs = zip(_printable(rows), gone, strict=False) if gone else ()
    return "".join(ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _without(rows: Sequence[str], left: int) -> list[str]:
    """The rows without their first `left` printable characters, and without the rows that this empties."""
    kept = list(rows)
    while kept and left:
        there = len(_printable(kept[:1]))
        if there > left:
            kept[0] = _after(kept[0], left)
            break
        left -= there
        del kept[0]
    return kept


def _after(row: str, count: int) -> str:
    """A row without its first `count` printable characters; its colours stay."""
    out, begun = [], False
    for piece in _CODES.split(row):
        if not begun and not _CODES.fullmatch(piece):
            while piece and (count or piece[0].isspace()):
                count -= not piece[0].isspace()
                piece = piece[1:]
            begun = bool(piece)
        out.append(piece)
    return "".join(out)
