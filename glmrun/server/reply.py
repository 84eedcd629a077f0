"""From the chunks of a job to the bytes of a response, for as long as somebody reads them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from glmrun.chat.chunk import Chunk, Stats
from glmrun.server.completions import AskedToContinue, Completions
from glmrun.server.desk import Job
from glmrun.server.interface import Asked, Interface
from glmrun.server.openai_error import status_of
from glmrun.server.refusal import on_the_wire
from quant.errors import UserError

SEND_SECONDS = 60.0  # for which a client may read nothing while something is there to be sent
STATUS_SECONDS = 10.0  # after which an answer that is not whole gets its status line, and blanks until it is


@dataclass
class Record:
    """What is known of a request when it is over, for the log and the metrics; seconds since it came."""

    path: str
    came: float = field(default_factory=time.monotonic)
    status: int = 200
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    seconds: float = 0.0
    finish_reasons: list[str] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)  # of each answer
    gone: bool = False  # the client was, before the end


class Reply:
    """An ASGI response: the answers of a job as an interface's events, or as one body."""

    def __init__(
        self,
        interface: Interface | Completions,
        asked: Asked | AskedToContinue,
        job: Job,
        record: Record,
        done: Callable[[Record], None],
    ) -> None:
        """done() is called with the record when the last byte is out or the client is gone."""
        self._interface, self._asked, self._job = interface, asked, job
        self._record, self._done = record, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        talk = asyncio.create_task(self._stream(send) if self._asked.stream else self._whole(send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({talk, gone}, return_when=asyncio.FIRST_COMPLETED)
            self._record.gone = not talk.done()
        finally:
            self._job.leave()
            talk.cancel()
            gone.cancel()
            results = await asyncio.gather(talk, gone, return_exceptions=True)
            self._record.seconds = time.monotonic() - self._record.came
            self._done(self._record)
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError | TimeoutError):
            raise results[0]

    async def _stream(self, send: Send) -> None:
        await _start(send, 200, self._interface.media_type)
        writer = self._asked.writer
        await _send(send, writer.begin())
        open_answer, written = 0, False
        try:
            async with aclosing(self._items()) as items:
                async for item in items:
                    if item is None:
                        await _send(send, writer.waiting())
                        continue
                    open_answer, chunk = item
                    written = written or chunk.token is not None
                    await _send(send, writer.push(open_answer, chunk))
        except UserError as error:
            self._record.status = status_of(error)
            if not written:
                await _send(send, writer.fail(error), more=False)
                return
            # Something was written: agents retry an error at its whole cost, and continue behind a cut.
            stats = self._record.stats[-1]
            for number in range(open_answer, len(self._asked.requests)):
                await _send(send, writer.push(number, Chunk(finish_reason="length", stats=stats)))
        await _send(send, writer.end(), more=False)

    async def _whole(self, send: Send) -> None:
        answers: list[list[Chunk]] = [[] for _ in self._asked.requests]
        started = False

        async def collect() -> None:
            async with aclosing(self._items()) as items:
                async for item in items:
                    if item is not None:
                        answers[item[0]].append(item[1])

        collecting = asyncio.create_task(collect())
        try:
            while not (await asyncio.wait({collecting}, timeout=STATUS_SECONDS))[0]:
                if not started:
                    await _start(send, 200, "application/json")
                started = True
                await _send(send, [b" "])
            collecting.result()
            status, headers, body = 200, None, self._asked.writer.whole(answers)
        except UserError as error:
            error, status, headers = on_the_wire(error)
            body = self._interface.error(status, error)
        finally:
            collecting.cancel()
        self._record.status = status
        if not started:
            await _start(send, status, "application/json", headers)
        await _send(send, [json.dumps(body).encode()], more=False)

    async def _items(self) -> AsyncGenerator[tuple[int, Chunk] | None, None]:
        """The job's chunks, written down in the record."""
        record = self._record
        async with aclosing(self._job.chunks()) as chunks:
            async for item in chunks:
                if item is not None:
                    self._note(record, *item)
                yield item

    def _note(self, record: Record, number: int, chunk: Chunk) -> None:
        if record.queue_seconds is None and self._job.began is not None:
            record.queue_seconds = self._job.began - record.came
        if record.first_token_seconds is None and chunk.token is not None:
            record.first_token_seconds = time.monotonic() - record.came
        record.stats[number:] = [chunk.stats]
        if chunk.finish_reason is not None:
            record.finish_reasons.append(chunk.finish_reason)


async def _until_gone(receive: Receive) -> None:
    """Until the client has closed the connection; nothing else can come behind a body."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, media_type: str, more: dict[str, str] | None = None) -> None:
    headers = {"content-type": media_type, "cache-control": "no-cache", "x-accel-buffering": "no", **(more or {})}
    await send({"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})


async def _send(send: Send, events: Iterable[bytes], more: bool = True) -> None:
    """Send events, if there are any or this is the end. Raises TimeoutError if the client does not take them."""
    body = b"".join(events)
    if body or not more:
        async with asyncio.timeout(SEND_SECONDS):
            message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": more}
            await send(message)
