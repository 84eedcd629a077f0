"""Requests as programs send them that nobody thought of: paths, encodings of bodies, forms of fields."""

import gzip
import json
import re
import socket
from typing import Any

import pytest
from support.served import Served, served

from glmrun.chat.chunk import Chunk, Logprob, Stats
from glmrun.chat.request import ChatRequest
from glmrun.engine.model import Model
from glmrun.server import ollama
from glmrun.server.anthropic import Messages
from glmrun.server.guard import Access, meant
from glmrun.server.interface import BadRequest
from glmrun.server.openai_chat import OpenAIChat
from glmrun.server.responses import Responses
from glmrun.server.service import Options

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "q"}]
SHORT = {"messages": QUESTION, "max_tokens": 1, "enable_thinking": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"), ("//", "/"), ("/v1/models/a//b/", "/v1/models/a/b"), ("/v1//chat/completions", CHAT), (CHAT + "/", CHAT),
        ("/v1/v1/v1/messages", "/v1/messages"), ("/v1/api/chat", "/api/chat"), ("//api/tags", "/api/tags"), ("/v1", "/v1"),
        ("/chat/completions", CHAT), ("/responses/x", "/v1/responses/x"), ("/models", "/v1/models"), ("/messages", "/v1/messages"),
        ("/modelsx", "/modelsx"), ("/v1/v1x", "/v1/v1x"), ("/health/", "/health"), ("/v1/metrics", "/v1/metrics"),
    ],
)  # fmt: skip
def test_base_urls_with_too_much_or_too_little(path: str, expected: str) -> None:
    assert meant(path) == expected


def test_a_path_that_is_forgiven_is_guarded_all_the_same(server: Served) -> None:
    assert server.post("/v1//v1/chat/completions/", SHORT).status_code == 200
    assert server.post("//chat/completions", SHORT, Origin="http://evil.example").status_code == 403


def test_a_name_or_a_page_that_is_not_allowed_is_told_that_it_can_be(nano: Model) -> None:
    """Programs in containers call this machine host.docker.internal, and pages are served from elsewhere."""
    name, page = {"Host": "host.docker.internal:8080"}, {"Origin": "http://localhost:3000"}
    with served(nano) as found:
        for headers in (name, page):
            refused = found.get("/v1/models", **headers)
            assert refused.status_code == 403 and "started to allow" in refused.json()["error"]["message"]
    with served(nano, Options(Access(hosts=("host.docker.internal",), origins=("http://localhost:3000",)))) as found:
        assert [found.get("/v1/models", **headers).status_code for headers in (name, page)] == [200, 200]


@pytest.mark.parametrize(("head", "status"), [("HTTP/1.0\r\n", 200), ("HTTP/1.1\r\n", 400), ("HTTP/1.0\r\nHost: evil\r\n", 403)])
def test_the_oldest_http_has_no_host(server: Served, head: str, status: int) -> None:
    body = json.dumps({**SHORT, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(30)
        client.sendall(f"POST {CHAT} {head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert int(answer.split()[1]) == status
    if status == 200:  # the end of the connection is the end of the answer
        assert b"chunked" not in answer and answer.endswith(b"data: [DONE]\n\n")


def test_what_others_would_rather_speak_leaves_no_advice_in_the_log(
    server: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Java asks for HTTP/2 in its first request to each server; a log of JSON stays one, and nobody has to install anything."""
    body = json.dumps(SHORT).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n"
    for sent, status in ((head + upgrade + body, b"HTTP/1.1 200 "), (b"\x16\x03\x01\r\n\r\n", b"HTTP/1.1 400 ")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(sent)
            assert client.recv(13) == status
    assert not caplog.records and not capfd.readouterr().err


def test_bodies_in_other_dress(server: Served) -> None:
    plain = json.dumps(SHORT).encode()
    assert server.post(CHAT, b"\xef\xbb\xbf" + plain).status_code == 200
    assert server.post(CHAT, plain, **{"Content-Encoding": "identity"}).status_code == 200
    packed = server.post(CHAT, gzip.compress(plain), **{"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "without Content-Encoding" in packed.json()["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (json.dumps(json.dumps(SHORT)), "encoded twice"),
        ('{"messages": [], "temperature": 1e999}', "1e999 is larger"),
        ('{"messages": [{"content": -1e400}]}', "larger"),
    ],
)
def test_bodies_that_no_json_could_repeat(server: Served, raw: str, words: str) -> None:
    answer = server.post(CHAT, raw.encode())
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_whole_number_may_be_written_with_a_point(server: Served) -> None:
    """Lua, Java's Gson and Python's floats write 2.0 where 2 is meant."""
    numbers = '"max_tokens": 2.0, "n": 1.0, "seed": 1e3, "top_k": 3.0'
    sent = {
        CHAT: f'{{"messages": {json.dumps(QUESTION)}, {numbers}, "logprobs": true, "top_logprobs": 1.0, "thinking_budget": -1.0}}',
        "/v1/completions": f'{{"prompt": [5.0, 6.0], {numbers}, "logprobs": 1.0, "best_of": 1.0}}',
        "/v1/messages": f'{{"messages": {json.dumps(QUESTION)}, "max_tokens": 2.0, "top_k": 3.0}}',
        "/v1/responses": '{"input": "q", "max_output_tokens": 2.0, "top_logprobs": 1.0}',
        "/api/generate": '{"prompt": "q", "options": {"num_predict": 2.0, "seed": 1e3, "top_k": 3.0, "repeat_last_n": 4.0}}',
        "/detokenize": '{"tokens": [5.0]}',
    }
    assert {path: server.post(path, body.encode()).status_code for path, body in sent.items()} == dict.fromkeys(sent, 200)
    half = server.post(CHAT, {"messages": QUESTION, "max_tokens": 2.5})
    assert half.status_code == 400 and half.json()["error"]["param"] == "max_tokens"


def test_null_is_as_good_as_nothing_in_every_interface() -> None:
    """Kotlin, Java and C# write every field that their classes know."""
    nothing = dict.fromkeys(("id", "name", "call_id", "tool_use_id", "thinking", "refusal", "summary", "status", "tool_calls"))
    blocks = [nothing | {"type": "text", "text": "q"}]
    said = Messages().asked({"messages": [{"role": "user", "content": blocks}], "system": None, "tools": None}, "m").requests[0]
    assert said.messages == [{"role": "user", "content": "q"}]
    item = nothing | {"type": None, "role": "user", "content": [nothing | {"type": "input_text", "text": "q"}]}
    tools = [{"type": "web_search", "name": None}, {"type": "function", "name": "f", "parameters": None}]
    choice = {"type": "auto", "name": None, "mode": None, "tools": None}
    heard = Responses().asked({"input": [item], "tools": tools, "tool_choice": choice}, "m").requests[0]
    assert heard.messages == [{"role": "user", "content": "q"}] and len(heard.tools or ()) == 1
    assert chat(messages=[nothing | {"role": "user", "content": "q"}]).messages[0]["content"] == "q"
    with pytest.raises(BadRequest, match=r"^messages: Field required"):
        Messages().asked({"messages": None}, "m")


def test_an_advice_to_programmers_is_none_for_clients(server: Served) -> None:
    message = server.post(CHAT, b'{"seed": ' + b"1" * 5000 + b"}").json()["error"]["message"]
    assert "5000 digits" in message and "sys." not in message


def chat(**body: Any) -> Any:
    return OpenAIChat().asked({"messages": QUESTION, **body}, "glm").requests[0]


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        ("any", "required", "fg"), ({"type": "auto"}, "auto", "fg"), ({"type": "required"}, "required", "fg"),
        ({"type": "none"}, "none", "fg"), ({"type": "tool", "name": "g"}, "g", "fg"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS[1:]}}, "required", "g"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, "auto", "f"),
    ],
    ids=str,
)  # fmt: skip
def test_a_choice_of_tools_in_all_its_forms(choice: Any, expected: str, names: str) -> None:
    asked = chat(tools=TOOLS, tool_choice=choice)
    assert (asked.tool_choice, "".join(tool["function"]["name"] for tool in asked.tools)) == (expected, names)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "robot", "content": "x"}, "has the role 'robot'"), ({"content": "x"}, "has the role None"),
        ({"role": "user", "content": 5}, "has the content 5"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "has the part"),
        ({"role": "assistant", "content": "", "reasoning": {}}, "has the reasoning"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}, "tool call 0 of message 1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_message_is_named_with_its_own_index(message: dict[str, Any], words: str) -> None:
    """A schema beside tools stands in a message of its own in front of the client's."""
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    with pytest.raises(BadRequest, match=re.escape(words)) as refused:
        OpenAIChat().asked({"messages": [*QUESTION, message], "tools": TOOLS, "response_format": format}, "glm")
    assert refused.value.param == "messages.1" and "message 1" in str(refused.value)


def test_a_schema_under_other_servers_names() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for given in (
        {"json_schema": schema}, {"guided_json": schema}, {"guided_json": json.dumps(schema)},
        {"structured_outputs": {"json": schema}}, {"response_format": {"type": "text"}, "guided_json": schema},
    ):  # fmt: skip
        assert OpenAIChat().asked({"messages": QUESTION, **given}, "glm").requests[0].json_schema == schema
    for name, value in (("guided_json", "{"), ("structured_outputs", {"choice": ["a"]}), ("structured_outputs", {"json": 5})):
        with pytest.raises(BadRequest) as refused:
            OpenAIChat().asked({"messages": QUESTION, name: value}, "glm")
        assert refused.value.param and refused.value.param.startswith(name)


@pytest.mark.parametrize("name", ["grammar", "json_schema", "guided_choice", "guided_json", "structured_outputs"])
def test_what_would_hold_an_answer_elsewhere_is_not_passed_over(server: Served, name: str) -> None:
    for path, body in ((CHAT, SHORT), ("/v1/completions", {"prompt": "q", "max_tokens": 1})):
        refused = server.post(path, {**body, name: ["a"]})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == name
        assert server.post(path, {**body, name: None}).status_code == 200
    assert server.post(CHAT, {**SHORT, "modalities": ["text", "audio"]}).json()["error"]["param"] == "modalities"
    assert server.post(CHAT, {**SHORT, "modalities": ["text"]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": 5, "tools": TOOLS}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"functions": [TOOLS[0]["function"]]}, "functions"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_form_that_means_nothing_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(**body)
    assert refused.value.param == param


def test_parts_that_other_interfaces_call_otherwise_are_read() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm "}, {"type": "reasoning", "text": "so"}, {"type": "output_text", "text": "a"},
        {"type": "refusal", "refusal": "b"}, {"type": "text", "text": "c"},
    ]  # fmt: skip
    custom = {"id": "1", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    history = [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]
    history.append({"role": "assistant", "content": parts, "tool_calls": [custom]})
    user, assistant = chat(messages=history).messages
    assert user["content"] == [{"type": "text", "text": "q"}]
    assert "".join(part["text"] for part in assistant["content"]) == "abc" and assistant["reasoning_content"] == "hm so"
    assert assistant["tool_calls"][0]["function"] == {"name": "patch", "arguments": {"input": "x"}}
    kept = chat(messages=[{"role": "assistant", "content": parts, "reasoning_content": "own"}]).messages[0]
    assert kept["reasoning_content"] == "own"


def test_a_schema_without_a_name_around_it() -> None:
    schema = {"type": "object", "required": ["n"]}
    assert chat(response_format={"type": "json_schema", "schema": schema}).json_schema == schema


@pytest.mark.parametrize(("body", "param"), [({"suffix": "x"}, "suffix"), ({"best_of": 3, "n": 2}, "best_of")], ids=str)
def test_completions_say_what_they_do_not_do(server: Served, body: dict[str, Any], param: str) -> None:
    asks = {"prompt": "The", "max_tokens": 1}
    assert server.post("/v1/completions", {**asks, **body}).json()["error"]["param"] == param
    assert server.post("/v1/completions", {**asks, "suffix": None, "best_of": 1}).status_code == 200


def test_a_conversation_that_was_begun_with_a_servers_tools() -> None:
    blocks: list[Any] = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "found", "citations": []},
    ]
    said = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "doc"}]}}
    history = [{"role": "user", "content": [said]}, {"role": "assistant", "content": blocks}, *QUESTION]
    messages = Messages().asked({"messages": history}, "glm").requests[0].messages
    assert [message["content"] for message in messages] == ["doc", "found", "q"]


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"^max_tokens: ") as refused:
        Messages().asked({"messages": QUESTION, "max_tokens": -3}, "glm")
    assert refused.value.param == "max_tokens"


def test_ollama_tells_probabilities() -> None:
    asked = ollama.OllamaChat().asked({"messages": QUESTION, "logprobs": True, "top_logprobs": 1, "options": {"top_k": -1}}, "glm")
    request = asked.requests[0]
    assert request.logprobs == 1 and request.sampling == {"top_k": 0}
    assert ollama.OllamaGenerate().asked({"prompt": "q"}, "glm").requests[0].logprobs is None
    chunk = Chunk(text="A", stats=Stats(), logprobs=[Logprob(5, b"A", -0.5, [(5, b"A", -0.5)])])
    [line] = asked.writer.push(0, chunk)
    entry = {"token": "A", "logprob": -0.5, "bytes": [65]}
    assert json.loads(line)["logprobs"] == [entry | {"top_logprobs": [entry]}]
    assert asked.writer.whole([[chunk, Chunk(finish_reason="stop", stats=Stats())]])["logprobs"] == json.loads(line)["logprobs"]


def test_anthropics_clients_list_the_model(server: Served) -> None:
    listed = server.get("/v1/models").json()
    model = listed["data"][0]
    assert model["type"] == "model" and model["display_name"] == model["id"] == listed["first_id"] == listed["last_id"]
    assert model["created_at"].startswith("20") and listed["has_more"] is False


BEGUN = [{"role": "user", "content": "What is 17 + 25?"}, {"role": "assistant", "content": "Here it is:"}]


def test_an_answer_that_the_client_began_goes_on(server: Served, nano: Model) -> None:
    ids = nano.chat_format.encode(ChatRequest(BEGUN), add_generation_prompt=False)
    expected = "".join(chunk.text for chunk in nano.generate(ids, max_tokens=8, temperature=0))
    assert expected and not expected.startswith("Here")
    message = server.post("/v1/messages", {"messages": BEGUN, "max_tokens": 8, "temperature": 0}).json()
    assert message["content"] == [{"type": "text", "text": expected}] and message["usage"]["output_tokens"] == 8
    line = server.post("/api/chat", {"messages": BEGUN, "stream": False, "options": {"num_predict": 8, "temperature": 0}}).json()
    assert line["message"] == {"role": "assistant", "content": expected}
    asks = {"messages": BEGUN, "max_tokens": 8, "temperature": 0}
    for flag in ({"continue_final_message": True}, {"messages": [BEGUN[0], BEGUN[1] | {"prefix": True}]}):
        choice = server.post(CHAT, {**asks, **flag}).json()["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": expected}
    prompts = [server.post("/apply-template", asks | flag).json()["prompt"] for flag in ({}, {"continue_final_message": True})]
    assert prompts[0] == prompts[1] + "<|assistant|><think>"  # OpenAI's interface answers once more unless it is asked to go on


def test_what_is_no_beginning_is_not_continued(server: Served) -> None:
    for body in ({"messages": QUESTION}, {"messages": BEGUN, "response_format": {"type": "json_object"}}):
        refused = server.post(CHAT, {**body, "continue_final_message": True}).json()["error"]
        assert refused["param"] == "continue_final_message"
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 5}, "max_tokens": 3}
    assert server.post("/v1/messages", {"messages": BEGUN, **thinking}).json()["content"][0]["type"] == "thinking"


def test_a_schema_that_allows_nothing_is_the_clients_fault(server: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    refused = server.post(CHAT, {**SHORT, "response_format": form})
    assert refused.status_code == 400 and "leaves nothing" in refused.json()["error"]["message"]
    form["json_schema"] = {"name": "x", "schema": {"type": "string", "pattern": "(("}}
    assert "unclosed group" in server.post(CHAT, {**SHORT, "response_format": form}).json()["error"]["message"]
