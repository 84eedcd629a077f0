"""Who is answered when: answers that run, each on a thread of its own, and those that wait for a place."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from glmrun.chat.chunk import Chunk, Stats
from quant.errors import UserError

ENDING = "the server is ending; ask another one"
PULSE_SECONDS = 10.0  # of silence, after which a client is told that we are still there


class Busy(UserError):
    """As many requests wait as may wait; or the server ends. retry_seconds: when to ask again."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message, "busy")
        self.retry_seconds = retry_seconds


@dataclass(eq=False)
class Job:
    """The answers that one body asks for, one after another: the second finds the first one's prompt in the cache."""

    answers: Sequence[Iterator[Chunk]]
    seconds: float
    loop: asyncio.AbstractEventLoop
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # when its place was free
    gone: threading.Event = field(default_factory=threading.Event)  # nobody reads any more
    late: threading.Event = field(default_factory=threading.Event)  # what is there has to do
    wrote: bool = False  # a token, of any of its answers
    items: "asyncio.Queue[tuple[int, Chunk] | UserError | None]" = field(default_factory=asyncio.Queue)
    future: "Future[None] | None" = None

    async def chunks(self) -> AsyncGenerator[tuple[int, Chunk] | None, None]:
        """(answer's number, chunk), in order; None after each pulse of silence. Raises UserError if the model fails."""
        while True:
            try:
                async with asyncio.timeout(PULSE_SECONDS):
                    item = await self.items.get()
            except TimeoutError:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, UserError):
                raise item
            yield item

    def leave(self) -> None:
        """Nobody reads what is still to come: the work ends at its next token, in a prompt at its next layer."""
        self.gone.set()
        if self.future is not None:
            self.future.cancel()

    def work(self) -> None:
        """Make the answers, on a thread of the desk."""
        self.began = time.monotonic()
        last: tuple[int, Chunk] | UserError | None = None
        try:
            for number, answer in enumerate(self.answers):
                self._answer(number, answer)
        except UserError as error:
            last = error
        except Exception:
            logging.getLogger(__name__).exception("an answer failed")
            last = UserError("the server failed at this answer; its log says why")
        self._put(last)
        if last is not None:
            self._put(None)

    def _answer(self, number: int, answer: Iterator[Chunk]) -> None:
        stats, is_whole = Stats(), False
        for chunk in answer if not self._is_late else ():
            if self.gone.is_set():
                break
            stats, is_whole = chunk.stats, chunk.finish_reason is not None
            self.wrote = self.wrote or chunk.token is not None
            self._put((number, chunk))
            if is_whole or self._is_late:
                break
        if close := getattr(answer, "close", None):
            close()
        if not (is_whole or self.gone.is_set()):
            self._cut(number, stats)

    @property
    def _is_late(self) -> bool:
        return self.late.is_set() or time.monotonic() - self.came > self.seconds

    def _cut(self, number: int, stats: Stats) -> None:
        """End an answer with what is there. Raises Busy if that is nothing: agents take an empty answer for one, and ask on."""
        if not self.wrote:
            raise Busy(ENDING if self.late.is_set() else f"no answer had begun after {self.seconds:g} s; ask again later", 5)
        self._put((number, Chunk(finish_reason="length", stats=stats)))

    def _put(self, item: tuple[int, Chunk] | UserError | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)


class Desk:
    """Takes jobs: n_places at once, n_waiting more in a row; each answer may take so many seconds from when it was asked for."""

    def __init__(self, n_places: int, n_waiting: int, seconds: float) -> None:
        self.n_places, self.n_waiting, self.seconds = n_places, n_waiting, seconds
        self._pool = ThreadPoolExecutor(n_places, thread_name_prefix="glmrun-answer")
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self.closing = False

    @property
    def jobs(self) -> list[Job]:
        """Those that run or wait, oldest first."""
        with self._lock:
            return sorted(self._jobs, key=lambda job: job.came)

    @property
    def n_running(self) -> int:
        """Jobs that have a place."""
        return sum(job.began is not None for job in self.jobs)

    def check(self) -> None:
        """Raise Busy if another job would not be taken."""
        if self.closing:
            raise Busy(ENDING, 5)
        if len(self.jobs) >= self.n_places + self.n_waiting:
            raise Busy(f"{len(self.jobs)} requests are answered or wait already; ask again later", 5)

    def take(self, answers: Sequence[Iterator[Chunk]]) -> Job:
        """A job for these answers, which waits for its place. To be called on the event loop. Raises Busy."""
        self.check()
        job = Job(answers, self.seconds, asyncio.get_running_loop())
        with self._lock:
            self._jobs.add(job)
        try:
            job.future = self._pool.submit(job.work)
        except RuntimeError:  # it stands in the pool's row all the same
            job.leave()
            self._forget(job)
            raise Busy("the system starts no thread for this answer; ask again later", 5) from None
        job.future.add_done_callback(lambda _: self._forget(job))
        return job

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._jobs.discard(job)

    def hurry(self) -> None:
        """Take nothing more, and end all that runs or waits with what is there."""
        self.closing = True
        for job in self.jobs:
            job.late.set()

    def close(self) -> None:
        """End the threads; what still runs is given up."""
        self.closing = True
        for job in self.jobs:
            job.leave()
        self._pool.shutdown()
