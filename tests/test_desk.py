"""Places, rows and ends of answers: what a server does with clients that come, wait, go away and never read."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.served import data_of, served

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.server import desk
from glmrun.server.meters import Meters
from glmrun.server.service import Options
from quant.errors import UserError

CHAT = "/v1/chat/completions"
STATS = Stats(n_prompt=5, n_cached=2, n_drafted=7, n_accepted=3)


@dataclass
class Steps:
    """A model whose answers are made of what the question says: words, `wait`, `fail`, `break`, `silence`."""

    path: Path = Path("steps.gguf")
    name: str = "steps"
    n_ctx: int = 100
    go_on: threading.Event = field(default_factory=threading.Event)
    begun: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        return self._answer(request.messages[-1]["content"])

    def _answer(self, text: str) -> Iterator[Chunk]:
        self.begun.append(text)
        try:
            yield Chunk(stats=STATS)
            for word in text.split():
                if word == "wait":
                    while not self.go_on.wait(0.01):
                        yield Chunk(stats=STATS)
                elif word == "silence":
                    self.go_on.wait(20)
                elif word == "fail":
                    raise UserError("the file has been changed")
                elif word == "break":
                    raise ZeroDivisionError
                else:
                    yield Chunk(text=word, token=1, stats=STATS)
            yield Chunk(finish_reason="stop", stats=STATS)
        finally:
            self.closed.append(text)


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def connected(port: int, text: str, stream: bool) -> socket.socket:
    """A client that has asked and reads nothing."""
    sent = json.dumps(body(text, stream=stream)).encode()
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(sent), sent))
    return client


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_place_of_a_running_and_of_a_waiting_answer(stream: bool) -> None:
    model = Steps()
    with served(model, Options(n_places=1)) as server:
        running = connected(server.port, "wait one", stream)
        until(lambda: model.begun == ["wait one"])
        waiting = connected(server.port, "two", stream)
        until(lambda: len(server.service.desk.jobs) == 2)
        waiting.close()
        until(lambda: len(server.service.desk.jobs) == 1)
        running.close()
        until(lambda: not server.service.desk.jobs)
        assert model.closed == ["wait one"] and model.begun == ["wait one"]  # the one that waited never began
        assert server.post(CHAT, body("three")).json()["choices"][0]["message"]["content"] == "three"
    assert [record.gone for record in server.records] == [True, True, False]


def test_disconnects_at_random_moments_leave_nothing_behind() -> None:
    model = Steps()
    model.go_on.set()
    with served(model, Options(n_places=3, n_waiting=100)) as server:
        before = threading.active_count()
        for i in range(100):
            client = connected(server.port, "word " * (i % 7 * 40 + 1), stream=i % 2 == 0)
            if i % 3:
                client.recv(i % 50 + 1)
            client.close()
        until(lambda: not server.service.desk.jobs)
        assert server.post(CHAT, body("after")).json()["choices"][0]["message"]["content"] == "after"
        assert threading.active_count() <= before + 3 + 32  # places, and at most so many threads that read bodies
        assert sorted(model.begun) == sorted(model.closed)


def test_a_full_row_is_refused_with_when_to_ask_again() -> None:
    model = Steps()
    with served(model, Options(n_places=1, n_waiting=1)) as server:
        clients = [connected(server.port, "wait", True)]
        until(lambda: model.begun == ["wait"])
        clients.append(connected(server.port, "wait", True))
        until(lambda: len(server.service.desk.jobs) == 2)
        refused = server.post(CHAT, body("x"))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.get("/health").status_code == 200
        model.go_on.set()
        until(lambda: not server.service.desk.jobs)
        assert server.post(CHAT, body("x")).status_code == 200
        for client in clients:
            client.close()


def test_those_that_wait_are_answered_in_order() -> None:
    model = Steps()
    with served(model, Options(n_places=1)) as server:
        clients = [connected(server.port, "wait", False)]
        until(lambda: model.begun == ["wait"])
        for i in range(5):
            clients.append(connected(server.port, f"number{i}", False))
            until(lambda i=i: len(server.service.desk.jobs) == i + 2)
        model.go_on.set()
        until(lambda: not server.service.desk.jobs)
        assert model.begun == ["wait", *(f"number{i}" for i in range(5))]
        for client in clients:
            client.close()


def test_an_answer_that_takes_too_long_ends_with_what_is_there() -> None:
    with served(Steps(), Options(seconds=0.05)) as server:
        events = server.events(CHAT, body("some words wait never"))
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "somewords"
        assert events[-2]["choices"][0]["finish_reason"] == "length" and events[-1] == "[DONE]"


@pytest.mark.parametrize("word", ["fail", "break"])
def test_an_error_behind_written_words_is_an_end_and_before_them_an_error(word: str, caplog: pytest.LogCaptureFixture) -> None:
    with served(Steps()) as server:
        events = server.events(CHAT, body(f"some {word}", n=2))
        ends = [e["choices"][0]["finish_reason"] for e in events[1:-1]]
        assert [end for end in ends if end] == ["length", "length"] and ends[-1] and events[-1] == "[DONE]"
        events = server.events(CHAT, body(word))
        assert events[-1] == "[DONE]" and "error" in events[-2]
        whole = server.post(CHAT, body(f"some {word}"))
        assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"
        assert "ZeroDivision" not in whole.text
    assert [record.status for record in server.records] == [500, 500, 500]


def test_silence_is_filled_with_real_events_and_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PULSE_SECONDS", 0.02)
    monkeypatch.setattr("glmrun.server.reply.STATUS_SECONDS", 0.02)
    model = Steps()
    with served(model) as server:
        threading.Timer(0.5, model.go_on.set).start()
        events = server.events(CHAT, body("silence end"))
        empty = [e for e in events[1:-1] if e["choices"][0]["delta"] == {} and e["choices"][0]["finish_reason"] is None]
        assert empty and all(e["object"] == "chat.completion.chunk" for e in empty)
        model.go_on.clear()
        threading.Timer(0.5, model.go_on.set).start()
        whole = server.post(CHAT, body("silence end"))
        assert whole.text.startswith(" ") and whole.json()["choices"][0]["message"]["content"] == "end"


def test_a_server_that_ends_lets_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmrun.server.listen.GRACE_SECONDS", 0.1)
    model = Steps()
    with served(model) as server:
        client = connected(server.port, "some wait", True)
        until(lambda: model.begun == ["some wait"])
    text = b""
    while piece := client.recv(1 << 16):
        text += piece
    lines = [line for line in text.decode().split("\r\n") if line.startswith("data: ")]
    assert data_of(lines[-2].strip())["choices"][0]["finish_reason"] == "length" and lines[-1].strip() == "data: [DONE]"
    assert model.closed == ["some wait"]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_had_not_begun_is_an_error_and_no_empty_answer(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents take an empty answer that reached its limit for one, and ask again at once."""
    monkeypatch.setattr("glmrun.server.listen.GRACE_SECONDS", 0.1)
    model = Steps()
    with served(model, Options(n_places=1)) as server:
        running = connected(server.port, "some wait", True)
        until(lambda: model.begun == ["some wait"])
        waiting = connected(server.port, "two", stream)
        until(lambda: len(server.service.desk.jobs) == 2)
    for client, words in ((running, "length"), (waiting, "the server is ending")):
        text = b""
        while piece := client.recv(1 << 16):
            text += piece
        assert words in text.decode() and (stream or client is running or b" 429 " in text.split(b"\r\n")[0])
        assert (b'"length"' in text) == (client is running)
    assert model.begun == ["some wait"]
    with served(Steps(), Options(seconds=0.05)) as server:
        late = server.post(CHAT, body("wait", stream=stream))
        assert "no answer had begun after 0.05 s" in late.text and "length" not in late.text
        assert stream or (late.status_code, late.headers["retry-after"]) == (429, "5")
    assert [record.status for record in server.records] == [429]


def test_an_answer_for_which_no_thread_starts_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("glmrun-answer"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with served(Steps()) as server:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", limited)
            refused = server.post(CHAT, body("one"))
        assert refused.status_code == 429 and refused.headers["retry-after"] and not server.service.desk.jobs
        assert server.post(CHAT, body("two")).json()["choices"][0]["message"]["content"] == "two"


def test_heads_that_do_not_arrive_end_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmrun.server.listen.HEAD_SECONDS", 0.3)
    with served(Steps()) as server:
        silent, dripping = (socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2))
        dripping.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += dripping.recv(1 << 16)
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.05):
                try:
                    dripping.sendall(b"G")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert silent.recv(1) == b""
            with contextlib.suppress(ConnectionResetError):
                assert dripping.recv(1) == b""
        finally:
            ended.set()
            thread.join()


def test_the_numbers_are_those_of_the_answers() -> None:
    with served(Steps(), Options(name="m", metrics_prefix="vllm:")) as server:
        server.post(CHAT, body("one", n=2))
        server.post(CHAT, body("one", temperature=-1))
        until(lambda: len(server.records) == 2)
        lines = server.get("/metrics").text.splitlines()
    for line in (
        'vllm:prompt_tokens_total{model_name="m"} 10.0', 'vllm:prefix_cache_hits_total{model_name="m"} 4.0',
        'vllm:spec_decode_num_draft_tokens_total{model_name="m"} 14.0',
        'vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 6.0',
        'vllm:request_success_total{finished_reason="stop",model_name="m"} 2.0', "vllm:num_requests_running 0.0",
        'vllm:e2e_request_latency_seconds_count{model_name="m"} 1.0',
        'vllm:http_requests_total{path="/v1/chat/completions",status="400"} 1.0',
    ):  # fmt: skip
        assert line in lines, line
    with pytest.raises(UserError, match="prefix"):
        Meters("a b", server.service.desk)
