"""Bodies that Claude Code and Anthropic's libraries send, and what they read; the forms are recorded, the texts are ours."""

from typing import Any

import pytest
from support.event_grammars import messages_answer, server_sent
from test_template import tokenizer

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.chat.template import ChatFormat
from glmrun.server.anthropic import Messages
from glmrun.server.interface import Asked, BadRequest
from quant.errors import UserError

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
BASH = {"name": "Bash", "description": "d", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "echo hi"}}


def asked(messages: list[Any] | None = None, **body: Any) -> Asked:
    return Messages().asked({"model": "claude-opus-5-5", "messages": messages or [{"role": "user", "content": "q"}], **body}, "glm")


def request(messages: list[Any] | None = None, **body: Any) -> ChatRequest:
    return asked(messages, **body).requests[0]


def refusal(messages: list[Any] | None = None, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(BadRequest) as refused:
        asked(messages, **body)
    return str(refused.value), refused.value.param


def claude_code(second_turn: bool) -> dict[str, Any]:
    """Its request: a system message in the middle, keys of all kinds, and what changes from one to the next."""
    ephemeral = {"cache_control": {"type": "ephemeral"}}
    user = {"role": "user", "content": [{"type": "text", "text": "<system-reminder>r"}, {"type": "text", "text": "Run it"}]}
    middle: dict[str, Any] = {"role": "system", "content": "be brief", "output_config": {"effort": "medium"}}
    answer = {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "Z2xtcnVu"}, {"type": "text", "text": "I look."}, CALL,
    ]}  # fmt: skip
    result = {"role": "user", "content": [
        {"tool_use_id": "toolu_1", "type": "tool_result", "content": "hi", "is_error": False, **ephemeral},
    ]}  # fmt: skip
    if not second_turn:
        middle["content"] = [{"type": "text", "text": "be brief", **ephemeral}]
    return {
        "model": "claude-opus-5-5", "messages": [user, middle, *([answer, result] if second_turn else [])],
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.{second_turn:d}; cc_entrypoint=cli;"},
            {"type": "text", "text": "You are an agent.", **ephemeral},
        ],
        "tools": [BASH, {"name": "Later", "description": "d", "input_schema": {}, "defer_loading": True}],
        "metadata": {"user_id": '{"device_id":"0"}'}, "max_tokens": 128000, "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"}, "stream": True,
    }  # fmt: skip


def test_18_claude_codes_request_is_taken_as_it_is() -> None:
    said = Messages().asked(claude_code(second_turn=True), "glm")
    request = said.requests[0]
    assert said.stream and (request.thinking, request.think_budget, request.clear_thinking) == (True, None, False)
    assert [tool["function"]["name"] for tool in request.tools or ()] == ["Bash"]
    arguments = {"command": "echo hi"}
    assert request.messages == [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": "<system-reminder>rRun it"},
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "Bash", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "hi"},
    ]  # fmt: skip


def test_claude_codes_second_prompt_begins_with_its_first() -> None:
    chat_format = ChatFormat(None, tokenizer())
    prompts = []
    for second_turn in (False, True):
        request = Messages().asked(claude_code(second_turn), "glm").requests[0]
        prompts.append(chat_format.render(request))
    first, second = prompts
    assert second.startswith(first) and "billing" not in second
    assert second[len(first) :].startswith("hm</think>I look.<tool_call>Bash")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (False, None)),
        ({"thinking": {"type": "disabled"}}, (False, None)),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, (True, 2000)),
        ({"thinking": {"type": "adaptive"}}, (True, None)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, (True, 1024)),
        ({"thinking": {"type": "enabled", "budget_tokens": 500}, "output_config": {"effort": "low"}}, (True, 500)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "none"}}, (False, None)),
    ],
)
def test_thinking_under_all_its_names(body: dict[str, Any], expected: tuple[bool, int | None]) -> None:
    asked = request(**body)
    assert (asked.thinking, asked.think_budget) == expected


def test_thinking_of_earlier_turns_stays_unless_it_shall_go() -> None:
    assert not request().clear_thinking
    edit = {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}}
    assert request(context_management={"edits": [edit]}).clear_thinking
    blocks = [
        {"type": "thinking", "thinking": "a", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "b"},
    ]
    turn = request([{"role": "user", "content": "q"}, {"role": "assistant", "content": blocks}, {"role": "user", "content": "r"}])
    assert turn.messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "a"}


def test_results_are_messages_of_their_own_in_order() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
        {"type": "tool_result", "tool_use_id": "b"},
        {"type": "tool_result", "tool_use_id": "c", "is_error": True},
        {"type": "text", "text": "and now?"},
    ]
    messages = request(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": results}]
    ).messages
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "12"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "tool", "tool_call_id": "c", "content": "the call failed"},
        {"role": "user", "content": "and now?"},
    ]


def test_a_history_may_hold_calls_that_fit_nothing() -> None:
    odd = [
        CALL | {"name": "Gone", "input": {"__unparsedToolInput": {"raw": "{", "len": 1}}},
        CALL | {"input": "text"},
        CALL | {"input": None},
    ]
    calls = request([{"role": "user", "content": "q"}, {"role": "assistant", "content": odd}]).messages[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [odd[0]["input"], {"arguments": "text"}, {}]


def test_a_tool_that_waits_to_be_found_is_there_when_a_result_names_it() -> None:
    later = {"name": "Later", "input_schema": SCHEMA, "defer_loading": True}
    found = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference", "tool_name": "Later"}]}
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [found]}]
    assert request(tools=[BASH, later]).tools == request(tools=[BASH]).tools
    loaded = request(history, tools=[BASH, later])
    assert [tool["function"]["name"] for tool in loaded.tools or ()] == ["Bash", "Later"]
    assert "Later" in loaded.messages[2]["content"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ("auto", True)), ({"type": "none"}, ("none", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        ({"type": "tool", "name": "Bash"}, ("Bash", True)),
    ],
)  # fmt: skip
def test_the_choice_of_tools(choice: dict[str, Any], expected: tuple[str, bool]) -> None:
    asked = request(tools=[BASH, {"type": "web_search_20250305", "name": "web_search"}], tool_choice=choice)
    assert (asked.tool_choice, asked.parallel_tool_calls) == expected and len(asked.tools or ()) == 1


def test_limits_are_clamped_and_settings_passed_on() -> None:
    asked = request(max_tokens=0, temperature=0.5, top_k=3, stop_sequences=["END", ""])
    assert (asked.max_tokens, asked.stop) == (1, ["END"])
    assert asked.sampling == {"temperature": 0.5, "top_p": None, "top_k": 3}


def test_a_schema_holds_the_answer_and_is_told_where_tools_may_be_called() -> None:
    format = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    assert request(**format).json_schema == SCHEMA
    told = request(**format, tools=[BASH])
    assert told.json_schema is None and '"required": ["command"]' in told.messages[0]["content"]
    assert request(output_format=format["output_config"]["format"]).json_schema == SCHEMA  # as it was called at first
    assert refusal(output_config={"format": {"type": "xml"}})[1] == "output_config.format"
    assert refusal(output_format={"type": "json_schema"})[1] == "output_format"


@pytest.mark.parametrize("kind", ["image", "document", "audio"])
def test_media_are_refused_with_the_messages_index(kind: str) -> None:
    part = {"type": kind, "source": {"type": "base64", "data": "AA"}}
    said, param = refusal([{"role": "user", "content": "q"}, {"role": "user", "content": [{"type": "text", "text": "t"}, part]}])
    assert said.startswith(f"message 1 has a part of the type {kind}") and param == "messages.1.content"
    result = {"type": "tool_result", "tool_use_id": "a", "content": [part]}
    assert refusal([{"role": "user", "content": [result]}])[1] == "messages.0.content.0.content"


def test_a_document_that_is_text_is_read() -> None:
    part = {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    assert request([{"role": "user", "content": [part]}]).messages[0]["content"] == "words"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"), ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"text": "t"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content"),
        ({"thinking": {"type": "deep"}}, "thinking.type"), ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"), ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"), ({"output_config": {"effort": "some"}}, "output_config.effort"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "messages.0.content.0.name"),
        ({"system": 5}, "system"), ({"max_tokens": []}, "max_tokens"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Messages().asked({"messages": [{"role": "user", "content": "q"}], **body}, "glm")
    assert refused.value.param == param


# ---- answers ---------------------------------------------------------------------------------------------------------

STATS = Stats(n_prompt=30, n_cached=20, n_generated=7)


def written(*chunks: Chunk) -> dict[str, Any]:
    writer = asked().writer
    return messages_answer([*writer.begin(), *(event for chunk in chunks for event in writer.push(0, chunk)), *writer.end()])


def test_usage_stands_in_the_first_and_in_the_last_event() -> None:
    message = written(Chunk(text="a", stats=STATS), Chunk(finish_reason="stop", stats=STATS))
    expected = {"input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 20, "output_tokens": 7}
    assert message["usage"] == expected and message["model"] == "glm"
    assert asked().writer.whole([[Chunk(text="a", finish_reason="stop", stats=STATS)]])["usage"] == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("cancelled", "max_tokens")],
)
def test_why_it_stopped(reason: str, expected: str) -> None:
    assert written(Chunk(finish_reason=reason))["stop_reason"] == expected


def test_the_stop_sequence_is_told() -> None:
    message = written(Chunk(text="a", finish_reason="stop", stop_text="END"))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


def test_16_17_thinking_has_a_block_of_its_own_that_a_signature_ends() -> None:
    writer = asked().writer
    chunks = [Chunk(reasoning="a"), Chunk(reasoning="b", text="c"), Chunk(reasoning="d"), Chunk(finish_reason="stop")]
    events = server_sent([*writer.begin(), *(e for chunk in chunks for e in writer.push(0, chunk)), *writer.end()])
    kinds = [event.get("delta", event.get("content_block", {})).get("type") or event["type"] for event in events]
    block = ["thinking", "thinking_delta", "signature_delta", "content_block_stop"]
    assert kinds == [
        "message_start", "ping", *block[:2], *block[1:], "text", "text_delta", "content_block_stop", *block,
        "message_delta", "message_stop",
    ]  # fmt: skip


def test_two_calls_are_two_blocks_with_ids_of_their_own() -> None:
    calls = [{"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": f'{{"n": {n}}}'}} for n in (0, 1)]
    message = written(Chunk(tool_calls=calls, finish_reason="tool_calls"))
    assert message["content"] == [{"type": "tool_use", "id": f"call_{n}", "name": "f", "input": {"n": n}} for n in (0, 1)]


def test_a_failure_is_an_error_event() -> None:
    writer = asked().writer
    failed = messages_answer([*writer.begin(), *writer.push(0, Chunk(reasoning="hm")), *writer.fail(UserError("out of memory"))])
    assert failed["error"] == {"type": "api_error", "message": "out of memory"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"), (413, "request_too_large"),
     (429, "rate_limit_error"), (500, "api_error"), (503, "overloaded_error"), (418, "invalid_request_error")],
)  # fmt: skip
def test_a_refusal_has_anthropics_shape(status: int, kind: str) -> None:
    assert Messages().error(status, UserError("no")) == {"type": "error", "error": {"type": kind, "message": "no"}}
