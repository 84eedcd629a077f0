"""Bodies that Ollama's libraries and LiteLLM send, and what they read; the forms are recorded, the texts are ours."""

from typing import Any

import pytest
from support.event_grammars import ollama_answer

from glmrun.chat.chunk import Chunk, Stats
from glmrun.server import ollama
from glmrun.server.interface import Asked, BadRequest
from quant.errors import UserError

QUESTION = [{"role": "user", "content": "q"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def chat(**body: Any) -> Asked:
    return ollama.OllamaChat().asked({"model": "any", "messages": QUESTION, **body}, "glm")


def generate(**body: Any) -> Asked:
    return ollama.OllamaGenerate().asked({"model": "any", "prompt": "q", **body}, "glm")


CALL = {"function": {"name": "weather", "arguments": {"city": "Bonn"}}}
HISTORY = [
    *QUESTION, {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_name": "weather", "content": "20"},
]  # fmt: skip


def test_a_second_turn_as_the_library_sends_it() -> None:
    asked = chat(messages=HISTORY, tools=[WEATHER], think=True, keep_alive="5m", options={"num_ctx": 4096}).requests[0]
    assert asked.messages[1:] == [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"id": "", "type": "function", **CALL}]},
        {"role": "tool", "name": "weather", "content": "20"},
    ]
    assert asked.tools == [WEATHER] and asked.sampling == {} and not asked.clear_thinking


def test_a_stream_is_what_is_meant_if_nothing_is_said() -> None:
    assert chat().stream and generate().stream
    assert not chat(stream=False).stream and not generate(stream=False).stream


@pytest.mark.parametrize(
    ("think", "expected"), [(None, (True, None)), (True, (True, None)), (False, (False, None)), ("low", (True, 1024)),
     ("high", (True, None))]
)  # fmt: skip
def test_thinking(think: Any, expected: tuple[bool, int | None]) -> None:
    for asked in (chat(think=think), generate(think=think)):
        assert (asked.requests[0].thinking, asked.requests[0].think_budget) == expected


def test_options() -> None:
    options = {"temperature": 0.1, "top_k": 5, "seed": 3, "num_predict": 9, "stop": "END", "mirostat": 1}
    asked = chat(options=options).requests[0]
    assert asked.sampling == {"temperature": 0.1, "top_k": 5, "seed": 3}
    assert (asked.max_tokens, asked.stop) == (9, ["END"])
    assert chat(options={"num_predict": -1}).requests[0].max_tokens is None
    assert chat(options={"seed": -1, "repeat_last_n": -1}).requests[0].sampling == {"repeat_last_n": 1 << 31}


def test_the_form_of_the_answer() -> None:
    schema = {"type": "object", "required": ["a"]}
    assert chat(format=schema).requests[0].json_schema == schema
    assert generate(format="json").requests[0].json_schema == {"type": "object"}
    assert chat(format="").requests[0].json_schema is None
    told = chat(format=schema, tools=[WEATHER]).requests[0]
    assert told.json_schema is None and '"required": ["a"]' in told.messages[0]["content"]


def test_generate_is_a_chat_of_one_question() -> None:
    asked = generate(system="s", raw=False).requests[0]
    assert asked.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def test_a_request_that_asks_nothing_loads_the_model() -> None:
    for asked in (chat(messages=[]), generate(prompt="", stream=False)):
        assert asked.requests == []
        assert ollama_answer([*asked.writer.begin(), *asked.writer.end()])["done_reason"] == "load"
        assert asked.writer.whole([])["done_reason"] == "load"


CALL_NAME = "messages.0.tool_calls.0.function.name"


@pytest.mark.parametrize(
    ("asks", "body", "param"),
    [
        (chat, {"messages": [{"role": "robot"}]}, "messages.0.role"), (chat, {"messages": 5}, "messages"),
        (chat, {"messages": [*QUESTION, {"role": "user", "content": "", "images": ["AA"]}]}, "messages.1.images"),
        (chat, {"tools": [{"function": {"name": ""}}]}, "tools.0.function.name"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]}, CALL_NAME),
        (chat, {"think": "deeply"}, "think"), (chat, {"format": "xml"}, "format"),
        (chat, {"options": {"top_p": 7}}, "options.top_p"),
        (chat, {"options": {"stop": [5]}}, "options.stop.0"), (chat, {"tools": [{"function": {}}]}, "tools.0.function.name"),
        (generate, {"images": ["AA"]}, "images"), (generate, {"raw": True}, "raw"), (generate, {"suffix": "x"}, "suffix"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(asks: Any, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asks(**body)
    assert refused.value.param == param
    assert ollama.OllamaChat().error(400, refused.value) == {"error": str(refused.value)}


def test_the_last_line_tells_counts_and_nanoseconds() -> None:
    stats = Stats(n_prompt=30, prompt_seconds=1.5, n_generated=7, generate_seconds=0.25)
    writer = chat().writer
    lines = [
        *writer.begin(),
        *writer.push(0, Chunk(text="a", stats=stats)),
        *writer.push(0, Chunk(finish_reason="length", stats=stats)),
    ]
    last = ollama_answer([*lines, *writer.end()])
    assert (last["prompt_eval_count"], last["prompt_eval_duration"], last["eval_count"], last["eval_duration"]) == (
        30, 1_500_000_000, 7, 250_000_000,
    )  # fmt: skip
    assert last["done_reason"] == "length" and last["model"] == "glm"


def test_generate_writes_responses() -> None:
    writer = generate().writer
    chunks = [Chunk(reasoning="r"), Chunk(text="a"), Chunk(text="b", finish_reason="stop")]
    answer = ollama_answer([*writer.begin(), *(line for chunk in chunks for line in writer.push(0, chunk)), *writer.end()])
    assert answer["message"]["content"] == "ab" and answer["message"]["thinking"] == "r"
    whole = generate().writer.whole([chunks])
    assert (whole["response"], whole["thinking"], whole["done"]) == ("ab", "r", True)


def test_a_failure_is_a_line_with_a_text() -> None:
    writer = chat().writer
    assert ollama_answer([*writer.begin(), *writer.fail(UserError("out of\nmemory"))])["error"] == "out of\nmemory"
