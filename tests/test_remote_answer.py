"""What servers send that only resemble OpenAI's: every shape of a stream means the same answer."""

import json
import random
from typing import Any

import pytest

from glmrun.chat import remote_answer
from glmrun.chat.chunk import Chunk
from glmrun.chat.remote_answer import RemoteAnswer
from quant.errors import UserError

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("get_weather", "add", "now")]


def event(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def piece(name: Any = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return event(tool_calls=[more | {"function": {"name": name, "arguments": arguments}}])


def read(*events: dict[str, Any], answer: RemoteAnswer | None = None) -> tuple[str, str, list[tuple[str, Any]], Chunk]:
    """(text, thinking, calls as (name, arguments), last chunk)"""
    answer = answer or RemoteAnswer(TOOLS)
    chunks = [chunk for each in events for chunk in answer.add(each)]
    last = answer.last()
    chunks.append(last)
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in last.tool_calls or ()]
    assert len({call["id"] for call in last.tool_calls or ()}) == len(calls)
    return "".join(chunk.text for chunk in chunks), "".join(chunk.reasoning for chunk in chunks), calls, last


ROME, SUM = ("get_weather", {"city": "Rome"}), ("add", {"a": 1, "b": 2})
STREAMS = {
    "ids and indexes": [
        piece("get_weather", "", id="a", index=0), piece(arguments='{"city": "Rome"}', index=0),
        piece("add", '{"a": 1,', id="b", index=1), piece(arguments=' "b": 2}', index=1),
    ],
    "ids, all at index 0": [
        piece("get_weather", '{"city": "Rome"}', id="a", index=0), piece("add", '{"a": 1, "b": 2}', id="b", index=0),
    ],
    "ids at index 0, in pieces": [
        piece("get_weather", '{"city": ', id="a", index=0), piece("add", '{"a": 1,', id="b", index=0),
        piece(arguments='"Rome"}', id="a", index=0), piece(arguments='"b": 2}', id="b", index=0),
    ],
    "ids without indexes, interleaved": [
        piece("get_weather", "", id="a"), piece("add", "", id="b"), piece(arguments='{"a": 1, "b": 2}', id="b"),
        piece(arguments='{"city": "Rome"}', id="a"),
    ],
    "indexes without ids, interleaved": [
        piece("get_weather", index=0), piece("add", index=1), piece(arguments='{"a": 1, ', index=1),
        piece(arguments='{"city": "Rome"}', index=0), piece(arguments='"b": 2}', index=1),
    ],
    "an index each, from 1, as texts": [
        piece("get_weather", '{"city": "Rome"}', index="1"), piece("add", '{"a": 1, "b": 2}', index="2"),
    ],
    "neither": [piece("get_weather", '{"city":'), piece(arguments=' "Rome"}'), piece("add", '{"a": 1, "b": 2}')],
    "no ids, all at index 0": [
        piece("get_weather", '{"city": "Rome"}', index=0), piece("add", "", index=0), piece(None, '{"a": 1, "b": 2}', index=0),
    ],
    "one id for all": [
        piece("get_weather", '{"city": "Rome"}', id="call", index=0), piece("add", '{"a": 1, "b": 2}', id="call", index=1),
    ],
    "an id that comes late": [
        piece("get_weather", index=0), piece(arguments='{"city": "Rome"}', id="a", index=0),
        piece("add", index=1), piece(arguments='{"a": 1, "b": 2}', id="b", index=1),
    ],
    "another id in each piece": [
        piece("get_weather", '{"city":', id="a1", index=0), piece(None, ' "Rome"}', id="a2", index=0),
        piece("add", '{"a": 1, "b"', id="a3", index=1), piece("", ": 2}", id="a4", index=1),
    ],
    "numbers as ids": [piece("get_weather", '{"city": "Rome"}', id=7), piece("add", '{"a": 1, "b": 2}', id=8)],
    "id and name in each piece": [
        piece("get_weather", '{"city"', id="a", index=0), piece("get_weather", ': "Rome"}', id="a", index=0),
        piece("add", '{"a": 1, "b"', id="b", index=1), piece("add", ": 2}", id="b", index=1),
    ],
    "names in each piece, no ids": [
        piece("get_weather", '{"city"'), piece("get_weather", ': "Rome"}'), piece("add", '{"a": 1, "b"'), piece("add", ": 2}"),
    ],
    "a name in pieces": [
        piece("get_", index=0), piece("weather", index=0), piece(arguments='{"city": "Rome"}', index=0),
        piece("a", index=1), piece("dd", index=1), piece(arguments='{"a": 1, "b": 2}', index=1),
    ],
    "arguments as objects": [piece("get_weather", {"city": "Rome"}, index=0), piece("add", {"a": 1, "b": 2}, index=1)],
    "arguments as objects, neither id nor index": [piece("get_weather", {"city": "Rome"}), piece("add", {"a": 1, "b": 2})],
    "arguments as a text in a text": [
        piece("get_weather", '"{\\"city\\": \\"Rome\\"}"', index=0), piece("add", '"{\\"a\\": 1, \\"b\\": 2}"', index=1),
    ],
    "nulls": [
        event(content=None, reasoning_content=None, tool_calls=None, role=None, function_call=None),
        piece("get_weather", '{"city": "Rome"}', id=None, index=0, type=None), event(tool_calls=[None, {"function": None}]),
        piece("add", '{"a": 1, "b": 2}', id=None, index=1), {"choices": None}, {"choices": [None]}, {"choices": []}, {},
        {"choices": [{"delta": None}]}, {"error": None, "usage": None, "timings": None, "prompt_progress": None},
    ],
    "not in a list, not under function": [
        event(tool_calls={"name": "get_weather", "arguments": {"city": "Rome"}}),
        event(tool_calls=[{"name": "add", "arguments": '{"a": 1, "b": 2}'}]),
    ],
    "the old field": [
        event(function_call={"name": "get_weather", "arguments": '{"city": '}), event(function_call={"arguments": '"Rome"}'}),
        event(function_call={"name": "add", "arguments": '{"a": 1, "b": 2}'}),
    ],
    "said again whole": [
        piece("get_weather", '{"city": "Rome"}', id="a", index=0), piece("add", '{"a": 1,', id="b", index=1),
        piece(arguments='"b": 2}', index=1), piece("get_weather", '{"city":"Rome"}', id="a", index=0),
        piece("add", {"a": 1, "b": 2}, id="b", index=1),
        {"choices": [{"delta": {}, "message": {"content": "", "tool_calls": [{"id": "a", "function": {"name": "get_weather"}}]}}]},
    ],
    "a whole answer": [{"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
        {"id": "b", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}},
    ]}}]}],
    "in the thinking": [event(reasoning_content=(
        "So.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
        "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key><arg_value>2</arg_value></tool_call>"
    ))],
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_two_calls_are_two_calls(name: str) -> None:
    _, _, calls, last = read(*STREAMS[name], event("tool_calls"))
    assert calls == [ROME, SUM] and last.finish_reason == "tool_calls"


def test_calls_without_arguments_and_equal_ones() -> None:
    assert read(piece("now", "", index=0), piece("now", None, index=1), event("stop"))[2] == [("now", {}), ("now", {})]
    same = [piece("add", '{"a": 1}', id=identity, index=0) for identity in "ab"]
    assert read(*same, event("stop"))[2] == [("add", {"a": 1})] * 2
    assert read(piece("now", {}), event("stop"))[2] == [("now", {})]


def test_a_call_that_the_limit_cut_off_is_none() -> None:
    _, _, calls, _ = read(piece("now", "{}", id="a"), piece("add", '{"a": ', id="b"), event("length"))
    assert calls == [("now", {})]
    assert read(piece("add", '{"a": ', id="b"), event("length"))[3].finish_reason == "length"


@pytest.mark.parametrize(
    ("events", "text", "reasoning"),
    [
        ([event(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "ab", ""),
        ([event(content={"type": "text", "text": "a"}), event(content=["b", None, 3, {"type": "image"}])], "ab", ""),
        ([event(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"text": "a"}])], "a", "t"),
        ([event(reasoning="t", reasoning_content="t"), event(reasoning_content="u", reasoning=None, content="a")], "a", "tu"),
        ([event(thinking="t"), event(content="a")], "a", "t"),
        ([event(reasoning_content=[{"type": "text", "text": "t"}], content="a")], "a", "t"),
        ([event(content="a"), {"choices": [{"delta": {}, "message": {"content": "a"}, "finish_reason": "stop"}]}], "a", ""),
        ([event(content="a"), {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}], "a", ""),
        ([{"choices": [{"text": "a"}]}], "a", ""),
        ([{"choices": [{"index": 1, "delta": {"content": "other"}}, {"index": 0, "delta": {"content": "a"}}]}], "a", ""),
        ([event(reasoning_content="<think>t</th"), event(reasoning_content="ink>\n\na")], "a", "t"),  # all of it as thinking
        ([event(reasoning_content="t"), event(content="</think>\n\na")], "a", "t"),
        ([event("", content="a"), event(None)], "a", ""),
    ],
)  # fmt: skip
def test_text_and_thinking(events: list[dict[str, Any]], text: str, reasoning: str) -> None:
    assert read(*events, event("stop"))[:2] == (text, reasoning)


def split(text: str, rng: random.Random) -> list[dict[str, Any]]:
    cuts = sorted(rng.sample(range(1, len(text)), min(len(text) - 1, rng.randrange(1, 9))))
    return [event(content=text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("content", "text", "reasoning", "parts"),
    [
        ("I add.</think>It is 4.", "It is 4.", "I add.", False),
        ("<think>I add.</think>\n\nIt is 4.", "It is 4.", "I add.", None),
        ("\n<think>\nI add.\n</think>\nIt is 4.", "It is 4.", "I add.", None),
        ("It is 4.", "It is 4.", "", True),
        ("</think>It is 4.", "It is 4.", "", False),
        ("I add. It is 4 < 5, </thin king>", "I add. It is 4 < 5, </thin king>", "", True),
    ],
)
@pytest.mark.parametrize("may_think", [True, None])
def test_thinking_that_a_server_leaves_in_the_text(
    content: str, text: str, reasoning: str, parts: bool | None, may_think: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_answer, "WAIT_SECONDS", 1e9)
    for seed in range(30):
        answer = RemoteAnswer(None, None, lambda: may_think)
        assert read(*split(content, random.Random(seed)), event("stop"), answer=answer)[:2] == (text, reasoning)
        assert answer.parts_thinking is parts and not answer.misled
        known = RemoteAnswer(None, True)  # after an answer that showed it
        if "</think>" in content:
            assert read(*split(content, random.Random(seed)), event("stop"), answer=known)[:2] == (text, reasoning)


def test_a_server_of_which_nothing_is_known_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_answer, "WAIT_SECONDS", -1.0)
    answer = RemoteAnswer(None, None, lambda: None)
    assert [chunk.text for chunk in answer.add(event(content="I add."))] == ["I add."]
    assert read(event(content="</th"), event(content="ink>It is 4."), event("stop"), answer=answer)[:2] == ("It is 4.", "")
    assert answer.misled and answer.parts_thinking is False
    sure = RemoteAnswer(None, None, lambda: False)
    assert [chunk.text for chunk in sure.add(event(content="At once."))] == ["At once."]


def test_a_lone_end_of_thinking_is_told_where_nobody_waited_for_it() -> None:
    answer = RemoteAnswer(None, None, lambda: False)
    read(event(content="I add.</think>"), event(content="It is 4."), event("stop"), answer=answer)
    assert answer.misled and answer.parts_thinking is None
    marked = RemoteAnswer(None, None, lambda: False)
    assert read(event(content="<think>I add."), event(content="</think>4"), event("stop"), answer=marked)[:2] == ("4", "I add.")
    assert not marked.misled


def test_characters_in_halves_are_put_together() -> None:
    halves = [event(content="a\ud83d"), event(content="\ude42b\udc00c"), event(reasoning_content="\ud83d")]
    assert read(*halves, event(reasoning_content="\ude42"), event("stop"))[:2] == ("a🙂b\ufffdc", "🙂")
    call = [piece("add", '{"a": "\ud83d', index=0), piece(None, '\ude42"}', index=0)]
    assert read(*call, event("tool_calls"))[2] == [("add", {"a": "🙂"})]


def test_an_index_of_many_digits_is_none() -> None:
    assert read(piece("add", "{}", index="9" * 5000), event("tool_calls"))[2] == [("add", {})]


def test_counts_and_seconds_are_the_servers() -> None:
    answer = RemoteAnswer(None)
    progress = {"prompt_progress": {"total": 100, "cache": 40, "processed": 70, "time_ms": 1500}, "choices": [{"delta": {}}]}
    (chunk,) = answer.add(progress)
    stats = chunk.stats
    assert (stats.n_prompt, stats.n_cached, stats.n_prefilled, stats.prompt_seconds) == (100, 40, 70, 1.5)
    list(answer.add(event("stop", content="a")))
    timings = {"cache_n": 40, "prompt_n": 60, "prompt_ms": 2000.0, "predicted_n": 20, "predicted_ms": 4000}
    list(answer.add({"choices": [], "timings": timings}))
    stats = answer.last().stats
    assert (stats.n_prompt, stats.n_cached, stats.n_prefilled, stats.prompt_seconds) == (100, 40, 100, 2.0)
    assert (stats.n_generated, stats.generate_seconds) == (20, 4.0)
    list(answer.add({"choices": [], "usage": {"prompt_tokens": 101, "completion_tokens": 21, "prompt_tokens_details": None}}))
    assert (answer.stats.n_prompt, answer.stats.n_generated) == (101, 21)
    strange = RemoteAnswer(None)
    list(
        strange.add({"usage": {"prompt_tokens": "x", "completion_tokens": -3}, "timings": {"prompt_ms": "x", "predicted_ms": True}})
    )
    assert (strange.stats.n_prompt, strange.stats.n_generated) == (0, 0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"error": {"message": "out of\nmemory"}}, "the server: out of memory"), ({"error": "busy"}, "the server: busy"),
        ({"object": "error", "message": "too long"}, "the server: too long"), (event("abort"), "gave the answer up"),
    ],
)  # fmt: skip
def test_errors_in_a_stream(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(RemoteAnswer(None).add(said))
