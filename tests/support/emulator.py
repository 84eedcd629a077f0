"""A terminal to test on: a pseudo-terminal with an emulator behind it that keeps what scrolled away."""

import contextlib
import fcntl
import os
import re
import struct
import termios
import threading
from typing import Any

import pyte
from wcwidth import wcwidth

# All that glmrun may send to a terminal besides printable characters: colours, moving up, erasing, the cursor, folding of lines.
OURS = re.compile(rb"\x1b\[(?:[0-9;]*m|[0-9]*A|K|2K|0?J|\?25[lh]|\?7[lh])|\r?\n|\r")
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e0fff]"
)


def printable(raw: bytes) -> str:
    """What was sent without our own sequences; asserts that the rest is nothing but printable characters."""
    text = OURS.sub(b"", raw).decode()
    found = _STEERS.search(text)
    assert found is None, text[max(0, found.start() - 20) : found.end() + 20]
    return text


class Screen(pyte.HistoryScreen):
    """pyte drops what follows a character of no width in one piece of text, so it gets them one by one."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows, history=100_000, ratio=0.5)

    def draw(self, data: str) -> None:
        for character in data:
            super().draw(character)

    def text(self) -> str:
        """All lines since the beginning, without blanks at their ends and without empty lines at the end."""
        above = ["".join(row[x].data for x in range(self.columns)) for row in self.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.display]).rstrip("\n")


class Terminal:
    """A pseudo-terminal; `stream` writes to it."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._ours, theirs = os.openpty()
        self.screen, self.raw, self._sent = Screen(columns, rows), b"", 0
        self._emulator, self._came = pyte.ByteStream(self.screen), threading.Condition()
        self.resize(columns, rows, folding=False)
        self.stream: Any = _Counted(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
            while data := os.read(self._ours, 1 << 16):
                with self._came:
                    self.raw += data
                    self._emulator.feed(data)
                    self._came.notify()

    def resize(self, columns: int, rows: int, folding: bool = True) -> None:
        """The user drags the window's edge; some terminals fold lines that have become too long, others cut them off."""
        with self._came:
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            if not folding:
                self.screen.resize(rows, columns)
                return
            lines, self.screen = self.screen.text(), Screen(columns, rows)
            self._emulator = pyte.ByteStream(self.screen)
            self._emulator.feed(lines.replace("\n", "\r\n").encode())

    def type(self, keys: bytes) -> None:
        """Keys of the user."""
        os.write(self._ours, keys)

    def text(self) -> str:
        """All lines of what has arrived."""
        with self._came:
            return self.screen.text()

    def sync(self) -> str:
        """All lines, when all that was written has arrived."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.raw) >= self.stream.n_bytes, 10)
        return self.screen.text()

    def close(self) -> str:
        """All lines at the end."""
        self.stream.close()
        self._reader.join()
        os.close(self._ours)
        return self.screen.text()


class _Counted:
    """A text stream on a file descriptor that counts what arrives at the other end: a newline as two bytes."""

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.n_bytes = descriptor, 0

    def write(self, text: str) -> None:
        data = text.encode()
        self.n_bytes += len(data) + data.count(b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self._descriptor)


def cells(line: str) -> int:
    """Columns that a line takes."""
    return sum(max(wcwidth(character), 0) for character in line)
