"""Anthropic's Messages: what Claude Code and Anthropic's libraries speak."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.server.form import (
    MAX_STOPS,
    Sparse,
    Stop,
    arguments,
    begins_answer,
    declared,
    effort,
    event,
    function,
    held_to,
    refuse_media,
    told,
)
from glmrun.server.interface import Asked, BadRequest
from glmrun.server.open_call import OpenCall
from glmrun.server.openai_error import status_of
from quant.errors import UserError

# Claude Code writes this line before everything else, with another value for each conversation: no prefix would be found again.
_BILLING = "x-anthropic-billing-header:"
_SIGNATURE = "Z2xtcnVu"  # clients drop a thinking block without one; nobody reads it
_NO_THINKING = ("redacted_thinking",)
_SERVERS_OWN = ("server_tool_use", "mcp_tool_use")  # calls in a history that was begun elsewhere, and their ..._tool_result
_MEDIA = ("image", "document", "audio", "video", "file", "container_upload")
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "cancelled": "max_tokens"}
_BY_STATUS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def _as_blocks(content: Any) -> Any:
    """A text stands for one text block, an empty one for none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


class Block(Sparse):
    """A piece of a message of any type; which fields it must have is for its reader to say."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Any = None
    tool_use_id: str = ""
    tool_name: str = ""
    is_error: bool | None = None
    source: Any = None
    content: Annotated[list["Block"], BeforeValidator(_as_blocks)] = Field(default_factory=list)


class Message(Sparse):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], BeforeValidator(_as_blocks)] = Field(default_factory=list)


class Tool(Sparse):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None


class ToolChoice(Sparse):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=0)


class Format(BaseModel):
    type: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class OutputConfig(BaseModel):
    effort: str | None = None
    format: Format | None = None


class Edit(BaseModel):
    type: str
    keep: Any = None


class ContextManagement(BaseModel):
    edits: list[Edit] | None = None


class Body(Sparse):
    """What POST /v1/messages and /v1/messages/count_tokens may say, as far as it means something here."""

    messages: list[Message] = Field(min_length=1)
    system: Annotated[list[Block], BeforeValidator(_as_blocks)] = Field(default_factory=list)
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None  # where output_config.format stood at first; LiteLLM and others still send it
    context_management: ContextManagement | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    stop_sequences: list[Stop] | None = Field(default=None, max_length=MAX_STOPS)
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)


class Messages:
    """The interface of POST /v1/messages."""

    media_type: str = "text/event-stream"

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        said = held_to(Body, body)
        return Asked([_request(said)], bool(said.stream), MessageWriter(model))

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        return anthropic_error(status, error)


def anthropic_error(status: int, error: UserError) -> dict[str, Any]:
    """The body of a refusal."""
    kind = _BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def request_of(body: dict[str, Any]) -> ChatRequest:
    """What a body asks for. Raises BadRequest."""
    return _request(held_to(Body, body))


def _request(said: Body) -> ChatRequest:
    tools = _tools(said)
    choice, parallel = _choice(said.tool_choice, tools)
    thinking, budget = _thinking(said)
    edits = (said.context_management and said.context_management.edits) or []
    schema, messages = _schema(said), _conversation(said)
    return ChatRequest(
        told(schema, messages) if schema is not None and tools else messages,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        thinking=thinking,
        # What a client sends back is kept, as Anthropic keeps it: so the next prompt begins with this one.
        clear_thinking=any(edit.type.startswith("clear_thinking") and edit.keep != "all" for edit in edits),
        think_budget=budget,
        max_tokens=None if said.max_tokens is None else max(1, said.max_tokens),
        json_schema=None if tools else schema,
        continues=begins_answer(messages) and schema is None and not thinking,
        stop=[text for text in said.stop_sequences or () if text],
        sampling={"temperature": said.temperature, "top_p": said.top_p, "top_k": said.top_k},
    )


def _thinking(said: Body) -> tuple[bool, int | None]:
    """Off unless it is asked for, as with Anthropic: programs that did not ask take the first block for the answer."""
    asked = (said.output_config and said.output_config.effort) or "high"
    may_think, budget = effort(asked, "output_config.effort")
    if said.thinking is None or said.thinking.type == "disabled" or not may_think:
        return False, None
    return (True, budget) if said.thinking.budget_tokens is None else (True, said.thinking.budget_tokens)


def _schema(said: Body) -> dict[str, Any] | None:
    given, param = said.output_format, "output_format"
    if said.output_config is not None and said.output_config.format is not None:
        given, param = said.output_config.format, "output_config.format"
    if given is None:
        return None
    if given.type != "json_schema" or given.schema_ is None:
        raise BadRequest(f"{param}: expected {{'type': 'json_schema', 'schema': {{...}}}}", param)
    return given.schema_


def _tools(said: Body) -> list[dict[str, Any]]:
    """The functions among the tools. Those that wait to be searched for are left out until a result names them."""
    named = {
        part.tool_name for m in said.messages for block in m.content for part in block.content if part.type == "tool_reference"
    }
    return [
        function(tool.name, tool.description, tool.input_schema)
        for tool in said.tools or ()
        if tool.input_schema is not None and (not tool.defer_loading or tool.name in named)
    ]


def _choice(choice: ToolChoice | None, tools: list[dict[str, Any]]) -> tuple[str, bool]:
    """(ChatRequest.tool_choice, parallel_tool_calls)."""
    if choice is None:
        return "auto", True
    if choice.type == "any" and not tools:
        raise BadRequest("tool_choice: a call is demanded, and there are no tools with an input_schema", "tool_choice")
    name = declared(choice.name, tools, "tool_choice.name") if choice.type == "tool" else ""
    return name or {"any": "required"}.get(choice.type, choice.type), not choice.disable_parallel_tool_use


def _conversation(said: Body) -> list[dict[str, Any]]:
    system = [block for block in said.system if not block.text.startswith(_BILLING)]
    messages = [{"role": "system", "content": _text(system, 0, "system")}] if system else []
    for i, message in enumerate(said.messages):
        where = f"messages.{i}.content"
        if message.role == "assistant":
            messages.append(_assistant(message.content, i, where))
        else:
            messages += _from_outside(message, i, where)
    return messages


def _assistant(blocks: list[Block], i: int, where: str) -> dict[str, Any]:
    if unnamed := [k for k, block in enumerate(blocks) if block.type == "tool_use" and not block.name]:
        raise BadRequest(f"{where}.{unnamed[0]}.name: a call has a name", f"{where}.{unnamed[0]}.name")
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments(block.input)}}
        for block in blocks
        if block.type == "tool_use"
    ]
    silent = ("tool_use", "thinking", *_NO_THINKING, *_SERVERS_OWN)
    texts = [block for block in blocks if block.type not in silent and not block.type.endswith("_tool_result")]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": _text(texts, i, where),
        "reasoning_content": "".join(block.thinking for block in blocks if block.type == "thinking"),
    }
    return message | {"tool_calls": calls} if calls else message


def _from_outside(message: Message, i: int, where: str) -> Iterator[dict[str, Any]]:
    """A user's or system message: results of tools as messages of their own, in order."""
    texts: list[Block] = []
    for k, block in enumerate(message.content):
        if block.type != "tool_result":
            texts.append(block)
            continue
        if texts:
            yield {"role": message.role, "content": _text(texts, i, where)}
            texts = []
        content = _text(block.content, i, f"{where}.{k}.content") or ("the call failed" if block.is_error else "")
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    if texts or not message.content:
        yield {"role": message.role, "content": _text(texts, i, where)}


def _text(blocks: Sequence[Block], message: int, where: str) -> str:
    return "".join(_text_of(block, message, where) for block in blocks)


def _text_of(block: Block, message: int, where: str) -> str:
    """What a block of a message says. Raises BadRequest for one that cannot be read."""
    if block.type == "text":
        return block.text
    if block.type == "tool_reference":
        return f"The tool {block.tool_name} can be called now.\n"
    if block.type == "search_result":
        return _text(block.content, message, where)
    source = block.source if isinstance(block.source, dict) else {}
    if block.type == "document" and source.get("type") == "text" and isinstance(source.get("data"), str):
        return source["data"]
    if block.type == "document" and source.get("type") == "content":
        return _text(held_to(Message, {"role": "user", "content": source.get("content")}).content, message, where)
    if block.type in _MEDIA:
        refuse_media(block.type, message, where)
    raise BadRequest(f"message {message} has a block of the type {block.type[:80]!r}, which is not known here", where)


def _usage(stats: Stats) -> dict[str, int]:
    return {
        "input_tokens": stats.n_prompt - stats.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.n_cached,
        "output_tokens": stats.n_generated,
    }


@dataclass
class MessageWriter:
    """One message, as events or whole: what was said so far stands in `content`."""

    model: str
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    content: list[dict[str, Any]] = field(default_factory=list)
    is_open: bool = False  # the last block
    stop_reason: str | None = None
    stop_sequence: str | None = None
    call: OpenCall = field(default_factory=OpenCall)
    said: str = ""  # of the open block's input, as JSON
    stats: Stats = field(default_factory=Stats)

    def begin(self) -> Iterable[bytes]:
        return [event({"type": "message_start", "message": self._message() | {"content": []}}), *self.waiting()]

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        return [event(data) for data in self._events(chunk)]

    def waiting(self) -> Iterable[bytes]:
        return [event({"type": "ping"})]

    def end(self) -> Iterable[bytes]:
        return [event(data) for data in [*self._close(), *self._stopped()]]

    def fail(self, error: UserError) -> Iterable[bytes]:
        return [event(anthropic_error(status_of(error), error))]

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        for chunk in answers[0]:
            list(self._events(replace(chunk, call_piece=None)))
        list(self._close())
        return self._message()

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": self.content,
            "stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence, "usage": _usage(self.stats),
        }  # fmt: skip

    def _events(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        self.stats = chunk.stats
        more, begun = self.call.take(chunk)
        if more:
            yield self._arguments(more)
        if chunk.reasoning:
            yield from self._say("thinking", chunk.reasoning)
        if chunk.text:
            yield from self._say("text", chunk.text)
        for call in begun:
            yield from self._open({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            yield self._arguments(call.arguments)
        if chunk.finish_reason is not None:
            self.stop_sequence = chunk.stop_text
            self.stop_reason = "stop_sequence" if chunk.stop_text else _STOP_REASONS[chunk.finish_reason]

    def _say(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        if not self.is_open or self.content[-1]["type"] != kind:
            yield from self._open({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))
        self.content[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _arguments(self, text: str) -> dict[str, Any]:
        self.said += text
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def _open(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self.content.append(block)
        self.is_open = True
        yield {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self.is_open:
            return
        if self.content[-1]["type"] == "tool_use":
            self.content[-1]["input"], self.said = arguments(self.said), ""
        if self.content[-1]["type"] == "thinking":
            self.content[-1]["signature"] = _SIGNATURE
            yield self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        self.is_open = False
        yield {"type": "content_block_stop", "index": len(self.content) - 1}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _stopped(self) -> Iterator[dict[str, Any]]:
        reason = {"stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence}
        yield {"type": "message_delta", "delta": reason, "usage": _usage(self.stats)}
        yield {"type": "message_stop"}
