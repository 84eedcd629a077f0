"""OpenAI's completions: a text or token ids continued, and the probabilities by which evaluation harnesses score."""

import math
import secrets
import time
from codecs import IncrementalDecoder, getincrementaldecoder
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from glmrun.chat.chunk import Chunk, Logprob, Stats
from glmrun.engine.generate import reporter
from glmrun.engine.model import MAX_LOGPROBS, Model
from glmrun.server.form import held_to
from glmrun.server.interface import BadRequest
from glmrun.server.openai_body import SamplingBody, Whole, refuse_unread
from glmrun.server.openai_chat import Tally, event, timings, usage_of
from glmrun.server.openai_error import openai_error, status_of
from quant.errors import UserError

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # of an answer, as OpenAI's interface has it
_ROWS = 64  # of logits at a time while a prompt is scored
_FINISH = {"stop": "stop", "length": "length", "cancelled": "length"}


class CompletionBody(SamplingBody):
    prompt: str | list[Whole] | list[str] | list[list[Whole]]
    echo: bool | None = None
    logprobs: Whole | bool | None = None
    suffix: str | None = None
    best_of: Whole | None = None


@dataclass(frozen=True)
class Continuation:
    """One prompt that is to be continued.

    ids, text   the prompt
    options     of Model.generate()
    echo        the answer begins with the prompt
    """

    ids: list[int]
    text: str
    options: dict[str, Any]
    echo: bool


@dataclass(frozen=True)
class AskedToContinue:
    """As interface.Asked, of prompts."""

    requests: Sequence[Continuation]
    stream: bool
    writer: "CompletionWriter"


class Completions:
    """/v1/completions."""

    media_type: str = "text/event-stream"

    def __init__(self, model: Model) -> None:
        self._model = model

    def asked(self, body: dict[str, Any], model: str) -> AskedToContinue:
        """As Interface.asked()."""
        form = held_to(CompletionBody, body)
        refuse_unread(body)
        if form.suffix:
            raise BadRequest("suffix: this model writes behind a text, not into it; leave it out", "suffix")
        if form.best_of is not None and form.best_of > (form.n or 1):
            raise BadRequest("best_of: no answers are made to be left out; ask for n", "best_of")
        n_top = int(form.logprobs) if form.logprobs is not None and form.logprobs is not False else None
        if n_top is not None and not 0 <= n_top <= MAX_LOGPROBS:
            raise BadRequest(f"logprobs: a number from 0 to {MAX_LOGPROBS} is expected, found {n_top}", "logprobs")
        prompts: list[Any] = form.prompt if isinstance(form.prompt, list) else [form.prompt]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise BadRequest(f"prompt: 1 to {MAX_PROMPTS} texts or lists of token ids are expected, found {len(prompts)}", "prompt")
        n_tokens = 0 if form.max_tokens == 0 else DEFAULT_TOKENS if form.max_tokens is None else form.limit("max_tokens")
        if n_tokens == 0 and not form.echo:
            raise BadRequest("max_tokens: 0 asks for nothing without echo", "max_tokens")
        requests = []
        for prompt in prompts:
            ids = self._model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            text = prompt if isinstance(prompt, str) else ""
            for answer in range(form.n or 1):
                options = {"max_tokens": n_tokens, "stop": form.stops(), "logprobs": n_top, **form.sampling(answer)}
                requests.append(Continuation(ids, text, options, bool(form.echo)))
        with_usage = form.stream_options is not None and bool(form.stream_options.include_usage)
        return AskedToContinue(requests, bool(form.stream), CompletionWriter(model, with_usage, form.n or 1))

    def answer(self, asked: Continuation) -> Iterator[Chunk]:
        """The chunks of a continuation. Raises UserError at once for a prompt that cannot be read."""
        model = self._model
        model.checked(asked.ids)
        n_top = asked.options["logprobs"]
        written = iter(()) if asked.options["max_tokens"] == 0 else model.generate(asked.ids, **asked.options)
        return self._echoing(asked, n_top, written) if asked.echo else written

    def _echoing(self, asked: Continuation, n_top: int | None, written: Iterator[Chunk]) -> Iterator[Chunk]:
        """The prompt as the first chunks, scored if probabilities are asked for; then what is written behind it."""
        text = asked.text or self._model.tokenizer.decode(asked.ids)
        stats = Stats(n_prompt=len(asked.ids))
        if n_top is None:
            yield Chunk(text=text, stats=stats)
        else:
            start = time.perf_counter()
            for likely in self._scores(asked.ids, n_top):
                seconds = time.perf_counter() - start
                stats = Stats(n_prompt=len(asked.ids), n_prefilled=stats.n_prefilled + len(likely), prompt_seconds=seconds)
                yield Chunk(stats=stats, logprobs=likely, text=text)
                text = ""
        last = None
        for last in written:
            yield last
        if last is None:
            yield Chunk(finish_reason="length", stats=stats)

    def _scores(self, ids: list[int], n_top: int) -> Iterator[list[Logprob]]:
        """How likely each token of a prompt is behind those before it; the first one has no probability, which is NaN."""
        likely = reporter(self._model.tokenizer, n_top)
        yield [Logprob(ids[0], self._model.tokenizer.bytes_of(ids[0]), math.nan)]
        at = 1
        for rows in self._model.logits_after(ids, 0, _ROWS):
            following = ids[at : at + len(rows)]
            yield [likely(np.asarray(row), token) for row, token in zip(rows, following, strict=False)]
            at += len(rows)

    def error(self, status: int, error: UserError) -> dict[str, Any]:
        """As Interface.error()."""
        return openai_error(status, error)


class CompletionWriter:
    """Chunks of completions as server-sent events, or as one body; n answers to each prompt."""

    def __init__(self, model: str, with_usage: bool, n: int) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._with_usage, self._n = with_usage, n
        self._tallies: dict[int, Tally] = {}
        self._offsets: dict[int, int] = {}
        self._decoders: defaultdict[int, IncrementalDecoder] = defaultdict(partial(getincrementaldecoder("utf-8"), "replace"))

    def begin(self) -> Iterable[bytes]:
        """As Writer.begin()."""
        yield self._event(0, "")

    def push(self, answer: int, chunk: Chunk) -> Iterable[bytes]:
        """As Writer.push()."""
        self._tallies.setdefault(answer, Tally()).count(chunk)
        if chunk.text or chunk.logprobs:
            yield self._event(answer, chunk.text, chunk.logprobs)
        if chunk.finish_reason is not None:
            yield self._event(answer, "", finish=_FINISH[chunk.finish_reason])

    def waiting(self) -> Iterable[bytes]:
        """As Writer.waiting()."""
        yield self._event(0, "")

    def end(self) -> Iterable[bytes]:
        """As Writer.end()."""
        if self._with_usage:
            yield event({**self._head, "choices": [], "usage": usage_of(self._tallies.values(), self._n)})
        yield b"data: [DONE]\n\n"

    def fail(self, error: UserError) -> Iterable[bytes]:
        """As Writer.fail()."""
        yield event(openai_error(status_of(error), error))
        yield b"data: [DONE]\n\n"

    def whole(self, answers: Sequence[Sequence[Chunk]]) -> dict[str, Any]:
        """As Writer.whole()."""
        tallies, choices = [], []
        for index, chunks in enumerate(answers):
            tallies.append(Tally())
            for chunk in chunks:
                tallies[-1].count(chunk)
            likely = [one for chunk in chunks for one in chunk.logprobs or ()]
            choices.append({
                "index": index, "text": "".join(chunk.text for chunk in chunks),
                "logprobs": self._logprobs(index, likely) if likely else None,
                "finish_reason": _FINISH[chunks[-1].finish_reason or "cancelled"],
            })  # fmt: skip
        return {**self._head, "choices": choices, "usage": usage_of(tallies, self._n), "timings": timings(answers[-1][-1].stats)}

    def _event(self, answer: int, text: str, likely: list[Logprob] | None = None, finish: str | None = None) -> bytes:
        told = self._logprobs(answer, likely) if likely else None
        choice = {"index": answer, "text": text, "logprobs": told, "finish_reason": finish}
        return event({**self._head, "choices": [choice]})

    def _logprobs(self, answer: int, likely: Sequence[Logprob]) -> dict[str, Any]:
        offsets, at = [], self._offsets.get(answer, 0)
        for one in likely:
            offsets.append(at)
            at += len(self._decoders[answer].decode(one.text))  # a character of several tokens is behind the last of them
        self._offsets[answer] = at
        return {
            "tokens": [_name(one.text) for one in likely],
            "token_logprobs": [None if math.isnan(one.logprob) else one.logprob for one in likely],
            "top_logprobs": [
                None if math.isnan(one.logprob) else {_name(text): value for _, text, value in reversed(one.top)} for one in likely
            ],
            "text_offset": offsets,
        }


def _name(text: bytes) -> str:
    """A token's text; one of bytes that are no text by themselves spells them."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
