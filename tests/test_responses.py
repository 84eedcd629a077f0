"""Bodies that Codex and OpenAI's libraries send to /v1/responses, and what they read. Forms are recorded, texts are ours."""

from dataclasses import replace
from typing import Any

import pytest
from support.event_grammars import responses_answer, server_sent
from test_template import tokenizer

from glmrun.chat.chunk import Chunk, Logprob, Stats
from glmrun.chat.request import ChatRequest
from glmrun.chat.template import ChatFormat
from glmrun.server.interface import Asked, BadRequest
from glmrun.server.responses import Responses
from quant.errors import UserError

SCHEMA = {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"], "additionalProperties": False}
EXEC = {"type": "function", "name": "exec", "description": "d", "strict": False, "parameters": SCHEMA}
FOREIGN = [{"type": "namespace", "name": "agents", "tools": [EXEC]}, {"type": "web_search", "external_web_access": True}]
CALL = {
    "type": "function_call",
    "status": "completed",
    "id": "fc_1",
    "name": "exec",
    "arguments": '{"cmd": "ls"}',
    "call_id": "call_1",
}
RESULT = {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "a.py"}


def asked(input: Any = "q", **body: Any) -> Asked:
    return Responses().asked({"model": "any", "input": input, **body}, "glm")


def request(input: Any = "q", **body: Any) -> ChatRequest:
    return asked(input, **body).requests[0]


def codex(second_turn: bool) -> dict[str, Any]:
    """Its request: several developer messages, tools that are no functions, its own keys."""
    items = [
        {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("run ", "ls")]},
    ]
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
    }
    return {
        "model": "glm-4.7-flash", "stream": True, "input": [*items, *([thought, CALL, RESULT] if second_turn else [])],
        "tools": [EXEC, *FOREIGN], "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "0", "client_metadata": {"session_id": "0"},
    }  # fmt: skip


def test_codexs_request_is_taken_as_it_is() -> None:
    said = Responses().asked(codex(second_turn=True), "glm")
    asked = said.requests[0]
    assert said.stream and asked.thinking and not asked.clear_thinking and asked.max_tokens is None
    assert [tool["function"]["name"] for tool in asked.tools or ()] == ["exec"]
    assert asked.messages == [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": "run ls"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "exec", "arguments": {"cmd": "ls"}}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a.py"},
    ]  # fmt: skip


def test_codexs_second_prompt_begins_with_its_first() -> None:
    chat_format, prompts = ChatFormat(None, tokenizer()), []
    for second_turn in (False, True):
        asked = Responses().asked(codex(second_turn), "glm").requests[0]
        prompts.append(chat_format.render(asked))
    assert prompts[1].startswith(prompts[0] + "hm</think><tool_call>exec")


@pytest.mark.parametrize("input", [None, "", []])
def test_an_empty_input_loads_the_model(input: Any) -> None:
    assert request(input, max_output_tokens=1).messages == [{"role": "user", "content": ""}]


def test_items_of_other_servers_are_passed_over() -> None:
    foreign = [
        {"type": "item_reference", "id": "rs_9"}, {"type": "web_search_call", "id": "ws_1", "action": 5},
        {"type": "code_interpreter_call", "outputs": {"content": 3}},
    ]  # fmt: skip
    messages = request([{"role": "user", "content": "q"}, *foreign, CALL, RESULT, {"role": "assistant", "content": "a"}]).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]


def test_thinking_text_and_calls_of_one_turn_are_one_message() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}

    def said(text: str) -> dict[str, Any]:
        return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}

    items = [thought("a"), thought("b"), said("c"), CALL, CALL | {"call_id": "call_2"}, RESULT, thought("d"), said("e"), said("f")]
    turns = [message for message in request(items).messages if message["role"] == "assistant"]
    assert [(turn["reasoning_content"], turn["content"], len(turn.get("tool_calls", []))) for turn in turns] == [
        ("ab", "c", 2), ("d", "e", 0), ("", "f", 0),
    ]  # fmt: skip


def test_calls_and_results_of_all_shapes() -> None:
    custom = {"type": "custom_tool_call", "name": "patch", "call_id": "call_3", "input": "*** Begin"}
    parts = {"type": "custom_tool_call_output", "call_id": "call_3", "output": [{"type": "input_text", "text": "ok"}]}
    messages = request([CALL | {"arguments": "{broken"}, RESULT, custom, parts]).messages
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == {"arguments": "{broken"}
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == {"input": "*** Begin"}
    assert messages[3] == {"role": "tool", "tool_call_id": "call_3", "content": "ok"}


@pytest.mark.parametrize(
    ("effort", "expected"), [(None, (True, None)), ("none", (False, None)), ("low", (True, 1024)), ("high", (True, None))]
)
def test_effort_is_a_switch_and_a_budget(effort: str | None, expected: tuple[bool, int | None]) -> None:
    asked = request(reasoning={"effort": effort})
    assert (asked.thinking, asked.think_budget) == expected


def test_the_form_of_the_answer() -> None:
    format = {"type": "json_schema", "strict": True, "name": "n", "schema": SCHEMA}
    assert request(text={"format": format, "verbosity": "low"}).json_schema == SCHEMA
    assert request(text={"format": {"type": "json_object"}}).json_schema == {"type": "object"}
    assert request(text={"format": {"type": "text"}}).json_schema is None
    told = request(text={"format": format}, tools=[EXEC], instructions="i")
    assert told.json_schema is None and '"cmd"' in told.messages[0]["content"] and told.messages[1]["content"] == "i"


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        ("required", "required", ["exec", "other"]), ("any", "required", ["exec", "other"]), ("none", "none", ["exec", "other"]),
        ({"type": "function", "name": "other"}, "other", ["exec", "other"]), ({"type": "web_search"}, "auto", ["exec", "other"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}, "required", ["other"]),
    ],
)  # fmt: skip
def test_the_choice_of_tools(choice: Any, expected: str, names: list[str]) -> None:
    asked = request(tools=[EXEC, *FOREIGN, EXEC | {"name": "other"}], tool_choice=choice, parallel_tool_calls=False)
    assert asked.tool_choice == expected and not asked.parallel_tool_calls
    assert [tool["function"]["name"] for tool in asked.tools or ()] == names


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"conversation": {"id": "c"}}, "conversation"),
        ({"background": True}, "background"), ({"prompt": {"id": "p"}}, "prompt"), ({"input": 5}, "input"),
        ({"input": [{"role": "robot", "content": ""}]}, "input.0.role"), ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "hologram"}]}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input.0.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"), ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "exec"}, "tool_choice"), ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"), ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"), ({"temperature": []}, "temperature"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Responses().asked({"input": "q", **body}, "glm")
    assert refused.value.param == param
    assert Responses().error(400, refused.value)["error"]["param"] == param


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_media_are_refused_with_the_items_index(kind: str) -> None:
    for items in (
        [{"role": "user", "content": "q"}, {"role": "user", "content": [{"type": kind}]}],
        [CALL, RESULT | {"output": [{"type": kind}]}],
    ):
        with pytest.raises(BadRequest, match=f"^message 1 has a part of the type {kind}") as refused:
            asked(items)
        assert str(refused.value.param).startswith("input.1.")


# ---- answers ---------------------------------------------------------------------------------------------------------

STATS = Stats(n_prompt=30, n_cached=20, n_generated=7)
CHUNKS = [
    Chunk(reasoning="a", stats=replace(STATS, n_generated=1)), Chunk(reasoning="b", text="c", stats=replace(STATS, n_generated=3)),
    Chunk(tool_calls=[{"id": f"call_{n}", "function": {"name": "exec", "arguments": "{}"}} for n in (0, 1)], stats=STATS),
    Chunk(finish_reason="tool_calls", stats=STATS),
]  # fmt: skip


def sent(chunks: list[Chunk], **body: Any) -> list[bytes]:
    writer = asked(**body).writer
    return [*writer.begin(), *(event for chunk in chunks for event in writer.push(0, chunk)), *writer.end()]


def test_20_every_event_has_its_type_and_the_response_its_model() -> None:
    events = server_sent(sent(CHUNKS))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        assert event["type"].startswith("response.")
        if "response" in event:
            assert event["response"]["model"] == "glm" and event["response"]["tools"] == []
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["call_id"] for item in events[-1]["response"]["output"][2:]] == ["call_0", "call_1"]


def test_usage() -> None:
    usage = responses_answer(sent(CHUNKS))["usage"]
    assert usage == {
        "input_tokens": 30, "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 0}, "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 37,
    }  # fmt: skip


def test_thinking_is_a_summary_where_one_was_asked_for() -> None:
    plain, summarized = (responses_answer(sent(CHUNKS, **body))["output"][0] for body in ({}, {"reasoning": {"summary": "auto"}}))
    assert plain["summary"] == [] and plain["content"] == [{"type": "reasoning_text", "text": "ab"}]
    assert summarized["summary"] == [{"type": "summary_text", "text": "ab"}] and "content" not in summarized


def test_probabilities_are_those_of_the_texts_tokens() -> None:
    """A token whose text is held back, as the beginning of what may become a tag, comes with the next text."""
    asks = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    assert request(**asks).logprobs == 1 and request(include=asks["include"]).logprobs == 0 and request().logprobs is None
    likely = [Logprob(5, text, -0.5, ((7, b"x", -0.25),)) for text in (b"<", b" ", b"a")]
    chunks = [
        Chunk(logprobs=likely[:1]),
        Chunk(text="< ", logprobs=likely[1:2]),
        Chunk(text="a", logprobs=likely[2:], finish_reason="stop"),
    ]
    part = responses_answer(sent(chunks, **asks))["output"][0]["content"][0]
    assert [one["token"] for one in part["logprobs"]] == ["<", " ", "a"]
    assert part["logprobs"][0]["top_logprobs"] == [{"token": "x", "bytes": [120], "logprob": -0.25}]
    assert asked(**asks).writer.whole([chunks])["output"][0]["content"][0] == part


@pytest.mark.parametrize(("reason", "expected"), [("stop", "completed"), ("length", "incomplete"), ("cancelled", "incomplete")])
def test_a_cut_answer_is_incomplete(reason: str, expected: str) -> None:
    response = responses_answer(sent([Chunk(text="a"), Chunk(finish_reason=reason)]))
    assert response["status"] == response["output"][0]["status"] == expected


def test_the_response_repeats_what_was_asked() -> None:
    body = {
        "tools": [EXEC, *FOREIGN],
        "tool_choice": {"type": "function", "name": "exec"},
        "max_output_tokens": 5,
        "temperature": 0.5,
    }
    response = asked(**body).writer.whole([CHUNKS])
    assert response["tools"] == [EXEC] and response["tool_choice"] == body["tool_choice"]
    assert (response["max_output_tokens"], response["temperature"]) == (5, 0.5)
    assert (response["text"], response["metadata"]) == ({"format": {"type": "text"}}, {})
    form = {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}}  # a format without a name is none
    response = asked(text={"format": form, "verbosity": "low"}, metadata={"a": "b"}).writer.whole([CHUNKS])
    assert (response["text"], response["metadata"]) == ({"format": form}, {"a": "b"})


def test_a_failure_keeps_what_was_said_and_names_its_code() -> None:
    writer = asked().writer
    events = [*writer.begin(), *writer.push(0, Chunk(text="half"))]
    failed = responses_answer([*events, *writer.fail(UserError("out of memory"))])
    assert failed["error"] == {"code": "server_error", "message": "out of memory"}
    assert failed["output"][0]["content"][0]["text"] == "half"
