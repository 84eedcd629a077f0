"""What the streams of servers mean that resemble OpenAI's: their events to chunks.

Servers differ in what they leave out, send twice or send in another type. What is told here holds for all of them; nothing asks
which server it is.
"""

import json
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.stream import ChatStream, Delta
from quant.errors import UserError

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of the thinking's field; some servers send it under several
_CUT = ("length", "max_tokens", "model_length")
WAIT_SECONDS = 2.0  # for a </think> of a server about which nothing is known
_GIVEN_UP = ("error", "abort")


@dataclass
class _Call:
    id: str
    index: int | None
    name: str = ""
    arguments: str = ""

    def has(self, arguments: str) -> bool:
        """Whether the arguments are whole, and these."""
        return (known := _object(self.arguments)) is not None and (not arguments.strip() or known == _object(arguments))


class RemoteAnswer:
    """What has come of one answer.

    tools       the declarations that were sent
    thinking    False: text is the answer. True: text is thinking up to a </think>, since the server does not part them. None:
                text that comes before any thinking may be either
    may_think   asked once, when such text comes: True: it waits for a </think> or the end, None: for a while, False: it does not
    """

    def __init__(
        self, tools: list[dict[str, Any]] | None, thinking: bool | None = False, may_think: Callable[[], bool | None] = bool
    ) -> None:
        # Servers that do not know the model's format leave thinking and calls between tags in the text, or all in the thinking.
        self._said, self._thought = (ChatStream(None, at, tools) for at in (thinking is True, True))
        self._declared = {str((tool.get("function") or {}).get("name")) for tool in tools or []}
        self._unsure, self._may_think = thinking is None, may_think
        self._held: str | None = None
        self._until = 0.0  # by then held text is given out
        self._waited, self._tail = False, ""  # text was given out that may be thinking; the end of what came since
        self._opened = False  # thinking has its own tag
        self._halves = ["", ""]  # of characters, at the end of text and thinking
        self._calls: list[_Call] = []
        self._written: list[dict[str, Any]] = []  # calls found in the text
        self._counts: dict[str, dict[str, Any]] = {"usage": {}, "timings": {}, "prompt_progress": {}}
        self._began, self._first, self._n_pieces = time.monotonic(), 0.0, 0
        self.finish_reason: str | None = None
        self.parts_thinking: bool | None = None  # as far as this answer shows it
        self.misled = False  # thinking was given out as the answer

    def add(self, event: dict[str, Any]) -> Iterator[Chunk]:
        """The chunks of one object of the stream, or of a whole answer. Raises UserError for an error of the server's."""
        alone = "choices" not in event and (isinstance(event.get("message"), str) or event.get("detail"))
        if event.get("error") or event.get("object") == "error" or alone:
            raise UserError(f"the server: {error_text(event) or 'an error without a text'}")
        for name in self._counts:
            self._counts[name] = found if isinstance(found := event.get(name), dict) and found else self._counts[name]
        choice = _choice(event)
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            self.finish_reason = reason
        if reason in _GIVEN_UP:
            raise UserError("the server gave the answer up")
        delta = self._delta(choice)
        text, thought = _texts(delta.get("content") or choice.get("text"))
        thought += next((found for key in _THOUGHTS if (found := "".join(_texts(delta.get(key))))), "")
        text, self._halves[0] = _characters(self._halves[0] + text)
        thought, self._halves[1] = _characters(self._halves[1] + thought)
        calls = _list(delta.get("tool_calls")) or _list(delta.get("function_call"))
        for call in calls:
            self._add_call(call)
        if text or thought or calls:
            self._first = self._first or time.monotonic()
            self._n_pieces += 1
        chunk = self._chunk(self._thought.feed(thought) if thought else Delta(), self._feed(text, bool(thought)))
        if chunk.text or chunk.reasoning or (not self._first and self._counts["prompt_progress"]):
            yield chunk

    def last(self) -> Chunk:
        """The chunk that ends the answer."""
        rest = self.rest()
        cut = self.finish_reason in _CUT
        calls = [
            _as_call(call) for call in self._calls if call.name and not (cut and _object(call.arguments) is None)
        ] or self._written
        ids = set[str]()
        for call in calls:
            call["id"] = call["id"] if call["id"] and call["id"] not in ids else f"call_{secrets.token_hex(12)}"
            ids.add(call["id"])
        reason = "tool_calls" if calls else "length" if cut else "stop"
        return replace(rest, tool_calls=calls or None, finish_reason=reason)

    def rest(self) -> Chunk:
        """Text and thinking that were held back."""
        held = Delta()
        if self._held is not None:
            held = self._release(thinking=False)
            self.parts_thinking = True  # or it drops the tag: waiting helps neither
        return self._chunk(held, *(stream.finish(self.finish_reason in _CUT) for stream in (self._thought, self._said)))

    @property
    def stats(self) -> Stats:
        """Counts and seconds as the server tells them, else the pieces that came and the seconds that passed here."""
        now = time.monotonic()
        usage, timings, progress = self._counts.values()
        details = usage.get("prompt_tokens_details")
        n_cached = (
            count(details.get("cached_tokens") if isinstance(details, dict) else 0) or count(timings.get("cache_n"))
            or count(progress.get("cache"))
        )  # fmt: skip
        n_prompt = (
            count(usage.get("prompt_tokens")) or count(timings.get("prompt_n")) + count(timings.get("cache_n"))
            or count(progress.get("total"))
        )  # fmt: skip
        reading = not self._first and not usage and not timings and bool(progress)
        stats = Stats(
            n_prompt=n_prompt,
            n_cached=min(n_cached, n_prompt),
            n_prefilled=min(count(progress.get("processed")), n_prompt) if reading else n_prompt,
            prompt_seconds=_seconds((progress if reading else timings).get("time_ms" if reading else "prompt_ms"))
            or (self._first or now) - self._began,
            n_generated=count(usage.get("completion_tokens")) or count(timings.get("predicted_n")) or self._n_pieces,
        )
        return replace(stats, generate_seconds=_seconds(timings.get("predicted_ms")) or now - self._first) if self._first else stats

    def _delta(self, choice: dict[str, Any]) -> dict[str, Any]:
        """What is new; a message is all of it, and is said again by servers that have sent its pieces."""
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict) and delta:
            return delta
        if not isinstance(message, dict) or self._n_pieces:
            return {}
        self.finish_reason = self.finish_reason or "stop"  # it is whole
        return message

    def _feed(self, text: str, with_thought: bool) -> Delta:
        """What text adds, once it is certain whether it is thinking."""
        if with_thought:
            self._unsure, self.parts_thinking = False, True  # who parts them sends the thinking first
        if text and self._unsure:
            self._unsure, may = False, self._may_think()
            self._held = None if may is False else ""
            self._until = time.monotonic() + (WAIT_SECONDS if may is None else math.inf)
            self._waited = may is False
        if self._held is None:
            self._tail = (self._tail + text)[-len(text) - len("</think>") :]
            self._opened = self._opened or "<think>" in self._tail
            if self._waited and not self._opened and "</think>" in self._tail:
                self.misled = True
                self.parts_thinking = False if self._until < math.inf else None  # whose template nobody told may only quote it
            return self._said.feed(text) if text else Delta()
        self._held += text
        if self._held.lstrip().startswith("<think>"):
            return self._release(thinking=False)
        if "</think>" in self._held:
            self.parts_thinking = False
            return self._release(thinking=True)
        self._waited = time.monotonic() > self._until
        return self._release(thinking=False) if with_thought or self._waited else Delta()

    def _release(self, thinking: bool) -> Delta:
        held, self._held = ("<think>" if thinking else "") + (self._held or ""), None
        return self._said.feed(held)

    def _chunk(self, *deltas: Delta) -> Chunk:
        self._written += [call for delta in deltas for call in delta.tool_calls or ()]
        text, reasoning = ("".join(getattr(delta, part) for delta in deltas) for part in ("text", "reasoning"))
        return Chunk(text=text, reasoning=reasoning, stats=self.stats)

    def _add_call(self, delta: dict[str, Any]) -> None:
        """Add a piece to its call, or begin one: what a piece belongs to is told by its id, then its index, then its place."""
        function = delta.get("function")
        function = function if isinstance(function, dict) else delta
        name, arguments = _word(function.get("name")), _json_text(function.get("arguments"))
        identity, index = _word(delta.get("id")), _index(delta.get("index"))
        call = self._call(identity, index, name, arguments)
        if call is None:
            self._calls.append(call := _Call(identity, index))
        call.id = call.id or identity
        if name != call.name:
            call.name += name if not call.name or self._continues(call, name) else ""
        begins = arguments.lstrip().startswith("{")
        if not (begins and call.has(arguments)):  # else it is said again
            call.arguments += arguments

    def _call(self, identity: str, index: int | None, name: str, arguments: str) -> _Call | None:
        """The call that a piece belongs to; None if it begins one."""
        for call in reversed(self._calls):
            if identity and call.id == identity:
                other = index is not None and call.index not in (None, index)
                return None if other and name and not call.has(arguments) and call.has("") else call
        near = self._calls if index is None else [call for call in self._calls if call.index == index]
        if not near:
            return None
        call = near[-1]
        if not name or not call.name:
            return call
        if identity and (call.id or index is None):
            return None
        if call.has(""):
            return call if name == call.name and call.has(arguments) else None
        return call if name == call.name or self._continues(call, name) else None

    def _continues(self, call: _Call, name: str) -> bool:
        """Whether a name comes in pieces, and this is the next one."""
        return not call.arguments and any(each.startswith(call.name + name) for each in self._declared)


def error_text(value: Any) -> str:
    """The message in an error of OpenAI's, FastAPI's or llama-server's shape."""
    error = value.get("error") or value.get("detail") or value if isinstance(value, dict) else value
    error = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(error).split())[:500]


def count(value: Any) -> int:
    """A number of tokens; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _seconds(milliseconds: Any) -> float:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and 0 < milliseconds < 1e12 else 0.0


def _choice(event: dict[str, Any]) -> dict[str, Any]:
    """The first answer's part of an event; {} if it has none."""
    choices = [choice for choice in _list(event.get("choices")) if choice.get("index") in (None, 0)]
    return choices[0] if choices else {}


def _list(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, or the one that should stand in a list."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]


def _texts(content: Any) -> tuple[str, str]:
    """(text, thinking) of a content: a text, a part, or a list of them."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, list):
        parts = [_texts(part) for part in content]
        return "".join(text for text, _ in parts), "".join(thought for _, thought in parts)
    if not isinstance(content, dict):
        return "", ""
    kind = content.get("type")
    if isinstance(kind, str) and kind.startswith(("thinking", "reasoning")):
        inner = next((content[key] for key in ("thinking", "reasoning", "text", "content") if content.get(key)), None)
        return "", "".join(_texts(inner))
    return content["text"] if isinstance(content.get("text"), str) else "", ""


def _characters(text: str) -> tuple[str, str]:
    """(a text whose characters came in halves, as JSON escapes them; the half at its end). What has no other half is U+FFFD."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    whole = text.removesuffix(half) if half else text
    return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), half


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _index(value: Any) -> int | None:
    text = _word(value)
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _json_text(arguments: Any) -> str:
    """Arguments, or a piece of them, as the text that they should be."""
    return arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _object(text: str) -> dict[str, Any] | None:
    """The object that a text is in JSON; None while it is not whole."""
    if not text.rstrip().endswith(("}", '"')):
        return None
    try:
        value = json.loads(text)
        value = json.loads(value) if isinstance(value, str) else value  # a text in a text
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _as_call(call: _Call) -> dict[str, Any]:
    """A call in OpenAI's shape; what is not an object in JSON is left as it came."""
    arguments = "".join(_characters(call.arguments)) if call.arguments.strip() else "{}"
    if arguments.lstrip().startswith('"') and (value := _object(arguments)) is not None:
        arguments = json.dumps(value, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
