"""An answer as it comes: thinking dim on standard error, the answer on standard output, a progress bar while the prompt is read."""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len, set_cell_size

from glmrun.chat.answer import Answer
from glmrun.chat.chunk import Chunk, Stats
from glmrun.terminal.console import is_quiet, note, shows_codes, write_answer
from glmrun.terminal.interrupt import quiet_keyboard
from glmrun.terminal.progress import PromptProgress
from glmrun.terminal.sanitize import VisibleStream, one_line, visible
from glmrun.terminal.tail import window

if TYPE_CHECKING:
    from glmrun.terminal.screen import MarkdownScreen, ThoughtScreen

Thinking = Literal["fold", "show", "hide"]  # a window that becomes one line, all of it, nothing of it
_WINDOW = 3  # rows of thinking
NEARLY_FULL, FULL = 0.8, 0.95  # of the context
_DRAFT = 40  # characters of what is typed meanwhile
_SILENCE = 8  # more tokens than that without a word: a tool call is being written, say, or the answer is held back


def show_answer(
    chunks: Iterable[Chunk],
    answer: Answer,
    thinking: Thinking = "fold",
    markdown: bool = True,
) -> None:
    """Print chunks as they come and add them to answer, which holds what was said also when the loop is left by an exception."""
    with quiet_keyboard(), closing(AnswerView(answer, thinking, markdown=markdown)) as view:
        for chunk in chunks:
            view.feed(chunk)


class AnswerView:
    """Shows one answer: feed() each chunk, then close(), also where what makes them fails.

    thinking   on a terminal; where there is none it is plain text, unless it is to be hidden
    footer     what stands below an answer on a terminal while it is being written
    markdown   whether a terminal sees the answer laid out; otherwise as it is
    hint       how all of the thinking can be seen, beside its window
    draft      what has been typed meanwhile

    Standard output and standard error are a terminal or not on their own account. A terminal sees the answer as Markdown; a pipe,
    a file or TERM=dumb get the text itself. The answer ends with a newline, wherever it goes.
    """

    def __init__(
        self,
        answer: Answer,
        thinking: Thinking = "fold",
        footer: Callable[[Stats], str] | None = None,
        markdown: bool = True,
        hint: str = "",
        draft: Callable[[], str] = str,
    ) -> None:
        self._answer, self._thinking, self._status, self._draft = answer, thinking, footer, draft
        self._hint = f" · {hint}" if hint else ""
        self._rich_out, self._rich_err = markdown and shows_codes(sys.stdout), shows_codes(sys.stderr)
        self._thought: ThoughtScreen | None = None
        self._markdown: MarkdownScreen | None = None
        self._plain_text, self._plain_thought = VisibleStream(), VisibleStream()
        self._began, self._stretch, self._n_stretch = 0.0, "", 0  # of the present stretch of thinking
        self._silent = 0  # tokens in a row that showed nothing
        self._expand = False
        self._progress = PromptProgress(lambda: draft_line(draft()))
        self._progress.start()

    def feed(self, chunk: Chunk) -> None:
        """Add a chunk to the answer and show it."""
        self._answer.add(chunk)
        self._progress.update(chunk)
        self._silent = 0 if chunk.text or chunk.reasoning else self._silent + (chunk.token is not None)
        if self._expand:
            self._unfold()
        if chunk.reasoning:
            self._think(chunk.reasoning)
        if chunk.text or self._silent > _SILENCE:
            self._end_thinking()
            self._write(chunk.text)

    def expand_thinking(self) -> None:
        """Show all of this answer's thinking from the next chunk on; may be called from another thread."""
        self._expand = True

    def close(self) -> None:
        """The answer is over, or was broken off."""
        self._progress.stop()
        self._end_thinking()
        if self._markdown is not None:
            self._markdown.close()
        elif self._answer.text:
            rest = self._plain_text.flush()
            write_answer(rest if self._answer.text.endswith("\n") else f"{rest}\n")

    def _write(self, text: str) -> None:
        if self._rich_out:
            if self._markdown is None:
                from glmrun.terminal.screen import MarkdownScreen

                self._markdown = MarkdownScreen(sys.stdout, self._footer)
            self._markdown.add(text)
        elif text:
            write_answer(self._plain_text.push(text) if sys.stdout.isatty() else text)

    def _footer(self) -> str | None:
        stats = self._answer.stats
        parts = [draft_line(self._draft())] if self._draft() else []
        parts += [f"writing, {self._silent:,} tokens"] if self._silent > _SILENCE else []
        parts += [self._status(stats)] if self._status is not None and stats is not None else []
        return " · ".join(parts) or None

    # -- thinking -----------------------------------------------------------------------------------------------------

    def _think(self, text: str) -> None:
        self._began = self._began or time.monotonic()
        self._stretch, self._n_stretch = self._stretch + text, self._n_stretch + 1
        if is_quiet():
            return
        if self._rich_err:
            self._thought = self._thought or self._thought_screen()
            self._thought.title = f"▸ thinking {self._seconds():.1f} s · {counted(self._n_stretch, 'token')}{self._hint}"
            self._thought.add(text)
        elif self._thinking != "hide":
            sys.stderr.write(self._plain_thought.push(text))
            sys.stderr.flush()

    def _unfold(self) -> None:
        self._expand, self._thinking = False, "show"
        if self._thought is not None:
            self._thought.close()
            self._thought = self._thought_screen()
            self._thought.add(self._stretch)

    def _thought_screen(self) -> "ThoughtScreen":
        from glmrun.terminal.screen import ThoughtScreen

        rows = {"fold": _WINDOW, "show": None, "hide": 0}[self._thinking]
        return ThoughtScreen(sys.stderr, rows, self._footer if self._rich_out else lambda: None)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _end_thinking(self) -> None:
        if not self._n_stretch:
            return
        seconds, tokens = self._seconds(), self._n_stretch
        if self._thought is not None:
            self._thought.close()
        elif self._thinking != "hide" and not is_quiet():
            rest = self._plain_thought.flush()
            print(rest, end="" if not rest and self._stretch.endswith("\n") else "\n", file=sys.stderr, flush=True)
        if sys.stderr.isatty() and self._thinking != "hide":
            note(f"▸ {thought_line(seconds, tokens)}")
        self._answer.reasoning_seconds += seconds
        self._thought, self._began, self._stretch, self._n_stretch = None, 0.0, "", 0


def show_thinking(answer: Answer) -> None:
    """Print the thinking behind an answer that is complete, on standard error."""
    if not answer.reasoning:
        note("there was no thinking before the last answer")
        return
    if sys.stderr.isatty() and answer.reasoning_tokens:
        note(f"▾ {thought_line(answer.reasoning_seconds, answer.reasoning_tokens)}")
    if shows_codes(sys.stderr):
        from glmrun.terminal.screen import print_lines

        print_lines(sys.stderr, answer.reasoning, "dim")
    else:
        print(visible(answer.reasoning), file=sys.stderr, flush=True)


def thought_line(seconds: float, tokens: int) -> str:
    """`thought for 12.3 s · 412 tokens`."""
    return f"thought for {seconds:.1f} s · {counted(tokens, 'token')}"


def draft_line(draft: str) -> str:
    """`>>> and then`: the end of what has been typed during an answer; line breaks as ↵."""
    line = one_line(draft.replace("\n", "↵"))
    room = max(2, min(_DRAFT, window(sys.stderr)[0] - len(">>> ")))
    return f">>> {line if len(line) <= room else '…' + line[1 - room :]}" if draft else ""


def finish_note(answer: Answer, n_ctx: int) -> str | None:
    """What the user should know about the end of an answer, if it is not the ordinary one."""
    stats = answer.stats
    if answer.finish_reason == "cancelled":
        return "(stopped)"
    if answer.finish_reason != "length" or stats is None:
        return None
    if stats.n_prompt + stats.n_generated >= n_ctx:
        return f"(the context of {n_ctx:,} tokens is full: the answer stops here)"
    where = ", still thinking" if not answer.text else ""
    return f"(stopped at the limit of {counted(stats.n_generated, 'token')}{where})"


def stats_line(stats: Stats) -> str:
    """`64 tokens in 40 steps, 17.9 tok/s · 24 of 30 drafts right · prompt 12 read in 0.3 s, 40.1 tok/s · 512 cached`."""
    read, parts = stats.n_prefilled - stats.n_cached, []
    if stats.n_generated:
        steps = f" in {counted(stats.n_passes, 'step')}" if stats.n_drafted else ""
        rate = f", {_rate(stats.n_generated, stats.generate_seconds)}" if stats.n_generated > 1 else ""
        parts.append(counted(stats.n_generated, "token") + steps + rate)
    if stats.n_drafted:
        parts.append(f"{stats.n_accepted:,} of {counted(stats.n_drafted, 'draft')} right")
    if not stats.n_prompt:  # a server that does not count
        return " · ".join([*parts, f"first token after {stats.prompt_seconds:.1f} s"])
    if stats.n_prefilled < stats.n_prompt:
        return " · ".join([*parts, f"{stats.n_prefilled:,} of {stats.n_prompt:,} tokens of the prompt are kept"])
    parts.append(f"prompt {read:,} read in {stats.prompt_seconds:.1f} s, {_rate(read, stats.prompt_seconds)}")
    if stats.n_cached:
        parts.append(f"{stats.n_cached:,} cached")
    return " · ".join(parts)


def bottom_parts(model: str, used: int, n_ctx: int, stats: Stats | None = None) -> list[tuple[str, str]]:
    """`GLM-4.7-Flash-Q4_K_M · 3.1k / 32k · 17.9 tok/s`: the model, how full the context is, how fast the last answer came.

    In pieces, each with its style: "", or yellow and red where the context is nearly full.
    """
    style = "ansired" if used >= FULL * n_ctx else "ansiyellow" if used >= NEARLY_FULL * n_ctx else ""
    parts = [("", f"{one_line(model)} · "), (style, f"{_short(used, n_ctx)} / {_short(n_ctx, n_ctx)}")]
    if stats is not None and stats.n_generated > 1 and stats.generate_seconds > 0:
        parts.append(("", f" · {_rate(stats.n_generated, stats.generate_seconds)}"))
    return parts


def fitted(parts: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    """bottom_parts() in a window of `width` cells: the model's name, which comes first, leaves room for the gauge behind it."""
    (style, name), *others = parts
    room = width - sum(cell_len(text) for _, text in others)
    if cell_len(name) <= room:
        return parts
    return [(style, set_cell_size(name, room - 4) + "… · "), *others] if room > 6 else others


def counted(count: int, noun: str) -> str:
    """`1 token`, `2,048 tokens`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _rate(tokens: int, seconds: float) -> str:
    if seconds <= 0:
        return "- tok/s"
    rate = tokens / seconds
    return f"{rate:.1f} tok/s" if rate < 100 else f"{rate:,.0f} tok/s"


def _short(tokens: int, n_ctx: int) -> str:
    """820, 3.1k, 32k: thousands of 1,024 where the context is a number of them (`-c 32K`), of 1,000 where not (`-c 32k`)."""
    return str(tokens) if tokens < 1000 else f"{tokens / (1000 if n_ctx % 1024 else 1024):.1f}".removesuffix(".0") + "k"
