"""OpenAI's own library against chat completions and completions: an agent's two turns, schemas, errors, leaving early."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from support.scripted_agent import ScriptedAgent
from support.served import Served, served

import glmrun

QUESTION: Any = [{"role": "user", "content": "weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]


class Place(BaseModel):
    city: str


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ScriptedAgent(n_ctx=5000)) as found:
        yield found


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("streams", [True, False])
def test_a_call_and_its_result(client: openai.OpenAI, streams: bool) -> None:
    completions = client.chat.completions
    if streams:
        with completions.stream(model="m", messages=QUESTION, tools=TOOLS, stream_options={"include_usage": True}) as stream:
            list(stream)
            first = stream.get_final_completion()
    else:
        first = completions.create(model="m", messages=QUESTION, tools=TOOLS)
    [choice] = first.choices
    [call] = choice.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Bonn"}')
    assert choice.finish_reason == "tool_calls" and first.usage is not None and first.usage.completion_tokens == 2
    assert choice.message.reasoning_content == "I take one step."  # type: ignore[attr-defined]
    told = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "20 C"}
    second = completions.create(model="m", messages=[*QUESTION, told, result], tools=TOOLS)
    assert second.choices[0].message.content == "It says: 20 C" and second.choices[0].finish_reason == "stop"


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="m", messages=[{"role": "user", "content": "x"}], response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Bonn")


def test_errors_are_read(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="m", messages=QUESTION, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 6000}])
    assert refused.value.code == "context_length_exceeded"


def test_with_nano_texts_probabilities_and_leaving_early() -> None:
    with glmrun.load(n_ctx=512) as nano, served(nano) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        assert [model.id for model in client.models.list()] == ["nano-Q8_0"]
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        likely = whole.choices[0].logprobs
        assert likely is not None and likely.content and "42" in (whole.choices[0].message.content or "")
        assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob == one.logprob for one in likely.content)
        with client.chat.completions.create(**asked, stream=True) as stream:
            next(stream)
        text = client.completions.create(model="m", prompt="The capital of", max_tokens=4, temperature=0).choices[0].text
        assert text == "".join(chunk.text for chunk in nano.generate("The capital of", max_tokens=4, temperature=0))
