"""Makes the README's recording: somebody chats with nano, as asciinema's format (version 2) has it.

python scripts/make_recording.py [FILE]        pictures/chat.cast if left out; asciinema play FILE shows it
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, ROWS = 80, 24
_KEY_SECONDS, _PAUSE_SECONDS = 0.06, 1.5  # of somebody who types, and reads
_PATIENCE = 120.0  # seconds: other work may keep the machine busy

# What is typed, and what stands on the screen when it is done.
SCENE = [
    ("glmrun chat nano --temp 0\r", "Ask something"),
    ("Write a Python function that adds two numbers\r", "37 tokens"),
    ("What is 17 + 25?\r", "cached"),
    ("/set temp\r", "the command line"),
    ("/context\r", "4 messages"),
    ("/bye\r", "goes on with this conversation"),
]


class Recorder:
    """A shell on a pseudo-terminal; what it prints is kept with the time."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder), "TERM": "xterm-256color", "PS1": "$ ",
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PROMPT_TOOLKIT_NO_CPR": "",
        }  # fmt: skip
        self.child = pexpect.spawn("sh", ["-i"], env=environment, dimensions=(ROWS, COLUMNS), timeout=_PATIENCE, cwd=str(folder))
        self.events: list[tuple[float, str]] = []
        screen = pyte.Screen(COLUMNS, ROWS)
        screen.write_process_input = self.child.send  # type: ignore[method-assign]  # where the cursor is, when a program asks
        self._screen = pyte.Stream(screen)
        self._began, self._text = time.monotonic(), ""

    def read(self, seconds: float) -> None:
        """Keep what is printed within this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                data = self.child.read_nonblocking(1 << 16, left).decode("utf-8", "replace")
            except pexpect.TIMEOUT:
                return
            self._screen.feed(data)
            self._text += data
            self.events.append((time.monotonic() - self._began, data.replace("\x1b[6n", "")))

    def until(self, words: str) -> None:
        """Read until these words have been printed; raises TimeoutError."""
        end = time.monotonic() + _PATIENCE
        while words not in self._text:
            if time.monotonic() > end:
                raise TimeoutError(f"{words!r} does not come: {self._text[-500:]!r}")
            self.read(0.1)
        self._text = ""

    def type(self, text: str) -> None:
        """Type as a person does."""
        for key in text:
            self.child.send(key)
            self.read(_KEY_SECONDS)


def lines(events: list[tuple[float, str]]) -> Iterator[str]:
    """The file's lines; nothing is waited for longer than a reader needs, however busy the machine was."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "glmrun chat", "env": {"TERM": "xterm-256color"}}
    yield json.dumps(header)
    shown, before = 0.0, 0.0
    for at, data in events:
        shown, before = shown + min(at - before, _PAUSE_SECONDS), at
        yield json.dumps([round(shown, 3), "o", data], ensure_ascii=False)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "pictures" / "chat.cast")
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder) / "bin" / "glmrun"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m glmrun "$@"\n')
        command.chmod(0o755)
        recorder = Recorder(Path(folder))
        recorder.until("$ ")
        for text, words in SCENE:
            recorder.type(text)
            recorder.until(words)
            recorder.read(_PAUSE_SECONDS)
        recorder.child.close()
    path.write_text("\n".join(lines(recorder.events)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
