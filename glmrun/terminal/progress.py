"""Progress on standard error: bars in a terminal, nothing in a pipe."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from glmrun.chat.chunk import Chunk
from glmrun.terminal.console import error_console, note
from glmrun.terminal.sanitize import one_line

_NARROW = 40  # columns of a window in which a line has room for one text
_TOLD_SECONDS = 10.0  # between two lines where there is no terminal


class _Bar:
    """A bar that starts with its first update and can be cleared so that something else may be printed.

    spoken   where there is no terminal each new text becomes a line
    """

    def __init__(self, *columns: ProgressColumn, spoken: bool = False) -> None:
        console = error_console()
        # Rich would send what is printed to standard output meanwhile to the bar's own stream.
        self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task("", total=None, counts="")
        self.shown = console.is_terminal and not console.is_dumb_terminal and not console.quiet
        self._spoken, self._said = spoken, ""

    def update(self, text: str, completed: int, total: int | None, counts: str = "") -> None:
        if self.shown:
            self._progress.update(self._task, description=one_line(text), completed=completed, total=total, counts=counts)
            self._progress.start()
        elif self._spoken and text != self._said:
            self._said = text
            note(f"{text} ...")

    def clear(self) -> None:
        """Take the bar off the screen; the next update brings it back."""
        if self.shown:
            self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def _text(template: str, **column: Any) -> TextColumn:
    return TextColumn(template, markup=False, style="dim", table_column=Column(no_wrap=True, **column))


class _Times(ProgressColumn):
    """`3 s, 50 s left`; nothing of what is not known yet."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        parts = [_duration(task.elapsed or 0), *([f"{_duration(left)} left"] if left is not None else [])]
        return Text(", ".join(parts), "dim")


class _Left(ProgressColumn):
    """`1.2 GB/s, 4 s left`, as soon as it is known."""

    def render(self, task: Task) -> Text:
        speed, left = task.finished_speed or task.speed, task.time_remaining
        parts = [f"{speed / 1e9:.1f} GB/s" if speed >= 1e9 else f"{speed / 1e6:,.0f} MB/s"] if speed else []
        return Text(", ".join([*parts, *([f"{_duration(left)} left"] if left is not None else [])]), "dim")


def work_bar(spoken: bool = False) -> _Bar:
    """`nano-Q6_K.gguf pp512 ━━━━━ 3/18 12 s, 60 s left`: steps of some work."""
    if (width := error_console().width) < _NARROW:
        return _Bar(_Measured(width, lambda task: f"{task.completed:.0f}/{task.total}"), spoken=spoken)
    count = _text("{task.completed}/{task.total}")
    return _Bar(_text("{task.description}"), BarColumn(30), count, _Times(), spoken=spoken)


class BytesProgress(_Bar):
    """`12/844 blk.3.attn_q_b.weight ━━━━━ 0.4/18.1 GB 210 MB/s, 84 s left`; without a terminal, such a line now and then."""

    def __init__(self, spoken: bool = False) -> None:
        name = _text("{task.description}", ratio=1, overflow="ellipsis")
        width = error_console().width
        columns = [_Measured(width, _gigabytes)] if width < _NARROW else [name, BarColumn(30), DownloadColumn(), _Left()]
        super().__init__(*columns, spoken=spoken)
        self.restart()

    def restart(self) -> None:
        """Measure the rate anew from the next update: what came before was another kind of work."""
        self._first: tuple[int, float] | None = None

    def update(self, text: str, completed: int, total: int | None, counts: str = "") -> None:
        """completed of total bytes; text says what they are."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._told = (completed, now), now
            self._progress.reset(self._task, completed=completed)
        super().update(text, completed, total)
        if not self.shown and total and now - self._told >= _TOLD_SECONDS:
            self._told = now
            rate = (completed - self._first[0]) / (now - self._first[1])
            left = f"{(total - completed) / rate:,.0f} s left" if rate else "stalled"
            note(f"{text}: {completed / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:,.0f} MB/s, {left}")


@contextmanager
def waiting(text: str, draft: Callable[[], str] = str, patience: float = 0.5) -> Iterator[None]:
    """Say what is being waited for, once it has taken `patience` seconds: `⠋ compiling the kernels 0:00:07`.

    draft   what is being typed meanwhile
    """
    width = error_console().width
    narrow = width < _NARROW
    said = [_Fitting(draft, width - len("⠋  0:00:07 "))] if narrow else [_text("{task.description}")]
    typed = [] if narrow else [_Typed(draft)]
    with _Bar(SpinnerColumn(), *said, TimeElapsedColumn(), *typed, spoken=True) as bar:
        timer = _after(patience, bar, text)
        timer.start()
        try:
            yield
        finally:
            _end(timer)


def _after(seconds: float, bar: _Bar, text: str) -> threading.Timer:
    """A timer that shows the bar, without a measure."""
    timer = threading.Timer(seconds, bar.update, (text, 0, None))
    timer.daemon = True
    return timer


def _end(timer: threading.Timer) -> None:
    """Cancel a timer; what it does is done or will not be."""
    timer.cancel()
    if timer.ident is not None:
        timer.join()


class _Typed(ProgressColumn):
    """What is being typed meanwhile, as it is at each moment."""

    def __init__(self, draft: Callable[[], str]) -> None:
        super().__init__(Column(no_wrap=True, ratio=1, overflow="ellipsis"))
        self._draft = draft

    def render(self, task: Task) -> Text:
        return Text(self._draft(), "dim")


class _Fitting(ProgressColumn):
    """The only text of a line in a narrow window: the end of what is being typed, else what is done, in `room` cells."""

    def __init__(self, draft: Callable[[], str], room: int) -> None:
        super().__init__(Column(no_wrap=True))
        self._draft, self._room = draft, max(room, 1)

    def render(self, task: Task) -> Text:
        draft, said = self._draft(), task.fields["counts"] or task.description
        if draft and len(draft) > self._room:
            draft = f"…{draft[len(draft) + 1 - self._room :]}"
        text = Text(draft or said, "dim")
        text.truncate(self._room, overflow="ellipsis")
        return text


class _Measured(ProgressColumn):
    """The only text of a line in a narrow window: how far it is, and as much of what it is as `room` cells hold."""

    def __init__(self, room: int, measure: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._room, self._measure = max(room, 1), measure

    def render(self, task: Task) -> Text:
        text = Text(f"{self._measure(task)} {task.description}", "dim")
        text.truncate(self._room, overflow="ellipsis")
        return text


def _gigabytes(task: Task) -> str:
    return f"{task.completed / 1e9:.1f}/{(task.total or 0) / 1e9:.1f} GB"


class PromptProgress:
    """`reading the prompt ━━━━╺━━━━━ 512 / 2,048 · 87 tok/s · 18 s left`: from when it takes time until the answer."""

    def __init__(self, draft: Callable[[], str] = str, patience: float = 0.5) -> None:
        width = error_console().width
        self._wide = width >= 76
        columns = [_text("{task.description}"), *([BarColumn(20)] if self._wide else []), _text("{task.fields[counts]}")]
        self._bar = _Bar(_Fitting(draft, width)) if width < _NARROW else _Bar(*columns, _Typed(draft))
        self._text = "reading the prompt" if self._wide else "prompt"
        self._timer = _after(patience, self._bar, self._text)

    def start(self) -> None:
        """Begin to wait."""
        self._timer.start()

    def update(self, chunk: Chunk) -> None:
        """Follow the prompt; the first chunk with a token ends it."""
        if chunk.token is not None or chunk.finish_reason is not None:
            self.stop()
        elif not self._timer.is_alive():
            stats = chunk.stats
            read, left = stats.n_prefilled - stats.n_cached, stats.n_prompt - stats.n_prefilled
            parts = [f"{stats.n_prefilled:,} / {stats.n_prompt:,}"]
            if read and stats.prompt_seconds > 0:
                rate = read / stats.prompt_seconds
                parts += [f"{rate:,.0f} tok/s"] if self._wide else []
                parts += [f"{_duration(left / rate)} left"] if left else []
            self._bar.update(self._text, stats.n_prefilled, stats.n_prompt, " · ".join(parts))

    def stop(self) -> None:
        """Take the bar away; nothing brings it back."""
        _end(self._timer)
        self._bar.clear()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
