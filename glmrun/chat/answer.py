"""One answer, put together from its pieces."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from glmrun.chat.chunk import Chunk, Stats


@dataclass
class Answer:
    """Everything that one answer contained."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: Stats | None = None
    reasoning_tokens: int = 0
    reasoning_seconds: float = 0.0
    token_ids: list[int] | None = None

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.reasoning += chunk.reasoning
        self.tool_calls += chunk.tool_calls or []
        self.reasoning_tokens += bool(chunk.reasoning)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.stats = chunk.stats or self.stats
        self.token_ids = chunk.token_ids or self.token_ids

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.token_ids:
            message["token_ids"] = self.token_ids
        if self.finish_reason not in ("stop", "tool_calls"):
            message["finish_reason"] = self.finish_reason or "cancelled"
        return message


def collect(chunks: Iterable[Chunk], answer: Answer) -> None:
    """Add all chunks to answer, showing nothing."""
    for chunk in chunks:
        answer.add(chunk)
