"""A server in this process, on a free port, and a client for it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from glmrun.server.listen import bound, listening
from glmrun.server.reply import Record
from glmrun.server.service import Options, Service


@dataclass
class Served:
    """A running server; records of what it answered."""

    service: Service
    port: int
    records: list[Record] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.post(self.url + path, content=content, headers=headers, timeout=60)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=headers, timeout=60)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The data of the events of a stream; its last one is the text [DONE]."""
        answer = self.post(path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [data_of(piece) for piece in answer.text.split("\n\n") if piece]


def data_of(piece: str) -> Any:
    assert piece.startswith("data: ") and "\n" not in piece and piece != "data: "
    text = piece.removeprefix("data: ")
    return text if text == "[DONE]" else json.loads(text)


@contextmanager
def served(model: Any, options: Options | None = None) -> Iterator[Served]:
    """Serve a model, or None: one that is never opened."""
    records: list[Record] = []
    service = Service(options or Options(), records.append)
    with bound("127.0.0.1", 0) as where, listening(service, where):
        service.model = model
        yield Served(service, where.getsockname()[1], records)
