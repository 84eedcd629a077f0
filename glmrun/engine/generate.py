"""Ids in, ids out: read a prompt behind what a sequence has cached, then choose one token after another; then text."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from glmrun.chat.chunk import Chunk, Logprob
from glmrun.chat.chunk import Stats as Counts
from glmrun.chat.tokenizer import Tokenizer
from glmrun.engine.passes import Run
from glmrun.engine.runner import Runner
from glmrun.engine.sampling import Sampler, ThinkBudget, logprobs
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.sequence import common_prefix
from glmrun.engine.speculative import EXACT, LENGTHS, Drafter

PROGRESS_SECONDS = 0.02  # between two reports while a prompt is read: who gives the iterator up is noticed then


@dataclass(frozen=True)
class Limits:
    """Where an answer ends, beside its own end-of-turn token.

    n_ctx        positions of the context
    max_tokens   at most this many new tokens; None: as many as the context holds
    eog_ids      tokens that end a turn
    cancelled    whether somebody wants it to end now
    likely       tells of logits, float32 (n_vocab,), and the token drawn what is reported of them; None: nothing is
    looked_at    waits at most so many seconds until all weights have been looked at; whether they have. Raises UserError
    """

    n_ctx: int
    max_tokens: int | None
    eog_ids: frozenset[int]
    cancelled: Callable[[], bool]
    looked_at: Callable[[float], bool]
    likely: Callable[[np.ndarray, int], Logprob] | None = None

    def reached(self, n_generated: int, n_tokens: int) -> bool:
        """Whether no further token may be chosen."""
        return n_generated == self.max_tokens or n_tokens > self.n_ctx


def generate(
    runner: Runner,
    lent: AbstractContextManager[tuple[Conversation, Drafter | None]],
    ids: np.ndarray,
    sampler: Sampler | ThinkBudget,
    limits: Limits,
) -> Iterator[Chunk]:
    """Read the prompt ids, int64 (n,), then choose one token after another. Chunks carry a token, progress, or a finish_reason.

    lent   a sequence that holds some of the ids already, from the first on, and who gives tokens that are computed ahead
    """
    with lent as (sequence, drafter):
        sequence.give_up_rest()
        likeliest = limits.likely is None and not sampler.reads_all
        stats = Counts(n_prompt=len(ids), n_cached=len(sequence.tokens), n_prefilled=len(sequence.tokens))
        yield Chunk(stats=stats)
        for chunk in _read_prompt(runner, sequence, ids, limits, stats, likeliest):
            yield chunk
            stats = chunk.stats
        if len(sequence.tokens) < len(ids):
            yield Chunk(finish_reason="cancelled", stats=stats)
            return
        while not limits.looked_at(0.1) and not limits.cancelled():
            pass  # no token is shown before the weights have been looked at
        history, ahead, start = ids.tolist(), _Ahead(runner, sequence, limits, drafter, likeliest), time.perf_counter()
        try:
            while not (cancelled := limits.cancelled()) and not limits.reached(stats.n_generated, len(history)):
                token = sampler.sample(ahead.logits, history)
                likely = None if limits.likely is None else [limits.likely(ahead.logits, token)]
                stats = replace(stats, n_generated=stats.n_generated + 1, generate_seconds=time.perf_counter() - start)
                if token in limits.eog_ids:
                    yield Chunk(token=token, finish_reason="stop", stats=stats, logprobs=likely)
                    return
                history.append(token)
                stats = ahead.count(token, stats)
                yield Chunk(token=token, stats=stats, logprobs=likely)
                if (run := ahead.next_run(history, stats.n_generated)) is not None:
                    runner.step([run], limits.cancelled)
                    stats = ahead.count_pass(stats)
            yield Chunk(finish_reason="cancelled" if cancelled else "length", stats=stats)
        finally:
            sequence.truncate(common_prefix(sequence.tokens, history))  # drafts that nobody has drawn


class _Ahead:
    """The passes of an answer, and what they have computed ahead.

    logits   float32 (n_vocab,): from which the next token is drawn
    """

    def __init__(self, runner: Runner, sequence: Conversation, limits: Limits, drafter: Drafter | None, likeliest: bool) -> None:
        self._runner, self._sequence, self._limits, self._drafter, self._likeliest = runner, sequence, limits, drafter, likeliest
        self._rows = sequence.logits  # float32 (1 + len(draft), n_vocab)
        self._draft: list[int] = []
        self._at = 0  # tokens of the draft that were drawn
        self._guessed = False  # whether the draft is the prediction layer's

    @property
    def logits(self) -> np.ndarray:
        return self._rows[self._at]

    def count(self, token: int, stats: Counts) -> Counts:
        """Note the token that was drawn; the stats with it."""
        if self._drafter is not None:
            self._drafter.add(token)
        stands = self._draft[self._at : self._at + 1] == [token]
        guessed = stands and self._guessed
        return replace(stats, n_accepted=stats.n_accepted + stands, n_guessed_right=stats.n_guessed_right + guessed)

    def next_run(self, history: list[int], n_generated: int) -> Run | None:
        """What computes the logits behind the last token of history, and some ahead; None: they are there, or of no use."""
        if self._limits.reached(n_generated, len(history)):
            return None
        token = history[-1]
        if self._draft[self._at : self._at + 1] == [token]:
            self._at += 1
            return None
        self._sequence.truncate(len(history) - 1)
        self._draft = draft = self._next_draft(len(history), n_generated)
        self._guessed = self._drafter is not None and self._drafter.guessed
        self._at = 0
        if len(self._rows) <= len(draft):
            self._rows = np.empty((1 + max(LENGTHS), self._rows.shape[1]), np.float32)  # float32 (n, n_vocab)
        tokens = np.array([token, *draft], np.int64)  # int64 (1 + len(draft),)
        rows = self._rows[: len(tokens)]  # float32 (1 + len(draft), n_vocab)
        return Run(self._sequence, tokens, rows, exact=len(draft) <= EXACT, ahead=True, likeliest=self._likeliest, draft=True)

    def count_pass(self, stats: Counts) -> Counts:
        """The stats with the run that was made."""
        n, n_passes = len(self._draft), stats.n_passes + 1
        return replace(stats, n_passes=n_passes, n_drafted=stats.n_drafted + n, n_guessed=stats.n_guessed + n * self._guessed)

    def _next_draft(self, n_tokens: int, n_generated: int) -> list[int]:
        if self._drafter is None or not self._runner.alone:  # others would wait for what may be thrown away
            return []
        room = self._limits.n_ctx - n_tokens
        if self._limits.max_tokens is not None:
            room = min(room, self._limits.max_tokens - n_generated - 1)
        return self._drafter.next(room)


def reporter(tokenizer: Tokenizer, n_top: int) -> Callable[[np.ndarray, int], Logprob]:
    """likely() of Limits: the token drawn and the n_top likeliest ones."""

    def likely(logits: np.ndarray, token: int) -> Logprob:
        own, top = logprobs(logits, token, n_top)
        return Logprob(token, tokenizer.bytes_of(token), own, tuple((i, tokenizer.bytes_of(i), value) for i, value in top))

    return likely


def _read_prompt(
    runner: Runner, sequence: Conversation, ids: np.ndarray, limits: Limits, stats: Counts, likeliest: bool
) -> Iterator[Chunk]:
    """Run what the sequence does not hold yet, piece by piece; chunks say how far it is. Ends early when cancelled."""
    start = time.perf_counter()
    while (at := len(sequence.tokens)) < len(ids):
        part = ids[at : at + runner.piece(at)]
        is_last = at + len(part) == len(ids)
        run = Run(sequence, part, sequence.logits if is_last else sequence.logits[:0], ahead=True, likeliest=likeliest)
        for done in runner.watch([run], PROGRESS_SECONDS, limits.cancelled):
            yield Chunk(stats=replace(stats, n_prefilled=at + int(len(part) * done), prompt_seconds=time.perf_counter() - start))
        if not done:
            return


def texts(tokenizer: Tokenizer, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks with their tokens' text."""
    stream = tokenizer.stream()
    for chunk in chunks:
        text = stream.push(chunk.token) if chunk.token is not None and chunk.finish_reason is None else ""
        text += stream.flush() if chunk.finish_reason is not None else ""
        yield replace(chunk, text=text)


def until(chunks: Iterator[Chunk], stop: Sequence[str]) -> Iterator[Chunk]:
    """The chunks up to the first of the texts in `stop`, which does not appear; what may become one is held back."""
    held = ""
    for chunk in chunks:
        held += chunk.text
        found = min(((at, text) for text in stop if text and (at := held.find(text)) >= 0), default=None)
        if found:
            at, text = found
            yield replace(chunk, text=held[:at], call_piece=None, finish_reason="stop", stop_text=text)
            return
        keep = 0 if chunk.finish_reason else max((_overlap(held, text) for text in stop), default=0)
        text, held = held[: len(held) - keep], held[len(held) - keep :]
        yield replace(chunk, text=text)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop: it may become a stop text and is held back."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
