"""What many and bad clients do to a server: disconnects, crowds, slow readers, half-open connections, malformed bodies."""

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from test_hostile_bodies import damage

from support.served import Served

PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/v1/completions")
_QUESTIONS = [f"What is {7 * i} + {i}?" for i in range(8)]


def body(i: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _QUESTIONS[i % 8]}], "temperature": 0, "max_tokens": 8, **more}


def answer(server: Served, i: int) -> str:
    """What client i gets, in words."""
    whole = httpx2.post(server.url + PATHS[0], json=body(i, reasoning_effort="none"), timeout=300)
    assert whole.status_code == 200, whole.text
    return str(whole.json()["choices"][0]["message"]["content"])


def asked(server: Served, i: int, stream: bool = True) -> socket.socket:
    """A connection on which client i has asked."""
    sent = json.dumps(body(i, stream=stream)).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (PATHS[0].encode(), len(sent), sent))
    return client


def disconnects(server: Served, n: int) -> None:
    """Clients that go away at random moments, three at a time."""

    def leave(i: int) -> None:
        rng = random.Random(i)
        with contextlib.suppress(OSError), asked(server, i, rng.random() < 0.7) as client:
            client.settimeout(rng.uniform(0.001, 0.3))
            client.recv(rng.randrange(1, 4000))
            time.sleep(rng.choice((0, 0, rng.uniform(0, 0.1))))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(leave, range(n)))


def crowd(server: Served, n: int) -> list[str]:
    """What so many clients get that come at once."""
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda i: answer(server, i), range(n)))


def beside(server: Served, clients: list[socket.socket], each: Callable[[socket.socket], Any]) -> list[str]:
    """What 8 clients get beside others, to which each() is done all the time."""
    over = threading.Event()

    def bother() -> None:
        while not over.wait(0.02):
            for client in clients:
                with contextlib.suppress(OSError):
                    each(client)

    thread = threading.Thread(target=bother)
    thread.start()
    try:
        return [answer(server, i) for i in range(8)]
    finally:
        over.set()
        thread.join()
        for client in clients:
            client.close()


def slow_readers(server: Served, n: int) -> list[str]:
    """Beside clients that read some bytes now and then."""
    return beside(server, [asked(server, i) for i in range(n)], lambda client: client.recv(3))


def half_open(server: Served, n: int) -> list[str]:
    """Beside connections on which half a head or half a body has come, and then single bytes."""
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(n)]
    for i, client in enumerate(clients):
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + b"Content-Length: 9999\r\n\r\n{" * (i % 2))
    return beside(server, clients, lambda client: client.sendall(b" "))


def malformed(server: Served, n: int) -> dict[int, int]:
    """{status: how often} of damaged bodies: bytes changed, cut, fields of other types. A 200 is one that could be answered."""
    statuses: dict[int, int] = {}

    def send(i: int) -> int:
        rng = random.Random(i)
        asks = body(i, max_tokens=1)
        asks |= {"input": _QUESTIONS[i % 8], "prompt": _QUESTIONS[i % 8], "tools": [], "options": {"num_predict": 1}}
        asks["max_output_tokens"] = 1
        damage(asks, rng)
        asks = {"max_tokens": 1, **asks} if isinstance(asks, dict) else asks
        raw = bytearray(json.dumps(asks).encode())
        for _ in range(rng.choice((0, 0, 1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        del raw[len(raw) if rng.random() < 0.5 else rng.randrange(len(raw)) :]
        found = clients[i % 2].post(server.url + PATHS[i % len(PATHS)], content=bytes(raw), timeout=300)
        if found.status_code != 200:
            error = found.json()["error"]
            text = error if isinstance(error, str) else error["message"]
            assert text and "\n" not in text and "Traceback" not in text, text
        return found.status_code

    with httpx2.Client() as one, httpx2.Client() as two, ThreadPoolExecutor(2) as pool:
        clients = (one, two)
        for status in pool.map(send, range(n)):
            statuses[status] = statuses.get(status, 0) + 1
    return statuses


def idle(server: Served) -> bool:
    """Whether no answer is made or waits, within some seconds."""
    end = time.monotonic() + 20
    while server.service.desk.jobs and time.monotonic() < end:
        time.sleep(0.01)
    return not server.service.desk.jobs
