"""The pieces an answer comes in, from the engine here (engine/chat.py) or from a server (remote.py)."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one answer so far."""

    n_prompt: int = 0
    n_cached: int = 0  # of the prompt: found in the cache, not read again
    n_prefilled: int = 0  # of the prompt: cached or read so far
    prompt_seconds: float = 0.0
    n_generated: int = 0
    generate_seconds: float = 0.0
    n_drafted: int = 0  # tokens that were computed before they were drawn
    n_accepted: int = 0  # of them: drawn
    n_guessed: int = 0  # of those drafted: by the prediction layer
    n_guessed_right: int = 0  # of them: drawn
    n_passes: int = 0  # through the model while the answer was written


@dataclass(frozen=True)
class Logprob:
    """How likely the model found a token, before sampling: natural logarithms of probabilities.

    token, text   its id and its bytes
    top           the likeliest tokens at this place, best first: (id, bytes, logprob)
    """

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call that is not closed yet: of its arguments, as JSON. The call itself follows whole, with this id."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Chunk:
    """What is new since the last chunk; the last one has a finish_reason: stop, length, tool_calls or cancelled.

    tool_calls   those that were closed, whole
    call_piece   of the call that is open at the chunk's end. A call that the end of generation cuts off has pieces only
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict] | None = None
    call_piece: CallPiece | None = None
    token: int | None = None
    finish_reason: str | None = None
    stop_text: str | None = None  # on the last one: the text of the request's `stop` that ended the answer
    stats: Stats = field(default_factory=Stats)
    logprobs: list[Logprob] | None = None  # of this chunk's tokens, where they were asked for
    token_ids: list[int] | None = None  # on the last one: the answer as the model wrote it, for its message (chat/turns.py)
