"""A conversation as a document: Markdown for people, JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any

_PUBLIC = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")


def as_markdown(title: str, model: str, system: str | None, messages: Sequence[dict[str, Any]]) -> str:
    """Headings for who speaks, the thinking folded away, tool calls and results as code."""
    parts = [f"# {title or 'Conversation'}", f"With {model}."]
    if system:
        parts += ["## System", system]
    heard = ""
    for message in messages:
        speaker = {"user": "You", "assistant": "Model", "tool": "Tool"}[message["role"]]
        if speaker != heard:
            parts.append(f"## {speaker}")
            heard = speaker
        if thinking := message.get("reasoning_content"):
            parts.append(f"<details><summary>Thinking</summary>\n\n{thinking.strip()}\n\n</details>")
        if text := message["content"].strip():
            parts.append(_fenced(text, "") if speaker == "Tool" else text)
        parts += [_fenced(json.dumps(call["function"], ensure_ascii=False), "json") for call in message.get("tool_calls") or ()]
        if message.get("finish_reason") == "cancelled":
            parts.append("*(stopped)*")
    return "\n\n".join(parts) + "\n"


def as_json(model: str, system: str | None, messages: Sequence[dict[str, Any]]) -> str:
    """The messages in the shape of OpenAI's interface."""
    shown = [{key: message[key] for key in _PUBLIC if key in message} for message in messages]
    first = [{"role": "system", "content": system}] if system is not None else []
    return json.dumps({"model": model, "messages": first + shown}, ensure_ascii=False, indent=2) + "\n"


def code_blocks(text: str) -> list[str]:
    """The contents of the fenced code blocks in a Markdown text; the last one may be open."""
    from glmrun.terminal.markdown import parser

    return [token.content for token in parser().parse(text) if token.type == "fence"]


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
