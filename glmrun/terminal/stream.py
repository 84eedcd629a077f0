"""An answer as it comes: thinking dim on standard error, the answer on standard output, a progress bar while the prompt is read."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glmrun.terminal.console import error_console, note, write_answer
from glmrun.terminal.interrupt import quiet_keyboard
from glmrun.terminal.progress import PromptProgress
from glmrun.terminal.sanitize import visible

if TYPE_CHECKING:
    from glmrun.chunk import Chunk, Stats


@dataclass
class Answer:
    """What one answer came to."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: "Stats | None" = None
    reasoning_tokens: int = 0

    def add(self, chunk: "Chunk") -> None:
        self.text += chunk.text
        self.reasoning += chunk.reasoning
        self.tool_calls += chunk.tool_calls or []
        self.reasoning_tokens += bool(chunk.reasoning)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.stats = chunk.stats or self.stats

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


def collect(chunks: "Iterable[Chunk]", answer: Answer) -> None:
    """Add all chunks to answer, showing nothing."""
    for chunk in chunks:
        answer.add(chunk)


def show_answer(chunks: "Iterable[Chunk]", answer: Answer) -> None:
    """Print chunks as they come and add them to answer, which holds what was said also when the loop is left by an exception.

    Each stream is a terminal or not on its own account. The answer ends with a newline, wherever it goes.
    """
    console, watched = error_console(), sys.stderr.isatty()
    began, thinking_ended = 0.0, False

    def end_thinking() -> None:
        if not answer.reasoning or thinking_ended:
            return
        if not answer.reasoning.endswith("\n"):
            print(file=sys.stderr)
        if watched:
            seconds = time.monotonic() - began
            note(f"▸ thought for {seconds:.1f} s · {counted(answer.reasoning_tokens, 'token')}")
        sys.stderr.flush()

    with quiet_keyboard(), PromptProgress() as progress:
        try:
            for chunk in chunks:
                answer.add(chunk)
                progress.update(chunk)
                if chunk.reasoning:
                    began = began or time.monotonic()
                    console.out(visible(chunk.reasoning), style="dim", end="", highlight=False)
                if chunk.text:
                    end_thinking()
                    thinking_ended = True
                    write_answer(chunk.text)
        finally:
            end_thinking()
            if answer.text and not answer.text.endswith("\n"):
                write_answer("\n")
    for call in answer.tool_calls:
        note(f"tool call: {call}")


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


def stats_line(stats: "Stats") -> str:
    """`64 tokens, 17.9 tok/s · prompt 12 read in 0.3 s, 40 tok/s · 512 cached`."""
    read, parts = stats.n_prefilled - stats.n_cached, []
    if stats.n_generated:
        parts.append(f"{counted(stats.n_generated, 'token')}, {_rate(stats.n_generated, stats.generate_seconds)}")
    parts.append(f"prompt {read:,} read in {stats.prompt_seconds:.1f} s, {_rate(read, stats.prompt_seconds)}")
    if stats.n_cached:
        parts.append(f"{stats.n_cached:,} cached")
    return " · ".join(parts)


def counted(count: int, noun: str) -> str:
    """`1 token`, `2,048 tokens`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tok/s" if seconds > 0 else "- tok/s"
