"""Steps of one or several sequences: the only caller of forward().

Any number of threads may ask for steps at once. One of them leads: it runs everything that has been asked for until then in one
step, reading each matrix once, and hands the lead to a thread whose request came meanwhile. A token's numbers depend on its own
run only, so nobody's answer depends on the company.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from glmrun.engine.batch import Size, next_batch
from glmrun.engine.next_token import fill, guess
from glmrun.engine.pace import Pace
from glmrun.engine.passes import DiskFailed, Passes, Run
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.speculative import PassCosts
from glmrun.engine.workspace import MAX_RUNS, Workspace
from glmrun.gguf.watch import Watched
from glmrun.kernels.disk import LOOKS
from glmrun.kernels.team import Team
from glmrun.tensors.weights import Weights
from quant.errors import UserError

MAX_TOKENS = 512  # of one step
PATIENCE = 0.1  # seconds that a piece of a prompt waits for those who have just drawn a token
COMPANY = 0.15  # of the last step's time that a token waits for them: in one step they all take hardly longer than one


@dataclass(eq=False)
class _Request:
    """Runs that are fulfilled together; or other work of the team, which returns whether it was not cancelled."""

    runs: Sequence[Run]
    stopped: Callable[[], bool]
    importance: int = 0
    work: Callable[[], bool] | None = None
    news: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)  # a word when it leads, or is fulfilled
    given_up: bool = False
    fulfilled: bool | None = None  # False: cancelled
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._lengths = [len(run.sequence.tokens) for run in self.runs]

    def begun(self) -> Sequence[Run]:
        """The runs, their sequences as they were: a step that an exception broke off may have written some of them down."""
        for run, length in zip(self.runs, self._lengths, strict=True):
            run.sequence.truncate(length)
        return self.runs

    @property
    def n_tokens(self) -> int:
        return sum(len(run.tokens) for run in self.runs)

    @property
    def n_parts(self) -> int:
        return sum(len(run.tokens) if run.exact else 1 for run in self.runs)

    @property
    def n_read(self) -> int:
        return sum(run.n_read for run in self.runs)

    @property
    def size(self) -> Size:
        return Size(self.n_tokens, self.n_parts, self.n_read, bool(self.importance) or self.work is not None)

    def cancelled(self) -> bool:
        return self.given_up or self.stopped()


class Runner:
    """Threads and buffers for steps of up to MAX_RUNS runs.

    costs   what passes of few tokens take; alone: whether the last step had one run

    A request has up to max_tokens tokens. In a step there is room beside it for one token of each other run: nobody who writes
    waits for somebody else's prompt to end.
    """

    def __init__(
        self,
        weights: Weights,
        n_ctx: int,
        n_threads: int | None,
        max_tokens: int = MAX_TOKENS,
        watched: Iterable[Watched] = (),
        from_disk: Callable[[], int] = lambda: 0,
    ) -> None:
        """watched   the files behind the weights: each step asks first whether another program has changed one

        from_disk   asked before each step: how it has experts read (kernels/disk.py), 0 where the weights are in memory
        """
        self.max_tokens = min(max_tokens, n_ctx)
        self._weights, self._pid, self._watched, self._from_disk = weights, os.getpid(), tuple(watched), from_disk
        self._team = Team(n_threads)
        self.n_threads = self._team.n_threads
        self.workspace = Workspace(weights, n_ctx, self.max_tokens + MAX_RUNS, self.n_threads)
        self.n_layers = weights.config.num_hidden_layers
        self._passes = Passes(weights, self.workspace, self._team)
        self.costs = PassCosts()
        self.alone = True  # whether the last step had one run
        self._lock = threading.Lock()  # of what follows; held for moments
        self._news = threading.Condition(self._lock)
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []  # those of them that the step has
        self._leader: _Request | None = None
        self._inside: set[int] = set()  # threads that are in step(), or hold the lock
        self._closed = False
        self._n_answers = 0
        self._n_due = 0  # answers that got a token in the last step, and have not asked for the next one yet
        self._seconds = 0.0  # of the last step
        self.pace = Pace()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count as an answer that is made: while there are several, prompts are read in pieces that nobody has to wait for."""
        self._count_answer(1)
        try:
            yield
        finally:
            self._count_answer(-1)

    def _count_answer(self, change: int) -> None:
        thread = threading.get_ident()
        in_step = thread in self._inside  # an answer that was forgotten may end in the middle of another one's step
        try:
            self._inside.add(thread)  # a signal's handler that closes all this waits for nobody: all may wait for us
            with self._lock:
                self._n_answers += change
                if change < 0:
                    self._n_due -= 1  # if it was another's, that one waits for a piece longer, this once
                    self._news.notify_all()
        finally:
            if not in_step:
                self._inside.discard(thread)
            self._end_team()

    def piece(self, first: int) -> int:
        """How many tokens of a prompt behind `first` positions the next step takes: all it can hold for somebody alone."""
        whole = self._n_answers < 2 or not self.pace.known
        return self.max_tokens if whole else self.pace.piece(first, self.max_tokens)

    def check(self) -> None:
        """Raise UserError where no step can be run any more.

        In a process that was forked off after the model was opened its threads are missing; a changed file is another model.
        """
        if os.getpid() != self._pid:
            raise UserError("this model was opened before the process forked; load it again in the child")
        if self._closed:
            raise _closed()
        for watched in self._watched:
            watched.check()

    def _disk_error(self) -> UserError:
        """What to report when weights could not be read: a file that was shortened fails as a disk does."""
        try:
            self.check()
        except UserError as why:
            return why
        names = ", ".join(str(watched.path) for watched in self._watched) or "the model"
        return UserError(f"{names}: the disk failed while it was read; ask again, and look after the disk")

    @property
    def hits(self) -> tuple[int, int]:
        """Bytes of experts that steps from the disk have used so far, and of them those that were there when they were asked for.

        Nothing where the system does not report that.
        """
        if self.workspace.step["from_disk"] != LOOKS:
            return 0, 0
        workers = self.workspace.workers
        wanted = int(workers["wanted"].sum())
        return wanted, wanted - int(workers["missing"].sum())

    def step(
        self,
        runs: Sequence[Run],
        cancelled: Callable[[], bool] = lambda: False,
        importance: int = 0,
        work: Callable[[], bool] | None = None,
    ) -> bool:
        """Run the tokens behind those of their sequences; False, with every sequence as before, if cancelled.

        importance   address of the table of kernels/importance.py: what the matrices read is added to it
        work         without runs: what else is to be done with the team; it returns whether it was not cancelled
        An exception from a signal cancels the step; no thread stays behind in the caller's buffers.
        """
        if cancelled():
            return False
        self.check()
        request = _Request(runs, cancelled, importance, work)
        assert request.n_tokens <= self.max_tokens and request.n_parts <= MAX_RUNS
        try:
            self._inside.add(threading.get_ident())  # before _batch() asks whether all this is closed
            with self._lock:
                self._waiting.append(request)
                self._n_due -= not request.n_read
                self._news.notify_all()
            while request.fulfilled is None:
                with self._turn(request) as batch:
                    if not batch:
                        continue
                    together = [run for each in batch for run in each.begun()]
                    done = batch[0].work() if batch[0].work else self._learn(together, self._passes.step(together))
                    for each in batch if done else ():  # who is cancelled is found out before the next step
                        each.fulfilled = True
        except BaseException:
            request.given_up = True
            self.cancel()
            while request.fulfilled is None and request in self._waiting:
                with self._turn(request):
                    pass  # nobody may work on a request that its caller has given up; the others lead their own step
            raise
        finally:
            if self._leader is request:  # a signal came between
                self._leader = None
            self._inside.discard(threading.get_ident())
            self._end_team()
        if request.error is not None:
            raise request.error
        return request.fulfilled

    def watch(self, runs: Sequence[Run], seconds: float, cancelled: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """step(), yielding every so many seconds what share of its layers is done, then its result. To give it up cancels it."""
        share, given_up, outcome, ended = 0.0, False, list[Any](), queue.SimpleQueue[None]()

        def step() -> None:
            try:
                outcome.append(self.step(runs, lambda: given_up or cancelled()))
            except BaseException as error:
                outcome.append(error)
            ended.put(None)

        # A thread of its own: who holds the iterator and asks for nothing more must not hold up the others' steps.
        thread = threading.Thread(target=step, daemon=True, name="glmrun-step")
        try:
            thread.start()
            while not outcome:
                with suppress(queue.Empty):
                    ended.get(timeout=seconds)
                    break
                if any(request.runs is runs for request in self._running):  # what waits for its step has nothing of it
                    share = max(share, min(self._passes.n_layers_done, self.n_layers) / self.n_layers)
                yield share
        except BaseException:
            given_up = True
            self.cancel()
            while thread.ident is not None and not outcome and not sys.is_finalizing():  # then daemon threads run no more
                with suppress(queue.Empty):
                    ended.get(timeout=0.1)
            raise
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def guess(self, sequence: Conversation, token: int, n: int, cancelled: Callable[[], bool] = lambda: False) -> list[int]:
        """Up to n tokens that the prediction layer expects behind `token`, which follows the sequence's; none if cancelled."""
        guessed: list[int] = []

        def work() -> bool:
            start = time.perf_counter()
            found = guess(self._passes, sequence, token, n)
            if found:
                self.costs.add_guess(n, time.perf_counter() - start)
                guessed[:] = found  # once, if a signal has it done twice
            return found is not None

        self.step((), cancelled, work=work)
        return guessed

    def cancel(self) -> None:
        """Have the running step end at the next layer; what is not cancelled in it runs again. Safe in a signal handler."""
        self._team.cancel()

    def close(self) -> None:
        """End the running step and the threads. Those who wait or ask later get UserError."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        self.cancel()
        # A signal handler inside does not wait: all others may wait for what it broke off. Whoever comes out last ends the threads.
        while self._inside and threading.get_ident() not in self._inside:
            self.cancel()
            time.sleep(0.002)
        self._end_team()

    def _end_team(self) -> None:
        if self._closed and not self._inside:
            self._team.close()

    @contextmanager
    def _turn(self, own: _Request) -> Iterator[list[_Request]]:
        """What this thread runs now, for all who wait; then somebody else leads whose request waits, or nobody.

        Nothing while another leads: then it has waited for that, for a moment. A disk fails for all who are in the step.
        """
        with self._lock:
            self._leader = self._leader or own
        if self._leader is not own:
            with suppress(queue.Empty):
                own.news.get(timeout=0.1)
            yield []
            return
        try:
            self._team.resume()  # before the callers are asked: a cancel() behind that is seen by the step
            batch = self._batch()
            if batch:
                self._passes.begin()
                self._running = batch
                self.workspace.step["importance"], self.workspace.step["from_disk"] = batch[0].importance, self._from_disk()
            try:
                yield batch
            except DiskFailed:  # anything else is this thread's own, such as what a signal's handler raised: the others run again
                error = self._disk_error()
                for request in batch:
                    request.error, request.fulfilled = error, False
        finally:
            if self._leader is own:  # else a signal broke this turn off, and another one has followed it
                with self._lock:
                    self._running = []
                    ended = [request for request in self._waiting if request.fulfilled is not None]
                    self._n_due = sum(bool(request.fulfilled) and not request.n_read for request in ended)
                    self._waiting = [request for request in self._waiting if request.fulfilled is None]
                    self._leader = next((request for request in self._waiting if request is not own), None)
                    for request in ended:
                        request.news.put(None)
                    if self._leader is not None:
                        self._leader.news.put(None)

    def _batch(self) -> list[_Request]:
        """Those that wait and are run next; cancelled ones are answered. They stay in the row until they are fulfilled."""
        with self._lock:
            # Else a step would begin moments before those who write ask for their next token, which would wait for it.
            reads = any(request.n_read for request in self._waiting)
            self._news.wait_for(lambda: self._n_due <= 0, PATIENCE if reads else min(PATIENCE, COMPANY * self._seconds))
            self._n_due = 0
            for request in self._waiting:
                if request.cancelled() or self._closed:
                    request.error = None if request.cancelled() else _closed()
                    request.fulfilled = False
            waiting = [request for request in self._waiting if request.fulfilled is None]
        of_prompts = self.piece(len(waiting[0].runs[0].sequence.tokens)) if waiting and waiting[0].runs else None
        chosen = next_batch([request.size for request in waiting], self.max_tokens + MAX_RUNS, MAX_RUNS, of_prompts)
        return [waiting[i] for i in chosen]

    def _learn(self, runs: Sequence[Run], seconds: float | None) -> bool:
        """Note what a step took, and have the prediction layer read what there is for it now; False if it was cancelled."""
        if seconds is None:
            return False
        n_tokens, n_logits = sum(len(run.tokens) for run in runs), sum(len(run.logits) for run in runs)
        self._seconds, self.alone = seconds, len(runs) == 1
        if self.alone and n_logits == n_tokens:
            self.costs.add(n_tokens, seconds)
        depth = sum(len(run.tokens) * (len(run.sequence.tokens) - len(run.tokens) / 2) for run in runs)
        self.pace.add(n_tokens, depth / n_tokens, seconds)
        for run in runs:
            fill(self._passes, run.sequence, at_once=len(run.tokens) > len(run.logits))
        return True


def _closed() -> UserError:
    return UserError("this model was closed; load it again")
