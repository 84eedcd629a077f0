"""OpenAI's chat completions without a server: 2,000 generated answers held to the grammar of their events, and names of fields."""

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from support.event_grammars import arguments_of
from support.generated_answers import chunks_of, written

from glmrun.chat.answer import Answer, collect
from glmrun.chat.chunk import Chunk, Stats
from glmrun.server.interface import BadRequest
from glmrun.server.openai_chat import OpenAIChat
from quant.errors import UserError

QUESTION = [{"role": "user", "content": "q"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(stream: Iterable[bytes]) -> dict[str, Any]:
    """The message of a stream, as a strict client puts it together. States: not begun, open, ended, told what it cost, over."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    state, head = "not begun", None
    for sent in stream:
        text = sent.decode("ascii")
        assert text.startswith("data: ") and text.endswith("\n\n") and "\n" not in text[:-2] and len(text) > 8
        assert state != "over"
        if text == "data: [DONE]\n\n":
            assert state in ("ended", "told")
            state = "over"
            continue
        event = json.loads(text[6:])
        if "error" in event:
            assert {"message", "type", "param", "code"} <= set(event["error"])
            state, message["error"] = "ended", event["error"]
            continue
        assert event["object"] == "chat.completion.chunk" and head in (None, (event["id"], event["created"], event["model"]))
        head = (event["id"], event["created"], event["model"])
        if not event["choices"]:
            assert state == "ended" and event["usage"]["total_tokens"] >= 0
            state, message["usage"] = "told", event["usage"]
            continue
        [choice] = event["choices"]
        delta = choice["delta"]
        assert state in ("not begun", "open") and choice["index"] == 0
        assert (delta == {"role": "assistant", "content": ""}) == (state == "not begun")
        state = "open"
        message["content"] += delta.get("content", "")
        assert delta.get("reasoning", "") == delta.get("reasoning_content", "")
        message["reasoning_content"] += delta.get("reasoning", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"]) and isinstance(call["id"], str) and call["function"]["name"]
                message["tool_calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        if choice["finish_reason"] is not None:
            assert delta == {} and choice["finish_reason"] in ("stop", "length", "tool_calls")
            state, message["finish_reason"] = "ended", choice["finish_reason"]
    assert state == "over"
    return message


def asked(**body: Any) -> Any:
    return OpenAIChat().asked({"messages": QUESTION, **body}, "glm")


def test_2000_answers_arrive_as_they_were_written_streamed_and_whole() -> None:
    seen = set()
    for seed in range(2000):
        rng = random.Random(seed)
        chunks = list(chunks_of(written(rng), rng))
        writer = asked(stream_options={"include_usage": True}).writer
        sent = list(writer.begin())
        for chunk in chunks:
            sent += writer.waiting() if rng.random() < 0.1 else ()
            sent += writer.push(0, chunk)
        message = read([*sent, *writer.end()])
        whole = asked().writer.whole([chunks])
        said = whole["choices"][0]["message"]
        answer = Answer()
        collect(chunks, answer)
        assert (message["content"], message["reasoning_content"]) == (answer.text, answer.reasoning), seed
        assert (said["content"] or "", said.get("reasoning_content", "")) == (answer.text, answer.reasoning)
        calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in answer.tool_calls]
        sent_calls = [call for call in message["tool_calls"] if arguments_of(call["arguments"]) is not None]
        assert [tuple(call.values()) for call in sent_calls] == calls
        assert len(calls) == len(message["tool_calls"]) or message["finish_reason"] == "length"
        assert said.get("tool_calls", []) == answer.tool_calls
        assert message["finish_reason"] == whole["choices"][0]["finish_reason"] and message["usage"] == whole["usage"]
        seen |= {message["finish_reason"], len(calls)}
    assert seen >= {0, 1, 2, "stop", "tool_calls", "length"}


def test_each_of_several_answers_begins_with_its_role_and_the_prompt_counts_once() -> None:
    writer = asked(n=2, stream_options={"include_usage": True}).writer
    stats = Stats(n_prompt=5, n_generated=3)
    chunks = [Chunk(stats=stats), Chunk(text="a", stats=stats), Chunk(finish_reason="stop", stats=stats)]
    sent = [*writer.begin(), *(event for i in range(2) for chunk in chunks for event in writer.push(i, chunk)), *writer.end()]
    events = [json.loads(event[6:]) for event in sent[:-1]]
    deltas = [[e["choices"][0]["delta"] for e in events[:-1] if e["choices"][0]["index"] == i] for i in range(2)]
    assert deltas[0] == deltas[1] == [{"role": "assistant", "content": ""}, {"content": "a"}, {}]
    usage = events[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 6)


def test_a_failure_before_anything_is_an_error_object_and_an_end() -> None:
    writer = asked().writer
    message = read([*writer.begin(), *writer.waiting(), *writer.fail(UserError("out of\nmemory"))])
    assert message["error"]["message"] == "out of\nmemory" and message["content"] == ""


def test_the_state_machine_refuses_what_clients_refuse() -> None:
    writer = asked().writer
    call = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    chunks = [Chunk(text="t"), Chunk(tool_calls=[call, {**call, "id": "call_2"}], finish_reason="tool_calls")]
    sent = [*writer.begin(), *(event for chunk in chunks for event in writer.push(0, chunk)), *writer.end()]
    assert [call["id"] for call in read(sent)["tool_calls"]] == ["call_1", "call_2"]
    one_index = [event.replace(b'"index": 1', b'"index": 0') for event in sent]
    for wrong in (sent[1:], sent[:-1], sent[:-2] + sent[-1:], one_index, [*sent, b"data: \n\n"], [b": ping\n\n", *sent]):
        with pytest.raises((AssertionError, ValueError)):
            read(wrong)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (True, None)),
        ({"reasoning_effort": "none"}, (False, None)),
        ({"reasoning_effort": "high"}, (True, None)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, (False, None)),
        ({"enable_thinking": False}, (False, None)),
        ({"thinking": {"type": "disabled"}}, (False, None)),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, (True, 9)),
        ({"thinking": False}, (False, None)),
        ({"think": False}, (False, None)),
        ({"reasoning": {"enabled": False}}, (False, None)),
        ({"reasoning": {"max_tokens": 7}}, (True, 7)),
        ({"thinking_budget": 5}, (True, 5)),
        ({"reasoning_budget": -1}, (True, None)),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, (False, None)),
    ],
    ids=str,
)
def test_thinking_is_steered_under_every_name(body: dict[str, Any], expected: tuple[bool, int | None]) -> None:
    request = asked(**body).requests[0]
    assert (request.thinking, request.think_budget) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "auto"), ({"tool_choice": "none"}, "none"), ({"tool_choice": "required"}, "required"), ({"tool_choice": None}, "auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "f"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "f"),
    ],
    ids=str,
)  # fmt: skip
def test_choices_of_tools(body: dict[str, Any], expected: str) -> None:
    assert asked(tools=[TOOL], **body).requests[0].tool_choice == expected


def test_earlier_thinking_is_kept_for_agents_and_left_out_for_others() -> None:
    assert asked().requests[0].clear_thinking and not asked(tools=[TOOL]).requests[0].clear_thinking
    assert not asked(thinking={"type": "enabled", "clear_thinking": False}).requests[0].clear_thinking
    assert asked(tools=[TOOL], chat_template_kwargs={"clear_thinking": True}).requests[0].clear_thinking


def test_settings_of_sampling_are_handed_on_and_seeds_differ() -> None:
    body = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1, "presence_penalty": 1, "seed": 7, "n": 2}
    first, second = asked(**body, logit_bias={"3": -5}).requests
    assert first.sampling == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 0, "repeat_penalty": 1.1, "presence_penalty": 1, "seed": 7,
        "logit_bias": {3: -5},
    }  # fmt: skip
    assert second.sampling["seed"] == 8
    assert (asked(logprobs=True, top_logprobs=3).requests[0].logprobs, asked(logprobs=True).requests[0].logprobs) == (3, 0)
    assert (
        asked(max_tokens=-1).requests[0].max_tokens is None
        and asked(max_tokens=9, max_completion_tokens=5).requests[0].max_tokens == 5
    )


@pytest.mark.parametrize("field", ["both", "reasoning", "reasoning_content", "none"])
def test_the_thinkings_field_can_be_chosen(field: str) -> None:
    writer = OpenAIChat(field).asked({"messages": QUESTION}, "glm").writer
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in writer.push(0, Chunk(reasoning="r"))]
    wanted = {"both": {"reasoning", "reasoning_content"}, "none": set()}.get(field, {field})
    assert [set(delta) for delta in deltas] == ([wanted] if wanted else [])


def test_progress_and_probabilities_are_told_where_they_are_asked_for() -> None:
    assert not list(asked().writer.push(0, Chunk()))
    [event] = asked(return_progress=True).writer.push(0, Chunk())
    assert json.loads(event[6:])["prompt_progress"] == {"total": 0, "cache": 0, "processed": 0, "time_ms": 0}


def test_a_tool_that_is_no_function_is_left_out_and_an_unknown_one_cannot_be_chosen() -> None:
    request = asked(tools=[TOOL, {"type": "web_search"}]).requests[0]
    assert [tool["function"]["name"] for tool in request.tools] == ["f"]
    with pytest.raises(BadRequest):
        asked(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}})
