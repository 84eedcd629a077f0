"""Steps of one or several sequences: the only caller of forward().

Any number of threads may ask for steps at once. One of them leads: it runs everything that has been asked for until then in one
step, reading each matrix once, and hands the lead to a thread whose request came meanwhile. A token's numbers depend on its own
run only, so nobody's answer depends on the company.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.workspace import Part, Workspace
from glmrun.forward import CANCELLED, forward
from glmrun.gguf.watch import Watched
from glmrun.kernels.team import Team
from glmrun.tensors.weights import Weights
from quant.errors import UserError

MAX_TOKENS = 512  # of one step


@dataclass(frozen=True)
class Run:
    """New tokens of one sequence, int64 (n,), checked; logits, float32 (n_logits, n_vocab), takes those after the last of them."""

    sequence: Conversation
    tokens: np.ndarray
    logits: np.ndarray


@dataclass(eq=False)
class _Request:
    """Runs that are fulfilled together."""

    runs: Sequence[Run]
    cancelled: Callable[[], bool]
    importance: int
    event: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    fulfilled: bool | None = None  # False: cancelled
    error: BaseException | None = None

    @property
    def n_tokens(self) -> int:
        return sum(len(run.tokens) for run in self.runs)


class Runner:
    """Threads and buffers for steps of up to max_tokens tokens in up to max_runs runs."""

    def __init__(
        self,
        weights: Weights,
        n_ctx: int,
        n_threads: int | None,
        max_tokens: int = MAX_TOKENS,
        max_runs: int = 16,
        watched: Iterable[Watched] = (),
    ) -> None:
        """watched   the files behind the weights: each step asks first whether another program has changed one"""
        self.max_tokens, self.max_runs = min(max_tokens, n_ctx), max_runs
        self._weights, self._pid, self._watched = weights, os.getpid(), tuple(watched)
        self._team = Team(n_threads)
        self.n_threads = self._team.n_threads
        self.workspace = Workspace(weights, n_ctx, self.max_tokens, self.n_threads, max_runs)
        self._lock = threading.Lock()  # of what follows; held for moments
        self._waiting: list[_Request] = []
        self._led = False  # whether somebody leads

    def check(self) -> None:
        """Raise UserError where no step can be run any more.

        In a process that was forked off after the model was opened its threads are missing; a changed file is another model.
        """
        if os.getpid() != self._pid:
            raise UserError("this model was opened before the process forked; load it again in the child")
        for watched in self._watched:
            watched.check()

    @property
    def parts(self) -> int:
        """How many layers of the running step are done."""
        return self._team.parts

    def step(self, runs: Sequence[Run], cancelled: Callable[[], bool] = lambda: False, importance: int = 0) -> bool:
        """Run the tokens behind those of their sequences; False, with every sequence as before, if cancelled.

        importance   address of the table of kernels/importance.py: what the matrices read is added to it
        """
        return any(self.watch(runs, None, cancelled, importance))

    def watch(
        self, runs: Sequence[Run], seconds: float | None, cancelled: Callable[[], bool] = lambda: False, importance: int = 0
    ) -> Iterator[bool | None]:
        """step(), yielding None every so many seconds while it lasts, then its result.

        To give the iterator up, or an exception from a signal, cancels the step; no thread stays behind in the caller's buffers.
        """
        self.check()
        given_up = False
        request = _Request(runs, lambda: given_up or cancelled(), importance)
        assert request.n_tokens <= self.max_tokens and len(runs) <= self.max_runs
        with self._lock:
            self._waiting.append(request)
            if not self._led:
                self._led = request.leads = True
        try:
            while request.fulfilled is None:
                if request.leads:
                    yield from self._lead(request, seconds)
                elif not request.event.wait(0.1 if seconds is None else seconds) and seconds is not None:
                    yield None
        except BaseException:
            given_up = True
            self._leave(request)
            raise
        if request.error is not None:
            raise request.error
        yield request.fulfilled

    def _leave(self, request: _Request) -> None:
        """Wait until nobody works on a request that its caller has given up."""
        self.cancel()
        while request.fulfilled is None:
            if request.leads:
                for _ in self._lead(request, None):
                    pass
            else:
                request.event.wait(0.1)

    def cancel(self) -> None:
        """Have the running step end at the next layer; what is not cancelled in it runs again. Safe in a signal handler."""
        self._team.cancel()

    def close(self) -> None:
        """End the threads."""
        if os.getpid() == self._pid:
            self._team.close()

    def _lead(self, own: _Request, seconds: float | None) -> Iterator[None]:
        """Run one step of what has been asked for; then somebody else leads whose request waits, or nobody."""
        batch: list[_Request] = []
        try:
            own.event.clear()
            self._team.resume()  # before the callers are asked: a cancel() behind that is seen by the step
            with self._lock:
                batch = self._next_batch(own)
            if batch:
                yield from self._run(batch, seconds)
        finally:
            with self._lock:
                self._waiting = [request for request in batch if request.fulfilled is None] + self._waiting
                own.leads, heir = False, next((r for r in self._waiting if r is not own), None)
                if heir is None and own.fulfilled is None:
                    heir = own
                self._led = heir is not None
                if heir is not None:
                    heir.leads = True
            for request in batch:
                if request.fulfilled is not None:
                    request.event.set()
            if heir is not None and heir is not own:
                heir.event.set()

    def _next_batch(self, own: _Request) -> list[_Request]:
        """Take from those that wait what fits into a step, the leader's own request first; cancelled ones are answered."""
        batch: list[_Request] = []
        left: list[_Request] = []
        n_tokens = n_runs = 0
        for request in sorted(self._waiting, key=lambda request: request is not own):
            if request.cancelled():
                request.fulfilled = False
                request.event.set()
                continue
            alone = request.importance or any(other.importance for other in batch)
            fits = n_tokens + request.n_tokens <= self.max_tokens and n_runs + len(request.runs) <= self.max_runs
            if batch and (alone or not fits):
                left.append(request)
                continue
            batch.append(request)
            n_tokens, n_runs = n_tokens + request.n_tokens, n_runs + len(request.runs)
        self._waiting = left
        return batch

    def _run(self, batch: list[_Request], seconds: float | None) -> Iterator[None]:
        try:
            runs = [run for request in batch for run in request.runs]
            logits = np.empty((sum(len(run.logits) for run in runs), self._weights.config.vocab_size), np.float32)
            if len(runs) == 1:
                logits = runs[0].logits  # float32 (n_logits, n_vocab)
            space = self.workspace
            space.step["importance"] = batch[0].importance
            parts = [Part(run.sequence.rows, len(run.sequence.tokens), len(run.tokens), len(run.logits)) for run in runs]
            places = space.begin(parts, logits)
            for run, (place, _) in zip(runs, places, strict=True):
                space.x[place : place + len(run.tokens)] = self._weights.embed(run.tokens)
            result = None
            for result in self._team.watch(seconds, forward, self._weights.model, self._weights.layers, space.step, space.workers):
                if result is None:
                    yield None
        except Exception as error:
            for request in batch:
                request.error, request.fulfilled = error, False
            return
        if result == CANCELLED:
            return  # who is cancelled is found out before the next step
        for run, (_, row) in zip(runs, places, strict=True):
            if len(runs) > 1:
                run.logits[:] = logits[row : row + len(run.logits)]
            run.sequence.extend(run.tokens.tolist())
        for request in batch:
            request.fulfilled = True
