"""Progress on standard error: bars in a terminal, nothing in a pipe."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from glmrun.terminal.console import error_console, note
from glmrun.terminal.sanitize import one_line

if TYPE_CHECKING:
    from glmrun.engine import Chunk


class _Bar:
    """One bar that starts with its first update and can be cleared so that something else may be printed."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        # Rich would send what is printed to standard output meanwhile to the bar's own stream.
        self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task("", total=None)
        self._shown = console.is_terminal and not console.is_dumb_terminal

    def update(self, text: str, completed: int, total: int, **fields: Any) -> None:
        if self._shown:
            self._progress.update(self._task, description=one_line(text), completed=completed, total=total, **fields)
            self._progress.start()

    def clear(self) -> None:
        """Take the bar off the screen; the next update brings it back."""
        if self._shown:
            self._progress.stop()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def _text(template: str, **column: Any) -> TextColumn:
    return TextColumn(template, markup=False, style="dim", table_column=Column(no_wrap=True, **column))


def work_bar() -> _Bar:
    """`nano-Q6_K.gguf pp512 ━━━━━ 3/18 0:00:12`: steps of some work."""
    return _Bar(
        error_console(), _text("{task.description}"), BarColumn(30), _text("{task.completed}/{task.total}"), TimeElapsedColumn()
    )


def bytes_bar() -> _Bar:
    """`12/844 blk.3.attn_q_b.weight ━━━━━ 0.4/18.1 GB 210 MB/s 0:01:24`: bytes of a file being written."""
    name = _text("{task.description}", ratio=1, overflow="ellipsis")
    return _Bar(error_console(), name, BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


@contextmanager
def waiting(text: str, patience: float = 1.5) -> Iterator[None]:
    """Say what is being waited for, once it has taken `patience` seconds: `⠋ compiling the kernels 0:00:07`."""
    console = error_console()
    bar = Progress(SpinnerColumn(), _text("{task.description}"), TimeElapsedColumn(), console=console, transient=True)
    bar.add_task(text, total=None)
    shown = console.is_terminal and not console.is_dumb_terminal
    timer = threading.Timer(patience, bar.start if shown else note, () if shown else (f"{text} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown:
            bar.stop()


class PromptProgress:
    """`reading the prompt ━━━━ 512/2,048 tokens`, gone as soon as the answer begins."""

    def __init__(self) -> None:
        self._bar = _Bar(
            error_console(), _text("{task.description}"), BarColumn(30), _text("{task.completed:,}/{task.total:,} tokens")
        )
        self._reading = True

    def update(self, chunk: "Chunk") -> None:
        """Follow the prompt; the first chunk with a token ends it."""
        if not self._reading:
            return
        if chunk.token is None and chunk.finish_reason is None:
            self._bar.update("reading the prompt", chunk.stats.n_prefilled, chunk.stats.n_prompt)
        else:
            self._reading = False
            self._bar.clear()

    def __enter__(self) -> "PromptProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.clear()
