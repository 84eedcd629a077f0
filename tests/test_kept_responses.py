"""Responses whose history stands in earlier ones: previous_response_id, and items that are only named (the AI SDK does that)."""

from typing import Any

import pytest

from glmrun.chat.chunk import Chunk, Stats
from glmrun.server.interface import Asked, BadRequest
from glmrun.server.kept import Kept
from glmrun.server.responses import Responses
from quant.errors import UserError

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}


def answered(interface: Responses, text: str, streamed: bool = True, calls: Any = None, **body: Any) -> tuple[Asked, list[Any]]:
    """A request, and the items of its response: a thought, then the text or the calls."""
    asked = interface.asked({"model": "any", **body}, "glm")
    end = Chunk(text="" if calls else text, tool_calls=calls, finish_reason="tool_calls" if calls else "stop", stats=Stats())
    chunks = [Chunk(reasoning="hm", stats=Stats()), end]
    writer: Any = asked.writer
    if streamed:
        for chunk in chunks:
            list(writer.push(0, chunk))
        list(writer.end())
        return asked, writer.output
    return asked, writer.whole([chunks])["output"]


def messages_of(asked: Asked) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in asked.requests[0].messages]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_previous_response_is_the_history(streamed: bool) -> None:
    interface = Responses()
    first, _ = answered(interface, "one", streamed, input="1?", instructions="be brief")
    second, _ = answered(interface, "two", streamed, input="2?", previous_response_id=first.writer.id)  # type: ignore[attr-defined]
    third, _ = answered(interface, "three", input="3?", previous_response_id=second.writer.id)  # type: ignore[attr-defined]
    history = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two"), ("user", "3?")]
    assert messages_of(third) == history  # instructions are each request's own
    assert [m.get("reasoning_content") for m in third.requests[0].messages if m["role"] == "assistant"] == ["hm", "hm"]
    assert third.writer.echo["previous_response_id"] == second.writer.id  # type: ignore[attr-defined]


def test_results_of_calls_follow_the_calls_of_the_previous_response() -> None:
    interface = Responses()
    first, _ = answered(interface, "", calls=[CALL], input="q")
    result = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
    second, _ = answered(interface, "seven", input=[result], previous_response_id=first.writer.id)  # type: ignore[attr-defined]
    _, turn, tool = second.requests[0].messages
    assert turn["tool_calls"][0]["function"] == {"name": "f", "arguments": {"n": 1}} and tool["content"] == "7"


def test_items_that_are_only_named_are_what_was_said() -> None:
    interface = Responses()
    _, said = answered(interface, "one", input="1?")
    named = [{"type": "item_reference", "id": said[0]["id"]}, {"id": said[1]["id"]}]
    second, _ = answered(interface, "two", input=[{"role": "user", "content": "1?"}, *named, {"role": "user", "content": "2?"}])
    assert messages_of(second) == [("user", "1?"), ("assistant", "one"), ("user", "2?")]
    assert second.requests[0].messages[1]["reasoning_content"] == "hm"


def test_what_is_not_kept_is_passed_over_or_refused() -> None:
    interface = Responses()
    first, said = answered(interface, "one", input="1?", store=False)
    assert first.writer.echo["store"] is False  # type: ignore[attr-defined]
    unknown = [{"type": "item_reference", "id": said[1]["id"]}, {"id": "msg_0"}, {"role": "user", "content": "2?"}]
    assert messages_of(answered(interface, "", input=unknown)[0]) == [("user", "2?")]
    for name in (first.writer.id, "resp_0"):  # type: ignore[attr-defined]
        with pytest.raises(BadRequest, match="send the whole history") as refused:
            interface.asked({"input": "2?", "previous_response_id": name}, "glm")
        assert refused.value.param == "previous_response_id"


def test_the_oldest_make_room() -> None:
    kept, sent = Kept(room=400), [{"role": "user", "content": "x" * 80}]
    for i in range(9):
        kept.keeper(sent, {})({"id": f"resp_{i}", "output": [{"id": f"msg_{i}", "role": "assistant", "content": "y"}]})
    found = []
    for i in range(9):
        [item] = kept.resolved({"input": [{"id": f"msg_{i}"}]})
        found.append(item.get("content") == "y")
    assert found == [False] * 7 + [True] * 2
    kept.keeper([{"role": "user", "content": "x" * 500}], {})({"id": "resp_9", "output": []})
    assert kept.resolved({"input": "q", "previous_response_id": "resp_8"})[1]["id"] == "msg_8"  # one too large puts out no other
    with pytest.raises(BadRequest):
        kept.resolved({"input": "q", "previous_response_id": "resp_9"})


@pytest.mark.parametrize("streamed", [True, False])
def test_a_response_can_be_read_again_and_forgotten(streamed: bool) -> None:
    kept = Kept()
    interface = Responses(kept)
    asked, said = answered(interface, "one", streamed, input="1?")
    name: str = asked.writer.id  # type: ignore[attr-defined]
    found = kept.response(name)
    assert found["output"] == said and found["status"] == "completed" and found["usage"]["output_tokens"] == 0
    assert {item["status"] for item in found["output"]} == {"completed"}
    assert kept.forget(name)["deleted"] is True
    for ask in (kept.forget, kept.response):
        with pytest.raises(UserError, match="is not kept here"):
            ask(name)
    assert messages_of(answered(interface, "", input=[{"id": said[1]["id"]}, {"role": "user", "content": "2?"}])[0]) == [
        ("user", "2?")
    ]
