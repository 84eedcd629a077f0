"""Ollama's own interface: chat and generate as lines of JSON."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.server.form import MAX_STOPS, Stop, arguments, begins_answer, effort, function, held_to, refuse_media, told
from glmrun.server.interface import Asked, BadRequest
from glmrun.server.openai_chat import logprobs_of
from glmrun.server.openai_error import status_of
from quant.errors import UserError

_DONE_REASONS = {"stop": "stop", "tool_calls": "stop", "length": "length", "cancelled": "length"}


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else [] if given is None else given


class FunctionCall(BaseModel):
    name: str = Field(min_length=1)
    arguments: Any = None


class Call(BaseModel):
    id: str | None = None
    function: FunctionCall


class Message(BaseModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: list[Any] | None = None


class Function(BaseModel):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    function: Function | None = None


class Options(BaseModel):
    """Sampling under Ollama's names. The size of the context is the server's: num_ctx is left out like everything else."""

    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = None
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_predict: int | None = None
    stop: Annotated[list[Stop], BeforeValidator(_as_list)] = Field(default=[], max_length=MAX_STOPS)


class Body(BaseModel):
    """What chat and generate have in common."""

    stream: bool | None = None
    think: bool | str | None = None
    format: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    options: Options | None = None


class ChatBody(Body):
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateBody(Body):
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class OllamaChat:
    """The interface of POST /api/chat."""

    media_type: str = "application/x-ndjson"

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        said = held_to(ChatBody, body)
        tools = [function(f.name, f.description, f.parameters) for tool in said.tools or () if (f := tool.function)]
        messages = [_message(message, i) for i, message in enumerate(said.messages or ())]
        return _asked(said, messages, tools, LineWriter(model, is_chat=True))

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        return ollama_error(status, error)


class OllamaGenerate:
    """The interface of POST /api/generate: one question without a history, in the chat format."""

    media_type: str = OllamaChat.media_type

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        said = held_to(GenerateBody, body)
        for name in ("raw", "suffix", "template"):
            if getattr(said, name):
                raise BadRequest(f"{name}: the prompt is written in the model's chat format here; leave it out", name)
        if said.images:
            refuse_media("image", 0, "images")
        system = [{"role": "system", "content": said.system}] if said.system else []
        messages = [*system, {"role": "user", "content": said.prompt}] if said.prompt else []
        return _asked(said, messages, [], LineWriter(model, is_chat=False))

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        return ollama_error(status, error)


def ollama_error(status: int, error: UserError) -> dict[str, Any]:
    """The body of a refusal: clients print what is not a text as Python does."""
    return {"error": str(error)}


def _asked(said: Body, messages: list[dict[str, Any]], tools: list[dict[str, Any]], writer: "LineWriter") -> Asked:
    """One request, or none where a client only wants the model to be there."""
    options = said.options or Options()
    thinking, budget = effort(said.think, "think") if isinstance(said.think, str) else (said.think is not False, None)
    schema = _schema(said.format)
    request = ChatRequest(
        told(schema, messages) if schema is not None and tools else messages,
        tools=tools or None,
        thinking=thinking,
        clear_thinking=False,  # a client that sends thinking back wants it read, and the next prompt begins with this one
        think_budget=budget,
        # 0 and the negative numbers mean no limit there
        max_tokens=options.num_predict if options.num_predict is not None and options.num_predict > 0 else None,
        json_schema=None if tools else schema,
        continues=begins_answer(messages) and schema is None,
        stop=[text for text in options.stop if text],
        sampling=_sampling(options),
        logprobs=(said.top_logprobs or 0) if said.logprobs or said.top_logprobs else None,
    )
    return Asked([request] if messages else [], said.stream is not False, writer)


def _sampling(options: Options) -> dict[str, Any]:
    """ChatRequest.sampling of what was given; negative numbers mean a new seed each time, all tokens, and the whole context."""
    given = options.model_dump(exclude={"num_predict", "stop"}, exclude_none=True)
    if given.get("seed", 0) < 0:
        del given["seed"]
    if given.get("top_k", 0) < 0:
        given["top_k"] = 0
    if given.get("repeat_last_n", 0) < 0:
        given["repeat_last_n"] = 1 << 31
    return given


def _schema(format: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(format, dict):
        return format
    if format not in (None, "", "json"):
        raise BadRequest(f"format: expected 'json' or a JSON schema, found {format[:80]!r}", "format")
    return {"type": "object"} if format else None


def _message(said: Message, i: int) -> dict[str, Any]:
    if said.images:
        refuse_media("image", i, f"messages.{i}.images")
    message: dict[str, Any] = {"role": said.role, "content": said.content or ""}
    if said.role == "assistant":
        message["reasoning_content"] = said.thinking or ""
        calls = [
            {"id": call.id or "", "type": "function", "function": {"name": call.function.name, "arguments": arguments(given)}}
            for call in said.tool_calls or ()
            for given in [call.function.arguments]
        ]
        return message | {"tool_calls": calls} if calls else message
    return message | {key: value for key, value in (("name", said.tool_name), ("tool_call_id", said.tool_call_id)) if value}


@dataclass
class LineWriter:
    """One answer as lines of JSON, or whole."""

    model: str
    is_chat: bool
    began: float = field(default_factory=time.monotonic)
    done_reason: str = "load"  # until an answer says otherwise: the model is there, and nothing was asked
    n_calls: int = 0
    stats: Stats = field(default_factory=Stats)

    def begin(self) -> Iterable[bytes]:
        return self.waiting()

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        said = self._said(chunk)
        return [self._line(said)] if chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs else []

    def waiting(self) -> Iterable[bytes]:
        return [self._line({})]

    def end(self) -> Iterable[bytes]:
        return [self._line({}, self._last())]

    def fail(self, error: UserError) -> Iterable[bytes]:
        return [_encoded(ollama_error(status_of(error), error))]

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        text = reasoning = ""
        calls: list[dict[str, Any]] = []
        likely: list[dict[str, Any]] = []
        for chunk in (chunk for chunks in answers for chunk in chunks):
            said = self._said(chunk)
            text, reasoning, calls = text + chunk.text, reasoning + chunk.reasoning, calls + said["tool_calls"]
            likely += said["logprobs"]
        said = {"content": text, "thinking": reasoning, "tool_calls": calls, "logprobs": likely}
        return self._object(said) | self._last()

    def _said(self, chunk: Chunk) -> dict[str, Any]:
        self.stats = chunk.stats
        self.done_reason = _DONE_REASONS.get(chunk.finish_reason or "", self.done_reason)
        calls = [self._call(call) for call in chunk.tool_calls or ()]
        likely = logprobs_of(chunk.logprobs or ())
        return {"content": chunk.text, "thinking": chunk.reasoning, "tool_calls": calls, "logprobs": likely}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        self.n_calls += 1
        said = {"index": self.n_calls - 1, "name": call["function"]["name"], "arguments": arguments(call["function"]["arguments"])}
        return {"id": call["id"], "function": said}

    def _line(self, said: dict[str, Any], last: dict[str, Any] | None = None) -> bytes:
        return _encoded(self._object(said) | (last or {}))

    def _object(self, said: dict[str, Any]) -> dict[str, Any]:
        content = said.get("content", "")
        more = {key: said[key] for key in ("thinking", "tool_calls") if said.get(key)}
        answer = {"message": {"role": "assistant", "content": content} | more} if self.is_chat else {"response": content} | more
        likely = {"logprobs": said["logprobs"]} if said.get("logprobs") else {}
        return {"model": self.model, "created_at": timestamp(time.time()), **answer, **likely, "done": False}

    def _last(self) -> dict[str, Any]:
        """What the last line adds: counts, and durations in nanoseconds."""
        stats = self.stats
        return {
            "done": True, "done_reason": self.done_reason, "total_duration": int(1e9 * (time.monotonic() - self.began)),
            "load_duration": 0, "prompt_eval_count": stats.n_prompt, "prompt_eval_duration": int(1e9 * stats.prompt_seconds),
            "eval_count": stats.n_generated, "eval_duration": int(1e9 * stats.generate_seconds),
        }  # fmt: skip


def _encoded(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as Ollama writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
