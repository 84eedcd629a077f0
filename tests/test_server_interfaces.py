"""`glmrun serve` with nano behind it: Anthropic's, OpenAI's Responses' and Ollama's interface on the wire."""

import re
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from support.event_grammars import messages_answer, ollama_answer, responses_answer
from support.scripted_agent import ScriptedAgent
from support.served import Served, served

from glmrun.engine.model import Model
from glmrun.server.guard import Access
from glmrun.server.service import Options

HELLO = [{"role": "user", "content": "What is 17 + 25?"}]


def text_of_message(answer: dict[str, Any]) -> tuple[str, str]:
    return tuple("".join(b.get(kind, "") for b in answer["content"]) for kind in ("thinking", "text"))  # type: ignore[return-value]


def text_of_response(answer: dict[str, Any]) -> tuple[str, str]:
    texts = {item["type"]: item["content"][0]["text"] for item in answer["output"]}
    return texts.get("reasoning", ""), texts.get("message", "")


def text_of_lines(answer: dict[str, Any]) -> tuple[str, str]:
    message = answer.get("message") or {"content": answer["response"], "thinking": answer.get("thinking", "")}
    return message.get("thinking", ""), message["content"]


Case = tuple[str, dict[str, Any], bytes, Callable[..., Any], Callable[[dict[str, Any]], tuple[str, str]]]
ON = {"thinking": {"type": "enabled", "budget_tokens": 500}, "max_tokens": 400}
GREEDY = {"options": {"temperature": 0}}
CASES: dict[str, Case] = {
    "messages": ("/v1/messages", {"messages": HELLO, "temperature": 0, **ON}, b"\n\n", messages_answer, text_of_message),
    "responses": ("/v1/responses", {"input": HELLO[0]["content"], "temperature": 0}, b"\n\n", responses_answer, text_of_response),
    "chat": ("/api/chat", {"messages": HELLO, **GREEDY}, b"\n", ollama_answer, text_of_lines),
    "generate": ("/api/generate", {"prompt": HELLO[0]["content"], **GREEDY}, b"\n", ollama_answer, text_of_lines),
}


@pytest.mark.parametrize("name", CASES)
def test_streamed_and_whole_say_what_the_model_says(server: Served, nano: Model, name: str) -> None:
    path, body, end, read, text_of = CASES[name]
    expected = list(nano.chat(HELLO, temperature=0))
    said = "".join(chunk.reasoning for chunk in expected), "".join(chunk.text for chunk in expected)
    answer = server.post(path, {**body, "model": "any", "stream": True})
    kinds = {b"\n": "application/x-ndjson", b"\n\n": "text/event-stream"}
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(kinds[end])
    assert text_of(read(pieces(answer, end))) == said
    whole = server.post(path, {**body, "model": "any", "stream": False})
    assert whole.status_code == 200 and text_of(whole.json()) == said


def test_tokens_of_an_answer_are_counted_alike(server: Served) -> None:
    chat = server.post("/v1/chat/completions", {"messages": HELLO, "temperature": 0}).json()["usage"]
    responses = server.post("/v1/responses", {"input": HELLO[0]["content"], "temperature": 0}).json()["usage"]
    assert responses["output_tokens"] == chat["completion_tokens"] and responses["input_tokens"] == chat["prompt_tokens"]
    assert responses["output_tokens_details"] == chat["completion_tokens_details"]


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_that_does_not_fit_is_refused_in_words_that_agents_know(server: Served, name: str) -> None:
    path, body, *_ = CASES[name]
    long = "word " * 3000
    body = {
        key: [{"role": "user", "content": long}] if key == "messages" else long
        for key in ("messages", "input", "prompt")
        if key in body
    }
    answer = server.post(path, body)
    assert answer.status_code == 400
    assert "prompt is too long: " in answer.text and "maximum context length is 1024 tokens" in answer.text
    if name == "responses":
        assert answer.json()["error"]["code"] == "context_length_exceeded"


TOOLS = {
    "/v1/messages": [{"name": "get_weather", "input_schema": {}}], "/v1/responses": [{"type": "function", "name": "get_weather"}],
    "/api/chat": [{"type": "function", "function": {"name": "get_weather"}}], "/api/generate": [],
}  # fmt: skip


def pieces(answer: httpx2.Response, end: bytes) -> list[bytes]:
    return [piece + end for piece in answer.content.split(end) if piece]


@pytest.mark.parametrize("name", CASES)
def test_every_stream_ends_as_its_grammar_says_whatever_happens_inside(name: str) -> None:
    """Agents ask without end where a stream just stops."""
    path, body, end, read, _ = CASES[name]
    agent = ScriptedAgent()
    errors = []
    with served(agent) as found:
        for agent.fails_after in range(8):  # behind the fourth within a call
            answer = found.post(path, {**body, "tools": TOOLS[path], "stream": True})
            errors.append(bool(read(pieces(answer, end)).get("error")))
            whole = found.post(path, {**body, "tools": TOOLS[path], "stream": False})
            n_chunks = 8 if name == "generate" else 6
            assert whole.status_code == (500 if agent.fails_after < n_chunks else 200)
    assert errors[:2] == [True, True] and not any(errors[2:])  # behind the first token it is cut instead


@pytest.mark.parametrize("name", CASES)
def test_a_silent_model_is_heard_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, body, end, read, text_of = CASES[name]
    monkeypatch.setattr("glmrun.server.desk.PULSE_SECONDS", 0.02)
    n_events = []
    for seconds in (0.0, 0.2):
        with served(ScriptedAgent(seconds=seconds)) as found:
            events = pieces(found.post(path, {**body, "stream": True}), end)
        assert text_of(read(events)) == ("I take one step.", "I have nothing to run.")
        n_events.append(len(events))
    assert n_events[1] > n_events[0] + 5


def test_counted_tokens_are_those_of_the_prompt(server: Served) -> None:
    tools = [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    body = {"messages": HELLO, "system": "Be brief.", "tools": tools}
    counted = server.post("/v1/messages/count_tokens", body).json()
    usage = server.post("/v1/messages", {**body, "max_tokens": 1}).json()["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    assert server.post("/v1/messages/count_tokens", {}).json()["error"]["type"] == "invalid_request_error"
    for path, said, n in (
        ("chat/completions", {"messages": HELLO}, "prompt_tokens"),
        ("responses", {"input": "Hi"}, "input_tokens"),
    ):
        counted = server.post(f"/v1/{path}/input_tokens", {**said, "instructions": "Be brief."}).json()
        usage = server.post(f"/v1/{path}", {**said, "instructions": "Be brief.", "max_tokens": 1}).json()["usage"]
        assert counted == {"object": "response.input_tokens", "input_tokens": usage[n]}
    assert server.post("/v1/responses/input_tokens", {"input": 5}).json()["error"]["param"] == "input"


def test_19_any_model_is_served_and_v1_may_be_said_twice(server: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "model": "claude-haiku-5-5"}
    assert server.post("/v1/v1/messages?beta=true", body).json()["type"] == "message"
    assert httpx2.head(server.url).status_code == 200 and httpx2.head(f"{server.url}/api/hello").status_code == 404


def test_21_editors_find_a_version_the_context_and_tools(server: Served, nano: Model) -> None:
    version = server.get("/api/version").json()["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version) and tuple(map(int, version.split("."))) >= (0, 6, 4)
    for named in ({"model": "m"}, {"name": "m"}):
        shown = server.post("/api/show", named).json()
        architecture = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{architecture}.context_length"] == 1024
        assert {"completion", "tools"} <= set(shown["capabilities"])
        assert shown["model_info"]["general.basename"] == server.service.name  # as VS Code lists it
        assert "tools" in shown["template"]  # where LiteLLM looks: else it writes them into the prompt and asks for JSON
    assert server.get("/props").json()["chat_template_caps"]["supports_tools"] is True  # llama.cpp's word for it
    listed, runs = (server.get(path).json()["models"][0] for path in ("/api/tags", "/api/ps"))
    assert listed["name"] == listed["model"] == server.service.name and runs["digest"] == listed["digest"]
    assert listed["size"] == nano.file.size and listed["details"]["parameter_size"].endswith("M")


def test_a_model_is_loaded_by_asking_nothing(server: Served) -> None:
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})):
        assert server.post(path, {**body, "stream": False}).json()["done_reason"] == "load"
        assert ollama_answer([line + b"\n" for line in server.post(path, body).content.splitlines()])["done_reason"] == "load"


def test_every_refusal_has_the_shape_of_its_interface(nano: Model) -> None:
    with served(nano, Options(Access(key="secret"))) as locked:
        for headers, status in (({}, 401), ({"x-api-key": "secret"}, 400)):
            message, response, line = (
                locked.post(path, {"tools": 5}, **headers) for path in ("/v1/messages", "/v1/responses", "/api/chat")
            )
            assert message.status_code == response.status_code == line.status_code == status
            assert message.json()["type"] == "error" and isinstance(message.json()["error"]["message"], str)
            assert {"message", "type", "param", "code"} <= set(response.json()["error"])
            assert isinstance(line.json()["error"], str)
        known = {"x-api-key": "secret"}
        assert locked.get("/v1/messages/batches", **known).json()["error"]["type"] == "not_found_error"
        missing = locked.post("/api/nothing", {}, **known).json()["error"]
        assert "no such path" in missing and "Ollama's clients without /v1" in missing
