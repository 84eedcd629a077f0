"""Messages to the model's prompt, through the Jinja template that a model file carries (or our own).

Two things are done before the template sees anything. Messages are brought into the one shape that chat templates agree on, and
whatever is malformed is refused with its index. And every string that came from the caller is sealed (seal.py), so that after
rendering the template's own control tokens can be told from a user's look-alikes.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from glmrun.chat.request import ChatRequest
from glmrun.chat.sandbox import one_line, render, render_apart, to_json
from glmrun.chat.seal import Seal, unused_character
from glmrun.chat.tokenizer import Tokenizer
from glmrun.chat.turns import Turns
from quant.errors import UserError

DEFAULT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MAX_TEMPLATE = 1 << 20  # characters

_MEDIA = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio"),
    *("video", "video_url", "file", "input_file", "document"),
)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class ChatFormat:
    """One chat template with the tokenizer it writes for.

    template_source   Jinja text from the model file; None for our own template
    Errors in the template appear when it is first used, as UserError: a file without a usable template still completes raw text.
    """

    def __init__(self, template_source: str | None, tokenizer: Tokenizer) -> None:
        own = DEFAULT_TEMPLATE.read_text("utf-8")
        blank = isinstance(template_source, str) and not template_source.strip()
        self.source = own if template_source is None or blank else template_source
        self._run = render if isinstance(self.source, str) and self.source == own else render_apart
        self._tokenizer = tokenizer
        self._seal = Seal(tokenizer.special_texts)
        self.turns = Turns(tokenizer)

    def render(self, request: ChatRequest, add_generation_prompt: bool = True) -> str:
        """The prompt as text.

        add_generation_prompt   end with the opening of the model's next answer, unless the request continues one
        Raises UserError: usage for malformed messages or tools, with the index; failed for a template that fails.
        """
        mark, prompt = self._render(request, add_generation_prompt)
        return prompt.replace(mark, "")

    def encode(self, request: ChatRequest, add_generation_prompt: bool = True) -> list[int]:
        """The prompt as token ids: control and tag tokens only where the template wrote them, the callers' texts as plain text.

        An assistant's message may have `token_ids`, its turn as the model wrote it (turns.py).
        """
        mark, prompt = self._render(request, add_generation_prompt)
        ids: list[int] = []
        for i, piece in enumerate(self._seal.pattern.split(prompt)):
            ids += self._tokenizer.encode(piece.replace(mark, ""), special=i % 2 == 1)
        return self.turns.restored(ids, request.messages, request.tools or [])

    def _render(self, request: ChatRequest, add_generation_prompt: bool) -> tuple[str, str]:
        """(the mark that seals texts, the prompt with the marks in it)."""
        try:
            self._check_source()
            shaped, declared = _messages(request.messages), _tools(request.tools)
            mark = unused_character(self.source, shaped, declared)
            variables = self._tokenizer.markers | {
                "messages": [self._seal.apply(message, mark) | {"role": message["role"]} for message in shaped],
                "tools": self._seal.apply(declared, mark) or None,  # templates ask whether it is none
                "enable_thinking": request.thinking,
                "clear_thinking": request.clear_thinking,
                "add_generation_prompt": add_generation_prompt and not request.continues,
            }
            return mark, self._run(self.source, variables)
        except RecursionError:
            raise UserError("messages or tools are nested too deeply for a chat template", "usage") from None
        except (TypeError, ValueError) as error:  # arguments of a tool call that are no JSON
            raise UserError(f"the chat template failed: {one_line(error)}") from error

    def _check_source(self) -> None:
        if not isinstance(self.source, str) or len(self.source) > MAX_TEMPLATE:
            raise UserError(f"the chat template is no text of at most {MAX_TEMPLATE} characters")


def _messages(messages: Any) -> list[dict]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError("messages must be a list of at least one {'role': ..., 'content': ...}", "usage")
    return _in_order([shaped_message(message, f"message {i}") for i, message in enumerate(messages)])


def _in_order(messages: list[dict]) -> list[dict]:
    """Results of several calls in the order of these: the format has no ids, so the first result is read as the first call's."""
    ordered: list[dict] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        found = list(group)
        if are_results and ordered:
            places = {call.get("id"): i for i, call in enumerate(ordered[-1].get("tool_calls", ()))}
            if all(result.get("tool_call_id") in places for result in found):
                found.sort(key=lambda result: places[result.get("tool_call_id")])
        ordered += found
    return ordered


def shaped_message(message: Any, where: str) -> dict:
    """A message in the shape that templates agree on. Raises UserError (usage) that begins with `where`."""
    if not isinstance(message, dict):
        raise UserError(f"{where} is {_brief(message)}; expected {{'role': ..., 'content': ...}}", "usage")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{where} has the role {_brief(role)}; expected {', '.join(_ROLES)}", "usage")
    content = message.get("content")
    if not (content is None or isinstance(content, (str, list, tuple))):
        raise UserError(f"{where} has the content {_brief(content)}; expected text, a list of parts, or None", "usage")
    shaped: dict[str, Any] = {"role": _ROLES[role]}
    for key in ("name", "tool_call_id"):
        if isinstance(message.get(key), str):
            shaped[key] = message[key]
    if role == "tool" and isinstance(content, (list, tuple)) and not all(_is_text_part(part) for part in content):
        return shaped | {"content": [_tool_result(part, where) for part in content]}
    shaped["content"] = _text_of(content, where)
    if role == "assistant":
        shaped |= _reasoning(message, shaped["content"], where)
        calls = message.get("tool_calls")
        if not (calls is None or isinstance(calls, (list, tuple))):
            raise UserError(f"{where} has the tool_calls {_brief(calls)}; expected a list", "usage")
        if calls:
            shaped["tool_calls"] = [_tool_call(call, f"tool call {i} of {where}") for i, call in enumerate(calls)]
    return shaped


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _text_of(content: Any, where: str) -> str:
    """Parts joined; a part that a text model cannot read (an image, audio, a file) is refused."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif _is_text_part(part):
            texts.append(part["text"])
        else:
            _refuse_media(part, where)
            raise UserError(f"{where} has the part {_brief(part)}; expected text or {{'type': 'text', 'text': ...}}", "usage")
    return "".join(texts)


def _refuse_media(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise UserError(f"{where} has a part of the type {kind}, which this model cannot read; it reads text only", "usage")


def _tool_result(part: Any, where: str) -> str:
    """One of several results in one tool message, as text."""
    _refuse_media(part, where)
    if _is_text_part(part):
        return part["text"]
    result = part["output"] if isinstance(part, dict) and "output" in part else part
    return result if isinstance(result, str) else to_json(result)


def _reasoning(message: dict, content: str, where: str) -> dict[str, str]:
    """reasoning_content and content of an assistant message, cut apart here if one text holds both.

    Templates would look for tags in the content themselves; with reasoning_content given they leave the content alone.
    """
    for key in ("reasoning_content", "reasoning"):
        reasoning = message.get(key)
        if isinstance(reasoning, str):
            return {"reasoning_content": reasoning}
        if reasoning is not None:
            raise UserError(f"{where} has the {key} {_brief(reasoning)}; expected text", "usage")
    before, tag, after = content.partition("</think>")
    if not tag:
        return {"reasoning_content": ""}
    return {"reasoning_content": before.rpartition("<think>")[2], "content": after}


def _tool_call(call: Any, where: str) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{where} is {_brief(call)}; expected {{'function': {{'name': ..., 'arguments': ...}}}}", "usage")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # as JSON, which is how they travel
        try:
            arguments = json.loads(arguments) if arguments.strip() else None
        except ValueError as error:
            raise UserError(f"{where} has arguments that are no JSON: {one_line(error)}", "usage") from None
    if not (arguments is None or isinstance(arguments, dict)):
        raise UserError(f"{where} has the arguments {_brief(arguments)}; expected an object", "usage")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return identity | {"type": "function", "function": {"name": function["name"], "arguments": _json_keys(arguments or {}, where)}}


def _json_keys(arguments: dict, where: str) -> dict:
    for key in arguments:
        if not isinstance(key, str):
            raise UserError(f"{where} has an argument called {_brief(key)}; expected a text", "usage")
    return arguments


def _tools(tools: Any) -> list[dict]:
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise UserError(f"tools is {_brief(tools)}; expected a list of function declarations", "usage")
    declared = []
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(
                f"tool {i} is {_brief(tool)}; expected {{'type': 'function', 'function': {{'name': ..., ...}}}}", "usage"
            )
        declared.append(tool if "function" in tool else {"type": "function", "function": tool})
        try:
            json.dumps(tool)
        except (TypeError, ValueError) as error:
            raise UserError(f"tool {i} is no JSON: {one_line(error)}", "usage") from None
    return declared


def _brief(value: Any) -> str:
    """A value for an error message: its beginning, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
