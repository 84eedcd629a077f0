"""A model behind `glmrun serve` is, for whoever asks it, the model itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.served import served

import glmrun
from glmrun.chat.answer import Answer, collect
from glmrun.chat.remote import RemoteModel
from glmrun.chat.request import ChatRequest
from glmrun.engine.model import Model

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
}}}]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Model, RemoteModel]]:
    """nano, and nano behind a server."""
    with glmrun.load(n_ctx=1024) as model, served(model) as server:
        yield model, RemoteModel(server.url)


def answered(model: Any, request: ChatRequest) -> Answer:
    answer = Answer()
    collect(model.answer(request), answer)
    return answer


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("What is 17 + 25?", {}), ("What is 17 + 25?", {"thinking": False}), ("Hello", {"max_tokens": 5}),
        ("What is 17 + 25?", {"think_budget": 3}), ("What is the weather in Rome?", {"tools": TOOLS}),
        ("Ada is 36", {"json_schema": SCHEMA, "thinking": False}), ("What is 17 + 25?", {"stop": ["4"], "seed": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_it_says_what_the_model_says(both: tuple[Model, RemoteModel], text: str, options: dict[str, Any]) -> None:
    request = ChatRequest.of([{"role": "user", "content": text}], **{"temperature": 0.0, **options})
    here, there = (answered(model, request) for model in both)
    assert (there.text, there.reasoning, there.finish_reason) == (here.text, here.reasoning, here.finish_reason)
    assert [call["function"] for call in there.tool_calls] == [call["function"] for call in here.tool_calls]
    assert there.stats is not None and here.stats is not None
    assert (there.stats.n_prompt, there.stats.n_generated) == (here.stats.n_prompt, here.stats.n_generated)
    assert there.stats.n_cached > 0 and 0 < there.stats.generate_seconds < 600


def test_prompts_and_their_sizes_are_the_models(both: tuple[Model, RemoteModel]) -> None:
    model, remote = both
    assert remote.n_ctx == model.n_ctx
    request = ChatRequest([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|user|> Hello"}], TOOLS)
    assert remote.prompt_text(request) == model.prompt_text(request)
    assert remote.count_tokens(request) == len(model.chat_format.encode(request)) > 20


def test_progress_of_a_long_prompt_is_seen(both: tuple[Model, RemoteModel]) -> None:
    _, remote = both
    text = "The quick brown fox jumps over the lazy dog. " * 45
    chunks = list(remote.answer(ChatRequest([{"role": "user", "content": text}], max_tokens=1)))
    whole = chunks[-1].stats.n_prompt
    seen = [chunk.stats.n_prefilled for chunk in chunks if chunk.stats.n_prompt > 0]
    assert whole > 600 and seen == sorted(seen) and seen[-1] == whole and 0 < min(seen) < whole
