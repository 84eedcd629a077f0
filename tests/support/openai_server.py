"""A server with OpenAI's interface on loopback, for tests: what it answers depends on the last message."""

import json
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from glmrun.server.page import page

MODELS: list[dict[str, Any]] = [{"id": "zai-org/GLM-4.7-Flash", "max_model_len": 4096}, {"id": "other:latest"}]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}],
    }


def call(index: int | None, name: str = "", arguments: str = "", identity: str = "") -> dict[str, Any]:
    function = ({"name": name} if name else {}) | ({"arguments": arguments} if arguments else {})
    return ({} if index is None else {"index": index}) | ({"id": identity} if identity else {}) | {"function": function}


HELLO = [
    delta(role="assistant", content=""), delta(reasoning_content="Let me "), delta(reasoning_content="think."),
    delta(content="Hel"), delta(content="lo\u2028 there 🙂"), delta("stop"), {"choices": [], "usage": USAGE},
]  # fmt: skip
CALLS = [
    delta(role="assistant", content=None, reasoning="I call."),
    delta(tool_calls=[call(0, "get_weather", "", "call_a")]), delta(tool_calls=[call(0, arguments='{"city": ')]),
    delta(tool_calls=[call(0, arguments='"Bonn"}'), call(1, "get_weather", '{"city":"Rome"}', "call_b")]), delta("tool_calls"),
]  # fmt: skip
UNNUMBERED = [
    delta(tool_calls=[call(None, "f", '{"a"')]), delta(tool_calls=[call(None, arguments=": 1}")]),
    delta(tool_calls=[call(None, "g")]), delta("stop"),
]  # fmt: skip
SCRIPTS: dict[str, list[dict[str, Any]]] = {
    "hello": HELLO,
    "call": CALLS,
    "unnumbered": UNNUMBERED,
    "tags": [delta(content="<thi"), delta(content="nk>\nx</think>\n\ny"), delta("stop")],
    "written": [
        delta(content="Hm.<tool"),
        delta(content="_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</arg_value></tool_call>"),
        delta("stop"),
    ],
    "escapes": [delta(content="\x1b[31mred"), delta("stop")],
    "length": [delta(content="cut"), delta("length")],
    "cut": [delta(content="half an ans")],
    "torn": [delta(content="half an ans")],
    "error": [delta(content="a"), {"error": {"message": "out of\nmemory", "code": 500}}],
    "schema": [delta(content='{"a": 1}'), delta("stop")],
    "prose": [delta(content="no JSON"), delta("stop")],
}


@dataclass
class Server:
    """What was asked of it; `left` is set when a client went away before its answer was over."""

    url: str = ""
    key: str = ""
    scheme: str = "Bearer"
    requests: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    models: list[dict[str, Any]] | None = field(default_factory=lambda: MODELS)
    beside: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)  # path -> what it answers
    listed: Any = None  # what it says of its models in the place of a list of `models`
    moved: str = ""  # where its models have moved
    raw: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)  # message -> (headers, answer) as they are sent
    unknown: set[str] = field(default_factory=set)  # fields for which it refuses
    scripts: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: dict(SCRIPTS))


@contextmanager
def openai_server(key: str = "") -> Iterator[Server]:
    """A running server; with a key it refuses whoever does not send it."""
    state = Server(key=key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (
                {"Content-Type": "application/json"} | (headers or {}) | {"Content-Length": str(len(data))}
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _refused(self) -> bool:
            if state.key and self.headers.get("Authorization") != f"{state.scheme} {state.key}":
                self._send(401, {"error": {"message": "Invalid API key", "type": "authentication_error"}})
                return True
            return False

        def do_GET(self) -> None:
            if self.path == "/":
                self._send(200, *page())
                return
            if self._refused():
                return
            if state.moved:
                self._send(308, b"", {"Location": state.moved})
            elif state.listed is not None:
                self._send(200, state.listed)
            elif self.path != "/v1/models" or state.models is None:
                self._send(404, {"detail": "Not Found"})
            else:
                self._send(200, {"object": "list", "data": state.models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._refused():
                return
            if self.path != "/v1/chat/completions":
                beside = state.beside.get(self.path)
                self._send(404 if beside is None else 200, {"detail": "Not Found"} if beside is None else beside(body))
                return
            state.requests.append(body)
            state.asked.set()
            if unknown := state.unknown & set(body):
                self._send(400, {"error": {"message": f"Unrecognized request argument supplied: {min(unknown)}"}})
                return
            last = body["messages"][-1]
            said = "hello" if last["role"] == "tool" else last["content"]
            if said in state.raw:
                headers, data = state.raw[said]
                self._send(200, data, headers)
            elif said == "gone":
                self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            elif said == "too long":
                self._send(400, {"error": {"message": "This model's maximum context length is 4096 tokens."}})
            elif said == "whole":
                message = {"role": "assistant", "content": "All at once.", "reasoning_content": "Hm."}
                self._send(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE})
            elif said == "page":
                self._send(200, b"<html>hello</html>", {"Content-Type": "text/html"})
            elif said == "silent":  # reads a long prompt: nothing is sent, not even headers
                while not self._client_left(0.05):
                    pass
                state.left.set()
            else:
                self._stream(said)

        def _stream(self, said: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._piece(": keep-alive\n\n")
                if said == "slow":
                    while not self._client_left(0.02):
                        self._piece(f"data: {json.dumps(delta(content='tick '))}\n\n")
                    raise ConnectionResetError
                if said == "junk":
                    self._piece("data: {not json}\n\n")
                for each in state.scripts.get(said, [delta(content=f"You said: {said}"), delta("stop")]):
                    self._piece(f"data: {json.dumps(each, ensure_ascii=False)}\n\n")
                if said == "torn":
                    self.wfile.write(b"ff\r\ndata: {")
                    self.close_connection = True
                    return
                if said != "cut":
                    self._piece("data: [DONE]\n\n")
                self._piece("")
            except OSError:
                state.left.set()

        def _piece(self, text: str) -> None:
            """One chunk of the transfer; an empty one ends it."""
            data = text.encode()
            self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")

        def _client_left(self, seconds: float) -> bool:
            readable, _, _ = select.select([self.connection], [], [], seconds)
            return bool(readable) and self.connection.recv(1) == b""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
