"""Answers as the model writes them, made up and cut at random: thinking, text, calls of tools; whole, malformed, cut off."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.stream import ChatStream

_PROPERTIES = {"path": {"type": "string"}, "n": {"type": "integer"}, "items": {"type": "array"}, "any": {}}
_SCHEMA = {"type": "object", "properties": _PROPERTIES}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": _SCHEMA}}
    for name in ("read", "read_all", "now")
]
_TEXTS = (
    "Let me look. ", "a < b && c > d\n", "<", "</", "<thi", "é🙂\u2028\x85", "```py\nprint('x')\n```\n", '{"a": 1}', "\r\n\r\n",
    " ", "data: \n\n", "</tool_call>", "[DONE]", "</think>", "<tool_call>", "\x00\x1b[31m",
)  # fmt: skip
_VALUES = ("x.py", "3", "[1, 2]", "</arg_val", '"a\\"b"', "", "é\u2028", "<b>&amp;", "null", "{'a': 1}", "line\nline")


def written(rng: random.Random) -> str:
    """What a model may write behind an opened <think>."""
    thinking = "".join(rng.choices(_TEXTS[:-3], k=rng.randrange(4)))
    parts = [thinking, "</think>" if rng.random() < 0.9 else ""]
    for _ in range(rng.randrange(5)):
        parts.append(_call(rng) if rng.random() < 0.5 else rng.choice(_TEXTS))
    text = "".join(parts)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text


def _call(rng: random.Random) -> str:
    name = rng.choice(("read", "read_all", "now", "unknown", "re", ""))
    if rng.random() < 0.1:
        return f"<tool_call>{json.dumps({'name': name, 'arguments': {'n': 1}})}</tool_call>"
    pairs = [
        f"<arg_key>{rng.choice(list(_PROPERTIES))}</arg_key><arg_value>{rng.choice(_VALUES)}</arg_value>"
        for _ in range(rng.randrange(3))
    ]
    return f"<tool_call>{name}{''.join(pairs)}</tool_call>"


def chunks_of(text: str, rng: random.Random, tools: list[dict] | None = TOOLS) -> Iterator[Chunk]:
    """The chunks that the engine makes of a text whose tokens end anywhere: progress, pieces, the last one."""
    stats = Stats(n_prompt=20, n_cached=rng.randrange(20))
    yield Chunk(stats=stats)
    stream, called, at = ChatStream(None, thinking=True, tools=tools), False, 0
    while at < len(text):
        end = at + rng.choice((1, 2, 3, 8, 40))
        delta, at = stream.feed(text[at:end]), end
        called = called or bool(delta.tool_calls)
        stats = replace(stats, n_generated=stats.n_generated + 1)
        yield Chunk(stats=stats, **vars(delta))
    delta = stream.finish()
    called = called or bool(delta.tool_calls)
    reason = rng.choice(("length", "cancelled", "stop", "stop"))
    reason = "length" if stream.has_begun_call else "tool_calls" if called and reason == "stop" else reason
    yield Chunk(finish_reason=reason, stats=stats, **vars(delta))
