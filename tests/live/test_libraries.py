"""Anthropic's, OpenAI's and Ollama's own Python libraries against the server: an agent's two turns, schemas, errors."""

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel
from support.scripted_agent import ScriptedAgent
from support.served import Served, served

import glmrun

QUESTION: Any = [{"role": "user", "content": "weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "w", "parameters": PARAMETERS}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "AA"}


class Place(BaseModel):
    city: str


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ScriptedAgent(n_ctx=5000)) as found:
        yield found


# ---- Anthropic's messages --------------------------------------------------------------------------------------------

TOOLS: Any = [{"name": "get_weather", "description": "w", "input_schema": PARAMETERS}]


@pytest.fixture
def messages(server: Served) -> Iterator[anthropic.resources.Messages]:
    with anthropic.Anthropic(base_url=server.url, auth_token="x", max_retries=0) as client:
        yield client.messages


def test_anthropic_streams_a_call_and_takes_its_result(messages: Any, server: Served) -> None:
    options = {"model": "m", "max_tokens": 5000, "tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    with messages.stream(messages=QUESTION, **options) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_message()
    assert {"thinking", "signature", "input_json", "message_stop"} <= kinds
    thinking, call = first.content
    assert (thinking.thinking, first.stop_reason, call.name, call.input) == (
        "I take one step.",
        "tool_use",
        "get_weather",
        {"city": "Bonn"},
    )
    assert first.usage.input_tokens > 0 and first.usage.output_tokens == 2
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "20 C"}
    history = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = messages.create(messages=history, **options)
    assert second.content[-1].text == "It says: 20 C" and second.stop_reason == "end_turn"
    asked = server.service.model.asked[-1]  # type: ignore[union-attr]
    assert asked.messages[1]["reasoning_content"] == "I take one step." and asked.messages[2]["tool_call_id"] == call.id


def test_anthropic_counts_and_parses(messages: Any) -> None:
    counted = messages.count_tokens(model="m", messages=QUESTION, tools=TOOLS)
    whole = messages.create(model="m", max_tokens=1, messages=QUESTION, tools=TOOLS)
    assert counted.input_tokens == whole.usage.input_tokens
    assert messages.parse(model="m", max_tokens=50, messages=QUESTION, output_format=Place).parsed_output == Place(city="Bonn")


def test_anthropic_reads_our_errors(messages: Any) -> None:
    content: Any = [{"type": "image", "source": IMAGE}]
    with pytest.raises(anthropic.BadRequestError, match="message 0 has a part of the type image"):
        messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": content}])
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long") as refused:
        messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "word " * 6000}])
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


# ---- OpenAI's responses ----------------------------------------------------------------------------------------------

RESPONSE_TOOLS: Any = [{"type": "function", "strict": True, **FUNCTION}, {"type": "web_search"}]


@pytest.fixture
def responses(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client.responses


@pytest.mark.parametrize("reasoning", [{}, {"summary": "auto"}], ids=str)
def test_openai_streams_a_call_and_takes_its_result(responses: Any, server: Served, reasoning: dict[str, str]) -> None:
    options = {"model": "m", "tools": RESPONSE_TOOLS, "reasoning": reasoning}
    with responses.stream(input="weather?", **options) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_response()
    assert {"response.created", "response.function_call_arguments.done", "response.completed"} <= kinds
    thought, call = first.output
    assert "".join(part.text for part in thought.summary or thought.content) == "I take one step."
    assert (call.name, call.arguments, first.usage.output_tokens) == ("get_weather", '{"city": "Bonn"}', 2)
    items = [item.model_dump(exclude_none=True) for item in first.output]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "20 C"}
    second = responses.create(input=[*QUESTION, *items, result], **options)
    assert second.output_text == "It says: 20 C" and second.status == "completed"
    asked = server.service.model.asked[-1]  # type: ignore[union-attr]
    assert [m["role"] for m in asked.messages] == ["user", "assistant", "tool"]
    assert asked.messages[1]["reasoning_content"] == "I take one step."


def test_openai_parses_and_sees_what_was_cut(responses: Any) -> None:
    assert responses.parse(model="m", input="x", text_format=Place).output_parsed == Place(city="Bonn")
    cut = responses.create(model="m", input="x", max_output_tokens=1)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_openai_reads_a_response_again_and_forgets_it(responses: Any) -> None:
    made = responses.create(model="m", input="x")
    assert responses.retrieve(made.id).model_dump() == made.model_dump()
    responses.delete(made.id)
    for ask in (responses.retrieve, responses.delete):
        with pytest.raises(openai.NotFoundError, match="is not kept here"):
            ask(made.id)


def test_openai_reads_our_errors(responses: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model="m", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model="m", input="word " * 6000)
    assert refused.value.code == "context_length_exceeded"


# ---- Ollama ----------------------------------------------------------------------------------------------------------


def test_ollama_streams_a_call_and_takes_its_result(server: Served) -> None:
    client = ollama.Client(host=server.url)
    tools = [{"type": "function", "function": FUNCTION}]
    parts = list(client.chat(model="m", messages=QUESTION, tools=tools, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "I take one step." and parts[-1].done_reason == "stop"
    said = next(part.message for part in parts if part.message.tool_calls)
    assert said.tool_calls[0].function.arguments == {"city": "Bonn"}
    history = [*QUESTION, said, {"role": "tool", "tool_name": "get_weather", "content": "20 C"}]
    whole = client.chat(model="m", messages=history, tools=tools, think=False)
    assert whole.message.content == "It says: 20 C" and whole.eval_count == 3
    place = client.chat(model="m", messages=QUESTION, format=Place.model_json_schema(), options={"temperature": 0})
    assert Place.model_validate_json(place.message.content) == Place(city="Bonn")
    assert client.generate(model="m", prompt="x", system="s").response == "I have nothing to run."


def test_ollama_reads_our_errors(server: Served) -> None:
    with pytest.raises(ollama.ResponseError, match="message 0 has a part of the type image") as refused:
        ollama.Client(host=server.url).chat(model="m", messages=[{"role": "user", "content": "x", "images": [b"AA"]}])
    assert refused.value.status_code == 400


def test_ollama_lists_and_shows_the_model() -> None:
    with glmrun.load(n_ctx=1024) as nano, served(nano) as found:
        client = ollama.Client(host=found.url)
        shown, listed, running = client.show("any"), client.list().models[0], client.ps().models[0]
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert [value for key, value in shown.modelinfo.items() if key.endswith(".context_length")] == [1024]
        assert listed.model == running.model == found.service.name and listed.size == nano.file.size
