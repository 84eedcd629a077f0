"""What every interface of the server is made of: a body becomes requests, and the chunks of answers become its events.

An interface (openai_chat.py, anthropic.py, ...) is pure: it knows neither sockets nor models. app.py moves what it writes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatRequest
from quant.errors import UserError


class BadRequest(UserError):
    """A body that cannot be taken; param names the field as the client wrote it: `messages.2.content.0`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, "usage", param)
        self.param = param


class ContextOverflow(BadRequest):
    """A prompt that the context does not hold, in the words by which agents know that they have to shorten it."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"prompt is too long: {n_tokens} tokens > {n_ctx} maximum "
            f"(exceeds the available context size; maximum context length is {n_ctx} tokens)",
            "messages",
        )
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


class Writer(Protocol):
    """The answers to one body in the words of one interface. Each event is the bytes that go out, whole.

    An answer is named by its number, from 0: one for each request that the body asks for.
    """

    def begin(self) -> Iterable[bytes]:
        """What goes out at once, before the model has read anything."""

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        """What a chunk says; the last one of an answer has a finish_reason."""

    def waiting(self) -> Iterable[bytes]:
        """A real event that says nothing, for clients that count the seconds."""

    def end(self) -> Iterable[bytes]:
        """What goes out after all answers' last chunks."""

    def fail(self, error: UserError) -> Iterable[bytes]:
        """What ends a stream of which nothing was written yet. Where something was, its last chunk says `length` instead."""

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        """The one body that a client gets who did not ask for a stream."""


@dataclass(frozen=True)
class Asked:
    """What a body asks for, in our words.

    requests   one for each answer (`n`), in order
    stream     whether the client reads events, or one body at the end
    writer     what says the answers in the interface's words
    """

    requests: Sequence[ChatRequest]
    stream: bool
    writer: Writer


class Interface(Protocol):
    """One family of paths: its bodies, events and errors."""

    media_type: str  # of a stream: text/event-stream or application/x-ndjson

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        """Prove a body and say what it asks for; `model` is the name under which the model is served. Raises BadRequest."""

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        """The body of a refusal with an HTTP status."""
