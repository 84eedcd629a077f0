"""A model at work: ids in, ids out, then text. Each layer adds one thing, and each is a generator.

_decode   prompt ids -> one id at a time    (the cache: prefix reuse, prefill in chunks, decode)
generate  text or ids -> pieces of text     (the tokenizer)
chat      messages -> answer and thinking   (the chat format)
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.stream import ChatStream
from glmrun.chat.template import ChatFormat
from glmrun.chat.tokenizer import Tokenizer
from glmrun.engine.constraint import Grammar
from glmrun.engine.sampling import Sampler, ThinkBudget, advised
from glmrun.engine.workspace import State
from glmrun.forward import CANCELLED, forward
from glmrun.gguf.architecture import DEFAULT_CONTEXT, config_from_gguf, whole_vocabulary
from glmrun.gguf.reader import GGUFFile, open_gguf
from glmrun.kernels.team import Team
from glmrun.tensors.finite import FiniteCheck
from glmrun.tensors.prefault import Prefault
from glmrun.tensors.repack import Converting
from glmrun.tensors.weights import Weights
from quant.errors import UserError

MAX_TOKENS = 512  # of one step while a prompt is read
PROGRESS_SECONDS = 0.2  # between two reports while a prompt is read


class Model:
    """An open model and one conversation's cache. Not for use by two threads at once, but cancel() may come from anywhere."""

    def __init__(
        self,
        path: str | os.PathLike | GGUFFile,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        kv_type: str | None = None,
        converting: Converting | None = None,
    ) -> None:
        """Open and validate the file; arguments as in glmrun.load(). Raises UserError."""
        self.file = path if isinstance(path, GGUFFile) else open_gguf(path)
        self.path = path = self.file.path
        self.config = config_from_gguf(self.file)
        self.prefault = Prefault(self.file, self.config)  # goes on beside what follows
        self.tokenizer = Tokenizer.from_metadata(whole_vocabulary(self.file.metadata, self.config.vocab_size))
        if self.tokenizer.n_vocab != self.config.vocab_size:
            raise UserError(
                f"{path}: its vocabulary has {self.tokenizer.n_vocab:,} tokens, its embedding {self.config.vocab_size:,} rows"
            )
        self._advice = advised(self.file.metadata)
        self.chat_format = ChatFormat(self.file.metadata.get("tokenizer.chat_template"), self.tokenizer)
        self.n_ctx_train = limit = self.config.max_position_embeddings
        self.n_ctx = n_ctx if n_ctx is not None else min(limit, DEFAULT_CONTEXT)
        if not 1 <= self.n_ctx <= limit:
            raise UserError(f"a context of {self.n_ctx:,} tokens was asked for; this model takes 1 to {limit:,}", 2)
        if n_threads is not None and n_threads < 1:
            raise UserError(f"{n_threads} threads were asked for; at least 1 is needed", 2)
        self.weights = Weights(self.file, self.config, kv_type, converting)
        self._finite = FiniteCheck(self.file, self.weights.tensors.values(), whole=self.prefault.partial is None)  # beside the rest
        self._team = Team(n_threads)
        self.n_threads = self._team.n_threads
        try:
            self._state = State(self.weights, self.n_ctx, min(MAX_TOKENS, self.n_ctx), self.n_threads)
        except MemoryError:
            raise UserError(f"{path}: no memory for a context of {self.n_ctx:,} tokens; ask for a smaller one (-c)") from None
        self._last_logits = np.empty((1, self.config.vocab_size), np.float32)  # float32 (1, n_vocab)
        self._cached: list[int] = []  # the tokens whose rows stand in the cache, in order
        self.n_saved = 0  # leading positions that have not been written since saved_cache.py took or gave them
        self._cancelled = False

    # ---- ids ---------------------------------------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token, float32 (len(tokens), n_vocab), in one pass from an empty cache.

        Raises UserError if there are no tokens, more than the context holds, or one outside the vocabulary, and if the file has
        been changed or holds weights that are not finite.
        """
        ids = self._checked(tokens)
        self.reset()
        self._begin()
        out = np.empty((len(ids), self.config.vocab_size), np.float32)  # float32 (tokens, n_vocab)
        for start in range(0, len(ids), self._state.max_tokens):
            chunk = ids[start : start + self._state.max_tokens]
            self._step(chunk, out[start : start + len(chunk)])
        self._finite.wait()
        return out

    def logits_after(self, tokens: Sequence[int], first: int, rows: int = 256) -> Iterator[np.ndarray]:
        """Logits after tokens[first:] in parts, float32 (at most rows, n_vocab) each, in one pass from an empty cache.

        All parts share one memory, so a window of the full-size model needs 160 MB and not gigabytes. Raises as logits() does.
        """
        ids = self._checked(tokens)
        self.reset()
        self._begin()
        self._finite.wait()
        out, at = np.empty((min(rows, len(ids)), self.config.vocab_size), np.float32), 0  # float32 (rows, n_vocab)
        while at < len(ids):
            end = min(at + self._state.max_tokens, max(at, first) + rows, len(ids))
            wanted = end - max(at, first)
            self._step(ids[at:end], out[: max(wanted, 0)])
            if wanted > 0:
                yield out[:wanted]
            at = end

    def observe(self, tokens: Sequence[int], importance: int, n_logits: int) -> None:
        """Run tokens from an empty cache, adding the squares of what the matrices read to sums (kernels/importance.py).

        importance   address of the table of sums
        n_logits     of how many tokens of each step the output matrix is asked
        """
        ids = self._checked(tokens)
        self.reset()
        self._begin()
        out = np.empty((min(n_logits, len(ids)), self.config.vocab_size), np.float32)  # float32 (n_logits, n_vocab)
        self._state.step["importance"] = importance
        try:
            for start in range(0, len(ids), self._state.max_tokens):
                chunk = ids[start : start + self._state.max_tokens]
                self._step(chunk, out[: len(chunk)])
            self._finite.wait()
        finally:
            self._state.step["importance"] = 0
            self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self.truncate(0)

    def truncate(self, n_tokens: int) -> None:
        """Keep the first n_tokens positions of the cache."""
        del self._cached[n_tokens:]
        self.n_saved = min(self.n_saved, n_tokens)

    @property
    def n_cached(self) -> int:
        """Positions of the cache in use."""
        return len(self._cached)

    @property
    def cached_tokens(self) -> list[int]:
        """The tokens whose rows stand in the cache, in order."""
        return self._cached.copy()

    @property
    def cache_rows(self) -> np.ndarray:
        """The cache itself, uint8 (layers, n_ctx, bytes of a row); for saved_cache.py."""
        return self._state.cache

    def adopt(self, tokens: list[int]) -> None:
        """Take for cached what another wrote into cache_rows: the rows of these tokens, from the first position on."""
        self._cached = self._checked(tokens).tolist() if tokens else []
        self.n_saved = len(tokens)

    def cancel(self) -> None:
        """End the running chat(), generate() or logits() soon, even while a prompt is read; safe in a signal handler."""
        self._cancelled = True
        self._team.cancel()

    def prefill_tokens(self, tokens: Sequence[int], n_ubatch: int = MAX_TOKENS) -> float:
        """Append tokens, n_ubatch in a step, computing the last one's logits; returns the seconds it took. For measurements."""
        ids = self._checked(tokens, room=self.n_ctx - len(self._cached))
        n_step = min(n_ubatch, self._state.max_tokens)
        self._begin()
        self._finite.wait()
        start = time.perf_counter()
        for at in range(0, len(ids), n_step):
            self._step(ids[at : at + n_step], self._last_logits[: int(at + n_step >= len(ids))])
        return time.perf_counter() - start

    def decode_tokens(self, n: int, token: int = 0) -> float:
        """Append one token n times, one step each; returns the seconds it took. For measurements."""
        ids = self._checked([token] * n, room=self.n_ctx - len(self._cached))
        self._begin()
        start = time.perf_counter()
        for i in range(n):
            self._step(ids[i : i + 1], self._last_logits)
        return time.perf_counter() - start

    def _checked(self, tokens: Sequence[int], room: int | None = None) -> np.ndarray:
        """Token ids as int64 (n,): proven to be inside the vocabulary and to fit into the context."""
        room = self.n_ctx if room is None else room
        try:
            ids = np.array(list(tokens), np.int64)  # int64 (n,)
        except (TypeError, ValueError, OverflowError):
            raise UserError("tokens are whole numbers, one for each position", 2) from None
        if not len(ids):
            raise UserError("the prompt is empty: there is nothing to continue", 2)
        if len(ids) > room:
            raise UserError(
                f"the prompt has {len(ids):,} tokens and the context {room:,}; shorten it or ask for a larger context (-c)"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UserError(
                f"token {ids.max() if ids.min() >= 0 else ids.min()} is outside the vocabulary of {self.config.vocab_size:,}", 2
            )
        return ids

    def _begin(self) -> None:
        self._cancelled = False
        self._team.resume()

    def _step(self, ids: np.ndarray, out: np.ndarray) -> bool:
        """Run checked ids through the model behind what is cached; out (n_logits, n_vocab) takes the last tokens' logits, if any.

        Returns False, with the cache as it was, if cancelled.
        """
        return any(self._watched_step(ids, out, None))

    def _watched_step(self, ids: np.ndarray, out: np.ndarray, seconds: float | None) -> Iterator[bool | None]:
        """_step(), with None every so many seconds while it lasts, and its result at last."""
        for watched in self.file.watched:
            watched.check()
        state = self._state
        state.x[: len(ids)] = self.weights.embed(ids)
        state.begin(len(ids), len(self._cached), out)
        for result in self._team.watch(seconds, forward, self.weights.model, self.weights.layers, state.step, state.tail):
            if result is None:
                yield None
            elif result != CANCELLED:
                self._cached.extend(ids.tolist())
        yield result != CANCELLED

    def _decode(self, ids: np.ndarray, sampler: Sampler | ThinkBudget, max_tokens: int | None) -> Iterator[Chunk]:
        """Read the prompt, then choose one token after another. Chunks carry a token, progress, or a finish_reason."""
        self._begin()
        start = time.perf_counter()
        cached = _common_prefix(self._cached, ids.tolist()[:-1])
        self.truncate(cached)
        stats = Stats(n_prompt=len(ids), n_cached=cached, n_prefilled=cached)
        logits = self._last_logits
        yield Chunk(stats=stats)
        for at in range(cached, len(ids), self._state.max_tokens):
            part, done = ids[at : at + self._state.max_tokens], False
            wanted = logits[: int(at + len(part) == len(ids))]  # of the last part only
            for result in () if self._cancelled else self._watched_step(part, wanted, PROGRESS_SECONDS):
                if result is None:  # so many layers of this part are done
                    so_far = at + len(part) * self._team.parts // self.config.num_hidden_layers
                    yield Chunk(stats=replace(stats, n_prefilled=so_far, prompt_seconds=time.perf_counter() - start))
                else:
                    done = result
            if not done:
                yield Chunk(finish_reason="cancelled", stats=replace(stats, prompt_seconds=time.perf_counter() - start))
                return
            stats = replace(stats, n_prefilled=self.n_cached, prompt_seconds=time.perf_counter() - start)
            yield Chunk(stats=stats)
        while not self._finite.wait(0.1) and not self._cancelled:
            pass  # no token is shown before the weights have been looked at
        start, history = time.perf_counter(), ids.tolist()
        while True:
            if self._cancelled:
                yield Chunk(finish_reason="cancelled", stats=stats)
                return
            if stats.n_generated == max_tokens or len(history) > self.n_ctx:
                yield Chunk(finish_reason="length", stats=stats)
                return
            token = sampler.sample(logits[0], history)
            stats = replace(stats, n_generated=stats.n_generated + 1, generate_seconds=time.perf_counter() - start)
            if token in self.tokenizer.eog_ids:
                yield Chunk(token=token, finish_reason="stop", stats=stats)
                return
            history.append(token)
            yield Chunk(token=token, stats=stats)
            if stats.n_generated == max_tokens or len(history) > self.n_ctx:
                continue  # its logits would never be read
            if not self._step(np.array([token], np.int64), logits):
                self._cancelled = True

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: str | Sequence[int], max_tokens: int | None = None, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[Chunk]:
        """Continue a text (no chat format around it, nothing in it becomes a control token) or token ids.

        max_tokens   at most this many new tokens; None: until the model ends or the context is full
        stop         texts that end the answer and do not appear in it
        sampling     temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed; by default as the file advises
        Raises UserError before the first chunk.
        """
        ids = self._checked(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        return self._generate(ids, self.sampler(**sampling), _checked_max_tokens(max_tokens), tuple(stop))

    def _generate(self, ids: np.ndarray, sampler: Sampler, max_tokens: int | None, stop: tuple[str, ...]) -> Iterator[Chunk]:
        stream, held = self.tokenizer.stream(), ""
        for chunk in self._decode(ids, sampler, max_tokens):
            if chunk.token is not None and chunk.finish_reason is None:
                held += stream.push(chunk.token)
            if chunk.finish_reason is not None:
                held += stream.flush()
            found = min((at for at in (held.find(text) for text in stop if text) if at >= 0), default=-1)
            if found >= 0:
                yield replace(chunk, text=held[:found], finish_reason="stop")
                return
            keep = 0 if chunk.finish_reason else max((_overlap(held, text) for text in stop), default=0)
            text, held = held[: len(held) - keep], held[len(held) - keep :]
            yield replace(chunk, text=text)

    def chat(
        self,
        messages: list[dict],
        tools: list[dict] | None = None,
        thinking: bool = True,
        clear_thinking: bool = True,
        think_budget: int | None = None,
        max_tokens: int | None = None,
        json_schema: dict | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """Answer a conversation: OpenAI-shaped messages and tools in, chunks of thinking, answer and tool calls out.

        thinking         let the model think before it answers
        clear_thinking   leave earlier turns' thinking out of the prompt, as the model's makers do by default
        think_budget     close the thinking after so many tokens and go on with the answer; None: the model closes it
        json_schema      the answer, after the thinking, is JSON of this schema, unless it is cut off; not together with tools
        Others as in generate(). Raises UserError before the first chunk.
        """
        if json_schema is not None and tools:
            raise UserError("an answer of a JSON schema and tools exclude each other; leave one out", 2)
        ids = self._checked(self.chat_format.encode(messages, tools=tools, thinking=thinking, clear_thinking=clear_thinking))
        stream, sampler = ChatStream(self.tokenizer, thinking, tools), self.sampler(**sampling)
        if json_schema is not None:
            sampler.constraint = self._grammar.constraint(json_schema, lambda: stream.state == "answer")
        if think_budget is None:
            return self._chat(ids, stream, sampler, _checked_max_tokens(max_tokens))
        close = self.tokenizer.id_of("</think>")
        if close is None:
            raise UserError("this model's vocabulary has no </think>: its thinking cannot be limited", 2)
        limited = ThinkBudget(sampler, think_budget, close, lambda: stream.state == "thinking")
        return self._chat(ids, stream, limited, _checked_max_tokens(max_tokens))

    def prompt_text(
        self, messages: list[dict], tools: list[dict] | None = None, thinking: bool = True, clear_thinking: bool = True
    ) -> str:
        """The prompt of the next answer, as text."""
        return self.chat_format.render(messages, tools, thinking, clear_thinking)

    def count_tokens(
        self, messages: list[dict], tools: list[dict] | None = None, thinking: bool = True, clear_thinking: bool = True
    ) -> int:
        """Tokens of a conversation as the next prompt will repeat it."""
        return len(self.chat_format.encode(messages, tools, thinking, clear_thinking, add_generation_prompt=False))

    def _chat(self, ids: np.ndarray, stream: ChatStream, sampler: Sampler | ThinkBudget, max_tokens: int | None) -> Iterator[Chunk]:
        called = False
        written: list[int] = []
        for chunk in self._decode(ids, sampler, max_tokens):
            if chunk.token is not None and chunk.finish_reason is None:
                written.append(chunk.token)
                delta = stream.push(chunk.token)
            elif chunk.finish_reason is not None:
                delta = stream.finish()
            else:
                yield chunk
                continue
            called = called or bool(delta.tool_calls)
            reason = "tool_calls" if chunk.finish_reason == "stop" and called else chunk.finish_reason
            turn = self.chat_format.turns.written(ids.tolist(), written, stream.state) if reason else None
            yield replace(
                chunk, text=delta.text, reasoning=delta.reasoning, tool_calls=delta.tool_calls or None, finish_reason=reason,
                token_ids=turn,
            )  # fmt: skip

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.tokenizer)

    def sampler(self, **sampling: Any) -> Sampler:
        """A Sampler with the given settings; where one is absent or None, the file's advice or glmrun's default."""
        given = {name: value for name, value in sampling.items() if value is not None}
        return Sampler(**(self._advice | given), forbidden=self.tokenizer.undefined_ids)


def _checked_max_tokens(max_tokens: int | None) -> int | None:
    if max_tokens is not None and (not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1):
        raise UserError(f"max_tokens is {max_tokens!r}; a whole number of at least 1 is expected", 2)
    return max_tokens


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop: it may become a stop text and is held back."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
