"""A window with a program in it, and somebody who types and looks: tmux's where there is one, otherwise pyte's emulator."""

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from support.emulator import Terminal

_NUMBERS = itertools.count()
_PATIENCE = 120.0  # seconds: other work may keep the machine busy

# Ctrl-C reaches all processes of the window; the shell stays to tell the exit code.
_SHELL = 'trap : INT; "$@"; echo "exit code $?"; exec sleep 1000'


class Window(Protocol):
    """What both have in common."""

    def type(self, text: str) -> None:
        """Press keys; \\r is Enter."""

    def screen(self, codes: bool = False) -> str:
        """All lines since the beginning, without blanks and empty lines at their end; codes: with tmux's codes for colours."""

    def resize(self, columns: int, rows: int) -> None:
        """The window gets another size."""

    def close(self) -> None:
        """End the program and the window."""


class Tmux:
    """A window of a tmux server of its own."""

    def __init__(self, command: Sequence[str], columns: int, rows: int) -> None:
        self._server = f"glmrun-{os.getpid()}-{next(_NUMBERS)}"
        size = ["-x", str(columns), "-y", str(rows)]
        self._run("-f", os.devnull, "new-session", "-d", *size, shlex.join(["sh", "-c", _SHELL, "sh", *command]))

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(["tmux", "-u", "-L", self._server, *arguments], capture_output=True, check=True, timeout=60)
        return done.stdout.decode()

    def type(self, text: str) -> None:
        for is_key, keys in itertools.groupby(text, key=lambda key: key < " " or key == "\x7f"):
            if is_key:
                self._run("send-keys", "-H", *(f"{ord(key):02x}" for key in keys))
            else:
                self._run("send-keys", "-l", "--", "".join(keys))

    def screen(self, codes: bool = False) -> str:
        lines = self._run("capture-pane", "-p", "-S", "-", *(["-e"] if codes else [])).split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        socket = self._run("display-message", "-p", "#{socket_path}").strip()
        self._run("kill-server")
        Path(socket).unlink(missing_ok=True)  # tmux may leave it there


class Emulated:
    """A pseudo-terminal with an emulator that knows no colours."""

    def __init__(self, command: Sequence[str], columns: int, rows: int) -> None:
        self._terminal = Terminal(columns, rows)
        self._terminal.screen.write_process_input = self.type  # where the cursor is, when the program asks
        terminal = self._terminal.stream.fileno()
        take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", take, "sh", "-c", _SHELL, "sh", *command],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip

    def type(self, text: str) -> None:
        self._terminal.type(text.encode())

    def screen(self, codes: bool = False) -> str:
        return self._terminal.text()

    def resize(self, columns: int, rows: int) -> None:
        self._terminal.resize(columns, rows, folding=False)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._terminal.close()


def open_window(command: Sequence[str], columns: int = 80, rows: int = 24) -> Window:
    """A window in which `command` runs; when it is over, `exit code N` follows."""
    return (Tmux if shutil.which("tmux") else Emulated)(command, columns, rows)


def wait_for(window: Window, pattern: str, count: int = 1) -> str:
    """The screen once a pattern is found `count` times on it; raises AssertionError if that never happens."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if len(re.findall(pattern, screen := window.screen(), re.MULTILINE)) >= count:
            return screen
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} is not on the screen:\n{screen}")
