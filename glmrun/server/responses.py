"""OpenAI's Responses: what Codex speaks. Most clients send the whole history each time; others name what is kept (kept.py)."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.server.form import arguments, declared, effort, event, function, held_to, refuse_media, told
from glmrun.server.interface import Asked, BadRequest, ContextOverflow
from glmrun.server.kept import Kept, forget
from glmrun.server.open_call import OpenCall
from glmrun.server.openai_chat import logprobs_of
from glmrun.server.openai_error import openai_error
from glmrun.server.responses_body import CALLS, ITEMS, Body, Format, Item, Part, ToolChoice
from quant.errors import UserError, brief

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal")
_MEDIA = ("input_image", "input_audio", "input_file", "input_video", "output_audio", "image_url", "computer_screenshot")
_LIKELY = "message.output_text.logprobs"  # in `include`
_CODES = {"busy": "rate_limit_exceeded", "failed": "server_error"}


@dataclass(frozen=True)
class _Texts:
    """How the events of a text are called: the item's list that it stands in, that list's index, its part and its text."""

    stands_in: str
    index: str
    part: str
    text: str


_SAID = {
    "output_text": _Texts("content", "content_index", "response.content_part", "response.output_text"),
    "reasoning_text": _Texts("content", "content_index", "response.content_part", "response.reasoning_text"),
    "summary_text": _Texts("summary", "summary_index", "response.reasoning_summary_part", "response.reasoning_summary_text"),
}


class Responses:
    """The interface of POST /v1/responses."""

    media_type: str = "text/event-stream"

    def __init__(self, kept: Kept | None = None) -> None:
        self._kept = kept or Kept()

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        history = self._kept.resolved(body)
        said = held_to(Body, {**body, "input": history})
        for name in ("conversation", "prompt", "background"):
            if getattr(said, name):
                raise BadRequest(f"{name}: nothing of the kind is kept here; send the whole history in input", name)
        request = _request(said)
        summarized = bool(said.reasoning and said.reasoning.summary)
        echo = _echo(said, request)
        keep = forget if said.store is False else self._kept.keeper(history, echo)
        return Asked([request], bool(said.stream), ResponseWriter(model, echo, summarized, keep))

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        return openai_error(status, error)


def _code(error: UserError) -> str:
    """Agents that read this one make room and go on: the prompt is longer than the context."""
    return "context_length_exceeded" if isinstance(error, ContextOverflow) else _CODES.get(error.kind, "invalid_prompt")


def _request(said: Body) -> ChatRequest:
    choice, tools = _choice(said)
    thinking, budget = effort((said.reasoning and said.reasoning.effort) or "high", "reasoning.effort")
    schema, messages = _schema(said.text.format if said.text else None), _conversation(said)
    return ChatRequest(
        told(schema, messages) if schema is not None and tools else messages,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=said.parallel_tool_calls is not False,
        thinking=thinking,
        clear_thinking=False,  # a client that sends thinking back wants it read, and the next prompt begins with this one
        think_budget=budget,
        max_tokens=None if said.max_output_tokens is None else max(1, said.max_output_tokens),
        json_schema=None if tools else schema,
        sampling={"temperature": said.temperature, "top_p": said.top_p},
        logprobs=said.top_logprobs or 0 if said.top_logprobs or _LIKELY in (said.include or ()) else None,
    )


def _schema(format: Format | None) -> dict[str, Any] | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "object"}
    if format.schema_ is None:
        raise BadRequest("text.format.schema: a JSON schema is expected", "text.format.schema")
    return format.schema_


def _choice(said: Body) -> tuple[str, list[dict[str, Any]]]:
    """(ChatRequest.tool_choice, the functions among the tools). Tools that a server would carry out are left out."""
    given = [tool for tool in said.tools or () if tool.type == "function"]
    for i, tool in enumerate(said.tools or ()):
        if tool.type == "function" and not tool.name:
            raise BadRequest(f"tools.{i}.name: a function has a name", f"tools.{i}.name")
    choice = said.tool_choice or ToolChoice(type="auto")
    if choice.type == "allowed_tools":
        allowed = {tool.name for tool in choice.tools}
        given, choice = [tool for tool in given if tool.name in allowed], ToolChoice(type=choice.mode)
    tools = [function(tool.name, tool.description, tool.parameters) for tool in given]
    if choice.type == "function":
        return declared(choice.name, tools, "tool_choice.name"), tools
    kind = {"any": "required"}.get(choice.type, choice.type)
    if kind == "required" and not tools:
        raise BadRequest("tool_choice: a call is demanded, and there are no functions among the tools", "tool_choice")
    if kind in ("auto", "none", "required"):
        return kind, tools
    if kind not in [tool.type for tool in said.tools or ()]:
        raise BadRequest(f"tool_choice: expected auto, none, required or one of the tools, found {brief(kind)}", "tool_choice")
    return "auto", tools


def _conversation(said: Body) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": said.instructions}] if said.instructions else []
    turn: dict[str, Any] | None = None  # of the assistant: its thinking, its text and its calls are items of their own
    for i, item in enumerate(said.input):
        where = f"input.{i}"
        if item.type == "message" and item.role is None:
            raise BadRequest(f"{where}.role: expected user, assistant, system or developer", f"{where}.role")
        if item.type in ("reasoning", *CALLS) or item.role == "assistant":
            if turn is None or _is_next_turn(turn, item):
                turn = {"role": "assistant", "content": "", "reasoning_content": ""}
                messages.append(turn)
            _add(turn, item, i, where)
        elif item.type == "message":
            turn = None
            messages.append({"role": item.role, "content": _text(item.content, i, f"{where}.content")})
        elif item.type in ITEMS:
            turn = None
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, i, f"{where}.output")})
    return messages or [{"role": "user", "content": ""}]  # LM Studio's clients load a model so


def _is_next_turn(turn: dict[str, Any], item: Item) -> bool:
    """Whether an item begins another turn than the one before it: thinking comes first, then text, then calls."""
    return item.type not in CALLS and bool(turn["content"] or "tool_calls" in turn)


def _add(turn: dict[str, Any], item: Item, i: int, where: str) -> None:
    if item.type == "reasoning":
        turn["reasoning_content"] += _text(item.content or item.summary, i, where)
    elif item.type == "message":
        turn["content"] = _text(item.content, i, f"{where}.content")
    else:
        if not item.name:
            raise BadRequest(f"{where}.name: a call has a name", f"{where}.name")
        given = arguments(item.arguments) if item.type == "function_call" else {"input": item.input}
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": given}}
        turn.setdefault("tool_calls", []).append(call)


def _text(parts: Sequence[Part], message: int, where: str) -> str:
    for part in parts:
        if part.type in _MEDIA:
            refuse_media(part.type, message, where)
        if part.type not in _TEXT_PARTS:
            raise BadRequest(f"message {message} has a part of the type {part.type[:80]!r}, which is not known here", where)
    return "".join(part.refusal if part.type == "refusal" else part.text for part in parts)


def _echo(said: Body, request: ChatRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    format = said.text.format.model_dump(by_alias=True, exclude_unset=True) if said.text and said.text.format else {"type": "text"}
    tools = [{"type": "function", "strict": False} | tool["function"] for tool in request.tools or ()]
    named = request.tool_choice not in ("auto", "none", "required")
    return {
        "instructions": said.instructions, "max_output_tokens": said.max_output_tokens, "tools": tools,
        "metadata": said.metadata if isinstance(said.metadata, dict) else {},
        "parallel_tool_calls": request.parallel_tool_calls, "previous_response_id": said.previous_response_id,
        "store": said.store is not False,
        "reasoning": {"effort": said.reasoning and said.reasoning.effort, "summary": said.reasoning and said.reasoning.summary},
        "temperature": said.temperature, "top_p": said.top_p, "truncation": "disabled",
        "text": {"format": format},
        "tool_choice": {"type": "function", "name": request.tool_choice} if named else request.tool_choice,
    }  # fmt: skip


@dataclass
class ResponseWriter:
    """One response, as events or whole: what was said so far stands in `output`.

    echo         what is repeated of the request
    summarized   thinking goes out as the summary that was asked for, which is where such clients look; else as its own text
    keep         is called with the response when it is whole
    """

    model: str
    echo: dict[str, Any]
    summarized: bool
    keep: Callable[[dict[str, Any]], None] = forget
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[dict[str, Any]] = field(default_factory=list)
    is_open: bool = False  # the last item
    n_events: int = 0
    n_thought: int = 0  # tokens
    call: OpenCall = field(default_factory=OpenCall)
    likely: list[dict[str, Any]] = field(default_factory=list)  # logprobs of text that is still to come
    stats: Stats = field(default_factory=Stats)
    finish_reason: str | None = None

    def begin(self) -> Iterable[bytes]:
        return [self._event({"type": "response.created", "response": self._response("in_progress")}), *self.waiting()]

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        return [self._event(data) for data in self._events(chunk)]

    def waiting(self) -> Iterable[bytes]:
        return [self._event({"type": "response.in_progress", "response": self._response("in_progress")})]

    def end(self) -> Iterable[bytes]:
        response = self._response(self._status)
        last = {"type": f"response.{self._status}", "response": response}
        events = [self._event(data) for data in [*self._close(self._status), last]]
        self.keep(response)
        return events

    def fail(self, error: UserError) -> Iterable[bytes]:
        response = self._response("failed") | {"error": {"code": _code(error), "message": str(error)}}
        return [self._event({"type": "response.failed", "response": response})]

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        for chunk in answers[0]:
            list(self._events(replace(chunk, call_piece=None)))
        list(self._close(self._status))
        response = self._response(self._status)
        self.keep(response)
        return response

    @property
    def _status(self) -> str:
        return "completed" if self.finish_reason in ("stop", "tool_calls") else "incomplete"

    def _event(self, data: dict[str, Any]) -> bytes:
        self.n_events += 1
        return event(data | {"sequence_number": self.n_events - 1})

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "output": self.output, "error": None, "usage": None if status == "in_progress" else self._usage(),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None, **self.echo,
        }  # fmt: skip

    def _usage(self) -> dict[str, Any]:
        stats = self.stats
        return {
            "input_tokens": stats.n_prompt, "input_tokens_details": {"cached_tokens": stats.n_cached, "cache_write_tokens": 0},
            "output_tokens": stats.n_generated, "output_tokens_details": {"reasoning_tokens": self.n_thought},
            "total_tokens": stats.n_prompt + stats.n_generated,
        }  # fmt: skip

    def _events(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        self.stats = chunk.stats
        self.finish_reason = chunk.finish_reason
        if chunk.reasoning:
            self.n_thought = chunk.stats.n_generated
        self.likely += logprobs_of(chunk.logprobs or ())
        more, begun = self.call.take(chunk)
        if more:
            yield self._arguments(more)
        if chunk.reasoning:
            yield from self._say("reasoning", "summary_text" if self.summarized else "reasoning_text", chunk.reasoning)
        if chunk.text:
            yield from self._say("message", "output_text", chunk.text)
        for call in begun:
            yield from self._open({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""})
            yield self._arguments(call.arguments)

    def _say(self, kind: str, part: str, text: str) -> Iterator[dict[str, Any]]:
        texts = _SAID[part]
        if not self.is_open or self.output[-1]["type"] != kind:
            yield from self._open({"type": kind} | ({"role": "assistant", "content": []} if kind == "message" else {"summary": []}))
            begun: dict[str, Any] = {"type": part, "text": ""} | ({"annotations": [], "logprobs": []} if kind == "message" else {})
            self.output[-1].setdefault(texts.stands_in, []).append(begun)
            yield self._of_item(f"{texts.part}.added", **{texts.index: 0}, part=dict(begun))
        said = self.output[-1][texts.stands_in][0]
        said["text"] += text
        more = {}
        if kind == "message":
            said["logprobs"] += self.likely
            more, self.likely = {"logprobs": self.likely}, []
        yield self._of_item(f"{texts.text}.delta", **{texts.index: 0}, delta=text, **more)

    def _arguments(self, text: str) -> dict[str, Any]:
        self.output[-1]["arguments"] += text
        return self._of_item("response.function_call_arguments.delta", delta=text)

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close("completed")
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[item["type"]]
        self.output.append({"id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"} | item)
        self.is_open = True
        yield {"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": dict(self.output[-1])}

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        if not self.is_open:
            return
        item, self.is_open = self.output[-1], False
        item["status"] = status
        if item["type"] == "function_call":
            item["status"] = "incomplete" if item["call_id"] == self.call.id else "completed"
            yield self._of_item("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part = (item.get("content") or item["summary"])[0]
            texts = _SAID[part["type"]]
            more = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            yield self._of_item(f"{texts.text}.done", **{texts.index: 0}, text=part["text"], **more)
            yield self._of_item(f"{texts.part}.done", **{texts.index: 0}, part=dict(part))
        yield {"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": item}

    def _of_item(self, kind: str, **said: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, **said}
