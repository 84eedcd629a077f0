"""A model behind a server: what is asked of it, what its streams mean, and what goes wrong."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.openai_server import Server, delta, openai_server
from support.tiny_model import Tiny
from test_cli import glmrun, refused

from glmrun.chat.chunk import Chunk
from glmrun.chat.remote import RemoteModel
from glmrun.chat.request import ChatRequest
from quant.config import FLASH
from quant.errors import UserError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("GLMRUN_API_KEY", raising=False)
    with openai_server() as running:
        yield running


def said(model: RemoteModel, text: str, **options: object) -> tuple[str, str, Chunk]:
    """(answer, thinking, last chunk) to one message."""
    chunks = list(model.answer(ChatRequest.of([{"role": "user", "content": text}], **options)))  # type: ignore[arg-type]
    assert [chunk.finish_reason is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    return "".join(chunk.text for chunk in chunks), "".join(chunk.reasoning for chunk in chunks), chunks[-1]


def test_an_answer_with_thinking_and_counts(server: Server) -> None:
    model = RemoteModel(server.url)
    assert (model.name, model.n_ctx, model.path) == ("zai-org/GLM-4.7-Flash", 4096, f"zai-org/GLM-4.7-Flash at {server.url}")
    text, reasoning, last = said(model, "hello")
    assert (text, reasoning, last.finish_reason) == ("Hello\u2028 there 🙂", "Let me think.", "stop")
    assert (last.stats.n_prompt, last.stats.n_prefilled, last.stats.n_cached, last.stats.n_generated) == (11, 11, 4, 7)
    assert 0 < last.stats.prompt_seconds < 60 and 0 < last.stats.generate_seconds < 60
    assert model.count_tokens(ChatRequest([])) == 18


def test_what_is_asked_has_openais_names(server: Server) -> None:
    model = RemoteModel(server.url + "/", "GLM")
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "r", "token_ids": [1], "typed": "x"},
        {"role": "user", "content": "hello"},
    ]
    list(model.answer(ChatRequest(history)))
    assert server.requests[0] == {
        "model": "zai-org/GLM-4.7-Flash", "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
        "messages": [history[0], {"role": "assistant", "content": "b", "reasoning_content": "r", "reasoning": "r"}, history[2]],
    }  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    said(
        model, "hello", tools=tools, thinking=False, clear_thinking=False, max_tokens=9, temperature=0.5, top_p=None, top_k=3,
        repeat_penalty=1.1, seed=7,
    )  # fmt: skip
    asked = server.requests[1]
    assert asked["tools"] == tools and asked["chat_template_kwargs"] == {"enable_thinking": False, "clear_thinking": False}
    assert {key: asked[key] for key in asked if key not in server.requests[0]} == {
        "tools": tools, "chat_template_kwargs": asked["chat_template_kwargs"], "max_tokens": 9, "temperature": 0.5, "top_k": 3,
        "repeat_penalty": 1.1, "repetition_penalty": 1.1, "seed": 7,
    }  # fmt: skip
    said(model, "schema", json_schema={"type": "object"}, think_budget=5, stop=["END"])
    assert server.requests[2]["stop"] == ["END"]
    names = ("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens")  # of different servers
    assert [server.requests[2][name] for name in names] == [5, 5, 5]
    assert server.requests[2]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_server_that_refuses_what_it_does_not_know_is_asked_without_it(server: Server) -> None:
    server.unknown = {"return_progress", "stream_options"}
    model = RemoteModel(server.url)
    assert said(model, "hello")[0] == said(model, "hello")[0] == "Hello\u2028 there 🙂"
    assert [sorted(server.unknown & set(request)) for request in server.requests] == [
        ["return_progress", "stream_options"], ["stream_options"], [], [],
    ]  # fmt: skip
    server.unknown = {"temperature"}
    with pytest.raises(UserError, match="Unrecognized request argument supplied: temperature"):
        said(model, "hello", temperature=0.5)


def test_the_servers_template_is_asked(server: Server) -> None:
    server.scripts["left in"] = [delta(content="I think. "), delta(content="So.</think>Yes."), delta("stop")]
    server.scripts["as it is"] = [delta(content="Yes."), delta("stop")]
    opens = ["<think>"]
    server.beside["/apply-template"] = lambda body: {"prompt": f"[gMASK]<sop><|user|>{body['messages'][-1]['content']}{opens[0]}"}
    server.beside["/tokenize"] = lambda body: {"tokens": list(range(len(body.get("content", ""))))}  # llama-server's
    model = RemoteModel(server.url)
    assert model.prompt_text(ChatRequest([{"role": "user", "content": "Hi"}])) == "[gMASK]<sop><|user|>Hi<think>"
    assert model.count_tokens(ChatRequest([{"role": "user", "content": "Hi"}])) == len("[gMASK]<sop><|user|>Hi<think>")
    assert said(model, "left in")[:2] == ("Yes.", "I think. So.")
    assert said(model, "left in", thinking=False)[:2] == ("I think. So.Yes.", "")  # the tag is dropped, as everywhere
    opens[0] = ""
    chunks = RemoteModel(server.url).answer(ChatRequest([{"role": "user", "content": "as it is"}]))
    assert [chunk.text for chunk in chunks] == ["", "Yes.", ""]


def test_vllm_counts_messages(server: Server) -> None:
    server.beside["/tokenize"] = lambda body: {"count": 10 * len(body["messages"]), "max_model_len": 4096, "tokens": []}
    model = RemoteModel(server.url)
    assert [model.count_tokens(ChatRequest([{"role": "user", "content": "Hi"}] * n)) for n in (1, 3)] == [10, 30]


def test_tool_calls_come_in_pieces(server: Server) -> None:
    text, reasoning, last = said(RemoteModel(server.url), "call")
    assert (text, reasoning, last.finish_reason) == ("", "I call.", "tool_calls")
    assert last.tool_calls == [
        {"id": "call_a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}},
    ]
    _, _, last = said(RemoteModel(server.url), "unnumbered")
    assert last.tool_calls is not None and len({call["id"] for call in last.tool_calls}) == 2
    assert [call["function"] for call in last.tool_calls] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]


def test_calls_that_a_server_leaves_in_the_text_are_found(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}}}]
    text, _, last = said(RemoteModel(server.url), "written", tools=tools)
    assert text == "Hm." and last.finish_reason == "tool_calls" and last.tool_calls is not None
    assert [each["function"] for each in last.tool_calls] == [{"name": "get_weather", "arguments": '{"city": "Bonn"}'}]
    text, _, last = said(RemoteModel(server.url), "written")
    assert text.startswith("Hm.<tool_call>get_weather") and last.finish_reason == "stop"


def test_other_ways_to_answer(server: Server) -> None:
    model = RemoteModel(server.url)
    assert said(model, "tags")[:2] == ("y", "x")
    assert said(model, "length")[2].finish_reason == "length"
    text, reasoning, last = said(model, "whole")
    assert (text, reasoning, last.finish_reason, last.stats.n_generated) == ("All at once.", "Hm.", "stop", 7)


def test_the_model_and_the_address(server: Server) -> None:
    assert RemoteModel(server.url.removesuffix("/v1"), "other").name == "other:latest"
    assert RemoteModel(server.url + "/chat/completions", "other").n_ctx == FLASH.max_position_embeddings
    for name, words, kind in (("o", "can mean", "usage"), ("llama", "has no model llama; it has zai-org", "missing")):
        with pytest.raises(UserError, match=words) as error:
            RemoteModel(server.url, name)
        assert error.value.kind == kind
    server.models = None
    assert RemoteModel(server.url, "anything").name == "anything"
    with pytest.raises(UserError, match="lists no models"):
        RemoteModel(server.url)
    for url in ("localhost:8000", "ftp://x/v1", "http://", "http://x/v1?a=b", "http://[::1/v1"):
        with pytest.raises(UserError, match="is no address of a server"):
            RemoteModel(url)


def test_a_password_in_the_address_is_used_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMRUN_API_KEY", "")
    with openai_server() as server:
        server.key, server.scheme = "dXNlcjpwYXNz", "Basic"  # user:pass
        with pytest.raises(UserError, match="a key is wanted"):
            RemoteModel(server.url)
        model = RemoteModel(server.url.replace("//", "//user:pass@"))
        assert model.url == server.url and "pass" not in model.path and said(model, "hello")[0].startswith("Hello")


def test_a_key_comes_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with openai_server(key="secret") as server:
        monkeypatch.delenv("GLMRUN_API_KEY", raising=False)
        with pytest.raises(UserError, match=r"a key is wanted in GLMRUN_API_KEY \(HTTP 401\): Invalid API key"):
            RemoteModel(server.url)
        monkeypatch.setenv("GLMRUN_API_KEY", "wrong")
        with pytest.raises(UserError, match=r"the key in GLMRUN_API_KEY is refused \(HTTP 401\)") as error:
            RemoteModel(server.url)
        assert "wrong" not in str(error.value)
        monkeypatch.setenv("GLMRUN_API_KEY", "secret")
        assert said(RemoteModel(server.url), "hello")[0].startswith("Hello")
        monkeypatch.setenv("GLMRUN_API_KEY", "a\nb")
        with pytest.raises(UserError, match="no key has"):
            RemoteModel(server.url)


@pytest.mark.parametrize(
    ("text", "words", "kind"),
    [
        ("cut", "stopped in the middle of the answer", "failed"),
        ("torn", "stopped in the middle of the answer", "failed"),
        ("error", "the server: out of memory", "failed"),
        ("junk", "sends '{not json}'", "failed"),
        ("gone", "not found .HTTP 404.: The model `zai-org/GLM-4.7-Flash` does not exist", "missing"),
        ("too long", "HTTP 400: This model's maximum context length is 4096", "refused"),
        ("page", "text/html", "failed"),
    ],
)
def test_what_goes_wrong_is_a_line(server: Server, text: str, words: str, kind: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        said(RemoteModel(server.url), text)
    assert error.value.kind == kind and "\n" not in str(error.value)


def events(*said: Any, end: str = "\n\n", start: str = "data: ") -> bytes:
    return "".join(f"{start}{each if isinstance(each, str) else json.dumps(each)}{end}" for each in said).encode()


EVENTS, DONE = {"Content-Type": "text/event-stream"}, "[DONE]"
HELLO = [delta(content="Hel"), delta(content="lo")]
STREAMS = {
    "CRLF": (EVENTS, events(*HELLO, delta("stop"), DONE, end="\r\n\r\n")),
    "CR": (EVENTS, events(*HELLO, delta("stop"), DONE, end="\r\r")),
    "no [DONE]": (EVENTS, events(*HELLO, delta("stop"))),
    "[DONE] and no reason": (EVENTS, events(*HELLO, DONE)),
    "no blank behind the colon": (EVENTS, events(*HELLO, delta("stop"), start="data:")),
    "comments and pings": (EVENTS, b": WAIT\n\nevent: ping\ndata: \n\nretry: 5\n\n" + events(*HELLO, DONE)),
    "an object over several lines": (EVENTS, events(*HELLO) + b'data: {"choices":\ndata: []}\n\ndata: [DONE]\n\n'),
    "no type": ({"Content-Type": ""}, events(*HELLO, DONE)),
    "called text": ({"Content-Type": "Text/Plain; charset=utf-8"}, events(*HELLO, DONE)),
    "called JSON": ({"Content-Type": "application/json"}, events(*HELLO, DONE)),
    "compressed": (EVENTS | {"Content-Encoding": "gzip"}, gzip.compress(events(*HELLO, DONE))),
    "a mark in front": (EVENTS, b"\xef\xbb\xbf" + events(*HELLO, DONE)),
    "a mark in front, called JSON": ({"Content-Type": "application/json"}, b"\xef\xbb\xbf" + events(*HELLO, DONE)),
    "whole, a mark in front": (
        {"Content-Type": "application/json"},
        b"\xef\xbb\xbf" + json.dumps({"choices": [{"message": {"content": "Hello"}}]}).encode(),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_however_it_is_sent(server: Server, name: str) -> None:
    server.raw["x"] = STREAMS[name]
    assert said(RemoteModel(server.url), "x")[0] == "Hello"


def test_events_are_utf_8_whatever_is_said_of_them(server: Server) -> None:
    data = f"data: {json.dumps(delta(content='Grüße'), ensure_ascii=False)}\n\ndata: [DONE]\n\n".encode()
    server.raw["x"] = ({"Content-Type": "text/event-stream; charset=iso-8859-1"}, data)
    assert said(RemoteModel(server.url), "x")[0] == "Grüße"


@pytest.mark.parametrize(
    ("headers", "data", "words"),
    [
        (EVENTS, b'event: error\ndata: {"message": "no memory"}\n\n', "the server: no memory"),
        (EVENTS, events(*HELLO) + b"event: error\ndata: no memory\n\n", "the server: no memory"),
        (EVENTS, events(*HELLO, {"code": 500, "message": "worker died"}), "the server: worker died"),
        (EVENTS, events(*HELLO, {"error": [{"msg": "bad"}]}), "the server: .*bad"),
        (EVENTS, events("[" * 100_000), "expected an object"),
        (EVENTS | {"Content-Encoding": "gzip"}, events(*HELLO), "decompressing"),
        ({"Content-Type": "application/json"}, b'{"detail": "no quota"}', "the server: no quota"),
        ({"Content-Type": "application/json"}, b"", "expected an object"),
        ({"Content-Type": "application/x-ndjson"}, b'{"message": {}}\n', "sends application/x-ndjson; expected a stream"),
    ],
)
def test_an_error_inside_a_good_status_is_a_line(server: Server, headers: dict[str, str], data: bytes, words: str) -> None:
    server.raw["x"] = (headers, data)
    with pytest.raises(UserError, match=words) as error:
        said(RemoteModel(server.url), "x")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("listed", [[{"id": "m"}], {"data": [{"id": "m"}, None, "n", {"id": 3}]}])
def test_models_are_listed_in_other_shapes(server: Server, listed: Any) -> None:
    server.listed = listed
    assert RemoteModel(server.url).name == "m"


@pytest.mark.parametrize("listed", [{"data": 5}, {"data": None}, {"data": ["m"]}, {"models": [{"name": "m"}]}])
def test_a_model_is_named_where_none_is_listed(server: Server, listed: Any) -> None:
    server.listed = listed
    assert RemoteModel(server.url, "m").name == "m"
    with pytest.raises(UserError, match="lists no models"):
        RemoteModel(server.url)


def test_a_server_that_has_moved_is_named(server: Server) -> None:
    """The key goes to no address that nobody named."""
    server.moved = "https://example.com/v1/models"
    with pytest.raises(UserError, match=r"leads on to another address; name that one: https://example\.com/v1$"):
        RemoteModel(server.url)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match="no server answers there"):
        RemoteModel(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("text", ["slow", "silent"])
def test_cancelling_ends_the_answer_here_and_there(server: Server, text: str) -> None:
    model = RemoteModel(server.url)
    chunks = model.answer(ChatRequest([{"role": "user", "content": text}]))
    next(chunks)
    timer = threading.Thread(target=lambda: server.asked.wait(60) and model.cancel())
    timer.start()
    assert list(chunks)[-1].finish_reason == "cancelled"
    assert server.left.wait(10)
    timer.join()


def test_an_answer_is_cancelled_that_nobody_has_begun_to_read(server: Server) -> None:
    model = RemoteModel(server.url)
    chunks = model.answer(ChatRequest([{"role": "user", "content": "slow"}]))
    model.cancel()
    assert list(chunks)[-1].finish_reason == "cancelled"


def test_leaving_the_loop_frees_the_server(server: Server) -> None:
    chunks = RemoteModel(server.url).answer(ChatRequest([{"role": "user", "content": "slow"}]))
    assert next(chunk for chunk in chunks if chunk.text)
    chunks.close()  # type: ignore[attr-defined]
    assert server.left.wait(10)


def test_run_talks_to_a_server(server: Server) -> None:
    done = glmrun("run", "--url", server.url, "hello")
    assert (done.returncode, done.stdout.decode()) == (0, "Hello\u2028 there 🙂\n") and b"Let me think." in done.stderr
    answer = json.loads(glmrun("run", "--url", server.url, "other", "hello", "--json").stdout)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == (f"other:latest at {server.url}", 7)
    assert server.requests[-1]["model"] == "other:latest"
    assert glmrun("run", "--url", server.url, "schema", "--json-schema", '{"type": "object"}').stdout == b'{"a": 1}\n'
    done = glmrun("run", "--url", server.url, "prose", "--format", "json")
    assert done.returncode == 1 and b"not whole JSON" in done.stderr
    assert "the server decides about threads" in refused("run", "--url", server.url, "hello", "-t", "2", code=2)
    done = glmrun("run", "--url", server.url, "cut")
    assert (done.returncode, done.stdout) == (1, b"half an ans\n") and b"error: " in done.stderr and b"Traceback" not in done.stderr
    assert "no server answers" in refused("run", "--url", "http://127.0.0.1:9", "hello", code=1)


def test_the_setting_names_the_server(server: Server, tiny_gguf: Callable[..., Tiny]) -> None:
    mine = {**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_URL": server.url}
    assert glmrun("run", "hello", env=mine).stdout.decode() == "Hello\u2028 there 🙂\n"
    assert glmrun("chat", stdin=b"one\n", env=mine).stdout == b"You said: one\n"
    assert len(server.requests) == 2
    done = glmrun("run", "hello", "-t", "2", env=mine)
    assert done.returncode == 2 and b"GLMRUN_URL is set: the server decides about threads" in done.stderr
    done = glmrun("run", str(tiny_gguf().path), "hello", "-n", "1", env=mine)  # a file is on this machine
    assert done.returncode == 0 and len(server.requests) == 2
    done = glmrun("run", "hello", env=mine | {"GLMRUN_URL": "nowhere"})
    assert done.returncode == 2 and b"is no address of a server" in done.stderr


def test_chat_talks_to_a_server(server: Server) -> None:
    done = glmrun("chat", "--url", server.url, stdin=b"one\n/show model\n/context\n/prompt\nhello\n")
    assert (done.returncode, done.stdout.decode()) == (2, "You said: one\nHello\u2028 there 🙂\n")  # 2: /prompt could not be done
    assert [message["content"] for message in server.requests[-1]["messages"]] == ["one", "You said: one", "hello"]
    assert f"zai-org/GLM-4.7-Flash at {server.url}".encode() in done.stderr and b"of 4,096 tokens" in done.stderr
    assert b"only it knows the text" in done.stderr
    done = glmrun("chat", "--url", server.url, stdin=b"too long\n")
    assert done.returncode == 1 and b"maximum context length" in done.stderr
    assert "the server decides about ctx" in refused("chat", "--url", server.url, "-c", "4k", code=2)


def test_interrupting_a_remote_answer(server: Server) -> None:
    command = [sys.executable, "-m", "glmrun", "run", "--url", server.url, "slow"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.read(4) == b"tick"
    process.send_signal(2)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors and time.monotonic() - began < 30
    assert server.left.wait(10)


def test_no_kernels_are_loaded_for_a_server(server: Server) -> None:
    code = "import atexit, sys, glmrun.cli as c; atexit.register(lambda: print({'numba', 'llvmlite'} & set(sys.modules))); "
    code += f"c.main(['run', '--url', {server.url!r}, 'hello'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stdout.splitlines()[-1] == b"set()"
