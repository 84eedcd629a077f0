"""`glmrun serve` with nano behind it: OpenAI's chat completions, streamed and whole, errors, who may ask."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.served import Served, served

from glmrun.chat.request import ChatRequest
from glmrun.engine.model import Model
from glmrun.server.guard import Access
from glmrun.server.service import Options

HELLO = [{"role": "user", "content": "What is 17 + 25?"}]
CHAT = "/v1/chat/completions"
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"],
    }}},
]  # fmt: skip


def delta_text(events: list[Any], name: str) -> str:
    return "".join(e["choices"][0]["delta"].get(name) or "" for e in events[:-1] if e["choices"])


@pytest.mark.parametrize("extra", [{}, {"reasoning_effort": "none"}, {"stop": ["4"]}, {"max_tokens": 5}], ids=str)
def test_streamed_and_whole_say_what_the_model_says(server: Served, nano: Model, extra: dict[str, Any]) -> None:
    body = {"messages": HELLO, "temperature": 0, "seed": 1, "stream_options": {"include_usage": True}, **extra}
    options = {"thinking": "reasoning_effort" not in extra, "stop": extra.get("stop", ()), "max_tokens": extra.get("max_tokens")}
    expected = list(nano.chat(HELLO, temperature=0, **options))
    text, reasoning = ("".join(getattr(chunk, name) for chunk in expected) for name in ("text", "reasoning"))
    events = server.events(CHAT, body)
    assert events[-1] == "[DONE]" and events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (delta_text(events, "content"), delta_text(events, "reasoning_content")) == (text, reasoning)
    assert delta_text(events, "reasoning") == reasoning
    reasons = [e["choices"][0]["finish_reason"] for e in events[:-1] if e["choices"]]
    assert reasons[-1] == expected[-1].finish_reason and not any(reasons[:-1])
    whole = server.post(CHAT, body).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], message.get("reasoning_content", "")) == (text, reasoning)
    usage = events[-2]["usage"]
    assert usage["prompt_tokens"] == expected[-1].stats.n_prompt and usage["completion_tokens"] == expected[-1].stats.n_generated
    assert {**whole["usage"], "prompt_tokens_details": 0} == {**usage, "prompt_tokens_details": 0}


def test_a_call_that_was_asked_for_streams_with_id_and_index(server: Served) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "enable_thinking": False, "temperature": 0}
    events = server.events(CHAT, {**body, "parallel_tool_calls": False})
    deltas = [call for e in events[:-1] for call in e["choices"][0]["delta"].get("tool_calls", ())]
    assert isinstance(deltas[0]["id"], str) and deltas[0]["index"] == 0 and deltas[0]["function"]["name"] == "get_weather"
    assert "city" in json.loads("".join(call["function"]["arguments"] for call in deltas))
    assert len(deltas) > 2  # the call, its city before that has ended, the end
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_json_of_a_schema_comes_behind_the_thinking(server: Served) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    schema["additionalProperties"] = False
    body = {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    message = server.post(CHAT, {**body, "temperature": 0, "thinking_budget": 20}).json()["choices"][0]["message"]
    assert 0 <= json.loads(message["content"])["n"] <= 9 and message["reasoning"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [3]}, "messages.0"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "max_tokens": True}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "n": 17}, "n"),
        ({"messages": HELLO, "stop": [1]}, "stop"),
        ({"messages": HELLO, "stop": ["a"] * 17}, "stop"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": HELLO, "logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"messages": HELLO, "logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"messages": HELLO, "reasoning_effort": "huge"}, "reasoning_effort"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools.0.function.name"),
        ({"messages": HELLO, "tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": TOOLS}, "tool_choice"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(server: Served, body: dict[str, Any], param: str) -> None:
    answer = server.post(CHAT, body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error" and "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"), (b"{", "not valid JSON"), (b"[]", "an object is expected"), (b'{"a": NaN}', "NaN"), (b'"\xff"', "UTF-8"),
        (b"null", "a JSON null;"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested"), (b"[" * 100_000, "nested"), (b"{} x", "not valid JSON"),
        (b'{"a":' + b"1" * 5000 + b"}", "not valid JSON"), (b'{"messages": [], "messages": 1}', "messages"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_malformed_bodies_are_told(server: Served, raw: bytes, words: str) -> None:
    answer = server.post(CHAT, raw)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_unknown_fields_roles_and_forms_of_content_are_taken(server: Served) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief.", "cache_control": {}}]},
        {"role": "user", "content": "\ud83d", "name": "x"},
        {"role": "assistant", "tool_calls": [{"id": "1", "index": 0, "function": {"name": "f", "arguments": "{broken"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": []},
        {"role": "system", "content": "More."},
        {"role": "user", "content": "Hello"},
    ]
    tools = [*TOOLS, {"type": "web_search"}]
    body = {"messages": messages, "model": "claude-opus-5", "max_tokens": 2, "foo": {"bar": 1}, "user": None, "tools": tools}
    assert server.post(CHAT, body).status_code == 200


def test_a_prompt_that_does_not_fit_is_refused_in_words_that_agents_know(server: Served) -> None:
    error = server.post(CHAT, {"messages": [{"role": "user", "content": "word " * 3000}], "stream": True})
    assert error.status_code == 400 and error.json()["error"]["code"] == "context_length_exceeded"
    message = error.json()["error"]["message"]
    assert "prompt is too long: " in message and "> 1024 maximum" in message and "maximum context length is 1024 tokens" in message


def test_lengths_are_clamped_and_any_model_name_is_served(server: Served) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 128_000, "model": "claude-haiku-5-5", "temperature": 0}
    assert server.post(CHAT, body).json()["choices"][0]["finish_reason"] == "stop"


def test_several_answers_have_their_own_indexes_and_seeds(server: Served) -> None:
    unsure = {"messages": [{"role": "user", "content": "my dog"}], "temperature": 2, "top_p": 1}
    body = {**unsure, "n": 3, "seed": 4, "max_tokens": 12, "reasoning_effort": "none"}
    whole = server.post(CHAT, body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) > 1
    events = server.events(CHAT, body)
    assert [
        delta_text([e for e in events[:-1] if e["choices"][0]["index"] == i] + events[-1:], "content") for i in range(3)
    ] == texts


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Basic s3cret"}, 401),
        ({"x-api-key": "s3cret"}, 200),
        ({"Authorization": "Bearer s3cret"}, 200), ({"Authorization": "Bearer s3cret", "Host": "evil.example:80"}, 403),
        ({"Authorization": "Bearer s3cret", "Host": "localhost:1"}, 200), ({"x-api-key": "s3cret", "Host": "box.lan"}, 200),
        ({"x-api-key": "s3cret", "Origin": "https://evil.example"}, 403), ({"x-api-key": "s3cret", "Origin": "null"}, 403),
        ({"x-api-key": "s3cret", "Origin": "https://good.example"}, 200),
        ({"x-api-key": "s3cret", "Origin": "vscode-webview://x"}, 200),
    ],
    ids=str,
)  # fmt: skip
def test_who_may_ask(headers: dict[str, str], status: int, guarded: Served) -> None:
    answer = guarded.get("/v1/models", **headers)
    assert answer.status_code == status and (status == 200 or "error" in answer.json())
    assert "s3cret" not in answer.text
    allowed = headers.get("Origin") == "https://good.example"
    assert (answer.headers.get("access-control-allow-origin") == "https://good.example") == allowed


@pytest.fixture(scope="module")
def guarded(nano: Model) -> Iterator[Served]:
    access = Access("s3cret", ("https://good.example",), ("box.lan",))
    with served(nano, Options(access, "my-model")) as found:
        yield found


def test_health_needs_no_key_and_waits_for_the_model(guarded: Served) -> None:
    assert guarded.get("/health").json() == {"status": "ok"}
    assert guarded.get("/").headers["content-type"].startswith("text/html")
    with served(None) as loading:
        for answer in (loading.get("/health"), loading.post(CHAT, {"messages": HELLO}), loading.get("/v1/models")):
            assert answer.status_code == 503 and answer.headers["retry-after"] and "opened" in answer.json()["error"]["message"]


def test_paths_that_are_not_there_say_what_base_urls_are(server: Served) -> None:
    answer = server.post("/v2/chat", {})
    assert answer.status_code == 404 and "without /v1" in answer.json()["error"]["message"]
    for path, name in (
        ("/v1/embeddings", "embeddings"),
        ("/api/embed", "embed"),
        ("/v1/audio/speech", "audio"),
        ("/api/pull", "pull"),
    ):
        other = server.post(path, {})  # their base URL is right
        assert other.status_code == 404 and f"{name} is other servers' business" in other.text and "base URL" not in other.text
    wrong = server.get(CHAT)
    assert wrong.status_code == 405 and "takes POST, not GET" in wrong.json()["error"]["message"]
    assert server.get("/v1/v1/models").status_code == 200


def test_models_tell_the_context_under_every_name(guarded: Served) -> None:
    model = guarded.get("/v1/models", **{"x-api-key": "s3cret"}).json()["data"][0]
    assert model["id"] == "my-model" and model["context_length"] == model["max_model_len"] == model["meta"]["n_ctx"] == 1024
    assert guarded.get("/v1/models/a%2Fb", **{"x-api-key": "s3cret"}).json()["id"] == "my-model"


def test_tokens_go_there_and_back(server: Served, nano: Model) -> None:
    text = "The capital <|user|> of 🙂"
    ids = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert ids == nano.tokenizer.encode(text) == server.post("/v1/tokenize", {"content": text}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json()["prompt"] == text
    assert server.post("/tokenize", {"messages": HELLO}).json()["tokens"] == nano.chat_format.encode(ChatRequest(HELLO))
    assert server.get("/tokenizer_info").json()["eos_token"] == "<|endoftext|>"
    assert server.post("/detokenize", {"tokens": [0, 99999]}).json()["error"]["param"] == "tokens"
    assert server.get("/props").json()["default_generation_settings"]["n_ctx"] == 1024
    assert [slot["is_processing"] for slot in server.get("/slots").json()] == [False] * 4


def test_two_conversations_with_one_system_prompt_read_only_what_is_new(nano: Model) -> None:
    system = {"role": "system", "content": "You are brief and exact. " * 40}
    cached = []
    nano.keep(1 << 26)
    with served(nano) as server:
        for question in ("One?", "Two?", "One?"):
            body = {"messages": [system, {"role": "user", "content": question}], "max_tokens": 2, "reasoning_effort": "none"}
            usage = server.post(CHAT, body).json()["usage"]
            cached.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
    n_new = len(nano.tokenizer.encode("Two?")) + 4
    assert cached[0] > 200 and cached[1] <= n_new and cached[2] <= n_new


def test_tools_and_a_schema_together_are_taken(server: Served) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "response_format": {"type": "json_object"}, "max_tokens": 3}
    assert server.post(CHAT, body).status_code == 200
