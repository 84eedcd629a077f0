"""Faults that cost clients of other servers their turn, each by its number in our notes, on the wire, cut at many places.

Held elsewhere: 14 (numbers that go wrong after a while) by the goldens and tests of batch invariance, 19 and 21 by
test_server_interfaces.py, 22 (echo) by test_completions.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.event_grammars import messages_answer, responses_answer
from support.served import Served, served
from test_anthropic import claude_code
from test_responses import codex

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.chat.stream import ChatStream
from glmrun.engine.model import Model

CHAT = "/v1/chat/completions"
TYPES = {"city": "string", "n": "integer", "sure": "boolean", "items": "array", "code": "string"}
PARAMETERS = {"type": "object", "properties": {name: {"type": kind} for name, kind in TYPES.items()}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("get", "get_weather", "read", "now")
]
ASKED = {"messages": [{"role": "user", "content": "q"}]}
ROME = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"


@dataclass
class Written:
    """A model that writes a text, so many characters a token."""

    text: str = ""
    size: int = 1
    ends: str = "stop"
    path: Path = Path("written.gguf")
    name: str = "written"
    n_ctx: int = 100_000

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        stats, stream, called = Stats(n_prompt=5), ChatStream(None, request.thinking, request.tools), False
        yield Chunk(stats=stats)
        for at in range(0, len(self.text), self.size):
            delta = stream.feed(self.text[at : at + self.size])
            called = called or bool(delta.tool_calls)
            yield Chunk(token=1, stats=stats, **vars(delta))
        delta = stream.finish(cut_off=self.ends != "stop")
        reason = "tool_calls" if (called or delta.tool_calls) and self.ends == "stop" else self.ends
        yield Chunk(
            text=delta.text, reasoning=delta.reasoning, tool_calls=delta.tool_calls, finish_reason=reason, stats=stats
        )  # fmt: skip


MODEL = Written()


@pytest.fixture(scope="module")
def wire() -> Iterator[Served]:
    with served(MODEL) as server:
        yield server


def said(
    wire: Served, text: str, tools: list[dict] | None = TOOLS, ends: str = "stop", **more: Any
) -> tuple[str, str, list[tuple[str, Any]], str]:
    """(thinking, answer, calls, end) of a text, the same streamed in pieces of any size and whole."""
    found = []
    MODEL.text, MODEL.ends = text, ends
    for MODEL.size in (1, 2, 3, 7, 1000):
        asks = {**ASKED, **({"tools": tools} if tools else {}), **more}
        events = wire.events(CHAT, asks)
        assert events[-1] == "[DONE]"
        choices = [choice for event in events[:-1] for choice in event["choices"]]
        deltas = [choice["delta"] for choice in choices]
        calls: list[list[Any]] = []
        for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
            if call["index"] == len(calls):
                assert isinstance(call["id"], str) and call["id"] and call["type"] == "function"
                calls.append([call["function"]["name"], ""])
            else:
                assert call["index"] == len(calls) - 1 and "name" not in call["function"]  # 4: the name once, whole
            calls[-1][1] += call["function"].get("arguments", "")
        for name in ("reasoning", "reasoning_content"):  # 13: both fields
            found.append(
                (
                    "".join(delta.get(name) or "" for delta in deltas),
                    "".join(delta.get("content") or "" for delta in deltas),
                    [(name, json.loads(arguments)) for name, arguments in calls],
                    choices[-1]["finish_reason"],
                )
            )
        whole = wire.post(CHAT, asks).json()["choices"][0]
        message = whole["message"]
        read = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls") or ()]
        found.append((message.get("reasoning") or "", message["content"] or "", read, whole["finish_reason"]))
    assert all(one == found[0] for one in found), found
    return found[0]


def test_01_a_malformed_call_ends_properly_and_loses_no_word(wire: Served) -> None:
    for broken in (
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</tool_call>",
        "<tool_call>get_weather<arg_key>city<arg_value>Rome</arg_value></tool_call>",
        "<tool_call><arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
    ):
        _, text, calls, end = said(wire, "</think>Look: " + broken)
        assert text.startswith("Look:") and "Rome" in text + str(calls) and end == ("tool_calls" if calls else "stop")


def test_02_tags_and_angle_brackets_inside_values(wire: Served) -> None:
    code = "if a < b && c > d: print('</arg_val', '<b>&amp;</b>')\n<div/>"
    call = f"<tool_call>read<arg_key>code</arg_key><arg_value>{code}</arg_value></tool_call>"
    assert said(wire, "</think>" + call)[2:] == ([("read", {"code": code})], "tool_calls")


def test_03_a_call_inside_the_thinking(wire: Served) -> None:
    assert said(wire, "Let me look." + ROME) == ("Let me look.", "", [("get_weather", {"city": "Rome"})], "tool_calls")


def test_04_a_name_that_begins_with_another_ones(wire: Served) -> None:
    assert [name for name, _ in said(wire, "</think>" + ROME + ROME.replace("get_weather", "get"))[2]] == ["get_weather", "get"]


def test_05_a_call_without_arguments(wire: Served) -> None:
    assert said(wire, "</think><tool_call>now</tool_call>")[2:] == ([("now", {})], "tool_calls")


def test_06_numbers_booleans_and_lists_stay_what_they_are(wire: Served) -> None:
    values = {"n": "3", "sure": "true", "items": '[1, {"a": null}]', "city": "7"}
    pairs = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in values.items())
    [(_, arguments)] = said(wire, f"</think><tool_call>get{pairs}</tool_call>")[2]
    assert arguments == {"n": 3, "sure": True, "items": [1, {"a": None}], "city": "7"}


@pytest.mark.parametrize("number", [7, 24])
def test_07_24_several_calls_in_one_piece_keep_their_arguments(wire: Served, number: int) -> None:
    many = "".join(ROME.replace("Rome", f"City {i}") for i in range(number))
    assert said(wire, "x</think>" + many)[2] == [("get_weather", {"city": f"City {i}"}) for i in range(number)]


def test_08_without_tools_the_answer_comes_once_and_tags_are_text(wire: Served) -> None:
    assert said(wire, "hm</think>Hello there.", tools=None) == ("hm", "Hello there.", [], "stop")
    assert said(wire, "hm</think>" + ROME, tools=None) == ("hm", ROME, [], "stop")


def test_09_the_turn_after_a_tools_result_thinks_where_thinking_belongs(wire: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    history = [*ASKED["messages"], {"role": "assistant", "content": "", "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    assert said(wire, "It is sunny.</think>Sun.", messages=history) == ("It is sunny.", "Sun.", [], "stop")


def test_10_calls_are_read_without_any_flag(wire: Served) -> None:
    MODEL.text, MODEL.ends = "</think>" + ROME, "stop"
    message = wire.post(CHAT, {**ASKED, "tools": TOOLS}).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "get_weather"


def test_11_keys_are_not_glued_to_the_name(wire: Served) -> None:
    glued = "read<arg_key>city</arg_key>\n<arg_value>a.py</arg_value><arg_key>n</arg_key><arg_value>2</arg_value>"
    assert said(wire, f"</think><tool_call>{glued}</tool_call>")[2] == [("read", {"city": "a.py", "n": 2})]


def test_12_a_call_that_the_limit_cuts_is_no_call(wire: Served) -> None:
    for n in range(11, ROME.index("</arg_value>"), 9):
        _, text, calls, end = said(wire, "</think>" + ROME[:n], ends="length")
        assert end == "length" and not calls and "<tool_call>" not in text


def test_13_thinking_that_nobody_opens(wire: Served) -> None:
    assert said(wire, "First this.</think>Then that.")[:2] == ("First this.", "Then that.")
    assert said(wire, "Never closed.")[0] == "Never closed."


def test_15_the_second_turn_behind_a_cached_beginning_is_the_one_from_scratch(nano: Model) -> None:
    first = [{"role": "user", "content": "What is 17 + 25?"}]
    answers = []
    for other in (None, [{"role": "user", "content": "Name three rivers."}]):
        if other:
            list(nano.chat(other, temperature=0, max_tokens=200))
        chunks = list(nano.chat(first, temperature=0))
        turns = [
            *first,
            {"role": "assistant", "content": "".join(chunk.text for chunk in chunks)},
            {"role": "user", "content": "And 3 + 4?"},
        ]
        chunks = list(nano.chat(turns, temperature=0))
        answers.append("".join(chunk.reasoning + chunk.text for chunk in chunks))
    with type(nano)(nano.path, n_ctx=1024) as fresh:
        assert answers == ["".join(chunk.reasoning + chunk.text for chunk in fresh.chat(turns, temperature=0))] * 2


def test_16_17_18_claude_codes_request_gets_thinking_blocks_with_a_signature(wire: Served) -> None:
    for second_turn in (False, True):
        asks = {**claude_code(second_turn=second_turn), "stream": True}
        MODEL.text, MODEL.ends, MODEL.size = "I think.</think>Done.", "stop", 3
        answer = wire.post("/v1/messages?beta=true", asks)
        assert answer.status_code == 200
        blocks = messages_answer([piece + b"\n\n" for piece in answer.content.split(b"\n\n") if piece])["content"]
        assert [block["type"] for block in blocks] == ["thinking", "text"] and blocks[0]["signature"]


def test_20_codexs_request_gets_events_with_types_and_a_whole_output(wire: Served) -> None:
    for second_turn in (False, True):
        MODEL.text, MODEL.ends, MODEL.size = "I think.</think>Done.", "stop", 3
        answer = wire.post("/v1/responses", {**codex(second_turn=second_turn), "stream": True})
        assert answer.status_code == 200
        response = responses_answer([piece + b"\n\n" for piece in answer.content.split(b"\n\n") if piece])
        assert [item["type"] for item in response["output"]] == ["reasoning", "message"]


def test_23_a_schema_is_kept_with_and_without_thinking_200_times(nano: Model) -> None:
    properties = {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["cat", "dog"]}}
    schema = {"type": "object", "properties": properties, "required": ["n", "kind"], "additionalProperties": False}
    messages = [{"role": "user", "content": "How many, and of which kind?"}]
    for seed in range(200):
        thinking = bool(seed % 2)
        options = {"thinking": thinking, "think_budget": 8, "temperature": 1.0, "seed": seed, "max_tokens": 120}
        chunks = list(nano.chat(messages, json_schema=schema, **options))
        assert chunks[-1].finish_reason == "stop"
        answer = json.loads("".join(chunk.text for chunk in chunks))
        assert set(answer) == {"n", "kind"} and 0 <= answer["n"] <= 99 and answer["kind"] in ("cat", "dog")
        assert bool("".join(chunk.reasoning for chunk in chunks)) == thinking
