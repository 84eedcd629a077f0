"""OpenAI's chat completions: what most clients speak."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from glmrun.chat.chunk import Chunk, Logprob, Stats
from glmrun.chat.request import ChatRequest
from glmrun.chat.template import shaped_message
from glmrun.server.form import arguments, begins_answer, declared, effort, held_to, refuse_media, told
from glmrun.server.interface import Asked, BadRequest
from glmrun.server.open_call import OpenCall
from glmrun.server.openai_body import ChatBody, TemplateOptions, Thinking, refuse_unread
from glmrun.server.openai_error import openai_error, status_of
from quant.errors import UserError, brief

_MEDIA = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio"),
    *("video", "video_url", "file", "input_file", "document"),
)
_FIRST = {"role": "assistant", "content": ""}  # delta of each answer
_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "cancelled": "length"}


class OpenAIChat:
    """/v1/chat/completions; reasoning_field: reasoning_content, reasoning, both, or none, which leaves the thinking out."""

    media_type: str = "text/event-stream"

    def __init__(self, reasoning_field: str = "both") -> None:
        names = {"both": ("reasoning_content", "reasoning"), "none": ()}
        self._fields: tuple[str, ...] = names.get(reasoning_field, (reasoning_field,))

    def asked(self, body: dict[str, Any], model: str) -> Asked:
        """As Interface.asked()."""
        form = held_to(ChatBody, body)
        refuse_unread(body, schemas=True)
        messages = [_message(message, i) for i, message in enumerate(form.messages)]
        if form.functions:
            raise BadRequest("functions: this older form is not read here; send tools and tool_choice", "functions")
        choice, tools = _offered(form.tool_choice, _functions(form.tools or []))
        thinking, budget = _thinking(form)
        schema = _schema(form)
        if schema is not None and tools:
            messages, schema = told(schema, messages), None
        continues = form.continue_final_message or messages[-1].get("prefix") is True
        if continues and (not begins_answer(messages) or schema is not None):
            name = "continue_final_message"
            raise BadRequest(f"{name}: expected a text of the assistant as the last message, and no schema", name)
        requests = [
            ChatRequest(
                messages, tools or None, thinking, _clears(form, bool(tools)), budget,
                form.limit("max_completion_tokens", "max_tokens"), schema, form.stops(), form.sampling(i),
                tool_choice=_tool_choice(choice, tools), parallel_tool_calls=form.parallel_tool_calls is not False,
                logprobs=(form.top_logprobs or 0) if form.logprobs or form.top_logprobs else None, continues=bool(continues),
            )
            for i in range(form.n or 1)
        ]  # fmt: skip
        with_usage = form.stream_options is not None and bool(form.stream_options.include_usage)
        return Asked(requests, bool(form.stream), ChatWriter(model, self._fields, with_usage, bool(form.return_progress)))

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        """As Interface.error()."""
        return openai_error(status, error)


def _message(message: dict[str, Any], i: int) -> dict[str, Any]:
    """A message as the chat format takes it: no media, and calls of a history with whatever arguments they had."""
    content = message.get("content")
    for j, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and isinstance(kind := part.get("type"), str) and kind in _MEDIA:
            refuse_media(kind, i, f"messages.{i}.content.{j}")
    message = {key: value for key, value in message.items() if key != "token_ids" or message.get("role") == "assistant"}
    if isinstance(content, list):
        message |= _parts(content, message)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        calls = [_as_function(call) for call in calls]
    if isinstance(calls, list) and all(isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls):
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": arguments(call["function"].get("arguments"))}} for call in calls
        ]
    try:
        shaped_message(message, f"message {i}")
    except UserError as why:
        raise BadRequest(str(why), f"messages.{i}") from None
    return message


def _parts(content: list[Any], message: dict[str, Any]) -> dict[str, Any]:
    """A message's `content` in parts that chat formats know, and `reasoning_content` where parts of it are an earlier thinking."""
    texts, thought = [], ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("thinking", "reasoning") and message.get("role") == "assistant":
            thought += next((said for name in (kind, "text") if isinstance(said := part.get(name), str)), "")
        elif kind in ("input_text", "output_text"):
            texts.append({**part, "type": "text"})
        else:
            texts.append({"type": "text", "text": part.get("refusal")} if kind == "refusal" else part)
    given = next((name for name in ("reasoning_content", "reasoning") if message.get(name)), None)
    return {"content": texts} | ({"reasoning_content": thought} if thought and not given else {})


def _as_function(call: Any) -> Any:
    """A call of a custom tool, which takes a text, as the call of a function."""
    custom = call.get("custom") if isinstance(call, dict) else None
    if not isinstance(custom, dict):
        return call
    return {**call, "function": {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}}


def _offered(choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """(tool_choice, the tools that may be called): words may stand in an object, and some tools only may be allowed."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "allowed_tools" and isinstance(choice, dict):
        given = choice.get("allowed_tools", choice)
        if not isinstance(given, dict) or not isinstance(given.get("tools"), list):
            raise BadRequest("tool_choice.allowed_tools: expected {'mode': ..., 'tools': [...]}", "tool_choice.allowed_tools")
        allowed = [tool["function"]["name"] for tool in _functions([tool for tool in given["tools"] if isinstance(tool, dict)])]
        return given.get("mode", "auto"), [tool for tool in tools if tool["function"]["name"] in allowed]
    if kind in ("auto", "none", "required", "any"):
        return {"any": "required"}.get(kind, kind), tools
    return choice, tools


def _functions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The declarations of functions; tools of other kinds are the client's own and left out. Raises BadRequest."""
    found = []
    for i, tool in enumerate(tools):
        if tool.get("type", "function") != "function":
            continue
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= 256:
            raise BadRequest(f"tools.{i}.function.name: a text is expected, found {str(name)[:40]!r}", f"tools.{i}.function.name")
        found.append({"type": "function", "function": function})
    return found


def _tool_choice(choice: Any, tools: list[dict[str, Any]]) -> str:
    """ChatRequest.tool_choice. Raises BadRequest for a function that is not among the tools."""
    if choice is None or (not tools and choice in ("auto", "none")):
        return "auto"
    if choice == "required" and not tools:
        raise BadRequest("tool_choice: required needs tools", "tool_choice")
    if not isinstance(choice, dict):
        if choice not in ("auto", "none", "required"):
            raise BadRequest(f"tool_choice: expected auto, none or required, found {brief(choice)}", "tool_choice")
        return str(choice)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return declared(name, tools, "tool_choice")


def _schema(body: ChatBody) -> dict[str, Any] | None:
    """What the answer is held to, under the names of all servers."""
    form = body.response_format
    if form is None or form.type == "text":
        others = body.json_schema, body.guided_json, body.structured_outputs.json_ if body.structured_outputs else None
        return next((schema for schema in others if schema is not None), None)
    if form.type == "json_object":
        return form.schema_ or {"type": "object"}
    if form.json_schema is None and form.schema_ is not None:
        return form.schema_  # as some servers have it, without a name around it
    if form.json_schema is None:
        raise BadRequest("response_format.json_schema: a schema is expected", "response_format.json_schema")
    return form.json_schema.schema_


def _thinking(form: ChatBody) -> tuple[bool, int | None]:
    """Whether to think, and the tokens after which the thinking is closed, under every name that clients use."""
    template, reasoning = form.chat_template_kwargs or TemplateOptions(), form.reasoning or Thinking()
    own = Thinking(enabled=form.thinking) if isinstance(form.thinking, bool) else form.thinking or Thinking()
    types = {"disabled": False, "enabled": True, "adaptive": True, "auto": True}
    switches = [
        template.enable_thinking, template.thinking, form.enable_thinking, own.enabled, types.get(own.type or ""),
        reasoning.enabled, form.think if isinstance(form.think, bool) else None,
    ]  # fmt: skip
    switch = next((value for value in switches if value is not None), None)
    efforts = {
        "reasoning_effort": form.reasoning_effort, "reasoning.effort": reasoning.effort, "thinking.effort": own.effort,
        "think": form.think if isinstance(form.think, str) else None,
        "chat_template_kwargs.reasoning_effort": template.reasoning_effort,
    }  # fmt: skip
    param, name = next(((param, name) for param, name in efforts.items() if name is not None), ("", None))
    thinking, budget = effort(name, param) if name is not None else (True, None)
    budgets = [
        own.budget_tokens, own.max_tokens, reasoning.budget_tokens, reasoning.max_tokens, form.thinking_budget,
        form.thinking_budget_tokens, form.reasoning_budget,
    ]  # fmt: skip
    budget = next((value for value in budgets if value is not None and value != -1), budget)
    return (thinking if switch is None else switch), budget


def _clears(form: ChatBody, has_tools: bool) -> bool:
    """Whether earlier thinking is left out; for agents the makers advise to keep it, and then no prefix changes."""
    own = form.thinking.clear_thinking if isinstance(form.thinking, Thinking) else None
    template = form.chat_template_kwargs.clear_thinking if form.chat_template_kwargs else None
    return next((value for value in (form.clear_thinking, own, template) if value is not None), not has_tools)


class ChatWriter:
    """Chunks of chat completions as server-sent events, or one completion."""

    def __init__(self, model: str, reasoning_fields: Sequence[str], with_usage: bool, with_progress: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._fields, self._with_usage, self._with_progress = reasoning_fields, with_usage, with_progress
        self._calls: dict[int, int] = {}  # of each answer so far
        self._open: dict[int, OpenCall] = {}
        self._tallies: dict[int, Tally] = {}

    def begin(self) -> Iterable[bytes]:
        """As Writer.begin()."""
        yield self._event(0, _FIRST)

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        """As Writer.push()."""
        if answer and answer not in self._tallies:
            yield self._event(answer, _FIRST)
        tally = self._tallies.setdefault(answer, Tally())
        tally.count(chunk)
        if self._with_progress and chunk.token is None and chunk.finish_reason is None:
            yield self._event(answer, {}, prompt_progress=progress(chunk.stats))
        more, begun = self._open.setdefault(answer, OpenCall()).take(chunk)
        if more:
            yield self._arguments(answer, more)
        if chunk.reasoning and self._fields:
            yield self._event(answer, dict.fromkeys(self._fields, chunk.reasoning))
        if chunk.text or chunk.logprobs:
            yield self._event(answer, {"content": chunk.text}, chunk.logprobs)
        for call in begun:
            index = self._calls[answer] = self._calls.get(answer, -1) + 1
            named = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
            yield self._event(answer, {"tool_calls": [named]})
            yield self._arguments(answer, call.arguments)
        if chunk.finish_reason is not None:
            yield self._event(answer, {}, finish=_FINISH[chunk.finish_reason], timings=timings(chunk.stats))

    def waiting(self) -> Iterable[bytes]:
        """As Writer.waiting()."""
        yield self._event(0, {})

    def end(self) -> Iterable[bytes]:
        """As Writer.end()."""
        if self._with_usage:
            usage = usage_of(self._tallies.values())
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def fail(self, error: UserError) -> Iterable[bytes]:
        """As Writer.fail()."""
        yield event(openai_error(status_of(error), error))
        yield b"data: [DONE]\n\n"

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        """As Writer.whole()."""
        tallies = []
        choices = []
        for index, chunks in enumerate(answers):
            tally = Tally()
            for chunk in chunks:
                tally.count(chunk)
            tallies.append(tally)
            calls = [call for chunk in chunks for call in chunk.tool_calls or ()]
            text = "".join(chunk.text for chunk in chunks)
            message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
            if reasoning := "".join(chunk.reasoning for chunk in chunks):
                message |= dict.fromkeys(self._fields, reasoning)
            if calls:
                message["tool_calls"] = calls
            likely = [one for chunk in chunks for one in chunk.logprobs or ()]
            choices.append({
                "index": index, "message": message, "logprobs": {"content": logprobs_of(likely)} if likely else None,
                "finish_reason": _FINISH[chunks[-1].finish_reason or "cancelled"],
            })  # fmt: skip
        body = {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_of(tallies)}
        return {**body, "timings": timings(answers[-1][-1].stats)}

    def _arguments(self, answer: int, text: str) -> bytes:
        """More of the arguments of the last call."""
        return self._event(answer, {"tool_calls": [{"index": self._calls[answer], "function": {"arguments": text}}]})

    def _event(
        self, answer: int, delta: dict[str, Any], likely: list[Logprob] | None = None, finish: str | None = None, **more: Any
    ) -> bytes:
        choice: dict[str, Any] = {"index": answer, "delta": delta, "finish_reason": finish}
        if likely:
            choice["logprobs"] = {"content": logprobs_of(likely)}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})


class Tally:
    """What one answer cost, for `usage`."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.n_thinking = 0

    def count(self, chunk: Chunk) -> None:
        """Take a chunk into account."""
        self.stats = chunk.stats
        if chunk.reasoning:
            self.n_thinking = chunk.stats.n_generated


def usage_of(tallies: Iterable[Tally], n: int | None = None) -> dict[str, Any]:
    """`usage` of a body: each prompt once, the tokens of all answers. n: answers to a prompt; None: there is one prompt."""
    tallies = list(tallies) or [Tally()]
    prompts = [tally.stats for tally in tallies[:: n or len(tallies)]]
    n_prompt, n_written = sum(stats.n_prompt for stats in prompts), sum(tally.stats.n_generated for tally in tallies)
    return {
        "prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written,
        "prompt_tokens_details": {"cached_tokens": sum(stats.n_cached for stats in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(tally.n_thinking for tally in tallies)},
    }  # fmt: skip


def timings(stats: Stats) -> dict[str, Any]:
    """How fast it went, as web pages show it; milliseconds."""
    n_read = stats.n_prompt - stats.n_cached
    return {
        "cache_n": stats.n_cached, "prompt_n": n_read, "prompt_ms": 1000 * stats.prompt_seconds,
        "prompt_per_second": n_read / stats.prompt_seconds if stats.prompt_seconds else None,
        "predicted_n": stats.n_generated, "predicted_ms": 1000 * stats.generate_seconds,
        "predicted_per_second": stats.n_generated / stats.generate_seconds if stats.generate_seconds else None,
        "draft_n": stats.n_drafted, "draft_n_accepted": stats.n_accepted,
        "draft_mtp_n": stats.n_guessed, "draft_mtp_n_accepted": stats.n_guessed_right,
    }  # fmt: skip


def progress(stats: Stats) -> dict[str, Any]:
    """How much of a prompt is read."""
    return {
        "total": stats.n_prompt, "cache": stats.n_cached, "processed": stats.n_prefilled,
        "time_ms": round(1000 * stats.prompt_seconds),
    }  # fmt: skip


def logprobs_of(likely: Iterable[Logprob]) -> list[dict[str, Any]]:
    """`logprobs.content`."""
    return [
        {**_entry(one.text, one.logprob), "top_logprobs": [_entry(text, logprob) for _, text, logprob in one.top]} for one in likely
    ]


def _entry(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(text)}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event. Escapes keep U+2028 from clients that cut lines at it."""
    return f"data: {json.dumps(data)}\n\n".encode()
