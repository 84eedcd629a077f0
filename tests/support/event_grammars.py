"""What a strict client makes of a stream: each function holds it to its interface's grammar and puts the answer together."""

import json
from collections.abc import Iterable
from typing import Any


def server_sent(stream: Iterable[bytes]) -> list[dict[str, Any]]:
    """The data of events; each is one `event:` line, one `data:` line and a blank one, and both lines name the same type."""
    events = []
    for sent in stream:
        text = sent.decode("ascii")
        assert text.endswith("\n\n") and "\n\n" not in text[:-2] and "\r" not in text
        named, said = text[:-2].split("\n")
        data = json.loads(said.removeprefix("data: "))
        assert named == f"event: {data['type']}" and said.startswith("data: {")
        events.append(data)
    return events


def arguments_of(pieces: str) -> dict[str, Any] | None:
    """A call's arguments; None if generation cut it off: then nothing that reads JSON may take them for whole."""
    try:
        return json.loads(pieces)
    except ValueError:
        assert pieces.startswith('{"')
        return None


def messages_answer(stream: Iterable[bytes]) -> dict[str, Any]:
    """Anthropic's message. States: not begun, between blocks, inside a block, told why it stopped, over."""
    message: dict[str, Any] = {}
    state, pieces = "not begun", ""
    for event in server_sent(stream):
        kind = event["type"]
        assert state != "over", event
        if kind == "ping":
            assert state != "not begun"
        elif kind == "error":
            assert isinstance(event["error"]["type"], str) and isinstance(event["error"]["message"], str)
            state, message = "over", message | {"error": event["error"]}
        elif kind == "message_start":
            assert state == "not begun" and event["message"]["content"] == [] and event["message"]["stop_reason"] is None
            assert {"input_tokens", "output_tokens"} <= set(event["message"]["usage"])
            state, message = "between", event["message"]
        elif kind == "content_block_start":
            assert state == "between" and event["index"] == len(message["content"])
            block = event["content_block"]
            assert block == {
                "text": {"type": "text", "text": ""}, "thinking": {"type": "thinking", "thinking": "", "signature": ""},
                "tool_use": block | {"input": {}},
            }[block["type"]]  # fmt: skip
            message["content"].append(block)
            state, pieces = "inside", ""
        elif kind == "content_block_delta":
            block, delta = message["content"][-1], event["delta"]
            assert state == "inside" and event["index"] == len(message["content"]) - 1
            assert not block.get("signature"), "a signature ends its thinking"
            key = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(delta["type"])
            if key is None:
                assert delta["type"] == "input_json_delta" and block["type"] == "tool_use"
                pieces += delta["partial_json"]
            else:
                assert delta[key] and key in block, (block, delta)
                block[key] += delta[key]
        elif kind == "content_block_stop":
            assert state == "inside" and event["index"] == len(message["content"]) - 1
            block = message["content"][-1]
            assert block["type"] != "thinking" or block["signature"]
            if block["type"] == "tool_use":
                block["input"] = arguments_of(pieces)
                assert block["id"] and block["name"]
            state = "between"
        elif kind == "message_delta":
            assert state == "between" and event["delta"]["stop_reason"] in (
                "end_turn", "max_tokens", "tool_use", "stop_sequence",
            )  # fmt: skip
            message |= event["delta"]
            message["usage"] |= event["usage"]
            state = "told why"
        else:
            assert kind == "message_stop" and state == "told why"
            assert message["stop_reason"] == "max_tokens" or all(block.get("input", {}) is not None for block in message["content"])
            state = "over"
    assert state == "over"
    return message


_PARTS = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}
_TEXTS = {
    "response.output_text": ("content", "content_index", "output_text"),
    "response.reasoning_text": ("content", "content_index", "reasoning_text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "summary_text"),
}


def responses_answer(stream: Iterable[bytes]) -> dict[str, Any]:
    """OpenAI's response. What deltas said must be what the done events and the last response say."""
    state = "not begun"
    output: list[dict[str, Any]] = []
    part: dict[str, Any] | None = None  # that is open
    response: dict[str, Any] = {}
    cut_off = False  # the last call
    for n, event in enumerate(server_sent(stream)):
        kind, (name, _, what) = event["type"], event["type"].rpartition(".")
        assert state != "over" and event["sequence_number"] == n
        if "response" in event:
            assert (
                event["response"]["object"] == "response"
                and event["response"]["model"]
                and event["response"]["id"].startswith("resp_")
            )
            response = event["response"]
        if "output_index" in event and what != "added":
            assert event["output_index"] == len(output) - 1
            assert "item_id" not in event or event["item_id"] == output[-1]["id"]
        if kind == "response.created":
            assert state == "not begun" and n == 0 and response["status"] == "in_progress" and response["output"] == []
            state = "between"
        elif kind == "response.in_progress":
            assert state != "not begun" and response["status"] == "in_progress"
        elif kind == "response.failed":
            assert response["status"] == "failed" and response["error"]["code"] and response["error"]["message"]
            state = "over"
        elif kind in ("response.completed", "response.incomplete"):
            assert state == "between" and response["status"] == what and response["output"] == output
            assert (response["incomplete_details"] is None) == (what == "completed")
            assert what == "incomplete" or not any(item["status"] == "incomplete" for item in output)
            usage = response["usage"]
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
            state = "over"
        elif kind == "response.output_item.added":
            assert state == "between" and event["output_index"] == len(output) and event["item"]["status"] == "in_progress"
            assert event["item"]["id"] not in [item["id"] for item in output]
            output.append(event["item"])
            state = "inside"
        elif kind == "response.output_item.done":
            assert state == "inside" and part is None
            assert event["item"] == output[-1] | {"status": event["item"]["status"]} and event["item"]["status"] != "in_progress"
            assert event["item"]["type"] != "function_call" or cut_off == (event["item"]["status"] == "incomplete")
            output[-1] = event["item"]
            state = "between"
        elif name in _PARTS:
            stands_in, index = _PARTS[name]
            assert state == "inside" and event[index] == 0
            if what == "added":
                assert part is None and event["part"]["text"] == ""
                part = event["part"]
                output[-1].setdefault(stands_in, []).append(part)
            else:
                assert part == event["part"]
                part = None
        elif name in _TEXTS:
            _, index, part_kind = _TEXTS[name]
            assert state == "inside" and part is not None and part["type"] == part_kind and event[index] == 0
            if what == "delta":
                assert event["delta"]
                part["text"] += event["delta"]
                if "logprobs" in part:
                    part["logprobs"] += event["logprobs"]
            else:
                assert what == "done" and event["text"] == part["text"] and event.get("logprobs") == part.get("logprobs")
        else:
            assert name == "response.function_call_arguments" and state == "inside" and output[-1]["type"] == "function_call"
            if what == "delta":
                output[-1]["arguments"] += event["delta"]
            else:
                assert what == "done" and event["arguments"] == output[-1]["arguments"] and event["name"] == output[-1]["name"]
                cut_off = arguments_of(event["arguments"]) is None
    assert state == "over"
    return response


def ollama_answer(stream: Iterable[bytes]) -> dict[str, Any]:
    """Ollama's last line, with the message that all lines said."""
    message: dict[str, Any] = {"content": "", "thinking": "", "tool_calls": []}
    is_done, last = False, {}
    for sent in stream:
        assert sent.endswith(b"\n") and sent.count(b"\n") == 1 and not is_done
        last = json.loads(sent.decode("ascii"))
        if "error" in last:
            assert isinstance(last["error"], str) and list(last) == ["error"]
            is_done = True
            continue
        said = last["message"] if "message" in last else {"role": "assistant", "content": last["response"]} | last
        assert said["role"] == "assistant" and isinstance(last["model"], str) and last["created_at"].endswith("Z")
        message["content"] += said["content"]
        message["thinking"] += said.get("thinking", "")
        for call in said.get("tool_calls", []):
            assert call["function"]["index"] == len(message["tool_calls"]) and isinstance(call["function"]["arguments"], dict)
            message["tool_calls"].append(call)
        is_done = last["done"]
        assert ("done_reason" in last) == is_done
    assert is_done
    return last | {"message": message}
